"""The same rows written by jobs in the queues of other libraries, as their documentation shows.

Their jobs write with the bare driver, where slicewise's listener uses the ORM, and log nothing,
where slicewise logs each delivery: that favours them, but for the one that says otherwise. That
their worker starts is measured, too: 0.02 to 0.15 s. None completes a job in the transaction of
what the job has written, but for dbos with a transaction as its step, which is SQLAlchemy's.
"""

import asyncio
import datetime as dt
import json
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import procrastinate
import sqlalchemy as sa
from dbos import DBOS, AsyncSQLAlchemyDatasource
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from . import ledger
from .delivery_contenders import WARM_UP, Contender, log_plainly_to_nowhere, until
from .handwritten_engine import create_engine

AT_ONCE = 8
# So that a peer that has lost an event ends in an error.
LONGEST = 300
LOGGERS = ("cqrs", "dbos", "pgqueuer", "procrastinate")
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
_INSERT_NAMED = sa.text("""
    INSERT INTO ledger_copies (id, version, created_at, entry_id, amount)
    VALUES (:id, 1, :now, :entry_id, :amount)
""")


class Peer:
    """The listener's table, and what a job does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stored = 0
        self.installed = False

    async def open(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
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

    async def all_copied(self) -> None:
        """Wait until there are as many rows as events."""

        async def are_copied() -> bool:
            return await self.rows() >= self.stored

        async with asyncio.timeout(LONGEST):
            await until(are_copied)

    async def rows(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM ledger_copies"))

    async def settle(self) -> None:
        """Wait for what goes on after the last delivery."""

    async def prove(self) -> None:
        await self.settle()
        found = await self.rows()
        if found != self.stored:
            raise RuntimeError(f"{self.stored} events, but {found} rows")

    async def close(self) -> None:
        await self.pool.close()

    def events(self, count: int) -> list[dict[str, Any]]:
        self.stored += count
        return [{"entry_id": str(uuid4()), "amount": 7} for _ in range(count)]


class Procrastinate(Peer):
    async def open(self) -> None:
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


class ProcrastinateAlike(Procrastinate):
    """Its job writes with the ORM, and its worker logs what it does by default: as slicewise."""

    async def open(self) -> None:
        await super().open()
        ledger.load("procrastinate_job", "")
        log_plainly_to_nowhere("procrastinate")
        self.engine = create_engine(self.url)

    async def copy(self, entry_id: str, amount: int) -> None:
        copy = ledger.models("procrastinate_job").Copy
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            session.add(copy(entry_id=UUID(entry_id), amount=amount))
            await session.commit()

    async def close(self) -> None:
        await self.engine.dispose()
        await super().close()


class Pgqueuer(Peer):
    def __init__(self, url: str, batch: int) -> None:
        super().__init__(url)
        self.batch = batch

    async def open(self) -> None:
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
        worker = PgQueuer(self.driver)

        @worker.entrypoint("copy")
        async def copy(job: Any) -> None:
            await self.copy(**json.loads(job.payload))

        # It takes its time to shut down, which is not measured.
        self.working = asyncio.create_task(worker.run(batch_size=self.batch))
        await self.all_copied()
        worker.shutdown.set()

    async def settle(self) -> None:
        await self.working


class Dbos(Peer):
    """A workflow of one step, in a queue that is stopped while events are stored."""

    async def open(self) -> None:
        await super().open()
        # Its schema is made by the first launch; its executor and queue end with each round.
        DBOS(config={"name": "ledger", "system_database_url": self.url, "log_level": "WARNING"})
        step = await self.make_step()

        @DBOS.workflow(name="copy")
        async def workflow(entry_id: str, amount: int) -> None:
            await step(entry_id, amount)

        self.workflow = workflow
        DBOS.launch()
        # By default it looks once a second, which would be measured as if it were work.
        self.queue = await DBOS.register_queue_async(
            "ledger", worker_concurrency=0, polling_interval_sec=0.05
        )

    async def make_step(self) -> Any:
        @DBOS.step(name="write")
        async def write(entry_id: str, amount: int) -> None:
            await self.copy(entry_id, amount)

        return write

    async def store(self, count: int) -> None:
        await self.queue.set_worker_concurrency_async(0)
        at_once = asyncio.Semaphore(AT_ONCE)

        async def enqueue(event: dict[str, Any]) -> None:
            async with at_once:
                await self.queue.enqueue_async(self.workflow, **event)

        await asyncio.gather(*map(enqueue, self.events(count)))

    async def deliver(self) -> None:
        # As it is by default: no limit.
        await self.queue.set_worker_concurrency_async(None)
        await self.all_copied()

    async def settle(self) -> None:
        undone = "SELECT 1 FROM dbos.workflow_status WHERE status <> 'SUCCESS' LIMIT 1"
        async with asyncio.timeout(LONGEST):
            while await self.pool.fetchval(undone):  # noqa: ASYNC110
                await asyncio.sleep(0.03)

    async def close(self) -> None:
        await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        await super().close()


class DbosTransaction(Dbos):
    """Its step is a transaction, which keeps that it was done beside what it has written."""

    async def make_step(self) -> Any:
        self.datasource = await AsyncSQLAlchemyDatasource.create(self.url)

        @self.datasource.transaction(name="write")
        async def write(entry_id: str, amount: int) -> None:
            now = dt.datetime.now(dt.UTC)
            row = {"id": uuid7(), "now": now, "entry_id": UUID(entry_id), "amount": amount}
            await self.datasource.sql_session().execute(_INSERT_NAMED, row)

        return write

    async def close(self) -> None:
        await super().close()
        await self.datasource.engine.dispose()


Made = tuple[str | None, Callable[[str], Contender]]
FORMS: dict[str, Made] = {
    "procrastinate": ("slicewise, own transaction", Procrastinate),
    "procrastinate, with the ORM and logs": ("slicewise, own transaction", ProcrastinateAlike),
    "dbos, step": ("slicewise, own transaction", Dbos),
    "dbos, transaction": ("slicewise, own transaction", DbosTransaction),
    "pgqueuer, 10 at once": ("slicewise, batch of 100", lambda url: Pgqueuer(url, 10)),
    "pgqueuer, 100 at once": ("slicewise, batch of 100", lambda url: Pgqueuer(url, 100)),
}
