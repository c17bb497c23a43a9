"""`send` through the bus, next to a bare call and to other libraries, in one process.

All contenders run a case in turn, round by round, so that what disturbs the machine disturbs all
of them. Shown are medians in µs a call, and how many bare calls that is. Before anything is timed,
one call of each contender is watched: handlers, guards and listeners have to run as often as the
case says.
"""

import asyncio
import importlib
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import FrameType
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

WATCHED = {
    "calls.guards",
    "calls.slices.calls.handlers",
    "calls.slices.calls.listeners",
    peers.__name__,
}

PEERS: dict[str, Callable[[Case], Send | None]] = {
    "anywise": peers.anywise,
    "python-cqrs": peers.python_cqrs,
    "mediatr": peers.mediatr,
    "diator": peers.diator,
}


async def measure(report: Report, rounds: int) -> None:
    # Each contender runs in tasks of its own, because anywise leaves context variables behind.
    async with load_runtime() as runtime:
        bus = runtime.bus(importlib.import_module("calls.bus").Context())
        messages = importlib.import_module("calls.slices.calls.messages")
        rows = []
        for name, case in CASES.items():
            sends = {"bare": peers.bare(case), "slicewise": sending(bus, getattr(messages, name)())}
            for peer in list(PEERS):
                if send := peer_send(peer, case):
                    sends[peer] = send
            for contender, send in sends.items():
                await prove(contender, case, send)
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


async def prove(contender: str, case: Case, send: Send) -> None:
    """Raises RuntimeError unless one send does what the case says."""
    frames: set[FrameType] = set()

    async def run() -> None:
        sys.setprofile(lambda frame, _event, _argument: frames.add(frame))
        try:
            await send()
        finally:
            sys.setprofile(None)

    await asyncio.create_task(run())
    ran = Counter(role for frame in frames if (role := role_of(frame)))
    given = sum(services_given(frame) for frame in frames if role_of(frame) == "handle")
    expected = Counter(handle=1, guard=case.guards, listen=case.listeners)
    if ran != expected or given != case.needs:
        raise RuntimeError(f"{contender}, {case.name}: {ran} ran, with {given} dependencies")


def role_of(frame: FrameType) -> str | None:
    """What a function of the contenders is, by its name or its class's."""
    if frame.f_globals["__name__"] not in WATCHED:
        return None
    name = frame.f_code.co_qualname.rpartition("<locals>.")[2].lstrip("_").lower()
    if "." in name and not name.endswith((".handle", ".__call__")):
        return None
    return next((role for role in ("handle", "guard", "listen") if name.startswith(role)), None)


def services_given(frame: FrameType) -> int:
    """How many services a handler was called, or made, with."""
    variables = frame.f_locals
    given = [*variables.values(), *getattr(variables.get("self"), "services", ())]
    return sum(type(one).__name__ in ("A", "B", "C", "D") for one in given)


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
