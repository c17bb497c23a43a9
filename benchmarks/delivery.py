"""Delivery of stored events by one worker, next to the same by hand and to other libraries.

All contenders deliver in turn, round by round, so that what disturbs the machine disturbs all of
them; each has a database of its own. Shown are medians: events a second, µs of processor time an
event (of the worker, without the server's), and the speed as a ratio to that of what it is compared
with: slicewise with the form by hand of the same isolation, peers with slicewise. After each round
the listener's rows are counted.
"""

import asyncio
import gc
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

from . import delivery_growth as growth
from .databases import Databases, add_option, started
from .delivery_contenders import BATCH_MARK, ByHand, Contender, Slicewise
from .delivery_costs import latency, publishing
from .delivery_floors import Asyncpg, Batch, LeasedBatch, Own
from .ledger import NOTHING, ONE_ROW
from .report import Report, Row, Taken, bars, options, ratio

Make = Callable[[str], Contender]

# These deliver four times as many, lest their start be much of what is timed.
_QUICK = ("batch", "pgqueuer")

FORMS: dict[str, tuple[str | None, Make]] = {
    # Name: what it is compared with, and how it is made.
    "by hand, own transaction": (None, lambda url: ByHand(url, Own)),
    "slicewise, own transaction": (
        "by hand, own transaction",
        lambda url: Slicewise(url, "own", ONE_ROW),
    ),
    "slicewise, own transaction, LOG_LEVEL=WARNING": (
        "by hand, own transaction",
        lambda url: Slicewise(url, "quiet", ONE_ROW, log_level="WARNING"),
    ),
    "by hand, no-op": (None, lambda url: ByHand(url, Own, rows=False)),
    "slicewise, no-op": ("by hand, no-op", lambda url: Slicewise(url, "noop", NOTHING)),
    "by hand, batch of 100": (None, lambda url: ByHand(url, Batch)),
    "by hand, leased batch of 100": (
        "by hand, batch of 100",
        lambda url: ByHand(url, LeasedBatch),
    ),
    "slicewise, batch of 100": (
        "by hand, batch of 100",
        lambda url: Slicewise(url, "batched", ONE_ROW, BATCH_MARK),
    ),
}
ASYNCPG: dict[str, tuple[str | None, Make]] = {
    "asyncpg, batch of 100": ("by hand, batch of 100", lambda url: ByHand(url, Asyncpg)),
}


def peers() -> dict[str, tuple[str | None, Make]]:
    """Those of other libraries, which only the environment of the benchmarks has."""
    from . import delivery_peers, delivery_peers_outbox

    return delivery_peers.FORMS | delivery_peers_outbox.FORMS


