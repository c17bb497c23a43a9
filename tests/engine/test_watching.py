"""Tests see what happened in order, and may run listeners twice or in any order."""

import datetime as dt
from typing import Any

import pytest

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

STEP = """
    class Step(Event, key="of"):
        of: str
        number: int
"""
RUN = """
    class Fell(Exception):
        pass
    @handle
    async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
        match command.text:
            case "later":
                bus.publish(NoteWritten(text="b"), after=dt.timedelta(minutes=5))
            case "nested":
                await bus.send(Write(text="c"))
                await bus.send(Count())
            case "fails":
                bus.publish(NoteWritten(text="d"))
                raise Fell("no luck")
"""
COPIES = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession, context: Context, bus: Bus) -> None:
        seen.append((event.text, context.message_id))
        session.add(Note(text=f"{event.text} again"))
        bus.publish(Step(of=event.text, number=1))
"""
HEARS = """
    @listen
    async def hear(event: Step) -> None:
        seen.append(event.number)
"""


def kinds(timeline: Any) -> list[str]:
    """What happened, a word of each."""
    return [
        f"{kind} {text.partition('(')[0].partition(' {')[0]}" for kind, text in timeline.entries
    ]


async def publish(service: Service, *numbers: int, of: str = "") -> None:
    step = service.shop.contracts().Step
    await service.runtime.publish(*(step(of=of or str(one), number=one) for one in numbers))


async def test_timeline_has_what_happened_in_order(shop: Shop, start: Start, url: str) -> None:
    notes(shop, RUN, contracts=STEP, listeners=COPIES)
    service = await start(url)
    timeline = service.runtime.watch()
    await service.send(shop.messages().Write(text="a"))
    await service.settled()
    await service.send(shop.messages().Run(text="nested"))
    with pytest.raises(Exception, match="no luck"):
        await service.send(shop.messages().Run(text="fails"))
    assert kinds(timeline) == [
        "command Write",
        "event notes.NoteWritten",
        "delivery notes.copy ← notes.NoteWritten",
        "event notes.Step",
        "command Run",
        "command Write",
        "query Count",
        "event notes.NoteWritten",
        "command Run",
        "failed Run: Fell",
    ]
    told = str(timeline).splitlines()
    assert told[0] == "command   Write(text='a')"
    assert told[1] == "event     notes.NoteWritten {'text': 'a'}"
    assert told[-1] == "failed    Run: Fell('no luck')"


async def test_event_for_later_is_told_when_it_is_due(shop: Shop, start: Start, url: str) -> None:
    notes(shop, RUN)
    service = await start(url)
    timeline = service.runtime.watch()
    await service.send(shop.messages().Run(text="later"))
    service.runtime.clock.advance(dt.timedelta(minutes=6))
    await service.runtime.relay.work_off()
    told = [text for kind, text in timeline.entries if kind == "event"]
    assert told[0].startswith("due 2")
    assert told[0].endswith(", notes.NoteWritten {'text': 'b'}")
    assert told[1:] == ["notes.NoteWritten {'text': 'b'}"]


async def test_failure_at_the_commit_is_told(shop: Shop, start: Start, url: str) -> None:
    notes(shop, contracts=STEP, listeners=COPIES)
    service = await start(url)
    await service.send(shop.messages().Write(text="a again"))
    await service.settled()
    timeline = service.runtime.watch()
    await service.send(shop.messages().Write(text="a"))
    await service.runtime.relay.work_off()
    assert kinds(timeline)[-2:] == [
        "delivery notes.copy ← notes.NoteWritten",
        "failed notes.copy: IntegrityError",
    ]


async def test_twice_is_once_for_what_is_in_the_database(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, contracts=STEP, listeners=COPIES)
    service = await start(url)
    timeline = service.runtime.watch(twice=True)
    await service.send(shop.messages().Write(text="a"))
    await service.settled()
    assert shop.seen[0] == shop.seen[1]
    assert len(shop.seen) == 2
    assert await service.texts() == ["a", "a again"]
    assert [one.name for one in await service.events()] == ["notes.NoteWritten", "notes.Step"]
    assert [one.attempts for one in await service.deliveries()] == [0]
    assert kinds(timeline).count("event notes.Step") == 1
    assert [
        text.endswith("rolled back") for kind, text in timeline.entries if kind == "delivery"
    ] == [
        True,
        False,
    ]


async def test_twice_works_for_whole_batches(shop: Shop, start: Start, url: str) -> None:
    batch = HEARS.replace("@listen", "@listen(batch=10)").replace(
        "event: Step", "events: list[Step]"
    )
    notes(shop, contracts=STEP, listeners=batch.replace("event.number", "len(events)"))
    service = await start(url)
    service.runtime.watch(twice=True)
    await publish(service, 1, 2, 3)
    await service.settled()
    assert shop.seen == [3, 3]


async def test_shuffled_order_is_that_of_its_seed(shop: Shop, start: Start, url: str) -> None:
    notes(shop, contracts=STEP, listeners=HEARS)
    service = await start(url)
    orders = []
    for seed in ("a", "a", "b"):
        service.runtime.relay.shuffle(seed)
        await publish(service, *range(8))
        await service.settled()
        orders.append(shop.seen[-8:])
    assert [sorted(one) for one in orders] == [list(range(8))] * 3
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert list(range(8)) not in orders


async def test_shuffled_keeps_order_where_it_is_asked_for(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, contracts=STEP, listeners=HEARS.replace("@listen", "@listen(ordered=True)"))
    service = await start(url)
    service.runtime.relay.shuffle("a")
    await publish(service, 1, 2, 3, 4, of="one")
    await publish(service, 10, 20, 30, 40, of="other")
    await service.settled()
    assert [one for one in shop.seen if one < 10] == [1, 2, 3, 4]
    assert [one for one in shop.seen if one >= 10] == [10, 20, 30, 40]
