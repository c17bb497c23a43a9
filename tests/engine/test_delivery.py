"""Events and their deliveries are stored with what caused them, and each listener runs once."""

import asyncio
import os
import signal
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from .conftest import Relays, Service, Shop, Start, notes, options, until, write

pytestmark = pytest.mark.anyio

REACTS = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession) -> None:
        seen.append(event.text)
        if not event.text.startswith("copy"):
            session.add(Note(text="copy of " + event.text))
"""
FAILS = """
    @listen
    async def fail(event: NoteWritten, session: AsyncSession) -> None:
        session.add(Note(text="failed " + event.text))
        await session.flush()
        seen.append("failed")
        raise LookupError("no luck")
"""


async def states(service: Service) -> list[tuple[str, str, int]]:
    return [(one.listener, one.state, one.attempts) for one in await service.deliveries()]


async def test_event_and_deliveries_are_stored_with_the_change(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=REACTS + FAILS)
    service = await start(url)
    await write(service, "a")
    [event] = await service.events()
    assert (event.name, event.version, event.key) == ("notes.NoteWritten", 1, "a")
    assert event.payload == {"text": "a"}
    assert event.causation_id is None
    assert event.recorded_at.utcoffset().total_seconds() == 0
    assert (event.tx > 0) == url.startswith("postgresql")
    deliveries = await service.deliveries()
    assert {one.listener for one in deliveries} == {"notes.copy", "notes.fail"}
    assert {one.event_position for one in deliveries} == {event.position}
    assert {(one.state, one.attempts, one.run) for one in deliveries} == {("pending", 0, 0)}
    assert shop.seen == []


async def test_failed_command_leaves_no_event_and_no_delivery(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url)
    await write(service, "a")
    with pytest.raises(sa.exc.IntegrityError):
        await write(service, "a")
    assert len(await service.events()) == len(await service.deliveries()) == 1


async def test_listener_runs_once_in_a_transaction_of_its_own(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url)
    await write(service, "a", "b")
    await service.settled()
    await service.settled()
    assert shop.seen == ["a", "b"]
    assert await service.texts() == ["a", "b", "copy of a", "copy of b"]
    assert await states(service) == [("notes.copy", "done", 0)] * 2
    assert all(one.finished_at for one in await service.deliveries())


async def test_listener_returns_the_next_command(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    shop.slice(
        "orders",
        contracts="class Ordered(Event, key='text'):\n    text: str",
        messages="class Order(Command[None]):\n    text: str",
        models="""
        class OrderRow(Entity):
            __tablename__ = "orders"
            text: Mapped[str]
        """,
        handlers="""
        @handle
        async def order(command: Order, session: AsyncSession, bus: Bus) -> None:
            session.add(OrderRow(text=command.text))
            bus.publish(Ordered(text=command.text))
        """,
        listeners="""
        from shop.slices.notes.contracts import NoteWritten
        @listen
        def start_order(event: NoteWritten) -> Order | None:
            return Order(text=event.text) if event.text != "skip" else None
        """,
    )
    service = await start(url)
    await write(service, "a", "skip")
    await service.settled()
    assert await service.column("SELECT text FROM orders") == ["a"]
    written, skipped, ordered = await service.events()
    assert ordered.name == "orders.Ordered"
    assert ordered.causation_id == written.id
    assert ordered.correlation_id == written.correlation_id != skipped.correlation_id


async def test_failing_listener_is_tried_again_later(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=FAILS)
    service = await start(url)
    await write(service, "a")
    relay = service.runtime.relay
    for attempt in (1, 2, 3):
        await relay.work_off()
        await relay.work_off()
        [delivery] = await service.deliveries()
        assert (delivery.state, delivery.attempts) == ("pending", attempt)
        assert shop.seen == ["failed"] * attempt
        assert delivery.error_type == "LookupError"
        assert delivery.error_frame.startswith("shop.slices.notes.listeners:fail:")
        assert "no luck" in delivery.error_message
        assert "Traceback" in delivery.error_message
        await service.due_now()
    assert await service.texts() == ["a"]


async def test_delays_grow_and_scatter(shop: Shop) -> None:
    delay = shop.module("bus.policy").retry_delay
    for attempts, longest in [(1, 1), (2, 2), (5, 16), (20, 300)]:
        drawn = [delay(attempts) for _ in range(50)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


async def test_what_keeps_failing_is_kept_as_a_dead_letter(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=FAILS)
    service = await start(url)
    await write(service, "a")
    for _ in range(13):
        await service.runtime.relay.work_off()
        await service.due_now()
    assert await states(service) == [("notes.fail", "dead", 11)]
    assert len(shop.seen) == 11
    [delivery] = await service.deliveries()
    assert "no luck" in delivery.error_message


async def test_failing_listener_does_not_hold_up_others(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=FAILS + REACTS)
    service = await start(url)
    await write(service, *(f"{number:03}" for number in range(60)))
    await service.runtime.relay.work_off()
    found = await states(service)
    assert found.count(("notes.copy", "done", 0)) == 60
    # Before all of them have used up their retries, the listener is paused.
    assert 10 <= sum(listener == "notes.fail" and tried > 0 for listener, _, tried in found) < 60
    [(until, reason)] = await service.rows(
        "SELECT paused_until, paused_reason FROM bus_subscription WHERE listener = 'notes.fail'"
    )
    assert until
    assert "LookupError" in reason


async def test_listener_that_recovers_is_done(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            session.add(Note(text="copy"))
            if len(seen) < 3:
                raise LookupError
        """,
    )
    service = await start(url)
    await write(service, "a")
    for _ in range(3):
        await service.runtime.relay.work_off()
        await service.due_now()
    await service.settled()
    assert await states(service) == [("notes.copy", "done", 2)]
    assert await service.texts() == ["a", "copy"]


