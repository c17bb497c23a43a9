<%
    import textwrap

    def body_of(code):
        """The code, indented as a body, without the comments that Alembic writes around it."""
        lines = f"    {code or ''}".splitlines()
        return "\n".join(line for line in lines if "# ###" not in line).rstrip() or "    pass"

    up, down = body_of(upgrades), body_of(downgrades)
    title = textwrap.fill(message.replace("\\", "/").replace('"', "'"), 90)
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
