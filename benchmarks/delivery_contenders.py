"""What delivers stored events: the template's relay, and floors by hand, on the same tables."""

import asyncio
import datetime as dt
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import sqlalchemy as sa

from . import ledger
from .handwritten_engine import create_engine
from .ledger import ONE_ROW

WARM_UP = 200
FAR = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
BATCH_MARK = "batch=100"


class Contender(Protocol):
    """Opened and closed in each round."""

    async def open(self) -> None: ...

    async def warm_up(self) -> None:
        """Deliver some events, so that connections are open and statements prepared."""

    async def store(self, count: int) -> None:
        """Store events that are to be delivered; not timed."""

    async def deliver(self) -> None:
        """Return when all of them are delivered."""

    async def prove(self) -> None:
        """Raises RuntimeError unless each event had its row."""

    async def close(self) -> None: ...


class Slicewise:
    """The relay of a generated service, with the logs that it has in production by default."""

    def __init__(
        self,
        url: str,
        package: str,
        listener: str,
        mark: str = "",
        listeners: int = 1,
        *,
        log_level: str = "INFO",
    ) -> None:
        ledger.load(package, listener, mark, listeners)
        self.package = package
        self.log_level = log_level
        self.url = url
        self.stored = 0
        self.relaying: asyncio.Task[None] | None = None
        self.rows_per_event = listeners if listener == ONE_ROW else 0
        self.tables = ledger.module(package, "bus.tables")

    async def open(self) -> None:
        self.database = ledger.module(self.package, "bus.engines").Database(self.url)
        build = ledger.module(self.package, "bus.runtime").build
        self.runtime = build(self.package, database=self.database)
        base = ledger.module(self.package, "base.database").Base
        async with self.database.writer.begin() as connection:
            for metadata in (self.tables.metadata, base.metadata):
                await connection.run_sync(metadata.create_all)
        log_to_nowhere(self.package, self.log_level)
        await self.runtime.__aenter__()

    async def store(self, count: int) -> None:
        posted = ledger.module(self.package, "slices.ledger.contracts").Posted
        for start in range(0, count, 500):
            many = min(500, count - start)
            await self.runtime.publish(*(posted(entry_id=uuid4(), amount=7) for _ in range(many)))
        self.stored += count
        if self.database.dialect == "postgresql":
            async with self.database.writer.begin() as connection:
                await connection.execute(sa.text("ANALYZE"))

    async def warm_up(self) -> None:
        self.relaying = asyncio.create_task(self.runtime.relay.run())
        await self.store(WARM_UP)
        await self.deliver()
        await self.pause(FAR)

    async def deliver(self) -> None:
        await self.pause(None)
        self.runtime.relay.wake()
        await self.worked_off()

    async def worked_off(self) -> None:
        """Wait until this worker has nothing more to do; asks the database at the end only."""
        relay = self.runtime.relay
        while True:
            await asyncio.sleep(0.01)
            if relay._running or any(relay._ready.values()):
                continue
            async with looking(self.url) as look:
                if not await look(_UNDONE):
                    return

    async def all_done(self) -> None:
        """Wait until nobody has anything to deliver; with the bare driver, to take no time."""
        async with looking(self.url) as look:

            async def is_done() -> bool:
                return not await look(_UNDONE)

            await until(is_done)

    async def pause(self, until: dt.datetime | None) -> None:
        pause = sa.update(self.tables.subscription).values(paused_until=until)
        async with self.database.writer.begin() as connection:
            await connection.execute(pause)

    async def prove(self) -> None:
        copies = sa.select(sa.func.count()).select_from(ledger.models(self.package).Copy)
        async with self.database.reader.connect() as connection:
            found = await connection.scalar(copies)
        if found != self.stored * self.rows_per_event:
            raise RuntimeError(f"{self.stored} events, but {found} rows")

    async def close(self) -> None:
        if self.relaying is not None:
            self.runtime.relay.stop()
            await self.relaying
        await self.runtime.__aexit__(None, None, None)
        await self.database.close()


class ByHand(Slicewise):
    """A floor, which works on what the bus has stored."""

    def __init__(self, url: str, floor: Any, **more: bool) -> None:
        super().__init__(url, "byhand", ONE_ROW)
        self.floor, self.more = floor, more
        self.rows_per_event = int(more.get("rows", True))

    async def open(self) -> None:
        await super().open()
        self.engine = create_engine(self.url)

    async def warm_up(self) -> None:
        await self.store(WARM_UP)
        await self.deliver()

    async def deliver(self) -> None:
        if self.floor.__name__ == "Asyncpg":
            floor = self.floor(self.url)
        else:
            floor = self.floor(self.package, self.engine, **self.more)
        await floor.run()

    async def close(self) -> None:
        await self.engine.dispose()
        await super().close()


def log_to_nowhere(package: str, level: str = "INFO") -> None:
    """Logs as in production, written where nobody reads them."""
    ledger.module(package, "base.logs").configure(level, json=True)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(_NOWHERE)


def log_plainly_to_nowhere(name: str) -> None:
    """Let a library log as its own command does by default, written where nobody reads it."""
    handler = logging.StreamHandler(_NOWHERE)
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [handler], False


_NOWHERE = open(os.devnull, "w")  # noqa: PTH123, SIM115
_UNDONE = (
    "SELECT 1 FROM bus_delivery WHERE state = 'pending'"
    " UNION ALL SELECT 1 FROM bus_delivery WHERE state = 'working' LIMIT 1"
)


async def until(is_done: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Wait for it.

    Looks again after another 25th of the time so far: neither looking nor what is between two looks
    is to make much of what is measured.
    """
    start = time.perf_counter()
    while not await is_done():  # noqa: ASYNC110
        await asyncio.sleep(max(0.001, (time.perf_counter() - start) / 25))


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[Callable[[str], Coroutine[Any, Any, Any]]]:
    """A function that returns the first value that a query finds, None for nothing."""
    if url.startswith("postgresql"):
        driver = await asyncpg.connect(url)
        try:
            yield driver.fetchval
        finally:
            await driver.close()
        return
    with closing(sqlite3.connect(str(sa.make_url(url).database))) as connection:

        async def look(query: str) -> Any:
            return connection.execute(query).fetchone()

        yield look