async def test_settled_says_what_did_not_settle(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=FAILS)
    service = await start(url)
    await write(service, "a")
    with pytest.raises(TimeoutError, match="attempt 0: no listener has run it"):
        await service.settled(0)
    await service.runtime.relay.work_off()
    with pytest.raises(TimeoutError) as failure:
        await service.settled(0.2)
    assert 'pending notes.NoteWritten {"text": "a"}, attempt 1' in str(failure.value)
    assert "LookupError: no luck" in str(failure.value)
    delivery = shop.tables.delivery
    await service.write(sa.update(delivery).values(state="dead"))
    async with asyncio.timeout(1):
        with pytest.raises(TimeoutError, match=r"dead notes\.NoteWritten"):
            await service.settled(60)


async def test_settled_waits_for_what_listeners_cause(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def again(event: NoteWritten, bus: Bus) -> None:
            if len(event.text) < 5:
                await bus.send(Write(text=event.text + "a"))
        """,
    )
    service = await start(url)
    relays(service)
    await write(service, "a")
    await service.settled()
    assert await service.texts() == ["a", "aa", "aaa", "aaaa", "aaaaa"]


async def test_what_is_committed_during_a_claim_does_not_wait_for_the_next_look(
    shop: Shop, start: Start, url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: gate('x').set()")
    service = await start(url, relay=options(shop, poll=3600))
    claims = service.runtime.relay._claims
    claim, claimed = claims.claim, list[Any]()

    async def wake_nobody(waker: Any) -> None:
        await asyncio.Event().wait()

    async def claim_and_commit(*arguments: Any, **more: Any) -> Any:
        found = await claim(*arguments, **more)
        claimed.append(found)
        if len(claimed) == 1:
            await write(service, "too late for this claim")
        return found

    monkeypatch.setattr(claims, "claim", claim_and_commit)
    monkeypatch.setattr(shop.module("bus.relay").Waker, "run", wake_nobody)
    relays(service)
    async with asyncio.timeout(5):
        await shop.gate("x").wait()
    assert not claimed[0]


async def test_commit_wakes_the_relay(shop: Shop, start: Start, url: str, relays: Relays) -> None:
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: gate('x').set()")
    service = await start(url, relay=options(shop, poll=3600))
    relays(service)
    await until(lambda: bool(service.runtime.relay.alive))
    await write(service, "a")
    async with asyncio.timeout(5):
        await shop.gate("x").wait()


async def test_rolled_back_unit_does_not_wake_the_relay(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            bus.publish(NoteWritten(text="a"))
            raise LookupError
        """,
    )
    service = await start(url)
    for _ in range(2):
        # SQLite cannot tell what was committed before the first transaction.
        service.runtime.relay._awake.clear()
        with pytest.raises(LookupError):
            await service.send(shop.messages().Run())
    assert not service.runtime.relay._awake.is_set()


async def test_two_relays_deliver_each_once(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=REACTS)
    services = [await start(url), await start(url)]
    texts = [f"{number:03}" for number in range(40)]
    for service in services:
        relays(service)
    await asyncio.gather(write(services[0], *texts[:20]), write(services[1], *texts[20:]))
    await services[0].settled(20)
    assert sorted(shop.seen) == texts
    assert await services[0].texts() == [*texts, *(f"copy of {text}" for text in texts)]


