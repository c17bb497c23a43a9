"""Delivery with more of everything: stored rows, listeners, worker processes, hours."""

import asyncio
import datetime as dt
import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.synchronize import Event as Signal
from statistics import median

import psutil
import sqlalchemy as sa

from .delivery_contenders import BATCH_MARK, FAR, Slicewise
from .ledger import ONE_ROW
from .report import Row

WAITING = "50,000 waiting behind a dead one, ordered"
# What a store holds beside the events that are delivered while it is timed: state and how many.
STORES: Mapping[str, tuple[str, int]] = {
    "100,000 finished": ("done", 100_000),
    "1,000,000 finished": ("done", 1_000_000),
    "10,000 dead": ("dead", 10_000),
    WAITING: ("waiting", 50_000),
}
# After each of them a worker's memory is looked at.
_CHUNKS = 50


class Filled(Slicewise):
    """A relay on a store that holds something already."""

    def __init__(self, url: str, package: str, state: str, count: int) -> None:
        super().__init__(url, package, ONE_ROW, "ordered=True" if state == "waiting" else "")
        self.state, self.count, self.filled = state, count, False

    async def warm_up(self) -> None:
        if not self.filled:
            self.filled = True
            await fill(self, self.state, self.count)
        await super().warm_up()


async def fill(service: Slicewise, state: str, count: int) -> None:
    """Store events and deliveries in this state; of those that wait, the first is dead."""
    postgresql = service.database.dialect == "postgresql"
    time = sa.bindparam("now", type_=service.tables.delivery.c.due.type)
    now = dt.datetime.now(dt.UTC)
    async with service.database.writer.begin() as connection:
        events = _EVENTS.format(
            id="gen_random_uuid()" if postgresql else "lower(hex(randomblob(16)))"
        )
        await connection.execute(sa.text(events).bindparams(time), {"now": now, "count": count})
        given = {"now": now, "state": state}
        await connection.execute(sa.text(_DELIVERIES).bindparams(time), given)
        if state == "waiting":
            await connection.execute(sa.text(_FIRST_IS_DEAD))
    async with service.database.writer.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(sa.text("VACUUM ANALYZE" if postgresql else "ANALYZE"))


_EVENTS = """
    INSERT INTO bus_event
        (id, name, version, key, payload, headers, correlation_id, tx, recorded_at)
    WITH RECURSIVE numbers(n) AS
        (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
    SELECT {id}, 'ledger.Posted', 1, 'stored', '{{}}', '{{}}', 'stored', 0, :now FROM numbers
"""
_DELIVERIES = """
    INSERT INTO bus_delivery (event_position, subscription_id, run, event_version, lane, state,
        due, attempts, losses, finished_at)
    SELECT position, 1, 0, 1, CASE WHEN :state = 'waiting' THEN 'stored' END, :state,
        :now, 0, 0, CASE WHEN :state = 'done' THEN :now END
    FROM bus_event WHERE correlation_id = 'stored'
"""
_FIRST_IS_DEAD = """
    UPDATE bus_delivery SET state = 'dead'
    WHERE id = (SELECT min(id) FROM bus_delivery WHERE state = 'waiting')
"""


def work(url: str, listeners: int, ready: Signal, stop: Signal) -> None:
    """A worker process: delivers until it is told to stop."""

    async def run() -> None:
        service = Slicewise(url, f"worker{listeners}", ONE_ROW, listeners=listeners)
        await service.open()
        relaying = asyncio.create_task(service.runtime.relay.run())
        ready.set()
        await asyncio.to_thread(stop.wait)
        service.runtime.relay.stop()
        await relaying
        await service.close()

    asyncio.run(run())


async def with_workers(url: str, listeners: int, workers: int, count: int) -> Row:
    """Deliveries a second of so many processes, for events with so many listeners."""
    service = Slicewise(url, f"worker{listeners}", ONE_ROW, listeners=listeners)
    await service.open()
    spawn = multiprocessing.get_context("spawn")
    stop, ready = spawn.Event(), [spawn.Event() for _ in range(workers)]
    processes = [spawn.Process(target=work, args=(url, listeners, one, stop)) for one in ready]
    try:
        for process in processes:
            process.start()
        for one in ready:
            await asyncio.to_thread(one.wait)
        rates = []
        for many in (100, count, count, count):
            await service.pause(FAR)
            await service.store(many)
            start = time.perf_counter()
            await service.pause(None)
            if service.database.dialect == "postgresql":
                async with service.database.writer.begin() as connection:
                    await connection.execute(sa.text("NOTIFY bus_wake"))
            await service.all_done()
            rates.append(many * listeners / (time.perf_counter() - start))
        await service.prove()
    finally:
        stop.set()
        for process in processes:
            await asyncio.to_thread(process.join)
        await service.close()
    return {
        "database": service.database.dialect,
        "listeners": listeners,
        "workers": workers,
        "deliveries/s": round(median(rates[1:])),
    }


async def memory(url: str, count: int) -> Row:
    """A worker's memory after the first tenth of so many deliveries, and after all of them."""
    service = Slicewise(url, "batched", ONE_ROW, BATCH_MARK)
    await service.open()
    process, sizes = psutil.Process(), list[float]()
    try:
        await service.warm_up()
        for _ in range(_CHUNKS):
            await service.store(count // _CHUNKS)
            await service.deliver()
            sizes.append(process.memory_info().rss / 2**20)
        await service.prove()
    finally:
        await service.close()
    return {
        "database": service.database.dialect,
        "deliveries": count,
        "MiB after the first tenth": round(sizes[_CHUNKS // 10 - 1], 1),
        "MiB after all": round(sizes[-1], 1),
        "MiB at most": round(max(sizes), 1),
    }


async def idle(url: str, seconds: float) -> Row:
    """Statements and processor time a minute of a worker that has nothing to do."""
    service = Slicewise(url, "own", ONE_ROW)
    await service.open()
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    for engine in {service.database.writer.sync_engine, service.database.reader.sync_engine}:
        sa.event.listen(engine, "before_cursor_execute", count)
    try:
        await service.warm_up()
        await service.deliver()
        statements, used = 0, time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - used
        row: Row = {
            "database": service.database.dialect,
            "statements a minute": round(statements * 60 / seconds),
            "ms of processor a minute": round(used * 60_000 / seconds),
        }
    finally:
        await service.close()
    return row
