"""An engine as one makes it by hand, with the settings that the generated service has."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine


def create_engine(text: str) -> AsyncEngine:
    """An engine that writes to the database at this URL."""
    url = sa.make_url(text)
    if url.get_backend_name() == "postgresql":
        return create_async_engine(url.set(drivername="postgresql+asyncpg"), pool_size=10)
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        poolclass=sa.pool.AsyncAdaptedQueuePool,
        pool_size=1,  # SQLite has one writer: more connections only wait, and longer
        max_overflow=0,
        connect_args={"isolation_level": None, "timeout": 30},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
