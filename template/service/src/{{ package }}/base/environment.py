"""How migrations run: connection, lock and transaction, and what autogenerate may propose."""

import asyncio
import logging
from collections.abc import MutableMapping
from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _repr_type
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection

from ..bus import tables
from ..bus.engines import UNREACHABLE, Database
from ..bus.exact import Exact
from .branches import Branches, birth_name
from .database import Base
from .rescaling import rescale

_log = logging.getLogger(__name__)

# Any number that nothing else locks.
_LOCK = sa.text("SELECT pg_advisory_xact_lock(7542915836)")


class Environment:
    """What env.py runs. only names the slice that a new revision is for, if one is."""

    def __init__(self, branches: Branches, url: str, *, only: str | None = None) -> None:
        self._branches = branches
        self._database = Database(url)
        self._only = only
        self._stored: tuple[str, ...] = ()
        # The slices that have a model of a table, by its name.
        self._homes: dict[str, str] = {}

    def run(self) -> None:
        """Run the command that Alembic is at. Raises CommandError."""
        if context.is_offline_mode():
            self._write_sql()
        else:
            asyncio.run(self._connect())

    def _write_sql(self) -> None:
        context.configure(
            url=self._database.url,
            literal_binds=True,
            dialect_opts={"paramstyle": "named"},
            transactional_ddl=True,
        )
        with context.begin_transaction():
            context.run_migrations()

    async def _connect(self) -> None:
        if self._database.dialect == "sqlite":
            event.listen(self._database.writer.sync_engine, "connect", _foreign_keys_off)
        try:
            await self._reach()
            async with self._database.writer.connect() as connection:
                await connection.run_sync(self._migrate)
        finally:
            await self._database.close()

    async def _reach(self) -> None:
        try:
            async with self._database.writer.connect():
                pass
        except UNREACHABLE as error:
            raise CommandError(self._database.unreachable(error)) from error

    def _migrate(self, connection: Connection) -> None:
        context.configure(
            connection=connection,
            target_metadata=[tables.metadata, Base.metadata],
            transactional_ddl=True,
            render_as_batch=True,
            render_item=_render_item,
            include_name=self._include_name,
            include_object=self._include_object,
            process_revision_directives=self._complete,
        )
        migration = context.get_context()
        self._hide_strangers(migration)
        if "revision_context" in migration.opts:  # the models are compared with the database
            for one in self._branches.slices:
                list(one.modules())
            self._homes = self._find_homes()
        with context.begin_transaction():
            # `current` only looks: it must not wait for a long migration.
            if self._database.dialect == "postgresql" and not migration.opts.get("dont_mutate"):
                connection.execute(_LOCK)
            context.run_migrations()
            if self._database.dialect == "sqlite":
                _check_foreign_keys(connection)

    def _hide_strangers(self, migration: MigrationContext) -> None:
        """Heads of slices that are not in this tree would stop every command of Alembic."""
        read = migration.get_current_heads

        def known_heads() -> tuple[str, ...]:
            self._stored = read()
            self._tell_newer(refuse=not migration.opts.get("dont_mutate"))
            heads = {head for head in self._stored if head in self._branches.files}
            if self._only is None:
                return tuple(heads)
            # For a revision of one slice it does not matter whether the others are up to date.
            others = {one for one in self._branches.heads if birth_name(one) != self._only}
            return (*others, *(head for head in heads if birth_name(head) == self._only))

        migration.get_current_heads = known_heads  # type: ignore[method-assign]

    def _tell_newer(self, *, refuse: bool) -> None:
        if not (newer := self._branches.newer(self._stored)):
            return
        message = (
            f"the database is newer than this code: it is at {', '.join(newer)}, and no file here"
            " has that revision. Use the code that has it, or downgrade with that code first."
        )
        if refuse:
            raise CommandError(message)
        _log.warning(message)

    def _include_name(
        self, name: str | None, kind: str, parents: MutableMapping[Any, str | None]
    ) -> bool:
        return kind != "table" or name is None or self._proposes(self._owner(name))

    def _include_object(
        self, item: object, name: str | None, kind: str, reflected: bool, other: object
    ) -> bool:
        if kind != "table" or name is None:
            return True
        owner = self._owner(name)
        home = self._homes.get(name, owner)
        if home != owner and owner in self._branches.folders:
            raise CommandError(
                f"table {name!r} of the slice {home} would be taken for one of {owner}, whose name"
                " its own begins with: rename the table, or the slice that is newer"
            )
        if not reflected and owner not in self._branches.folders:
            raise CommandError(
                f"table {name!r}: every table starts with its slice's name, and this one"
                + (f" belongs to {owner!r}, which is not here" if owner else " with none")
            )
        return self._proposes(owner)

    def _find_homes(self) -> dict[str, str]:
        return {
            str(mapper.local_table): one.name
            for one in self._branches.slices
            for mapper in Base.registry.mappers
            if mapper.class_.__module__.startswith(f"{one.package}.")
        }

    def _owner(self, table: str) -> str | None:
        return self._branches.owner(table, self._stored)

    def _proposes(self, owner: str | None) -> bool:
        return owner in self._branches.folders and self._only in (None, owner)

    def _complete(self, _: MigrationContext, __: object, scripts: list[MigrationScript]) -> None:
        for one in scripts:
            rescale(one)
        if self._only and all(one.upgrade_ops_list[0].is_empty() for one in scripts):
            scripts.clear()
            context.config.print_stdout(
                f"The tables of {self._only} have not changed. --empty writes a revision anyway."
            )


def _render_item(kind: str, item: Any, context: AutogenContext) -> str | Literal[False]:
    """Migrations outlive the types of this code: only SQLAlchemy's own are written into them."""
    if kind != "type":
        return False
    if isinstance(item, sa.Enum) and item.native_enum:
        raise CommandError(
            f"the enum {item.name!r} would be a type of PostgreSQL's, which belongs to no slice and"
            " is no part of any revision: write sa.Enum(…, native_enum=False, length=50), or only"
            " Mapped[…], which means that"
        )
    if isinstance(item, sa.Enum) and not item.create_constraint:
        # Which members there are changes nothing in the database.
        return f"sa.String({item.length})"
    if isinstance(item, Exact):
        return f"sa.Numeric({item.precision}, {item.scale})"
    if isinstance(item, postgresql.JSON):
        # Alembic would write its text type, too, and on SQLite without a prefix.
        context.imports.add("from sqlalchemy.dialects import postgresql")
        return f"postgresql.{type(item).__name__}()"
    if isinstance(item, postgresql.ARRAY) and item.dimensions is None:
        context.imports.add("from sqlalchemy.dialects import postgresql")
        return f"postgresql.ARRAY({_repr_type(item.item_type, context)})"
    if not isinstance(item, sa.TypeDecorator) or type(item).__module__.startswith("sqlalchemy."):
        return False
    return _repr_type(item.impl_instance, context)


def _foreign_keys_off(connection: Any, _: object) -> None:
    # SQLite changes a table by copying it and dropping the old one, which deletes what refers to it
    # if foreign keys are on; inside a transaction they cannot be switched off.
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


def _check_foreign_keys(connection: Connection) -> None:
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        tables_ = ", ".join(sorted({f"{row[0]} -> {row[2]}" for row in broken}))
        raise CommandError(f"{len(broken)} rows would refer to rows that are not there: {tables_}")
