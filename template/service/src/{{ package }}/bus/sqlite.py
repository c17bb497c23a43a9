"""SQLite: an engine that keeps to what SQLite can do, and that is quick to ask."""

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Self, TypeVar
from urllib.parse import unquote, urlsplit

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolResetState

from .ownership import Owner, refusal

R = TypeVar("R")

# In a connection's info: a nested query was cut off, and SQLite still refuses to write. Only then
# is it told otherwise, because that makes it forget its prepared statements.
LEFT_READONLY = "left_readonly"

# Rows that come with the call that executes a statement; more are fetched when they are asked for.
_FIRST_ROWS = 500


class _Cursor(aiosqlite.Cursor):
    """A statement is one call to the driver's thread, where aiosqlite's own makes up to four."""

    _conn: "SQLiteConnection"

    def __init__(self, connection: "SQLiteConnection") -> None:
        # What is behind it comes with the first statement, as only the thread may make it.
        super().__init__(connection, None)  # type: ignore[arg-type]
        self._rows: list[Any] = []
        self._has_more = False

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        return await self._start(sqlite3.Connection.execute, sql, parameters or ())

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        return await self._start(sqlite3.Connection.executemany, sql, parameters)

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        if self._has_more:
            rows += await super().fetchall()
        return rows

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        size = size or self.arraysize
        rows, self._rows = self._rows[:size], self._rows[size:]
        if self._has_more and len(rows) < size:
            rows += await super().fetchmany(size - len(rows))
        return rows

    async def fetchone(self) -> Any:
        rows = await self.fetchmany(1)
        return rows[0] if rows else None

    async def close(self) -> None:
        if self._has_more:
            await super().close()

    async def _start(self, method: Callable[..., sqlite3.Cursor], sql: str, given: Any) -> Self:
        if self._conn.owner is not None:
            self._conn.owner.check(sql)
        start = partial(_first_rows, self._conn, method, sql, given)
        self._cursor, self._rows, self._has_more = await self._conn.run(start)
        return self


class SQLiteConnection(aiosqlite.Connection):
    """A connection with such cursors, which knows whether others have committed.

    A transaction begins with its first statement, in the same call. began: when it did and had its
    lock, by `perf_counter`; None before. is_left: what it was asked last may still run in the
    thread, as nobody waited for it.
    """

    owner: Owner | None = None
    began: float | None = None
    is_left = False
    readonly = False
    # What the next statement begins with.
    _begin: str | None = None
    _version: int | None = None
    _on_others: Callable[[], None] | None = None

    def cursor(self) -> _Cursor:  # type: ignore[override]
        return _Cursor(self)

    def begin(self, on_others: Callable[[], None] | None) -> None:
        """Begin a transaction with the next statement; on_others as for the engine."""
        self.began, self._on_others = None, on_others
        self._begin = "BEGIN" if on_others is None else "BEGIN IMMEDIATE"

    async def run(self, call: Callable[[], R]) -> R:
        """Run what executes a statement; tell of others if they have committed."""
        before, self.is_left = self._version, True
        try:
            result: R = await self._execute(call)  # type: ignore[no-untyped-call]
        except Exception:
            self.is_left = False
            raise
        finally:
            if self._on_others is not None and self._version != before:
                self._on_others()
        self.is_left = False
        return result

    async def commit(self) -> None:
        if self.owner is not None and not self.owner.is_over:
            # Reached around the session. SQLAlchemy takes the transaction for ended in any case.
            await self.rollback()
            raise refusal("connection().commit")
        self._begin = self.owner = None
        await super().commit()

    async def rollback(self) -> None:
        if self.owner is not None:
            self.owner.is_cut_off, self.owner = True, None
        self._begin = None
        if self.readonly:
            # Nobody has to wait for it: the thread does one thing after the other.
            self._tx.put_nowait((None, self._conn.rollback))
        else:
            await super().rollback()
        self.is_left = False

    def begin_now(self, connection: sqlite3.Connection) -> None:
        """Begin what is to begin with this statement; in the thread."""
        begin = self._begin
        if begin is None:
            return
        connection.execute(begin)
        self.began, self._begin = perf_counter(), None
        if self._on_others is not None:
            # Only where it has the lock: who has begun to read may not come to write.
            (self._version,) = connection.execute("PRAGMA data_version").fetchone()


