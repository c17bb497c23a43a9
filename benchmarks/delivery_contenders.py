"""What delivers stored events: the template's relay, and floors by hand, on the same tables."""

import asyncio
import datetime as dt
import logging
import os
from typing import Any, Protocol
from uuid import uuid4

import sqlalchemy as sa

from . import ledger
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
        await self.all_done()

    async def all_done(self) -> None:
        """Wait until nothing is to be delivered."""
        async with self.database.reader.connect() as connection:
            while await connection.scalar(_UNDONE):
                # Ended, so that SQLite shows what was committed since.
                await connection.rollback()
                await asyncio.sleep(0.03)

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

    async def warm_up(self) -> None:
        await self.store(WARM_UP)
        await self.deliver()

    async def deliver(self) -> None:
        if self.floor.__name__ == "Asyncpg":
            floor = self.floor(self.url)
        else:
            floor = self.floor(self.package, self.database.writer, **self.more)
        await floor.run()


def log_to_nowhere(package: str, level: str = "INFO") -> None:
    """Logs as in production, written where nobody reads them."""
    ledger.module(package, "base.logs").configure(level, json=True)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(_NOWHERE)


_NOWHERE = open(os.devnull, "w")  # noqa: PTH123, SIM115
_UNDONE = sa.text(
    "SELECT 1 FROM bus_delivery WHERE state = 'pending'"
    " UNION ALL SELECT 1 FROM bus_delivery WHERE state = 'working' LIMIT 1"
)
