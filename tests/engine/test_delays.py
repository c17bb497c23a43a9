"""Events for later: in the log when they are due, unless they are cancelled before."""

import asyncio
import datetime as dt
from typing import Any
from uuid import uuid4

import pytest

from .conftest import Relays, Service, Shop, Start, notes, options

pytestmark = pytest.mark.anyio

RUN = """
    @handle
    async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
        for step in command.text.split():
            match step.partition(":"):
                case ("later", _, key):
                    bus.publish(NoteWritten(text=key), after=dt.timedelta(minutes=10))
                case ("soon", _, key):
                    bus.publish(NoteWritten(text=key), after=dt.timedelta(milliseconds=50))
                case ("now", _, key):
                    bus.publish(NoteWritten(text=key))
                case ("at", _, key):
                    bus.publish(NoteWritten(text=key), at=dt.datetime(2020, 1, 1))
                case ("both", _, key):
                    now = dt.datetime.now(dt.UTC)
                    bus.publish(NoteWritten(text=key), after=dt.timedelta(hours=1), at=now)
                case ("cancel", _, key):
                    bus.cancel(NoteWritten, key)
                case ("undone", _, key):
                    try:
                        async with bus.savepoint():
                            bus.cancel(NoteWritten, key)
                            raise LookupError
                    except LookupError:
                        pass
                case ("fail", _, _):
                    raise LookupError
"""
HEARS = """
    @listen
    async def hear(event: NoteWritten) -> None:
        seen.append(event.text)
        gate(event.text).set()
"""


async def run(service: Service, steps: str) -> None:
    await service.send(service.shop.messages().Run(text=steps))


async def scheduled(service: Service) -> list[str]:
    return await service.column("SELECT key FROM bus_scheduled ORDER BY position")


@pytest.fixture
async def service(shop: Shop, start: Start, url: str) -> Service:
    notes(shop, RUN, listeners=HEARS)
    return await start(url)


async def test_event_for_later_is_delivered_when_it_is_due(shop: Shop, service: Service) -> None:
    await run(service, "later:a")
    await service.settled()
    assert await service.events() == []
    service.runtime.clock.advance(dt.timedelta(minutes=9))
    await service.runtime.relay.work_off()
    assert shop.seen == []
    service.runtime.clock.advance(dt.timedelta(minutes=2))
    await service.runtime.relay.work_off()
    assert shop.seen == ["a"]
    assert await scheduled(service) == []
    [event] = await service.events()
    assert event.correlation_id


