"""A new listener starts with what is published from now on, or with all that is stored."""

import asyncio
from typing import Any

import pytest

from .conftest import Service, Shop, Start, notes, write

pytestmark = pytest.mark.anyio

HEARS = """
@listen{}
async def hear(event: NoteWritten) -> None: seen.append(event.text)
"""


async def with_listener(shop: Shop, start: Start, url: str, options: str) -> Service:
    shop.forget()
    notes(shop, listeners=HEARS.format(options))
    return await start(url)


async def test_new_listener_starts_from_now(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    await write(await start(url), "a")
    service = await with_listener(shop, start, url, "")
    await write(service, "b")
    await service.settled()
    assert shop.seen == ["b"]


@pytest.mark.parametrize("ordered", ["", ", ordered=True"])
async def test_new_listener_starts_at_the_beginning(
    shop: Shop, start: Start, url: str, ordered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.module("bus.backfill"), "_CHUNK", 2)
    notes(shop)
    await write(await start(url), *"abcdefg")
    service = await with_listener(shop, start, url, f'(start="beginning"{ordered})')
    await write(service, "h")
    await service.settled()
    assert shop.seen == [*"abcdefgh"]
    assert await service.column("SELECT backfilled_to FROM bus_subscription") == [None]
    await write(service, "i")
    await service.settled()
    assert shop.seen == [*"abcdefghi"]


FAILS = """
@listen(ordered=True, start="beginning", retries=0)
async def hear(event: NoteWritten) -> None:
    assert event.text != "bad"
    seen.append(event.text)
"""


async def correct(service: Service, text: str) -> None:
    """Give notes.hear this text in the place of the one that is dead."""
    operations = service.shop.module("bus.operating.operations")
    desk = operations.Operations(service.database, service.runtime.catalog)
    (dead,) = [one.id for one in await service.deliveries() if one.state == "dead"]
    await desk.edit(dead, {"text": text}, other_key=True, who="alice")


async def test_new_listener_gets_what_was_published_and_no_corrections_for_others(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=FAILS)
    service = await start(url)
    await write(service, "bad", "b")
    await service.runtime.relay.work_off()
    await correct(service, "good")
    await service.settled()
    assert sorted(shop.seen) == ["b", "good"]
    shop.seen.clear()
    shop.forget()
    notes(shop, listeners=FAILS + HEARS.format('(start="beginning")').replace("hear", "hear_all"))
    service = await start(url)
    await write(service, "c")
    await service.settled()
    assert sorted(shop.seen) == ["b", "bad", "c", "c"]


async def test_correction_while_it_is_filled_comes_once(
    shop: Shop, start: Start, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.module("bus.backfill"), "_CHUNK", 1)
    notes(shop)
    await write(await start(url), "bad", "a", "b")
    shop.forget()
    notes(shop, listeners=FAILS)
    service = await start(url)
    backfill, now = shop.module("bus.backfill").backfill, service.runtime.clock.now
    assert await backfill(service.database, now())
    await service.write("UPDATE bus_delivery SET state = 'dead'")
    await correct(service, "good")
    await service.settled()
    assert sorted(shop.seen) == ["a", "b", "good"]


async def renamed_while_it_waits(shop: Shop, start: Start, url: str, options: str) -> Service:
    """hear has two events; begin (with options) is there in its place, and is not filled yet."""
    notes(shop, listeners=HEARS.format(""))
    await write(await start(url), "a", "b")
    shop.forget()
    fills = HEARS.format(options).replace("hear", "begin")
    fills += HEARS.format('(start="beginning")').replace("hear", "other")
    notes(shop, listeners=fills)
    return await start(url)


async def move(service: Service) -> int:
    """Hand what hear has left to begin."""
    operations = service.shop.module("bus.operating.operations")
    desk = operations.Operations(service.database, service.runtime.catalog)
    left = await desk.select_left("move", "notes.hear")
    moved: int = await desk.move(left, "notes.begin", who="alice")
    return moved


async def test_what_was_moved_to_it_before_is_not_filled_again(
    shop: Shop, start: Start, url: str
) -> None:
    service = await renamed_while_it_waits(shop, start, url, '(start="beginning")')
    assert await move(service) == 2
    await filled(service)
    await write(service, "c")
    await service.runtime.relay.work_off()
    assert sorted(shop.seen) == ["a", "a", "b", "b", "c", "c"]


async def test_nothing_is_moved_to_an_ordered_listener_that_is_being_filled(
    shop: Shop, start: Start, url: str
) -> None:
    service = await renamed_while_it_waits(shop, start, url, '(start="beginning", ordered=True)')
    with pytest.raises(shop.module("bus.errors").OperationError, match=r"wait until .*events lag"):
        await move(service)
    await filled(service)
    assert await move(service) == 0


async def test_listener_that_cannot_be_filled_holds_up_no_other(
    shop: Shop, start: Start, url: str, monkeypatch: pytest.MonkeyPatch, logged: list[Any]
) -> None:
    service = await renamed_while_it_waits(shop, start, url, '(start="beginning")')
    module = shop.module("bus.backfill")
    step, (broken, *_) = (
        module._step,
        await service.column("SELECT id FROM bus_subscription WHERE listener = 'notes.begin'"),
    )

    async def failing(connection: Any, found: Any, now: Any) -> Any:
        if found.id == broken:
            raise LookupError("no luck")
        return await step(connection, found, now)

    monkeypatch.setattr(module, "_step", failing)
    while await module.backfill(service.database, service.runtime.clock.now()):
        pass
    filling = "SELECT listener FROM bus_subscription WHERE backfilled_to IS NOT NULL"
    assert await service.column(filling) == ["notes.begin"]
    [line] = [line for line in logged if "could not be filled" in line["event"]]
    assert (line["listener"], line["error"]) == ("notes.begin", "LookupError('no luck')")
    monkeypatch.undo()
    await filled(service)


async def test_events_that_were_removed_cannot_be_had(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    service = await start(url)
    await write(service, "a")
    await service.write("INSERT INTO bus_log (id, floor) VALUES (1, 1)")
    with pytest.raises(shop.bus.WiringError, match="have been removed"):
        await with_listener(shop, start, url, '(start="beginning")')


async def filled(service: Service) -> None:
    """Fill all; a step that others keep from the log is taken again, as relays do."""
    backfill, clock = service.shop.module("bus.backfill").backfill, service.runtime.clock
    while await service.rows("SELECT id FROM bus_subscription WHERE backfilled_to IS NOT NULL"):
        await backfill(service.database, clock.now())


@pytest.mark.parametrize("beginning", [False, True])
async def test_nothing_is_missed_under_load(
    shop: Shop, start: Start, postgresql_url: str, beginning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than is published meanwhile, so that it catches up; less than there is, for many steps.
    monkeypatch.setattr(shop.module("bus.backfill"), "_CHUNK", 60)
    notes(shop)
    publishers = [await start(postgresql_url) for _ in range(2)]
    going = True

    async def publish(number: int) -> None:
        count = 0
        while going:
            count += 1
            await write(publishers[number % 2], f"{number}-{count}")

    tasks = [asyncio.create_task(publish(number)) for number in range(6)]
    wanted = shop.module("bus.subscriptions").Wanted
    subscribe = shop.module("bus.subscriptions").subscribe
    try:
        for round_ in range(5):
            one = wanted(f"notes.l{round_}", (), "notes", ("notes.NoteWritten",), False, beginning)
            await subscribe(publishers[0].database, [one])
            await filled(publishers[0])
    finally:
        going = False
        await asyncio.gather(*tasks)
    missed = await publishers[0].rows(
        "SELECT s.listener, e.position FROM bus_subscription s CROSS JOIN bus_event e"
        " LEFT JOIN bus_delivery d ON d.subscription_id = s.id AND d.event_position = e.position"
        f" WHERE d.id IS NULL AND ({beginning} OR e.position > s.from_position)"
    )
    assert missed == []
    twice = await publishers[0].rows(
        "SELECT s.listener FROM bus_subscription s JOIN bus_delivery d ON d.subscription_id = s.id"
        f" WHERE NOT {beginning} AND d.event_position <= s.from_position"
    )
    assert twice == []
