"""What failures of a listener lead to, by its settings and by the kind of exception."""

import asyncio
import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa

from .conftest import Relays, Service, Shop, Start, notes, options, until, write

pytestmark = pytest.mark.anyio


WAITING = """
@listen
async def wait(event: NoteWritten) -> None:
    seen.append(event.text)
    await gate("works").wait()
"""


def failing(shop: Shop, options: str, error: str = "LookupError('no luck')") -> None:
    notes(
        shop,
        listeners=f"""
        class Down(ConnectionError): ...
        @listen({options})
        async def fail(event: NoteWritten) -> None:
            seen.append(event.text)
            if not gate("works").is_set():
                raise {error}
        """,
    )


async def states(service: Service) -> list[tuple[str, int]]:
    return [(one.state, one.attempts) for one in await service.deliveries()]


async def later(service: Service, **time: float) -> None:
    service.runtime.clock.advance(dt.timedelta(**time))
    await service.runtime.relay.work_off()


async def until_states(service: Service, *expected: str) -> None:
    async with asyncio.timeout(10):
        while [one.state for one in await service.deliveries()] != [*expected]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_retries_and_backoff_are_the_listeners(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "retries=1, backoff=100")
    service = await start(url)
    await write(service, "a")
    await later(service, seconds=1)
    await later(service, seconds=40)
    assert await states(service) == [("pending", 1)]
    await later(service, seconds=61)
    assert await states(service) == [("dead", 2)]
    attempts = await service.rows(
        "SELECT number, error_type, error_message FROM bus_attempt ORDER BY id"
    )
    assert [(one.number, one.error_type) for one in attempts] == [
        (1, "LookupError"),
        (2, "LookupError"),
    ]
    assert all("no luck" in one.error_message for one in attempts)


async def test_hopeless_error_is_given_up_at_once(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "errors={LookupError: GiveUp()}", "KeyError('a kind of LookupError')")
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert await states(service) == [("dead", 1)]


async def test_most_specific_error_decides(shop: Shop) -> None:
    policy = shop.module("bus.policy")
    give_up, again = policy.GiveUp(), policy.Retry(3)
    made = policy.Policy(errors={Exception: give_up, OSError: again})
    assert made.decide(ConnectionError()) is again
    assert made.decide(ValueError()) is give_up
    assert made.decide(asyncio.CancelledError()) == policy.Retry()


async def test_error_that_pauses_the_listener(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "errors={ConnectionError: Pause(300)}", "Down('no answer')")
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    await write(service, "b")
    await later(service, seconds=200)
    assert shop.seen == ["a"]
    # It costs no attempt, and everybody can see it.
    assert await states(service) == [("pending", 0), ("pending", 0)]
    [reason] = await service.column("SELECT paused_reason FROM bus_subscription")
    assert "no answer" in reason
    shop.gate("works").set()
    await later(service, seconds=101)
    await service.settled()
    assert await states(service) == [("done", 0), ("done", 0)]
    assert await service.column("SELECT paused_reason FROM bus_subscription") == [None]


async def test_listener_for_which_everything_fails_is_paused_and_probed(
    shop: Shop, start: Start, url: str
) -> None:
    failing(shop, "")
    service = await start(url)
    await write(service, *(f"{number:02}" for number in range(40)))
    await service.runtime.relay.work_off()
    tried = len(shop.seen)
    assert 10 <= tried < 30
    await later(service, seconds=20)
    assert len(shop.seen) == tried
    # After the pause one delivery finds out whether it works again.
    await later(service, seconds=15)
    assert len(shop.seen) == tried + 1
    await later(service, seconds=40)
    assert len(shop.seen) == tried + 1
    shop.gate("works").set()
    await later(service, minutes=10)
    await service.settled()
    assert {state for state, _ in await states(service)} == {"done"}


async def test_few_events_are_kept_by_the_pause_too(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "")
    service = await start(url)
    await write(service, *"ab")
    for _ in range(60):
        await later(service, minutes=1)
    assert {state for state, _ in await states(service)} == {"pending"}
    shop.gate("works").set()
    await later(service, minutes=10)
    await service.settled()
    assert {state for state, _ in await states(service)} == {"done"}