def _first_rows(
    driver: SQLiteConnection, method: Callable[..., sqlite3.Cursor], sql: str, given: Any
) -> tuple[sqlite3.Cursor, list[Any], bool]:
    connection = driver._conn
    driver.begin_now(connection)
    # Outside of a transaction it would commit by itself: whatever still runs when its unit of work
    # is rolled back.
    if not connection.in_transaction and not sql.startswith("PRAGMA"):
        raise sqlite3.ProgrammingError("The transaction of this statement is over.")
    try:
        cursor = method(connection, sql, given)
    except OverflowError as error:
        # A number that is too large for the database is its error, as PostgreSQL's driver has it.
        raise sqlite3.DataError(*error.args) from error
    rows = cursor.fetchmany(_FIRST_ROWS) if cursor.description else []
    has_more = len(rows) == _FIRST_ROWS
    if not has_more:
        cursor.close()
    return cursor, rows, has_more


def file_of(url: URL) -> tuple[str, bool]:
    """The file as SQLite is given it, and whether that is a URI: file:NAME?mode=…"""
    (name,), options = url.get_dialect()().create_connect_args(url)
    return name, options.get("uri", False)


def _connect(readonly: bool, *args: Any, **options: Any) -> SQLiteConnection:
    connection = SQLiteConnection(partial(sqlite3.connect, *args, **options), _FIRST_ROWS)
    connection.readonly = readonly
    # As SQLAlchemy does with those that it makes: a thread that is left ends with the process.
    connection._thread.daemon = True
    return connection


def sqlite_engine(
    url: URL,
    *,
    pool_size: int,
    readonly: bool = False,
    on_others: Callable[[], None] | None = None,
) -> AsyncEngine:
    """An engine for a file.

    on_others: its transactions lock the file as they begin; called when others may have committed
    since the one before. Without it they lock nothing before they write.
    """
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=pool_size,
        max_overflow=0,
        # By on_reset, only where there is something to roll back.
        pool_reset_on_return=None,
        # The driver's own transaction handling would leave SELECTs outside of transactions.
        connect_args={
            "isolation_level": None,
            "timeout": float(str(url.query.get("timeout", 30))),
            "async_creator_fn": partial(_connect, readonly),
        },
    )
    name, is_uri = file_of(url)
    file = Path(unquote(urlsplit(name).path) if is_uri else name)

    def on_do_connect(*_: object) -> None:
        # Left to find out by itself, the driver's thread ends in a traceback of its own.
        if not file.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {file.parent}")
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder")
        # SQLite would open it, and not write to it even when it can be written to again.
        if not readonly and file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(f"{file} is read-only")

    def on_connect(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA query_only = {int(readonly)}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        if connection.info.pop(LEFT_READONLY, False):
            connection.exec_driver_sql("PRAGMA query_only = 0")
        driver: Any = connection.connection.driver_connection
        driver.begin(on_others)

    def on_invalidate(connection: Any, *_: object) -> None:
        # Closing alone would not end the transaction of a cancelled statement: SQLite keeps it, and
        # the write lock, for as long as anything (such as a traceback) refers to the statement.
        with suppress(Exception):
            connection.rollback()

    def on_reset(connection: Any, _: object, state: PoolResetState) -> None:
        # A commit that SQLite refuses leaves the transaction, and its write lock, as they were.
        driver: SQLiteConnection = connection.driver_connection
        # One that only reads was told to roll back, and may be about to.
        is_open = driver.in_transaction and not readonly
        if state.asyncio_safe and (is_open or driver.is_left):
            connection.rollback()

    event.listen(engine.sync_engine, "do_connect", on_do_connect)
    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "reset", on_reset)
    event.listen(engine.sync_engine, "invalidate", on_invalidate)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine
