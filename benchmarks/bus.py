"""`send` through the bus, next to a bare call and to other libraries, in one process.

All contenders run a case in turn, round by round, so that what disturbs the machine disturbs all
of them. Shown are medians in µs a call, and how many bare calls that is.
"""

import asyncio
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from . import peers
from .peers import Case, Send
from .report import Report, Row, options

HERE = Path(__file__).parent
BUS = HERE.parent / "template/service/src/{{ package }}/bus"

CASES = {
    "Needs0": Case("nothing else"),
    "Needs1": Case("1 dependency", needs=1),
    "Needs4": Case("4 dependencies", needs=4),
    "Checked1": Case("1 guard before", guards=1),
    "Checked3": Case("3 guards before", guards=3),
    "Wrapped1": Case("1 guard around", guards=1, around=True),
    "Wrapped3": Case("3 guards around", guards=3, around=True),
    "Tell1": Case("event, 1 listener", listeners=1),
    "Tell3": Case("event, 3 listeners", listeners=3),
    "Tell10": Case("event, 10 listeners", listeners=10),
}

PEERS: dict[str, Callable[[Case], Send | None]] = {
    "anywise": peers.anywise,
    "python-cqrs": peers.python_cqrs,
    "mediatr": peers.mediatr,
    "diator": peers.diator,
}


async def measure(report: Report, rounds: int) -> None:
    async with load_runtime() as runtime:
        bus = runtime.bus(importlib.import_module("calls.bus").Context())
        messages = importlib.import_module("calls.slices.calls.messages")
        rows = []
        for name, case in CASES.items():
            sends = {"bare": peers.bare(case), "slicewise": sending(bus, getattr(messages, name)())}
            for peer in list(PEERS):
                if send := peer_send(peer, case):
                    sends[peer] = send
            rows.append(compare(case.name, await race(sends, rounds)))
    report.show("send, µs a call and times a bare call", rows)


def load_runtime() -> Any:
    """Build the service in `calls/`, with the template's bus put next to it."""
    folder = Path(tempfile.mkdtemp(prefix="slicewise-bus-"))
    shutil.copytree(HERE / "calls", folder / "calls")
    shutil.copytree(BUS, folder / "calls/bus")
    sys.path.insert(0, str(folder))
    return importlib.import_module("calls.bus.runtime").build("calls", database=None)


def sending(bus: Any, command: object) -> Send:
    return lambda: bus.send(command)


def peer_send(name: str, case: Case) -> Send | None:
    try:
        return PEERS[name](case)
    except ImportError as missing:
        print(f"{name} is left out: {missing}", file=sys.stderr)
        del PEERS[name]
        return None


async def race(sends: dict[str, Send], rounds: int) -> dict[str, list[float]]:
    """Seconds a call, for each contender and round."""
    counts = {name: await calls_for(send, seconds=0.01) for name, send in sends.items()}
    times: dict[str, list[float]] = {name: [] for name in sends}
    for _ in range(rounds):
        for name, send in sends.items():
            times[name].append(await timed(send, counts[name]) / counts[name])
    return times


async def calls_for(send: Send, seconds: float) -> int:
    count = 1
    while await timed(send, count) < seconds:
        count *= 2
    return count


async def timed(send: Send, count: int) -> float:
    async def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            await send()
        return time.perf_counter() - start

    # A task of its own, because anywise leaves context variables behind.
    return await asyncio.create_task(run())


def compare(case: str, times: dict[str, list[float]]) -> Row:
    row: Row = {"send": case}
    for name in ("bare", "slicewise", *PEERS):
        row[name] = None
        if name in times:
            ratio = median(t / b for t, b in zip(times[name], times["bare"], strict=True))
            row[name] = f"{median(times[name]) * 1e6:.2f} ({ratio:.1f}×)"
    return row


if __name__ == "__main__":
    arguments = options(__doc__).parse_args()
    result = Report("bus")
    asyncio.run(measure(result, arguments.rounds or 25))
    result.write(arguments.json)
