"""A read model made anew of a million events: how fast, in how much memory, who has to wait.

Two listeners: one inserts a row for each event, one changes one of a hundred rows. Meanwhile
a publisher publishes one event after the other; shown is the longest that it had to wait, which is
for the last transaction. Memory is the process's, publisher included, after each
tenth of the events. In the end the rows are compared with the log.
"""

import asyncio
import gc
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import sqlalchemy as sa

from . import ledger
from .databases import add_option, started
from .delivery_contenders import Slicewise
from .report import Report, Row, options

A_ROW_CHANGED = """
@listen({mark})
async def copy_{n}(event: Posted, session: AsyncSession) -> None:
    total = await session.get(Total, event.amount)
    if total is None:
        total = Total(amount=event.amount, count=0)
        session.add(total)
    total.count += 1
"""
LISTENERS = {
    "inserts a row": (ledger.ONE_ROW, "Copy", "SELECT count(*) FROM ledger_copies"),
    "changes a row": (A_ROW_CHANGED, "Total", "SELECT sum(count) FROM ledger_totals"),
}
_EVENTS = """
    INSERT INTO bus_event
        (id, name, version, key, payload, headers, correlation_id, tx, recorded_at)
    WITH RECURSIVE numbers(n) AS
        (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)
    SELECT {id}, 'ledger.Posted', 1, 'stored', {payload}, '{{}}', 'stored', 0, CURRENT_TIMESTAMP
    FROM numbers
"""
_UUID = {"postgresql": "gen_random_uuid()", "sqlite": "lower(hex(randomblob(16)))"}
_PAYLOAD = {
    "postgresql": "json_build_object('entry_id', gen_random_uuid(), 'amount', n % 100)",
    "sqlite": "json_object('entry_id', lower(hex(randomblob(16))), 'amount', n % 100)",
}


async def store(service: Slicewise, count: int) -> None:
    """Store so many events; nobody has to deliver them."""
    kind = service.database.dialect
    statement = _EVENTS.format(id=_UUID[kind], payload=_PAYLOAD[kind])
    async with service.database.writer.begin() as connection:
        await connection.execute(sa.text(statement), {"count": count})
    async with service.database.writer.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(sa.text("ANALYZE"))


class Publisher:
    """Publishes until it is stopped."""

    def __init__(self, service: Slicewise) -> None:
        self._posted = ledger.module(service.package, "slices.ledger.contracts").Posted
        self._runtime = service.runtime
        self.published, self.longest = 0, 0.0

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await self._runtime.publish(self._posted(entry_id=uuid4(), amount=7))
            self.published += 1
            self.longest = max(self.longest, time.perf_counter() - began)
            await asyncio.sleep(0.02)


class Meter:
    """Memory in MiB after each tenth."""

    def __init__(self, count: int) -> None:
        self._process, self._tenth, self._done = psutil.Process(), count // 10, 0
        self.sizes = list[float]()

    def went(self, events: int) -> None:
        self._done += events
        while len(self.sizes) < 10 and self._done >= self._tenth * (len(self.sizes) + 1):
            self.sizes.append(self._process.memory_info().rss / 2**20)


async def rebuild(url: str, name: str, count: int) -> Row:
    """Make one read model anew."""
    listener, table, check = LISTENERS[name]
    mark = f'start="beginning", projects={table}'
    service = Slicewise(url, f"rebuild_{table.lower()}", listener, mark)
    await service.open()
    try:
        await store(service, count)
        module = ledger.module(service.package, "bus.operating.projections")
        projections = module.Projections(service.runtime)
        planned = await projections.plan("ledger.copy_0")
        publisher, meter = Publisher(service), Meter(count)
        publishing = asyncio.create_task(publisher.run())
        gc.collect()
        began = time.perf_counter()
        await projections.rebuild(planned, who="bench", progress=meter.went)
        seconds = time.perf_counter() - began
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
        await prove(service, check)
    finally:
        await service.close()
    return {
        "database": service.database.dialect,
        "the listener": name,
        "events": count,
        "events/s": round(count / seconds),
        "MiB after a tenth": round(meter.sizes[0], 1),
        "MiB after half": round(meter.sizes[4], 1),
        "MiB after all": round(meter.sizes[-1], 1),
        "published meanwhile": publisher.published,
        "longest wait of a publisher, ms": round(publisher.longest * 1000),
    }


async def prove(service: Slicewise, check: str) -> None:
    """Raises RuntimeError unless each event is in the rows, or to be delivered still."""
    pending = "SELECT count(*) FROM bus_delivery WHERE state = 'pending'"
    async with service.database.reader.connect() as connection:
        counts = [
            await connection.scalar(sa.text(query)) or 0
            for query in (check, pending, "SELECT count(*) FROM bus_event")
        ]
    rows, waiting, events = map(int, counts)
    if rows + waiting != events:
        raise RuntimeError(f"{rows} in the rows and {waiting} to be delivered, of {events} events")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the log")
    add_option(parser)
    arguments = parser.parse_args()
    report = Report("rebuild")
    with (
        tempfile.TemporaryDirectory(prefix="slicewise-rebuild-") as name,
        started(Path(name), arguments.database) as chosen,
    ):
        for databases in chosen:
            rows = [
                asyncio.run(rebuild(databases.new(), listener, arguments.events))
                for listener in LISTENERS
            ]
            report.show(f"projections rebuild, {databases.kind}", rows)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
