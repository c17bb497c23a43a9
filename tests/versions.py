"""Versions of the template for tests of updates: earlier ones, and later ones made up."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Template, commit_all, git, template_repository

SERVICE = Path("template/service")
SLICE = Path("template/slice")
BUS = SERVICE / "src" / "{{ package }}" / "bus"

# Before it, tables that are written once had other columns: decimals on SQLite, and processes.
_FIRST_VALID = "7e7269cd539e0f9f599d75aeb35d118c4d3b4eec"
_LATER = "4455b5909074f950f6a2092c785b9ed9ab3b0441"

_MARK = re.compile(r"(?m)^(?:# |## )?Template version \d+\.\n")
_COLUMN = '    sa.Column("version_{}", sa.Integer()),\n'
_MIGRATION = '''"""Template version {number}."""

import sqlalchemy as sa
from alembic import op

revision = "bus_{own:04}"
down_revision = "bus_{last:04}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("bus_log") as batch:
        batch.add_column(sa.Column("version_{number}", sa.Integer()))


def downgrade() -> None:
    with op.batch_alter_table("bus_log") as batch:
        batch.drop_column("version_{number}")
'''


@dataclass(frozen=True)
class Versions:
    """A repository of the template that a test may change, with a tag for each version of it."""

    path: Path

    def at(self, tag: str) -> Template:
        """The template at a version."""
        return Template(self.path, tag)

    def release(self, tag: str) -> Template:
        """Commit what was changed, and tag it."""
        commit_all(self.path, tag)
        git(self.path, "tag", tag)
        return self.at(tag)

    def release_next(self, number: int) -> Template:
        """Release `number`.0.0: every file of a service and of a slice is another, also the bus's
        tables; one file is new, and that of the version before is gone.

        Only what is written once, a first migration, and earlier migrations stay as they are.
        """
        self.change_everything(number)
        return self.release(f"{number}.0.0")

    def change_everything(self, number: int) -> None:
        """What release_next releases, not committed yet."""
        for kind in (SERVICE, SLICE):
            for file in sorted((self.path / kind).rglob("*")):
                if file.is_file() and not _is_revision(file):
                    _mark(file, number)
        self._replace_file(SERVICE / "src" / "{{ package }}" / "base", number)
        self._replace_file(SLICE, number)
        if (self.path / BUS / "tables.py").exists():
            self._add_column(number)

    def _replace_file(self, folder: Path, number: int) -> None:
        (self.path / folder).mkdir(exist_ok=True)
        (self.path / folder / f"version_{number - 1}.py").unlink(missing_ok=True)
        (self.path / folder / f"version_{number}.py").write_text(f'"""Version {number}."""\n')

    def _add_column(self, number: int) -> None:
        bus = self.path / BUS
        tables = bus / "tables.py"
        content = tables.read_text()
        head, found, tail = content.rpartition(")\n")
        assert found
        assert '"bus_log"' in head.rpartition("\n\n")[2]
        tables.write_text(head + _COLUMN.format(number) + found + tail)
        last = max(int(file.name[4:8]) for file in (bus / "migrations").glob("bus_*.py"))
        migration = _MIGRATION.format(number=number, own=last + 1, last=last)
        name = f"bus_{last + 1:04}_version_{number}.py"
        (bus / "migrations" / name).write_text(migration)


def current(folder: Path, tag: str = "1.0.0") -> Versions:
    """The template as it is now, uncommitted changes included, as its first version."""
    template_repository(folder)
    git(folder, "tag", tag)
    return Versions(folder)


def thin(folder: Path) -> Versions:
    """A template, not released yet, whose services can follow it and nothing else: fast."""
    folder.mkdir(parents=True, exist_ok=True)
    template_repository(folder, contents=False)
    package = SERVICE / "src" / "{{ package }}"
    for file in (
        *(package / name for name in ("__init__.py", "__main__.py", "cli_template.py")),
        *(
            SLICE / name
            for name in ("__init__.py.jinja", "{% if state %}models.py{% endif %}.jinja")
        ),
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    (folder / SERVICE / ".gitignore").write_text("__pycache__/\n")
    return Versions(folder)


def history(folder: Path) -> tuple[Versions, list[str]]:
    """This repository with the template as it is now as its newest commit; versions before that.

    Those are all that were released, the oldest first; as long as there are none, an early commit
    and a later one.

    Skips the test where there is no history: in a shallow clone, or in an archive.
    """
    done = subprocess.run(
        ["git", "clone", "--quiet", ROOT, folder], capture_output=True, text=True, check=False
    )
    if done.returncode or (folder / ".git" / "shallow").exists():
        pytest.skip("needs the history of this repository")
    tags = git(folder, "tag", "--sort=version:refname").splitlines()
    earlier = [tag for tag in tags if tag[0].isdigit()]
    if not earlier:
        earlier = [_FIRST_VALID, _LATER]
    for name in ("copier.yml", "template"):
        git(folder, "rm", "--quiet", "-r", name)
    template_repository(folder)
    return Versions(folder), earlier


def _is_revision(file: Path) -> bool:
    return re.search(r"_\d{4}_", file.name) is not None


def _mark(file: Path, number: int) -> None:
    """Say the version in the file: at its head, or behind what has to come first."""
    content = _MARK.sub("", file.read_text())
    if ".md" in file.suffixes:
        content += f"\nTemplate version {number}.\n"
    elif file.suffix == ".mako":
        content = f"## Template version {number}.\n{content}"
    else:
        head, call, body = content.rpartition("{% call module() -%}\n")
        content = f"{head}{call}# Template version {number}.\n{body}"
    file.write_text(content)