async def test_event_that_fails_alone_pauses_nobody(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "retries=20, backoff=0.001")
    service = await start(url)
    await write(service, "a")
    for _ in range(21):
        await later(service, minutes=6)
    assert await service.column("SELECT paused_reason FROM bus_subscription") == [None]
    assert await states(service) == [("dead", 21)]


async def test_dead_letter_and_the_next_event_pause_nobody(
    shop: Shop, start: Start, url: str
) -> None:
    failing(shop, "")
    service = await start(url)
    for text in ("a", "b"):
        await write(service, text)
        for _ in range(11):
            await later(service, minutes=6)
    assert await service.column("SELECT paused_until FROM bus_subscription") == [None]
    assert {state for state, _ in await states(service)} == {"dead"}


async def test_what_is_resumed_too_early_is_paused_again(
    shop: Shop, start: Start, url: str
) -> None:
    failing(shop, "retries=3")
    service = await start(url)
    await write(service, *(f"{number:02}" for number in range(60)))
    await service.runtime.relay.work_off()
    tried = len(shop.seen)
    resumed = shop.tables.subscription.update().values(paused_until=None, paused_reason=None)
    await service.write(resumed)
    await service.runtime.relay.work_off()
    assert tried + 10 <= len(shop.seen) < tried + 30
    assert await service.column("SELECT paused_reason FROM bus_subscription") != [None]
    assert {state for state, _ in await states(service)} == {"pending"}


async def test_listener_that_only_refuses_is_not_taken_to_be_down(
    shop: Shop, start: Start, url: str
) -> None:
    failing(shop, "retries=1", "RefusedError('no such note') if event.text < 'x' else OSError()")
    service = await start(url)
    await write(service, *(f"{number:02}" for number in range(40)))
    await service.runtime.relay.work_off()
    assert sorted(set(shop.seen)) == [f"{number:02}" for number in range(40)]
    assert await service.column("SELECT paused_until FROM bus_subscription") == [None]
    # It answers, so that one on probation has passed.
    subscription = shop.tables.subscription
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    await service.write(subscription.update().values(paused_until=past, paused_reason="down"))
    await later(service, minutes=1)
    assert await service.column("SELECT paused_reason FROM bus_subscription") == [None]
    assert {state for state, _ in await states(service)} == {"dead"}