async def test_slow_listener_elsewhere_does_not_keep_a_relay_busy(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def slow(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            await gate("go").wait()
        """,
    )
    busy, idle = await start(postgresql_url), await start(postgresql_url)
    await write(busy, "a")
    relays(busy)
    await until(lambda: bool(shop.seen))
    async with asyncio.timeout(5):
        await idle.runtime.relay.work_off()
    assert shop.seen == ["a"]
    shop.gate("go").set()
    await busy.settled()
    assert shop.seen == ["a"]


async def test_stopped_relay_finishes_what_runs_and_takes_nothing_new(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def slow(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            await gate("go").wait()
        """,
    )
    service = await start(url)
    await write(service, *(str(number) for number in range(20)))
    task = relays(service)
    await until(lambda: bool(shop.seen))
    service.runtime.relay.stop()
    shop.gate("go").set()
    async with asyncio.timeout(5):
        await task
    assert not service.runtime.relay.alive
    found = await states(service)
    assert found.count(("notes.slow", "done", 0)) == len(shop.seen) < 20


async def test_cancelled_relay_gives_back_what_runs(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def slow(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            if len(seen) == 1:
                await gate("never").wait()
        """,
    )
    service = await start(url)
    await write(service, "a")
    task = asyncio.create_task(service.runtime.relay.run())
    await until(lambda: bool(shop.seen))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: service.in_use() == 0)
    assert await states(service) == [("notes.slow", "pending", 0)]
    await service.settled()
    assert shop.seen == ["a", "a"]


async def test_relay_survives_a_database_that_is_away(
    shop: Shop,
    start: Start,
    url: str,
    relays: Relays,
    logged: list[Any],
) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url, relay=options(shop, poll=0.01))
    away = [True]
    failures = []

    def refuse(*_: object) -> None:
        if away:
            failures.append(1)
            raise ConnectionError("away")

    database = service.database
    used = (database.writer, database.reader, database.worker, database.worker_reader)
    engines = {one.sync_engine for one in used}
    await write(service, "a")
    for engine in engines:
        sa.event.listen(engine, "begin", refuse)
    task = relays(service)
    await until(lambda: len(failures) >= 3)
    assert not task.done()
    assert service.runtime.relay.alive
    away.clear()
    await service.settled()
    assert shop.seen == ["a"]
    # It is told once, and not at each attempt, that it is away, and that it is back.
    told = [one["event"] for one in logged if "the database" in one["event"]]
    assert told == [
        "relay cannot reach the database, trying again",
        "relay reached the database again",
    ]


async def test_relay_that_cannot_claim_rests_however_often_it_is_woken(
    shop: Shop, start: Start, sqlite_url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop, listeners=REACTS)
    service = await start(sqlite_url)
    relay, tried = service.runtime.relay, []

    async def refuse(*_: object) -> None:
        tried.append(1)
        raise ConnectionError("away")

    monkeypatch.setattr(relay._claims, "claim", refuse)
    relays(service)
    await until(lambda: bool(tried))
    for _ in range(100):
        relay.wake()
        await asyncio.sleep(0)
    assert len(tried) == 1
    monkeypatch.undo()


async def test_relay_survives_a_server_that_cuts_its_connections(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            session.add(Note(text="copy of " + event.text))
            await session.flush()
            seen.append(event.text)
            if len(seen) == 1:
                gate("inside").set()
                await gate("go").wait()
        """,
    )
    service, other = await start(postgresql_url), await start(postgresql_url)
    await write(service, "a")
    relays(service)
    await shop.gate("inside").wait()
    await other.write(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    shop.gate("go").set()
    async with asyncio.timeout(5):
        while (await other.deliveries())[0].attempts == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await other.due_now()
    await service.settled()
    assert await other.texts() == ["a", "copy of a"]


async def test_listening_connection_that_died_without_a_word_holds_up_no_stop(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=REACTS)
    service, other = await start(postgresql_url), await start(postgresql_url)
    running = relays(service)
    waker = service.runtime.relay._waker
    await until(lambda: waker._driver is not None)
    backend = waker._driver.get_server_pid()
    # As after a firewall has dropped it: nobody answers, and nobody says so.
    os.kill(backend, signal.SIGSTOP)
    try:
        await write(service, "a")
        async with asyncio.timeout(15):
            while await other.texts() != ["a", "copy of a"]:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            service.runtime.relay.stop()
            await running
            await service.runtime.relay.close()
            assert await other.column("SELECT id FROM bus_worker") == []
    finally:
        os.kill(backend, signal.SIGCONT)


async def test_locked_log_keeps_nobody_from_looking_after_dead_workers(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    notes(shop, listeners=REACTS)
    service, other = await start(postgresql_url), await start(postgresql_url)
    await write(service, "a")
    await service.write("UPDATE bus_subscription SET backfilled_to = 1, from_position = 1")
    async with other.database.writer.begin() as connection:
        # As VACUUM and CREATE INDEX CONCURRENTLY do.
        await connection.execute(sa.text("LOCK TABLE bus_event IN SHARE UPDATE EXCLUSIVE MODE"))
        looking = asyncio.create_task(service.runtime.relay._look_after())
        async with asyncio.timeout(10):
            while not await service.rows("SELECT id FROM bus_worker"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        looking.cancel()


async def test_event_that_this_code_cannot_read_is_kept(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url)
    await write(service, "a", "b")
    await service.write("UPDATE bus_event SET payload = '{\"other\": 1}' WHERE key = 'a'")
    await service.runtime.relay.work_off()
    assert await states(service) == [("notes.copy", "pending", 1), ("notes.copy", "done", 0)]
    assert "text" in (await service.deliveries())[0].error_message


async def test_event_that_cannot_be_decoded_fails_alone(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url)
    await write(service, "a", "b", "c")
    await service.spoil("bus_event", "b")
    await service.runtime.relay.work_off()
    assert sorted(shop.seen) == ["a", "c"]
    found = [(one.state, one.attempts, one.losses) for one in await service.deliveries()]
    assert found == [("done", 0, 0), ("pending", 1, 0), ("done", 0, 0)]


async def test_failure_with_odd_characters_is_recorded(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def fail(event: NoteWritten) -> None:
            raise LookupError("nul \\x00, surrogate \\ud800, long " + "x" * 100_000)
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert await states(service) == [("notes.fail", "pending", 1)]


async def test_listener_that_cancels_itself_has_failed(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def fail(event: NoteWritten) -> None:
            raise asyncio.CancelledError
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert await states(service) == [("notes.fail", "pending", 1)]


async def test_error_with_a_long_name_is_recorded(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def fail(event: NoteWritten) -> None:
            raise type("E" * 300, (Exception,), {})
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert await states(service) == [("notes.fail", "pending", 1)]


async def test_listener_that_swallows_a_nested_failure_has_failed(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run) -> None:
            raise LookupError
        """,
        listeners="""
        @listen
        async def react(event: NoteWritten, bus: Bus) -> None:
            try:
                await bus.send(Run())
            except LookupError:
                pass
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.runtime.relay.work_off()
    assert await states(service) == [("notes.react", "pending", 1)]
    assert (await service.deliveries())[0].error_type == "UnitDoomedError"


async def test_event_published_from_outside_is_delivered(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=REACTS)
    service = await start(url)
    await service.runtime.publish(shop.contracts().NoteWritten(text=str(uuid4())))
    await service.settled()
    assert len(shop.seen) == 1


CALLS = """
    @listen
    async def call(event: NoteWritten, session: AsyncSession) -> None:
        await gate("answer").wait()
        session.add(Note(text="answer to " + event.text))
"""


async def test_listener_that_waits_for_others_holds_up_nobody(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners=CALLS + REACTS,
    )
    service = await start(url)
    relays(service)
    await write(service, *"abc")
    await until(lambda: len(shop.seen) == 3)
    await write(service, "d")
    shop.gate("answer").set()
    await service.settled()
    assert len([text for text in await service.texts() if text.startswith("answer")]) == 4


async def test_one_delivery_at_a_time_writes_to_sqlite(
    shop: Shop, start: Start, sqlite_url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def slow(event: NoteWritten, session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))
            seen.append(event.text)
            await gate("go").wait()
        """,
    )
    service = await start(sqlite_url)
    await write(service, *"abc")
    relays(service)
    await until(lambda: bool(shop.seen))
    # The request is next, whatever else is to be delivered.
    sent = asyncio.create_task(write(service, "d"))
    await until(lambda: service.database.turn.locked())
    shop.gate("go").set()
    await sent
    assert len(shop.seen) <= 2
    await service.settled()
    assert sorted(shop.seen) == [*"abcd"]


async def test_listener_may_ask_which_database_it_is_on(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def look(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(session.get_bind().dialect.name)
        """,
    )
    service = await start(url)
    await write(service, "a")
    await service.settled()
    assert shop.seen == [service.database.dialect]
