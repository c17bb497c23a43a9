<%
    import textwrap

    def body_of(code):
        """The code, indented as a body, without what Alembic writes for nobody."""
        lines = f"    {code or ''}".replace(", schema=None) as batch_op:", ") as batch_op:").splitlines()
        return "\n".join(line for line in lines if "# ###" not in line).rstrip() or "    pass"

    up, down = body_of(upgrades), body_of(downgrades)
    sentence = message.strip().replace("\\", "/").replace('"', "'")
    sentence = sentence[:1].upper() + sentence[1:] + ("" if sentence.endswith((".", "!", "?")) else ".")
    title = textwrap.fill(sentence, 90)
%>"""${title}"""
% if "op." in up + down:

% if "sa." in up + down:
import sqlalchemy as sa
% endif
from alembic import op
% endif
% if imports:
${imports}
% endif

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
${up}


def downgrade() -> None:
${down}
