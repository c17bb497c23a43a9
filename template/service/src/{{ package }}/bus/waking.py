"""Wakes a worker when another process has committed something for it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import greenlet_spawn

from .engines import Database
from .sqlite import file_of

log = structlog.get_logger()

_CHANNEL = "bus_wake"
# Nobody need wait for the disk: what is lost in a crash is found by those that look for it.
_NOTIFY = f"SET LOCAL synchronous_commit = off; NOTIFY {_CHANNEL}"
# A connection may be dead without anyone having told.
_ANSWER_SECONDS = 2.0
# The first of what is committed within this time is told to others at once, the rest together.
_COALESCE_SECONDS = 0.01
_LOOK_SECONDS = 0.025
_RECONNECT_SECONDS = 1.0


class Waker:
    """Calls `wake` when another process has something; `tell` tells others that this one has.

    PostgreSQL: LISTEN and NOTIFY on a connection of its own, never in the transaction, where it
    would make all commits wait for each other. SQLite: the file's data_version, which changes with
    every commit of another connection and costs microseconds to read. While this process commits,
    too, its writer tells of the others.
    """

    def __init__(self, database: Database, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._told = False
        self._telling: asyncio.Task[None] | None = None
        # The connection that listens, while it does.
        self._driver: Any = None
        self._is_deaf = False
        database.on_others = wake

    def tell(self) -> None:
        """Something was committed here; others are told, whether this process listens or not."""
        if self._database.dialect == "sqlite":
            return
        self._told = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())

    async def run(self) -> None:
        """Wake until cancelled; survives a lost connection."""
        if self._database.dialect == "sqlite":
            await self._watch()
            return
        while True:
            try:
                await self._listen()
            except Exception as error:
                if not self._is_deaf:
                    log.warning("not woken by other processes for now", error=repr(error))
                self._is_deaf = True
            # What was told meanwhile was missed.
            self._wake()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def close(self) -> None:
        """Wait until others know of all that was told."""
        if self._telling is not None:
            await self._telling

    async def _watch(self) -> None:
        # In this thread: reading a number in shared memory takes less than asking another thread.
        file, is_uri = file_of(self._database.url)
        with suppress(sqlite3.Error):
            connection = sqlite3.connect(file, timeout=0, uri=is_uri)
        try:
            seen, commits = None, 0
            while True:
                own, commits = self._database.commits - commits, self._database.commits
                with suppress(sqlite3.Error):
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                    if version != seen and not own:
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
            self._driver, self._is_deaf = driver, False
            try:
                await lost.wait()
            finally:
                self._driver = None
                # It gives up by itself if the server does not answer.
                with suppress(Exception):
                    await driver.close(timeout=_ANSWER_SECONDS)
        raise ConnectionError("the connection was lost")

    async def _tell(self) -> None:
        while self._told:
            self._told = False
            await self._notify()
            await asyncio.sleep(_COALESCE_SECONDS)

    async def _notify(self) -> None:
        if (driver := self._driver) is not None:
            try:
                await driver.execute(_NOTIFY, timeout=_ANSWER_SECONDS)
                return
            except TimeoutError:
                driver.terminate()  # `run` listens on another one then.
            except Exception as error:  # It may be lost, or given up, just now.
                log.debug("others are told on another connection", error=repr(error))
        await notify(self._database)


async def notify(database: Database) -> None:
    """Wake the workers of all processes. Without it they look by themselves, after a while."""
    if database.dialect == "sqlite":
        database.on_others()
        return
    try:
        raw = await database.worker.raw_connection()
        try:
            driver: Any = raw.driver_connection
            await driver.execute(_NOTIFY, timeout=_ANSWER_SECONDS)
        except Exception as error:
            await greenlet_spawn(raw.invalidate, error)
            raise
        finally:
            # One too many for the pool is closed, which is awaited.
            await greenlet_spawn(raw.close)
    except Exception as error:
        log.warning("other processes were not woken", error=repr(error))


@asynccontextmanager
async def waking(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction after whose commit the workers of all processes look for what is due."""
    async with database.writer.begin() as connection:
        yield connection
    await notify(database)
