"""The database as engines: to write, to read, for queries, and for what workers ask."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import asyncpg
from sqlalchemy import event, exc, make_url
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .errors import NoConnectionError, WiringError
from .postgresql import PostgreSQLConnection
from .session import watch
from .sqlite import sqlite_engine

# What a connection that cannot be made raises; asyncpg's own errors come as they are.
UNREACHABLE = (OSError, exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)

# Of PostgreSQL: the connection was lost, or the server shuts down or starts.
_CONNECTION_LOST = ("08", "57P")

# Connections that a worker keeps for itself; up to ten more where it is busy.
_WORKERS_OWN = 2

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME"

# What may follow the ? of a URL; SQLite itself knows the second ones, in the name of a file.
_OPTIONS = {
    "postgresql": ("host", "port", "ssl", "sslmode", "prepared_statement_cache_size"),
    "sqlite": ("uri", "timeout", "cached_statements"),
}
_OF_FILES = ("mode", "cache", "immutable", "modeof", "nolock", "psow", "vfs")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_IS_COUNT = (r"\d{1,9}", "a number")
_IS_SSL_MODE = ("|".join(_SSL_MODES), f"one of {', '.join(_SSL_MODES)}")
_LAST_PORT = 65535
# What options have to look like, if that is not left to the server or to SQLite.
_LOOKS = {
    "ssl": _IS_SSL_MODE,
    "sslmode": _IS_SSL_MODE,
    "prepared_statement_cache_size": _IS_COUNT,
    "cached_statements": _IS_COUNT,
    "timeout": (r"\d{1,9}(\.\d{1,9})?", "a number of seconds"),
    "uri": ("true|1", "true"),
}


class Database:
    """A database by its URL, `sqlite:///shop.db` or `postgresql://user:password@host/name`.

    replica: the URL of a PostgreSQL server that follows this one; queries ask that instead. Raises
    WiringError for any other kind of database, for SQLite in memory, which the writer and the
    readers could not share, and for options that the driver does not know.
    """

    def __init__(self, url: str, *, replica: str | None = None, pool_size: int = 10) -> None:
        # On SQLite one delivery at a time queues for the only writer: requests need not wait for
        # more than one.
        self.turn = asyncio.Lock()
        self.url, self._given, self._replica = _async_url(url), url, replica
        self.dialect = self.url.get_backend_name()
        # SQLite: how often this process has committed, and what to do when others have.
        self.commits = 0
        self.on_others: Callable[[], None] = lambda: None
        if self.dialect == "sqlite":
            # One writer per process: more only wait for each other inside SQLite, and longer.
            self.writer = sqlite_engine(self.url, pool_size=1, on_others=lambda: self.on_others())
            event.listen(self.writer.sync_engine, "commit", self._count_commit)
            self.reader = sqlite_engine(self.url, pool_size=pool_size, readonly=True)
            self.worker, self.worker_reader = self.writer, self.reader
        else:
            self.writer = _postgresql_engine(self.url, pool_size=pool_size)
            self.reader = self.writer.execution_options(postgresql_readonly=True)
            # For what a worker asks for itself: requests that take all other connections, and keep
            # them, must not cost it its leases.
            self.worker = _postgresql_engine(self.url, pool_size=_WORKERS_OWN)
            self.worker_reader = self.worker.execution_options(postgresql_readonly=True)
        watch(self.writer)
        # PostgreSQL: for a single statement, which is its own transaction.
        self.autocommit = self.worker.execution_options(isolation_level="AUTOCOMMIT")
        # What the units of work of queries read from: nothing else may lag behind.
        self.queries = self.reader
        if replica is not None:
            engine = _postgresql_engine(self._replica_url(replica), pool_size=pool_size)
            self.queries = engine.execution_options(postgresql_readonly=True)

    def __str__(self) -> str:
        """The URL as it was given, but for the password."""
        return make_url(self._given).render_as_string()

    def apart(self) -> AsyncEngine:
        """An engine for one connection more, whose transactions lock nothing before they write."""
        if self.dialect == "sqlite":
            return sqlite_engine(self.url, pool_size=1)
        return _postgresql_engine(self.url, pool_size=1)

    @property
    def has_replica(self) -> bool:
        """Whether queries ask another server."""
        return self._replica is not None

    def unreachable(self, error: BaseException, *, replica: bool = False) -> str:
        """What to tell of an error in UNREACHABLE, in one line and without the password."""
        cause = getattr(error, "orig", None) or error
        text = " ".join(str(cause).split()) or type(cause).__name__
        which = f"database {self}"
        if replica and self._replica is not None:
            which = f"replica {make_url(self._replica).render_as_string()}"
        return f"The {which} cannot be reached: {text}"

    async def close(self) -> None:
        """Close all connections; the engines open new ones if they are used again."""
        await self.writer.dispose()
        if self.dialect == "sqlite":
            await self.reader.dispose()
        else:
            await self.worker.dispose()
        if self.has_replica:
            await self.queries.dispose()

    def _count_commit(self, _: object) -> None:
        self.commits += 1

    def _replica_url(self, text: str) -> URL:
        url = _async_url(text, "DATABASE_REPLICA_URL")
        if "sqlite" in (self.dialect, url.get_backend_name()):
            raise WiringError(
                "DATABASE_REPLICA_URL: expected a PostgreSQL server that follows the one of"
                " DATABASE_URL; SQLite has no replicas. Remove it, or move both to PostgreSQL."
            )
        return url


def is_away(error: BaseException) -> bool:
    """Whether this came of a database that cannot be reached, or was lost on the way."""
    if isinstance(error, exc.DBAPIError):
        code = getattr(error.orig, "sqlstate", None) or ""
        return error.connection_invalidated or code.startswith(_CONNECTION_LOST)
    return isinstance(error, ConnectionError)


def _async_url(text: str, setting: str = "DATABASE_URL") -> URL:
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        # What was found is not told: it may hold a password.
        raise WiringError(f"{setting}: expected {_FORMS}, got no URL") from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise WiringError(f"{setting}: expected {_FORMS}, got {backend}://")
    if "%00" in text or "\0" in text:
        raise WiringError(f"{setting}: expected no %00, which no name can have in it")
    _refuse_options(url, backend, setting)
    if backend == "sqlite":
        _refuse_file(url, setting)
    elif "sslmode" in url.query:
        # What the driver calls it.
        others = url.difference_update_query(["sslmode"])
        url = others.update_query_dict({"ssl": url.query["sslmode"]})
    url = url.set(drivername=_DRIVERS[backend])
    _refuse_hosts(url, setting)
    return url


def _refuse_options(url: URL, backend: str, setting: str) -> None:
    known = _OPTIONS[backend]
    if backend == "sqlite" and "uri" in url.query:
        known += _OF_FILES
    if unknown := sorted(url.query.keys() - {*known}):
        hint = " PGSSLROOTCERT, PGSSLCERT and PGSSLKEY in the environment name certificates."
        if backend == "sqlite":
            hint = " What SQLite knows itself needs sqlite:///file:NAME?uri=true&…"
        raise WiringError(
            f"{setting}: expected options among {', '.join(known)}, got {', '.join(unknown)}."
            f" Remove it.{hint}"
        )
    for name in url.query.keys() & _LOOKS.keys():
        (pattern, meaning), value = _LOOKS[name], url.query[name]
        if not (isinstance(value, str) and re.fullmatch(pattern, value)):
            raise WiringError(f"{setting}: expected {name} to be {meaning}")


def _refuse_file(url: URL, setting: str) -> None:
    name = url.database or ":memory:"
    if ":memory:" in name or url.query.get("mode") == "memory" or "vfs" in url.query:
        raise WiringError(f"{setting}: expected a file, such as sqlite:///shop.db")
    if "uri" in url.query and not name.startswith("file:"):
        raise WiringError(f"{setting}: expected uri=true behind sqlite:///file:NAME only")
    if url.host or url.port or url.username or url.password:
        raise WiringError(f"{setting}: expected a file behind three slashes, sqlite:///FILE")


def _refuse_hosts(url: URL, setting: str) -> None:
    try:
        _, given = url.get_dialect()().create_connect_args(url)
    except (exc.ArgumentError, ValueError):
        raise WiringError(
            f"{setting}: expected a port, or for several hosts as many ports:"
            " ?host=HOST,HOST&port=PORT,PORT"
        ) from None
    ports = given.get("port") or []
    for port in ports if isinstance(ports, list) else [ports]:
        if not 0 < port <= _LAST_PORT:
            raise WiringError(f"{setting}: expected ports from 1 to {_LAST_PORT}, got {port}")


def _postgresql_engine(url: URL, *, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        isolation_level="READ COMMITTED",
        connect_args={"connection_class": PostgreSQLConnection},
    )
    event.listen(engine.sync_engine, "do_connect", _connect)
    event.listen(engine.sync_engine, "checkout", _drop_if_closed)
    return engine


def _connect(dialect: Dialect, _: object, arguments: Any, options: Any) -> DBAPIConnection:
    # A socket that is gone, a server that starts, one that lets nobody in: all the same to callers.
    try:
        return dialect.connect(*arguments, **options)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise NoConnectionError(str(error)) from error


def _drop_if_closed(connection: Any, *_: object) -> None:
    # The driver hears at once of a server that went away; a ping would cost three round trips.
    if connection.driver_connection.is_closed():
        raise exc.DisconnectionError