async def test_pause_is_there_before_the_failure_is(
    shop: Shop, start: Start, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(shop, "errors={ConnectionError: Pause(300)}", "Down('no answer')")
    service = await start(url)
    claims = service.runtime.relay._claims
    fail, reasons = claims.fail, []

    async def noted(*arguments: Any, **options: Any) -> None:
        reasons.extend(await service.column("SELECT paused_reason FROM bus_subscription"))
        await fail(*arguments, **options)

    monkeypatch.setattr(claims, "fail", noted)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert ["no answer" in reason for reason in reasons] == [True]


async def test_listener_on_probation_runs_once_at_a_time(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITING)
    service = await start(url)
    await write(service, *"abcd")
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    subscription = shop.tables.subscription
    await service.write(subscription.update().values(paused_until=past, paused_reason="down"))
    relays(service)
    await until(lambda: shop.seen == ["a"])
    [number] = await service.column("SELECT id FROM bus_subscription")
    assert await service.runtime.relay._claims.claim([number], 10) == []
    shop.gate("works").set()
    await service.settled()
    assert sorted(shop.seen) == [*"abcd"]


async def test_pause_stops_what_is_claimed_already(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITING)
    service = await start(url, relay=options(shop, at_once=1, lease=0.3))
    await write(service, *"abc")
    relays(service)
    await until(lambda: shop.seen == ["a"])
    far = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
    subscription = shop.tables.subscription
    await service.write(subscription.update().values(paused_until=far, paused_reason="by hand"))
    await until_states(service, "working", "pending", "pending")
    shop.gate("works").set()
    await until_states(service, "done", "pending", "pending")
    assert shop.seen == ["a"]


async def test_error_that_cannot_be_shown_is_kept_all_the_same(
    shop: Shop, start: Start, url: str
) -> None:
    failing(shop, "retries=0", "Silent()")
    listeners = shop.folder / "slices/notes/listeners.py"
    silent = """
class Silent(Exception):
    def __repr__(self):
        raise LookupError
    __str__ = __repr__
"""
    listeners.write_text(listeners.read_text() + silent)
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    [delivery] = await service.deliveries()
    assert (delivery.state, delivery.error_type) == ("dead", "Silent")


async def test_pause_by_a_person_is_not_shortened(shop: Shop, start: Start, url: str) -> None:
    failing(shop, "")
    service = await start(url)
    far = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
    subscription = shop.tables.subscription
    await service.write(subscription.update().values(paused_until=far, paused_reason="by hand"))
    [number] = await service.column("SELECT id FROM bus_subscription")
    await service.runtime.relay._claims.pause(number, 30, "everything failed")
    await service.runtime.relay._claims.end_probation(number)
    assert await service.column("SELECT paused_reason FROM bus_subscription") == ["by hand"]
    await write(service, "a")
    await later(service, days=1)
    assert shop.seen == []


async def test_listener_that_hangs_is_cut_off(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen(timeout=0.05, retries=0)
        async def hang(event: NoteWritten, session: AsyncSession) -> None:
            session.add(Note(text="never"))
            await session.flush()
            await gate("never").wait()
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    [delivery] = await service.deliveries()
    assert (delivery.state, delivery.error_type) == ("dead", "TimeoutError")
    assert "notes.hang took longer than 0.05 s" in delivery.error_message
    assert delivery.error_frame.startswith("shop.slices.notes.listeners:hang:")
    assert await service.texts() == ["a"]
    await until(lambda: service.in_use() == 0)


async def test_message_id_is_the_same_at_each_attempt(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def call(event: NoteWritten, context: Context) -> None:
            seen.append((event.text, context.message_id))
            if len(seen) < 2:
                raise LookupError
        """,
    )
    service = await start(url)
    await write(service, "a", "b")
    await later(service, seconds=0)
    await later(service, seconds=5)
    ids = {text: {given for name, given in shop.seen if name == text} for text in "ab"}
    assert len(shop.seen) == 3
    assert len(ids["a"]) == len(ids["b"]) == 1
    assert ids["a"] != ids["b"]


async def test_message_id_outlives_the_listeners_name_and_no_replay_has_it(
    shop: Shop, start: Start, url: str
) -> None:
    source = """
        @listen
        async def call(event: NoteWritten, context: Context) -> None:
            seen.append(context.message_id)
            if len(seen) < 3:
                raise LookupError
        """
    notes(shop, listeners=source)
    service = await start(url)
    await write(service, "a")
    await later(service, seconds=0)
    shop.forget()
    renamed = source.replace("@listen", "@listen(aliases='call')").replace("call(", "charge(")
    notes(shop, listeners=renamed)
    service = await start(url)
    await later(service, seconds=5)
    await later(service, seconds=10)
    first, *others = shop.seen
    assert others == [first, first]
    for _ in range(2):
        # The second time as if retention had removed what the first replay left.
        delivery = shop.tables.delivery
        await service.write(sa.delete(delivery).where(delivery.c.run > 0))
        await service.write(
            "INSERT INTO bus_delivery (event_position, subscription_id, run, event_version, state,"
            " due, attempts, losses) SELECT event_position, subscription_id, 1, 1, 'pending', due,"
            " 0, 0 FROM bus_delivery"
        )
        await service.settled()
    assert len(set(shop.seen[2:])) == 3


async def test_waiting_for_another_takes_none_of_a_listeners_time(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(timeout=1.5)
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))
            if event.text == "a":
                await gate("never").wait()
        """,
    )
    service = await start(url)
    await write(service, *"abcd")
    await service.runtime.relay.work_off()
    assert await states(service) == [("pending", 1), ("done", 0), ("done", 0), ("done", 0)]


async def test_retry_that_is_due_at_once_waits_for_no_poll(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen(backoff=1e-6)
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            if len(seen) < 3:
                raise LookupError
        """,
    )
    service = await start(url, relay=options(shop, poll=3600))
    await write(service, "a")
    relays(service)
    await service.settled()
    assert shop.seen == ["a"] * 3
