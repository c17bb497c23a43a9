"""Temporary tables in the place of live ones, and a refusal to write to any other."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from ..errors import OperationError


async def make_like(connection: AsyncConnection, table: sa.Table) -> tuple[sa.Table, sa.Table]:
    """Make a temporary table that is like the live one, without its rows.

    From now on it is what the name means on this connection. Returns the live table and the
    temporary one, each under a name that does not mean the other. Raises OperationError if there is
    no live one.
    """
    make = _make_on_sqlite if connection.dialect.name == "sqlite" else _make_on_postgresql
    live, temporary = await make(connection, table)
    both = sa.MetaData()
    return table.to_metadata(both, schema=live), table.to_metadata(both, schema=temporary)


@asynccontextmanager
async def writing_nothing_else(session: AsyncSession) -> AsyncIterator[None]:
    """Write inside to temporary tables only: for others the database raises what is_refused."""
    connection = await session.connection()
    if connection.dialect.name == "postgresql":
        async with session.begin_nested():
            # Ends with the savepoint.
            await session.execute(_READ_ONLY)
            yield
        return
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.set_authorizer(_authorize)
    try:
        async with session.begin_nested():
            yield
    finally:
        await driver.set_authorizer(None)


def is_refused(error: DBAPIError) -> bool:
    """Whether something else was to be written to."""
    return getattr(error.orig, "sqlstate", "") == "25006" or "not authorized" in str(error.orig)


async def _make_on_sqlite(connection: AsyncConnection, table: sa.Table) -> tuple[str, str]:
    """The schemas of the live table and of the temporary one."""
    statements = (await connection.scalars(_SOURCE, {"name": table.name})).all()
    if not statements:
        raise _not_there(table)
    for statement in statements:
        temporary = statement.replace("CREATE TABLE", "CREATE TEMPORARY TABLE", 1)
        await connection.exec_driver_sql(temporary)
    return "main", "temp"


async def _make_on_postgresql(connection: AsyncConnection, table: sa.Table) -> tuple[str, str]:
    """The schemas of the live table and of the temporary one."""
    schema: str | None = await connection.scalar(_SCHEMA, {"name": table.name})
    if schema is None:
        raise _not_there(table)
    preparer = connection.dialect.identifier_preparer
    name = preparer.format_table(table)
    await connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE {name} (LIKE {preparer.quote(schema)}.{name} INCLUDING ALL)"
    )
    return schema, "pg_temp"


def _not_there(table: sa.Table) -> OperationError:
    return OperationError(f"The database has no table {table.name}: run `db upgrade` first.")


def _authorize(action: int, _: str | None, __: str | None, schema: str | None, *___: object) -> int:
    is_write = action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
    return sqlite3.SQLITE_DENY if is_write and schema == "main" else sqlite3.SQLITE_OK


_READ_ONLY = sa.text("SET TRANSACTION READ ONLY")
# Tables before indexes, as they depend on each other.
_SOURCE = sa.text(
    "SELECT sql FROM main.sqlite_master WHERE tbl_name = :name AND sql IS NOT NULL"
    " AND type IN ('table', 'index') ORDER BY type DESC"
)
_SCHEMA = sa.text(
    "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.oid = to_regclass(quote_ident(:name))"
)
