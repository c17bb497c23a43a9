"""What publishing costs a command, and how soon a listener starts, in one process."""

import asyncio
import datetime as dt
import time
from collections.abc import Callable, Coroutine, Mapping, Set
from statistics import median, quantiles
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from . import ledger
from .delivery_contenders import Slicewise
from .handwritten_engine import create_engine
from .ledger import NOTES_TIME
from .report import Row

SENDS = 40
SENDERS = 8


async def publishing(url: str, database: str, rounds: int) -> Row:
    """`bus.send` of a command that publishes, against its three rows written by hand."""
    service = Slicewise(url, "timed", NOTES_TIME)
    await service.open()
    by_hand = ByHand(service)
    try:
        bus = service.runtime.bus()
        post = ledger.module("timed", "slices.ledger.messages").Post(amount=7)
        taken: dict[str, list[float]] = {"by hand": [], "slicewise": []}
        for _ in range(rounds + 1):
            taken["by hand"].append(await _timed(by_hand.post))
            taken["slicewise"].append(await _timed(lambda: bus.send(post)))
        pairs = list(zip(taken["slicewise"], taken["by hand"], strict=True))[1:]
    finally:
        await by_hand.engine.dispose()
        await service.close()
    return {
        "database": database,
        "by hand, ms": median(one for _, one in pairs) * 1000,
        "slicewise, ms": median(one for one, _ in pairs) * 1000,
        "ratio": median(ours / theirs for ours, theirs in pairs),
    }


async def _timed(send: Any) -> float:
    start = time.perf_counter()
    for _ in range(SENDS):
        await send()
    return (time.perf_counter() - start) / SENDS


class ByHand:
    """The rows that the bus writes: the command's, the event and its delivery."""

    def __init__(self, service: Slicewise) -> None:
        self.engine = create_engine(service.url)
        self.entry = ledger.models("timed").Entry
        event, delivery = service.tables.event, service.tables.delivery
        postgresql = self.engine.dialect.name == "postgresql"
        number = sa.func.pg_current_xact_id().cast(sa.Text).cast(sa.BigInteger)
        self.event = (
            sa.insert(event).values(tx=number if postgresql else 0).returning(event.c.position)
        )
        self.delivery = sa.insert(delivery)

    async def post(self) -> None:
        now = dt.datetime.now(dt.UTC)
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            entry = self.entry(amount=7)
            session.add(entry)
            await session.flush()
            event = {
                "id": uuid7(),
                "name": "ledger.Posted",
                "version": 1,
                "key": str(entry.id),
                "payload": {"entry_id": str(entry.id), "amount": entry.amount},
                "headers": {},
                "correlation_id": uuid7().hex,
                "causation_id": None,
                "recorded_at": now,
            }
            delivery = {
                "event_position": await session.scalar(self.event, event),
                "subscription_id": 1,
                "run": 0,
                "event_version": 1,
                "state": "pending",
                "due": now,
                "attempts": 0,
                "losses": 0,
            }
            await session.execute(self.delivery, delivery)
            await session.commit()


async def latency(url: str, database: str, samples: int, load: float | None = None) -> Row:
    """From the end of a send to the start of its listener.

    load: commands are sent at this share of the peak of the whole, without waiting for their
    listeners. The peak is measured first: how many commands a second this one process both sends
    and delivers. None: one after the other, to a worker that has nothing else.
    """
    service = Slicewise(url, "timed", NOTES_TIME)
    await service.open()
    started: dict[int, float] = ledger.module("timed", "slices.ledger.listeners").started
    post = ledger.module("timed", "slices.ledger.messages").Post
    started.clear()
    committed = dict[int, float]()

    async def send(number: int) -> None:
        await service.runtime.bus().send(post(amount=number))
        committed[number] = time.perf_counter()

    numbers = range(1000, 1000 + samples)
    a_second = 0.0
    try:
        await service.warm_up()
        await service.deliver()
        if load is None:
            for number in numbers:
                await send(number)
                await _all_in({number}, started)
                await asyncio.sleep(0.02)
        else:
            a_second = load * await _peak(send, range(10_000, 10_000 + samples), started)
            committed.clear()
            await _send_at(a_second, send, numbers)
            await _all_in(committed.keys(), started)
    finally:
        await service.close()
    percent = quantiles((started[one] - committed[one] for one in committed), n=100)
    return {
        "database": database,
        "commands a second": round(a_second) or "one after the other",
        "p50, ms": percent[49] * 1000,
        "p99, ms": percent[98] * 1000,
    }


Send = Callable[[int], Coroutine[Any, Any, None]]


async def _peak(send: Send, numbers: range, started: Mapping[int, float]) -> float:
    """How many commands a second are sent and delivered, if some send as fast as they can."""
    left = iter(numbers)

    async def keep_sending() -> None:
        for number in left:
            await send(number)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as senders:
        for _ in range(SENDERS):
            senders.create_task(keep_sending())
    await _all_in(set(numbers), started)
    return len(numbers) / (time.perf_counter() - begun)


async def _send_at(a_second: float, send: Send, numbers: range) -> None:
    """Send so many a second, whatever becomes of them."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as sends:
        for sent, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, begun + sent / a_second - time.perf_counter()))
            sends.create_task(send(number))


async def _all_in(numbers: Set[int], started: Mapping[int, float]) -> None:
    async with asyncio.timeout(60):
        while not numbers <= started.keys():  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
