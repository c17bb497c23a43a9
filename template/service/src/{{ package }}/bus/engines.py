"""The database as engines: one that writes, one that cannot, and one for queries."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
from sqlalchemy import event, exc, make_url
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .errors import WiringError
from .sqlite import sqlite_engine

# What a connection that cannot be made raises; asyncpg's own errors come as they are.
UNREACHABLE = (OSError, exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)

# Connections that a worker keeps for itself; up to ten more where it is busy.
_WORKERS_OWN = 2

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST:PORT/NAME"

# What may follow the ? of a PostgreSQL URL, and what the driver calls it.
_OPTIONS = {
    "host": "host",
    "port": "port",
    "ssl": "ssl",
    "sslmode": "ssl",
    "prepared_statement_cache_size": "prepared_statement_cache_size",
}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


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


def _async_url(text: str, setting: str = "DATABASE_URL") -> URL:
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        # What was found is not told: it may hold a password.
        raise WiringError(f"{setting}: expected {_FORMS}, got no URL") from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise WiringError(f"{setting}: expected {_FORMS}, got {backend}://")
    if backend == "postgresql":
        url = url.set(query=_options(url, setting))
    elif _in_memory(url):
        raise WiringError(f"{setting}: expected a file, such as sqlite:///shop.db")
    return url.set(drivername=_DRIVERS[backend])


def _in_memory(url: URL) -> bool:
    name = url.database or ":memory:"
    return ":memory:" in name or url.query.get("mode") == "memory" or "vfs" in url.query


def _options(url: URL, setting: str) -> dict[str, Any]:
    if unknown := sorted(url.query.keys() - _OPTIONS.keys()):
        raise WiringError(
            f"{setting}: expected options among {', '.join(_OPTIONS)}, got"
            f" {', '.join(unknown)}. Remove it; PGSSLROOTCERT, PGSSLCERT and PGSSLKEY in the"
            " environment name certificates."
        )
    options = {_OPTIONS[name]: value for name, value in url.query.items()}
    if options.get("ssl", "prefer") not in _SSL_MODES:
        raise WiringError(f"{setting}: expected sslmode to be one of {', '.join(_SSL_MODES)}")
    return options


def _postgresql_engine(url: URL, *, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=pool_size, isolation_level="READ COMMITTED")
    event.listen(engine.sync_engine, "checkout", _drop_if_closed)
    return engine


def _drop_if_closed(connection: Any, *_: object) -> None:
    # The driver hears at once of a server that went away; a ping would cost three round trips.
    if connection.driver_connection.is_closed():
        raise exc.DisconnectionError