async def test_relay_asks_what_is_due_next_only_after_what_may_have_changed_that(
    shop: Shop, start: Start, url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop, RUN, listeners=HEARS)
    service = await start(url, relay=options(shop, poll=3600))
    claims, asked = service.runtime.relay._claims, list[dt.datetime]()
    next_due, answered = claims.next_due, asyncio.Event()

    async def ask(here: Any, after: dt.datetime) -> Any:
        asked.append(after)
        answer = await next_due(here, after)
        answered.set()
        return answer

    async def wake_nobody(waker: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(claims, "next_due", ask)
    monkeypatch.setattr(shop.module("bus.relay").Waker, "run", wake_nobody)
    relays(service)
    # What is published meanwhile would be in the answer.
    await answered.wait()
    for steps, heard in [("now:a", "a"), ("now:b", "b"), ("soon:c now:d", "d")]:
        assert len(asked) == 1
        await run(service, steps)
        async with asyncio.timeout(5):
            await shop.gate(heard).wait()
    async with asyncio.timeout(5):
        await shop.gate("c").wait()
    assert len(asked) > 1


async def test_cancelled_event_never_happens(shop: Shop, service: Service) -> None:
    await run(service, "later:a later:b")
    await run(service, "cancel:a")
    assert await scheduled(service) == ["b"]
    service.runtime.clock.advance(dt.timedelta(hours=1))
    await service.runtime.relay.work_off()
    assert shop.seen == ["b"]


@pytest.mark.parametrize(
    ("kind", "key", "given"),
    [
        ("UUID", "UUID(int=10)", "UUID(int=10)"),
        ("UUID", "UUID(int=10)", "UUID(int=10).hex.upper()"),
        ("int", "5", "'5'"),
        ("float", "1.0", "1"),
        ("str", "'a'", "'a'"),
        ("Annotated[str, Field(validation_alias='id', min_length=1)]", "'a'", "'a'"),
        ("str", "str(UUID(int=10))", "UUID(int=10)"),
        ("Colour", "Colour.RED", "'red'"),
        ("dt.date", "dt.date(2026, 1, 2)", "'2026-01-02'"),
    ],
)
async def test_key_may_be_given_in_other_forms(
    shop: Shop, start: Start, url: str, kind: str, key: str, given: str
) -> None:
    service = await with_keys(shop, start, url, kind, key, given)
    await run(service, "later")
    assert len(await scheduled(service)) == 1
    await run(service, "cancel")
    assert await scheduled(service) == []


async def with_keys(shop: Shop, start: Start, url: str, kind: str, key: str, given: str) -> Service:
    """A service that publishes an event with such a key, and cancels it by what is given."""
    contracts = f"""
        from enum import Enum
        from typing import Annotated
        from pydantic import Field
        class Colour(str, Enum):
            RED = "red"
        class Keyed(Event, key="id"):
            id: {kind}
    """
    handler = f"""
        @handle
        async def run(command: Run, bus: Bus) -> None:
            if command.text == "later":
                bus.publish(Keyed(id={key}), after=dt.timedelta(hours=1))
            else:
                bus.cancel(Keyed, {given})
    """
    notes(shop, handler, contracts=contracts)
    return await start(url)


async def test_cancelling_is_in_order_with_publishing(service: Service) -> None:
    await run(service, "later:a cancel:a")
    assert await scheduled(service) == []
    await run(service, "later:a later:b cancel:a later:a")
    assert await scheduled(service) == ["b", "a"]


async def test_cancelling_is_undone_with_its_transaction(service: Service) -> None:
    await run(service, "later:a")
    with pytest.raises(LookupError):
        await run(service, "cancel:a fail:x")
    await run(service, "undone:a")
    assert await scheduled(service) == ["a"]


async def test_both_a_span_and_a_time_are_refused(shop: Shop, service: Service) -> None:
    with pytest.raises(shop.bus.BusError, match="after and at: give one"):
        await run(service, "both:a")


async def test_time_without_a_time_zone_is_refused(shop: Shop, service: Service) -> None:
    with pytest.raises(shop.bus.BusError, match="time zone"):
        await run(service, "at:a")


async def test_cancelling_what_is_in_the_log_does_nothing(shop: Shop, service: Service) -> None:
    await run(service, "later:a")
    service.runtime.clock.advance(dt.timedelta(hours=1))
    await service.runtime.relay._move_due()
    await run(service, "cancel:a")
    await service.settled()
    assert shop.seen == ["a"]


@pytest.mark.parametrize("spoilt", ["payload", "id"])
async def test_event_that_cannot_be_stored_holds_up_no_other(
    shop: Shop, service: Service, logged: list[Any], spoilt: str
) -> None:
    await run(service, "now:x later:a later:b later:c")
    if spoilt == "payload":
        await service.spoil("bus_scheduled", "a")
    else:
        await service.write(
            "UPDATE bus_scheduled SET id = (SELECT id FROM bus_event) WHERE key='a'"
        )
    service.runtime.clock.advance(dt.timedelta(hours=1))
    await service.runtime.relay.work_off()
    assert shop.seen == ["x", "b", "c"]
    assert await scheduled(service) == ["a"]
    [told] = [one for one in logged if one["event"].startswith("scheduled event put off")]
    assert told["event_id"]
    scheduled_row = shop.tables.scheduled
    whole = {"payload": {"text": "a"}, "id": uuid4()}
    await service.write(scheduled_row.update().values(whole))
    service.runtime.clock.advance(dt.timedelta(minutes=2))
    await service.runtime.relay.work_off()
    assert shop.seen == ["x", "b", "c", "a"]


async def test_log_says_when_an_event_is_due_and_what_was_cancelled(
    service: Service, logged: list[Any]
) -> None:
    await run(service, "later:a")
    await run(service, "cancel:a cancel:b")
    [stored, cancelled] = [one for one in logged if "due" in one]
    assert (stored["event"], cancelled["event"]) == ("event stored", "scheduled event cancelled")
    assert stored["correlation_id"]
    for name in ("event_name", "event_id", "due"):
        assert stored[name] == cancelled[name]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("str", "'a\\0b'"),
        ("str", "'\\ud800'"),
        ("dict[str, int]", "{'a\\0': 1}"),
        ("float", "float('nan')"),
        ("list[float]", "[-1e999]"),
    ],
)
@pytest.mark.parametrize("after", [None, "dt.timedelta(hours=1)"])
async def test_what_no_database_keeps_is_refused_where_it_is_published(
    shop: Shop, start: Start, url: str, kind: str, value: str, after: str | None
) -> None:
    notes(
        shop,
        f"""
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            session.add(Note(text="a"))
            bus.publish(Odd(text="odd", value={value}), after={after})
        """,
        contracts=f"""
        class Odd(Event, key="text"):
            text: str
            value: {kind}
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match=r"^(a name in )?Odd\.value "):
        await run(service, "run")
    assert await service.texts() == await scheduled(service) == await service.events() == []