async def deliver_once(contender: Contender, count: int) -> tuple[float, float]:
    """Seconds an event, by the clock and of this process, to deliver `count` stored events."""
    await contender.open()
    try:
        await contender.warm_up()
        await contender.store(count)
        gc.collect()
        # What all the others have loaded is not to be searched for garbage meanwhile.
        gc.freeze()
        wall, cpu = time.perf_counter(), time.process_time()
        await contender.deliver()
        taken = (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
        await contender.prove()
    finally:
        gc.unfreeze()
        await contender.close()
    return taken


def race(contenders: Mapping[str, Contender], count: int, rounds: int) -> dict[str, Taken]:
    taken = {name: Taken() for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            many = 4 * count if any(quick in name for quick in _QUICK) else count
            wall, cpu = asyncio.run(deliver_once(contender, many if number else 10))
            if number:  # The first one only warms up.
                taken[name].wall.append(wall)
                taken[name].cpu.append(cpu)
    return taken


def rows_of(
    database: str, taken: Mapping[str, Taken], base_of: Mapping[str, str | None]
) -> list[Row]:
    rows = []
    for name, one in taken.items():
        base = taken.get(base_of.get(name) or "")
        rows.append(
            {
                "database": database,
                "contender": name,
                "events/s": round(1 / median(one.wall)),
                "µs of processor": round(median(one.cpu) * 1e6),
                "compared with": base_of[name] if base else None,
                "ratio": ratio(base.wall, one.wall) if base else None,
                "ratio, processor": ratio(base.cpu, one.cpu) if base else None,
            }
        )
    return rows


def grow(report: Report, databases: Databases, count: int, rounds: int) -> None:
    """Measure what a worker does with more of everything."""
    kind = databases.kind
    count = count if kind == "postgresql" else count // 4
    contenders: dict[str, Contender] = {
        "nothing": Slicewise(databases.new(), "own", ONE_ROW),
        "nothing, ordered": Slicewise(databases.new(), "ordered", ONE_ROW, "ordered=True"),
    }
    for name, (state, many) in growth.STORES.items():
        contenders[name] = growth.Filled(databases.new(), f"filled_{state}", state, many)
    taken = race(contenders, count, rounds)
    base_of: dict[str, str | None] = dict.fromkeys(contenders, "nothing")
    base_of |= {"nothing": None, "nothing, ordered": None, growth.WAITING: "nothing, ordered"}
    report.show(f"delivery, {kind}, with so much stored", rows_of(kind, taken, base_of))
    rows = [
        asyncio.run(growth.with_workers(databases.new(), listeners, workers, count))
        for listeners in (1, 3, 10)
        for workers in (1, 2)
    ]
    report.show(f"{kind}, listeners and worker processes", rows)
    report.show("a worker with nothing to do", [asyncio.run(growth.idle(databases.new(), 60))])
    if kind == "postgresql":
        memory = asyncio.run(growth.memory(databases.new(), 330 * count))
        report.show("a worker's memory", [memory])


def deliver(report: Report, databases: Databases, arguments: Namespace) -> None:
    """Measure every contender on this kind of database, and what publishing costs."""
    kind = databases.kind
    forms = dict(FORMS)
    if kind == "postgresql":
        forms |= ASYNCPG
        forms |= {} if arguments.no_peers else peers()
    contenders = {
        name: make(databases.new())
        for name, (_, make) in forms.items()
        if any(part in name for part in arguments.only.split(","))
    }
    count = arguments.count if kind == "postgresql" else arguments.count // 4
    taken = race(contenders, count, arguments.rounds or 7)
    base_of = {name: base for name, (base, _) in forms.items()}
    rows = rows_of(kind, taken, base_of)
    report.show(f"delivery, {kind}", rows)
    if arguments.plot and kind == "postgresql":
        svg = bars(rows, "contender", "events/s", ours="slicewise")
        arguments.plot.write_text(svg, encoding="utf-8")
    if not arguments.only:
        rounds = 2 * (arguments.rounds or 7)
        row = asyncio.run(publishing(databases.new(), kind, rounds))
        report.show("a command that publishes", [row])
        rows = [asyncio.run(latency(databases.new(), kind, 100))]
        rows.append(asyncio.run(latency(databases.new(), kind, 1000, load=0.5)))
        report.show("from the commit to the listener's start", rows)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--count", type=int, default=1500, help="events in each round; SQLite gets a quarter"
    )
    add_option(parser)
    parser.add_argument(
        "--growth", action="store_true", help="instead: with more stored, more workers, for longer"
    )
    parser.add_argument("--only", default="", help="only those with one of these in their name")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw PostgreSQL's, as SVG")
    parser.add_argument("--no-fsync", action="store_true", help="let PostgreSQL wait for no disk")
    parser.add_argument("--no-peers", action="store_true", help="only by hand and slicewise")
    arguments = parser.parse_args()
    report = Report("delivery")
    with tempfile.TemporaryDirectory(prefix="slicewise-delivery-") as name:
        chosen = started(Path(name), arguments.database, fsync=not arguments.no_fsync)
        with chosen as all_databases:
            for databases in all_databases:
                if arguments.growth:
                    grow(report, databases, arguments.count, arguments.rounds or 7)
                else:
                    deliver(report, databases, arguments)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
