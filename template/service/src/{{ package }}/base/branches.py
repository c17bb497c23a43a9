"""Alembic's branches in this tree: the bus's and one per slice, by its name at birth."""

import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from ..bus.discovery import find_slices
from ..bus.engines import Database
from ..bus.loading import what_broke

_BASE = Path(__file__).parent
_VERSIONS = sa.table("alembic_version", sa.column("version_num"))
_REVISION = re.compile(r"^revision\b[^=\n]*=\s*[\"']([^\"']+)", re.MULTILINE)
# alembic_version.version_num is a VARCHAR(32); SQLite alone would take more.
_LONGEST_ID = 32


def birth_name(revision: str) -> str:
    """The slice that a revision belongs to: `payments_0002` is of `payments`."""
    return revision.rpartition("_")[0]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a database compares with the code.

    behind: heads of the code that the database lacks. newer: heads of the database that belong to
    slices of this tree and that the code does not know.
    """

    behind: list[str]
    newer: list[str]


class Branches:
    """The branches whose revisions are in this tree; slices that run elsewhere have none here.

    package is the service's, such as 'shop'. Raises WiringError if the slices are not in order, and
    CommandError if their revisions are not: one is missing or broken, or two files have one id.
    """

    def __init__(self, package: str) -> None:
        slices = find_slices(package)
        self.slices = slices
        self.folders = {"bus": _BASE.parent / "bus" / "migrations"} | {
            one.name: one.migrations for one in slices if not one.contracts_only
        }
        self._names = {"bus", *(one.name for one in slices)}
        self.files = self._find_files()
        self.scripts = ScriptDirectory.from_config(self.config())
        self.heads = self._find_heads()

    def config(self) -> Config:
        """Alembic's configuration, in place of an alembic.ini."""
        config = Config()
        locations = "\n".join(str(folder) for folder in self.folders.values())
        for option, value in {
            "script_location": str(_BASE / "migrations"),
            "version_locations": locations,
            "path_separator": "newline",
        }.items():
            config.set_main_option(option, value.replace("%", "%%"))
        return config

    def _find_files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self.folders.values():
            for path in sorted(folder.glob("*.py")):
                match = _REVISION.search(path.read_text(encoding="utf-8"))
                if match is None:
                    continue
                if other := found.get(match[1]):
                    raise CommandError(
                        f"two files have the revision id {match[1]!r}: {other} and {path}. The one"
                        " that no database has seen yet must come second: give it the next id, and"
                        " the other's id as its down_revision."
                    )
                found[match[1]] = path
        return found

    def _find_heads(self) -> list[str]:
        with warnings.catch_warnings():
            # Alembic only warns of a file that is missing, and breaks on it later.
            warnings.filterwarnings("error", category=UserWarning, module=r"alembic\.script")
            try:
                return sorted(self.scripts.get_heads())
            except (UserWarning, RevisionError, CommandError) as error:
                raise CommandError(str(error)) from error
            except Exception as error:
                broken = what_broke(error, _BASE.parent / "slices", "migrations")
                raise CommandError(broken) from error

    def named(self, name: str) -> str:
        """The birth name of a slice, given that or its folder's. Raises CommandError."""
        if found := self.find(name):
            return found
        raise CommandError(f"no slice {name!r} here; there are: {', '.join(sorted(self.folders))}")

    def find(self, name: str) -> str | None:
        """The same, or None if no slice is called so."""
        if name in self.folders:
            return name
        found = (one.name for one in self.slices if one.path.name == name)
        return next((one for one in found if one in self.folders), None)

    def has_revisions(self, name: str) -> bool:
        """Whether the slice's branch has begun."""
        return any(birth_name(one) == name for one in self.files)

    def next_revision(self, name: str) -> str:
        """The next revision id of a slice. Raises CommandError if it is too long for Alembic."""
        endings = [one[len(name) + 1 :] for one in self.files if birth_name(one) == name]
        numbers = [int(ending) for ending in endings if ending.isdecimal()]
        revision = f"{name}_{max(numbers, default=0) + 1:04}"
        if len(revision) > _LONGEST_ID:
            raise CommandError(
                f"revision id {revision!r} is longer than the {_LONGEST_ID} characters that"
                " Alembic stores: the slice needs a shorter NAME"
            )
        return revision

    def owner(self, table: str, stored: Iterable[str]) -> str | None:
        """The slice that a table belongs to: the longest name that the table's starts with.

        stored are the heads in the database: a slice that is gone still owns its tables.
        """
        names = self._names.union(map(birth_name, stored))
        owners = [name for name in names if table == name or table.startswith(f"{name}_")]
        return max(owners, key=len, default=None)

    def newer(self, stored: Collection[str]) -> list[str]:
        """Those heads of a database that belong to slices of this tree, but are not in the code."""
        return sorted(
            head for head in stored if head not in self.files and birth_name(head) in self.folders
        )

    async def compare(self, database: Database) -> Comparison:
        """How the database compares with the code."""
        async with database.worker_reader.connect() as connection:
            stored = await connection.run_sync(_stored_heads)
        newer = self.newer(stored)
        ahead = set(map(birth_name, newer))
        return Comparison(
            [one for one in self.heads if one not in stored and birth_name(one) not in ahead],
            newer,
        )


def _stored_heads(connection: sa.Connection) -> set[str]:
    if not sa.inspect(connection).has_table(_VERSIONS.name):
        return set()
    return set(connection.scalars(sa.select(_VERSIONS.c.version_num)))
