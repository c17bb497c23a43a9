"""The event store of a generated slice, next to the library eventsourcing.

Both keep the same streams of the same events in a database of their own, and do the same in turn,
round by round: load a stream, load it and append an event (as a command does), and append an event
to an aggregate that was loaded before. Each load makes the aggregate anew and checks it; each
append is a transaction that is on the disk when it returns. In the end the rows are counted.

The peer is synchronous, and runs so: each of its calls blocks the process, as it would in a
synchronous program. Everything happens one after the other: what several clients at once would get
is not measured. The peer's recorder numbers all events of an application, for which it locks the
table; a slice numbers what it publishes in another table, of which nothing is measured here.

`--by-hand` measures a floor instead of the slice: plain loads and appends with SQLAlchemy's
asynchronous session, without the bus (one after the other, no snapshots).

Snapshots are taken every 60 events, so that a load of one of the longer streams finds one, and 40
events behind it. Shown are medians of the rounds; a ratio above 1 says that slicewise is faster.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import sqlalchemy as sa

from .databases import add_option, started
from .event_store_contenders import (
    SNAPSHOT_EVERY,
    ByHand,
    Contender,
    Eventsourcing,
    Slicewise,
    generate,
)
from .report import Report, Row, Taken, options, ratio

# How many events a stream has, and how often it is loaded in a round.
LOADS = {10: 50, 100: 20, 1000: 5}


class Race:
    """Two contenders that do the same in turn, and what each took for which work on which stream.

    Each round has a stream of its own for each length. Events are appended to it in three ways, so
    many in each.
    """

    def __init__(self, ours: Contender, peer: Contender, appends: int) -> None:
        self.contenders = ours, peer
        self.appends = appends
        self.filled = list[int]()
        self.taken = dict[tuple[int, str], tuple[Taken, Taken]]()

    async def run(self, rounds: int) -> None:
        for one in self.contenders:
            await one.open()
        try:
            await self._round(min(LOADS))
            self.taken.clear()  # That was to warm up.
            for _ in range(rounds):
                for length in LOADS:
                    await self._round(length)
        finally:
            for one in self.contenders:
                await one.close()

    async def _round(self, length: int) -> None:
        streams = {one: await one.fill(length) for one in self.contenders}
        loads, appends = LOADS[length], self.appends

        async def each(work: str, times: int, do: Callable[[Contender], Awaitable[None]]) -> None:
            both = self.taken.setdefault((length, work), (Taken(), Taken()))
            for one, taken in zip(self.contenders, both, strict=True):
                gc.collect()
                wall, cpu = time.perf_counter(), time.process_time()
                await do(one)
                taken.wall.append((time.perf_counter() - wall) / times)
                taken.cpu.append((time.process_time() - cpu) / times)

        await each("load", loads, lambda one: one.load(streams[one], length, loads))
        await each(
            "load and append",
            appends,
            lambda one: one.load_and_append(streams[one], length, appends),
        )
        await each(
            "the slice's command",
            appends,
            lambda one: one.command(streams[one], length + appends, appends),
        )
        for one in self.contenders:
            await one.hold(streams[one])
        await each("append", appends, lambda one: one.append(appends))
        self.filled.append(length + 3 * appends)

    def rows(self, database: str, snapshots: str) -> list[Row]:
        one, other = self.contenders
        return [
            {
                "database": database,
                "snapshots": snapshots,
                "events": length,
                "work": work,
                f"{one.name}/s": round(1 / median(ours.wall)),
                f"{other.name}/s": round(1 / median(theirs.wall)),
                "ratio": ratio(theirs.wall, ours.wall),
                "ratio, processor": ratio(theirs.cpu, ours.cpu),
            }
            for (length, work), (ours, theirs) in self.taken.items()
            if work in one.works
        ]


def prove(url: str, tables: tuple[str, str], filled: Sequence[int], *, snapshots: bool) -> None:
    """Raises RuntimeError unless all events are stored, and the snapshots that are due.

    filled is how many events each of the streams has.
    """
    expected = {tables[0]: sum(filled)}
    if snapshots:
        expected[tables[1]] = sum(many // SNAPSHOT_EVERY for many in filled)
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        for table, many in expected.items():
            found = connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))
            if found != many:
                raise RuntimeError(f"{table} in {url}: {found} rows, expected {many}")
    engine.dispose()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--appends", type=int, default=10, help="of each kind, in each round")
    parser.add_argument("--by-hand", action="store_true", help="measure the floor instead")
    add_option(parser)
    arguments = parser.parse_args()
    report = Report("event_store")
    with tempfile.TemporaryDirectory(prefix="slicewise-event-store-") as name:
        folder = Path(name)
        generate(folder)
        # By hand, nothing takes snapshots.
        which, each = (ByHand, (False,)) if arguments.by_hand else (Slicewise, (False, True))
        with started(folder, arguments.database) as chosen:
            for databases, snapshots in product(chosen, each):
                kind, urls = databases.kind, (databases.new(), databases.new())
                ours = which(folder, urls[0], snapshots=snapshots)
                peer = Eventsourcing(urls[1], snapshots=snapshots)
                race = Race(ours, peer, arguments.appends)
                asyncio.run(race.run(arguments.rounds or 3))
                for url, one in zip(urls, race.contenders, strict=True):
                    prove(url, one.tables, race.filled, snapshots=snapshots)
                how = "with" if snapshots else "without"
                report.show(f"event store, {kind}, {how} snapshots", race.rows(kind, how))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
