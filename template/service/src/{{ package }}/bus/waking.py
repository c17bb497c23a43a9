"""Wakes a worker when another process has committed something for it."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from .engines import Database

log = structlog.get_logger()

_CHANNEL = "bus_wake"
# What is committed within this time is told to others once.
_COALESCE_SECONDS = 0.002
_LOOK_SECONDS = 0.025
_RECONNECT_SECONDS = 1.0


class Waker:
    """Calls `wake` when another process has something; `tell` tells others that this one has.

    PostgreSQL: LISTEN and NOTIFY on a connection of its own, never in the transaction, where it
    would make all commits wait for each other. SQLite: the file's data_version, which changes with
    every commit of another connection and costs microseconds to read.
    """

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Something was committed here."""
        self._told.set()

    async def run(self) -> None:
        """Wake until cancelled; survives a lost connection."""
        if self._database.dialect == "sqlite":
            await self._watch()
            return
        while True:
            try:
                await self._listen()
            except Exception as error:
                log.warning("not woken by other processes for now", error=repr(error))
            # What was told meanwhile was missed.
            self._wake()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _watch(self) -> None:
        # In this thread: reading a number in shared memory takes less than asking another thread.
        with suppress(sqlite3.Error):
            connection = sqlite3.connect(str(self._database.url.database), timeout=0)
        try:
            seen = None
            while True:
                with suppress(sqlite3.Error):
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                    if version != seen:
                        seen = version
                        self._wake()
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            connection.close()

    async def _listen(self) -> None:
        engine = create_async_engine(
            self._database.url, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver: Any = raw.driver_connection
            lost = asyncio.Event()
            own = driver.get_server_pid()
            driver.add_termination_listener(lambda _: lost.set())
            await driver.add_listener(
                _CHANNEL, lambda _, pid, *__: None if pid == own else self._wake()
            )
            self._wake()
            while not lost.is_set():
                await _first(self._told, lost)
                if self._told.is_set() and not lost.is_set():
                    await asyncio.sleep(_COALESCE_SECONDS)
                    self._told.clear()
                    await driver.execute(f"NOTIFY {_CHANNEL}")
        raise ConnectionError("the connection was lost")


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
