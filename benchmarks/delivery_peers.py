"""The same rows written by jobs of other libraries, each used as its documentation shows.

Their jobs write with the bare driver, where slicewise's listener uses the ORM: that favours them.
None of them completes a job in the transaction of what the job has written.
"""

import asyncio
import datetime as dt
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from uuid_utils.compat import uuid7

from .delivery_contenders import WARM_UP, Contender

AT_ONCE = 8
# What pgqueuer takes at once by default.
BATCH = 10
_TABLE = """
    CREATE TABLE IF NOT EXISTS ledger_copies (
        id uuid PRIMARY KEY, version int NOT NULL, created_at timestamptz NOT NULL,
        entry_id uuid NOT NULL, amount int NOT NULL
    )
"""
_INSERT = """
    INSERT INTO ledger_copies (id, version, created_at, entry_id, amount)
    VALUES ($1, 1, $2, $3, $4)
"""


class Peer:
    """The listener's table, and what a job does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stored = 0
        self.installed = False

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.url, min_size=AT_ONCE, max_size=AT_ONCE + 2)
        await self.pool.execute(_TABLE)

    async def store(self, count: int) -> None:
        raise NotImplementedError

    async def deliver(self) -> None:
        raise NotImplementedError

    async def warm_up(self) -> None:
        await self.store(WARM_UP)
        await self.deliver()
        await self.settle()

    async def copy(self, entry_id: str, amount: int) -> None:
        now = dt.datetime.now(dt.UTC)
        await self.pool.execute(_INSERT, uuid7(), now, UUID(entry_id), amount)

    async def settle(self) -> None:
        """Wait for what goes on after the last delivery."""

    async def prove(self) -> None:
        await self.settle()
        found = await self.pool.fetchval("SELECT count(*) FROM ledger_copies")
        if found != self.stored:
            raise RuntimeError(f"{self.stored} events, but {found} rows")

    async def close(self) -> None:
        await self.pool.close()

    def events(self, count: int) -> list[dict[str, Any]]:
        self.stored += count
        return [{"entry_id": str(uuid4()), "amount": 7} for _ in range(count)]


class Procrastinate(Peer):
    async def open(self) -> None:
        import procrastinate

        await super().open()
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=self.url, max_size=AT_ONCE + 2)
        )
        self.task = self.app.task(name="copy")(self.copy)
        await self.app.open_async()
        if not self.installed:
            await self.app.schema_manager.apply_schema_async()
            self.installed = True

    async def store(self, count: int) -> None:
        await self.task.batch_defer_async(*self.events(count))

    async def deliver(self) -> None:
        await self.app.run_worker_async(
            wait=False, concurrency=AT_ONCE, install_signal_handlers=False
        )

    async def close(self) -> None:
        await self.app.close_async()
        await super().close()


class Pgqueuer(Peer):
    async def open(self) -> None:
        from pgqueuer.db import AsyncpgPoolDriver
        from pgqueuer.queries import Queries

        await super().open()
        self.driver = AsyncpgPoolDriver(self.pool)
        self.queries = Queries(self.driver)
        if not self.installed:
            await self.queries.install()
            self.installed = True

    async def store(self, count: int) -> None:
        payloads: list[bytes | None] = [json.dumps(one).encode() for one in self.events(count)]
        await self.queries.enqueue(["copy"] * count, payloads, [0] * count)

    async def deliver(self) -> None:
        from pgqueuer import PgQueuer

        worker = PgQueuer(self.driver)

        @worker.entrypoint("copy")
        async def copy(job: Any) -> None:
            await self.copy(**json.loads(job.payload))

        # It takes its time to shut down, which is not measured.
        self.working = asyncio.create_task(worker.run(batch_size=BATCH))
        count = "SELECT count(*) FROM ledger_copies"
        while await self.pool.fetchval(count) < self.stored:  # noqa: ASYNC110
            await asyncio.sleep(0.03)
        worker.shutdown.set()

    async def settle(self) -> None:
        await self.working


Made = tuple[str | None, Callable[[str], Contender]]
FORMS: dict[str, Made] = {
    "procrastinate": ("slicewise, own transaction", Procrastinate),
    "pgqueuer": ("slicewise, batch of 100", Pgqueuer),
}
