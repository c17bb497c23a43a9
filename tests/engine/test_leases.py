"""A delivery is worked by one process at a time, and outlives the one that works it."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from .conftest import Relays, Service, Shop, Start, notes, options, until, write

pytestmark = pytest.mark.anyio

WHO = {"who": "alice", "reason": "it is mended"}
COPY = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession) -> None:
        seen.append(event.text)
        session.add(Note(text="copy of " + event.text))
"""
CALLS = """
    @listen
    async def copy(event: NoteWritten) -> None:
        seen.append(event.text)
"""
WAITS = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession) -> None:
        session.add(Note(text="copy of " + event.text))
        seen.append(event.text)
        await gate(str(len(seen))).wait()
"""


async def states(service: Service) -> list[tuple[str, int]]:
    return [(one.state, one.losses) for one in await service.deliveries()]


def operations_of(shop: Shop, service: Service, database: Any) -> Any:
    """What people do by hand, on a database of its own process."""
    made = shop.module("bus.operating.operations").Operations
    return made(database, service.runtime.catalog)


async def claim(service: Service, **how: Any) -> Any:
    """Claim as a worker that then does nothing: one that dies."""
    [subscription] = await service.column("SELECT id FROM bus_subscription")
    return await service.runtime.relay._claims.claim([subscription], 10, **how)


def work_of(service: Service, held: Any) -> Any:
    """What a worker does for this one delivery."""
    relay = service.runtime.relay
    listener, resources = relay._listeners["notes.copy"], service.runtime._resources
    return relay.work(resources, listener, relay._readers, [held])


async def lose_the_lease(shop: Shop, service: Service, relays: Relays) -> None:
    """Run a listener that waits at the gate 1, while another worker takes its delivery over."""
    await write(service, "a")
    relays(service)
    await until(lambda: bool(shop.seen))
    # Whoever takes a delivery over gives it another token.
    await service.write(sa.update(shop.tables.delivery).values(token=uuid4()))
    shop.gate("1").set()
    await until(lambda: not service.runtime.relay._running)


async def leases_end(service: Service) -> None:
    """As if the time of all leases had passed."""
    delivery, claims = service.shop.tables.delivery, service.shop.module("bus.leases")
    await service.write(
        sa.update(delivery)
        .where(delivery.c.state == "working")
        .values(lease_until=claims.from_now(-1))
    )


async def test_what_one_has_claimed_is_left_alone(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=COPY)
    dying, other = await start(url), await start(url)
    await write(other, "a", "b")
    assert len(await claim(dying)) == 2
    await other.runtime.relay.work_off()
    assert shop.seen == []
    assert await states(other) == [("working", 0)] * 2


async def test_what_a_dead_worker_held_is_taken_over(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=COPY)
    dying, other = await start(url), await start(url, relay=options(shop, lease=3, poll=0.01))
    await write(other, "a", "b")
    await claim(dying)
    await leases_end(other)
    relays(other)
    await other.settled()
    assert sorted(shop.seen) == ["a", "b"]
    assert await states(other) == [("done", 1)] * 2


async def test_event_that_kills_its_process_ends_as_a_dead_letter(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=COPY)
    service = await start(url)
    await write(service, "a")
    for losses in range(3):
        is_suspect = losses > 1
        assert not await claim(service, suspects=not is_suspect)
        assert len(await claim(service, suspects=is_suspect)) == 1
        await leases_end(service)
        await service.runtime.relay._claims.expire()
    [delivery] = await service.deliveries()
    assert (delivery.state, delivery.losses) == ("dead", 3)
    assert delivery.error_type == "ProcessDied"
    assert not await claim(service)


async def test_delivery_that_was_lost_twice_runs_alone(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            seen.append("+" + event.text)
            await asyncio.sleep(0)
            await session.execute(text("SELECT 1"))
            seen.append("-" + event.text)
        """,
    )
    service = await start(postgresql_url, relay=options(shop, lease=3))
    await write(service, *"abcdef")
    delivery = shop.tables.delivery
    await service.write(sa.update(delivery).where(delivery.c.id == 3).values(losses=2))
    relays(service)
    await service.settled()
    at = shop.seen.index("+c")
    assert shop.seen[at + 1] == "-c"
    assert all(shop.seen[:at].count(f"+{x}") == shop.seen[:at].count(f"-{x}") for x in "abdef")


async def test_what_was_lost_once_is_held_up_by_nothing(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(url)
    await write(service, "a", "b")
    await service.write("UPDATE bus_delivery SET losses = 1")
    relays(service)
    await until(lambda: len(shop.seen) == 2)
    shop.gate("1").set()
    shop.gate("2").set()
    await service.settled()


async def test_lost_lease_rolls_back_what_the_listener_wrote(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(postgresql_url)
    await lose_the_lease(shop, service, relays)
    assert await service.texts() == ["a"]
    assert await states(service) == [("working", 0)]
    await leases_end(service)
    shop.gate("2").set()
    await service.runtime.relay._check_others()
    await service.settled()
    assert await service.texts() == ["a", "copy of a"]


async def test_connection_of_a_lost_lease_serves_the_next(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(postgresql_url)
    await lose_the_lease(shop, service, relays)
    for _ in range(service.database.writer.pool.size()):
        # All connections in turn: one that is left in a transaction could not begin another.
        assert await service.texts() == ["a"]
        await service.write("UPDATE bus_delivery SET state = state")


async def test_lost_lease_of_a_listener_that_asks_the_database_nothing(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def call(event: NoteWritten) -> None:
            seen.append(event.text)
            await gate(str(len(seen))).wait()
        """,
    )
    service = await start(url)
    await lose_the_lease(shop, service, relays)
    assert await states(service) == [("working", 0)]
    await leases_end(service)
    shop.gate("2").set()
    await service.runtime.relay._check_others()
    await service.settled()
    assert shop.seen == ["a", "a"]


async def test_commit_that_leaves_the_delivery_behind_is_told(
    shop: Shop, start: Start, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another version of asyncpg would send its COMMIT in another way."""
    notes(shop, listeners=COPY)
    service = await start(postgresql_url)
    await write(service, "a")
    driver = shop.module("bus.postgresql").PostgreSQLConnection

    async def execute(self: Any, query: str, *given: Any, **options: Any) -> Any:
        return await asyncpg.Connection.execute(self, query, *given, **options)

    monkeypatch.setattr(driver, "execute", execute)
    [held] = await claim(service)
    with pytest.raises(shop.bus.BusError, match="does not commit as"):
        await work_of(service, held).run()


@pytest.mark.parametrize("listener", [CALLS, COPY], ids=["alone", "with a commit"])
async def test_connection_that_is_lost_as_a_delivery_is_completed_is_told_as_lost(
    shop: Shop, start: Start, postgresql_url: str, listener: str
) -> None:
    notes(shop, listeners=listener)
    service = await start(postgresql_url)
    await write(service, "a")
    [held] = await claim(service)
    async with service.database.worker.connect() as other, asyncio.timeout(10):
        await other.execute(sa.text("SELECT 1 FROM bus_delivery FOR UPDATE"))
        task = asyncio.create_task(work_of(service, held).run())
        kill = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE bus_delivery%'"
        )
        while not await service.column(kill):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(sa.exc.DBAPIError, match="terminating connection") as lost:
            await task
    assert shop.module("bus.engines").is_away(lost.value)
    assert (await service.texts(), await states(service)) == (["a"], [("working", 0)])


REFUSES = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;
        RETURN NEW;
    END $$
"""


@pytest.mark.parametrize("listener", [CALLS, COPY], ids=["alone", "with a commit"])
@pytest.mark.parametrize("when", ["IMMEDIATE", "DEFERRED"])
async def test_completion_that_the_database_gives_up_runs_again(
    shop: Shop, start: Start, postgresql_url: str, listener: str, when: str
) -> None:
    notes(shop, listeners=listener)
    service = await start(postgresql_url)
    await write(service, "a")
    [held] = await claim(service)
    await service.write("CREATE SEQUENCE tries")
    await service.write(REFUSES)
    await service.write(
        "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON bus_delivery DEFERRABLE"
        f" INITIALLY {when} FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    await work_of(service, held).run()
    assert shop.seen == ["a"] * 3
    assert await states(service) == [("done", 0)]
    assert await service.texts() == (["a", "copy of a"] if listener is COPY else ["a"])


async def test_hook_that_fails_at_the_commit_leaves_the_delivery(
    shop: Shop, start: Start, url: str
) -> None:
    """A project's own, which writes when a session commits."""
    notes(shop, listeners=CALLS)
    service = await start(url)
    await write(service, "a")
    [held] = await claim(service)
    note = shop.module("slices.notes.models").Note

    def hook(session: Session) -> None:
        session.add(note(text="a"))

    sa.event.listen(Session, "before_commit", hook)
    try:
        with pytest.raises(sa.exc.IntegrityError):
            await work_of(service, held).run()
    finally:
        sa.event.remove(Session, "before_commit", hook)
    assert await states(service) == [("working", 0)]


async def taken_over(dying: Service, other: Service) -> tuple[Any, Any]:
    """What one had claimed, and the other's claim of the first of it after the lease."""
    lost = await claim(dying)
    await leases_end(other)
    await other.runtime.relay._claims.expire()
    held, *_ = await claim(other)
    return lost, held


@pytest.mark.parametrize("texts", [["a"], ["a", "b"]], ids=["one", "batch"])
async def test_who_has_lost_a_lease_can_complete_nothing(
    shop: Shop, start: Start, url: str, texts: list[str]
) -> None:
    notes(shop, listeners=COPY)
    late, other = await start(url), await start(url)
    await write(other, *texts)
    lost, held = await taken_over(late, other)
    module = shop.module("bus.leases")
    with pytest.raises(module.LeaseLostError):
        async with late.database.writer.begin() as connection:
            await module.Completed(lost, late.runtime.clock)(connection)
    assert {state for state, _ in await states(other)} <= {"working", "pending"}
    async with other.database.writer.begin() as connection:
        await module.Completed([held], other.runtime.clock)(connection)


async def test_who_has_lost_a_lease_can_fail_nothing(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=COPY)
    late, other = await start(url), await start(url)
    await write(other, "a")
    [lost], _ = await taken_over(late, other)
    failure = shop.module("bus.policy").Failure.of(LookupError(), "shop")
    await late.runtime.relay._claims.fail(lost, failure, retry_in=None)
    await late.runtime.relay._claims.give_back([lost])
    assert await states(other) == [("working", 1)]
    assert await other.rows("SELECT * FROM bus_attempt") == []


async def test_a_lease_is_renewed_by_its_worker_only(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=COPY)
    here, other = await start(url), await start(url)
    await write(here, "a", "b")
    first, second = await claim(here)
    await leases_end(here)
    await here.runtime.relay._claims.renew([first.id])
    await other.runtime.relay._claims.renew([second.id])
    assert [one.id for one in await other.runtime.relay._claims.expire()] == [second.id]


async def test_leases_of_what_runs_are_renewed(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(postgresql_url, relay=options(shop, lease=3))
    other = await start(postgresql_url, relay=options(shop, lease=3, poll=0.05))
    await write(service, "a")
    relays(service)
    await until(lambda: bool(shop.seen))
    relays(other)
    [first] = await service.column("SELECT lease_until FROM bus_delivery")
    async with asyncio.timeout(5):
        while (await service.column("SELECT lease_until FROM bus_delivery"))[0] == first:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    shop.gate("1").set()
    await service.settled()
    assert shop.seen == ["a"]
    assert await states(service) == [("done", 0)]


async def test_leases_are_renewed_while_a_new_listener_is_filled(
    shop: Shop, start: Start, url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(url, relay=options(shop, lease=0.3, poll=0.05))
    filling, renewed = asyncio.Event(), asyncio.Event()

    async def backfill(*_: Any) -> bool:
        filling.set()
        await asyncio.Event().wait()
        return True

    async def renew(claimed: list[int]) -> None:
        if claimed and filling.is_set():
            renewed.set()

    monkeypatch.setattr(shop.module("bus.relay"), "backfill", backfill)
    monkeypatch.setattr(service.runtime.relay._claims, "renew", renew)
    await write(service, "a")
    relays(service)
    async with asyncio.timeout(5):
        await renewed.wait()
    shop.gate("1").set()


async def test_failure_that_could_not_be_recorded_frees_the_delivery(
    shop: Shop, start: Start, url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(
        shop,
        listeners="""
        @listen
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            if len(seen) == 1:
                raise LookupError
        """,
    )
    service = await start(url, relay=options(shop, lease=0.5, poll=0.05))
    claims = service.runtime.relay._claims

    async def away(*_: Any, **__: Any) -> None:
        monkeypatch.undo()
        raise ConnectionError("away")

    monkeypatch.setattr(claims, "fail", away)
    await write(service, "a")
    relays(service)
    await until(lambda: len(shop.seen) == 2)
    await service.settled()
    assert await states(service) == [("done", 1)]


async def test_stop_cuts_off_what_takes_longer_than_the_grace(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(url, relay=options(shop, grace=0.01))
    await write(service, "a", "b", "c")
    task = relays(service)
    await until(lambda: bool(shop.seen))
    service.runtime.relay.stop()
    async with asyncio.timeout(5):
        await task
    assert await states(service) == [("pending", 0)] * 3
    assert [one.attempts for one in await service.deliveries()] == [0, 0, 0]
    assert await service.texts() == ["a", "b", "c"]


async def test_worker_tells_that_it_lives(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=COPY)
    service = await start(url)
    task = relays(service)
    async with asyncio.timeout(5):
        while not (found := await service.column("SELECT listeners FROM bus_worker")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert ["notes.copy" in str(listeners) for listeners in found] == [True]
    service.runtime.relay.stop()
    await task
    assert await service.rows("SELECT * FROM bus_worker") == []


@pytest.mark.parametrize("delivers", [True, False])
async def test_other_process_is_woken(
    shop: Shop, start: Start, url: str, relays: Relays, delivers: bool
) -> None:
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: gate('x').set()")
    here, there = await start(url), await start(url, relay=options(shop, poll=3600))
    if delivers:
        here.runtime.relay._here.clear()  # Whatever runs here, it is not this listener.
        relays(here)
        await listening(here)
    relays(there)
    await listening(there)
    await write(here, "a")
    async with asyncio.timeout(5):
        await shop.gate("x").wait()


@pytest.mark.parametrize("action", ["retry", "resume", "replay"])
async def test_what_is_changed_by_hand_wakes_a_worker(
    shop: Shop, start: Start, url: str, relays: Relays, action: str
) -> None:
    """From a process that is no worker, such as that of `shop events retry`."""
    notes(shop, listeners=COPY)
    there = await start(url, relay=options(shop, poll=3600))
    here = shop.database(url)
    operations = operations_of(shop, there, here)
    if action != "replay":
        await operations.pause("notes.copy", **WHO)
    await write(there, "a")
    if action == "retry":
        await there.write("UPDATE bus_delivery SET state = 'dead'")
        await there.write("UPDATE bus_subscription SET paused_until = NULL, paused_reason = NULL")
    if action == "replay":
        await there.settled()
        shop.seen.clear()
    relays(there)
    await listening(there)
    match action:
        case "retry":
            await operations.retry(await operations.select("retry", ""), **WHO)
        case "resume":
            await operations.resume("notes.copy", **WHO)
        case "replay":
            await operations.replay(await operations.plan_replay("notes.copy"), **WHO)
    await until(lambda: shop.seen == ["a"])
    await here.close()


async def test_what_a_worker_gives_back_wakes_another(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    stopped = await start(url, relay=options(shop, grace=0.01))
    other = await start(url, relay=options(shop, poll=3600))
    await write(stopped, "a")
    task = relays(stopped)
    await until(lambda: shop.seen == ["a"])
    relays(other)
    await listening(other)
    shop.gate("2").set()
    stopped.runtime.relay.stop()
    await task
    await until(lambda: shop.seen == ["a", "a"])
    await other.settled()


async def listening(service: Service) -> None:
    """Wait until a worker hears of other processes' commits and has nothing to look for."""
    relay = service.runtime.relay
    if service.database.dialect == "postgresql":
        await until(lambda: relay._waker._driver is not None)
    await until(lambda: relay._due_known and not relay._running)


async def test_transaction_that_stands_still_holds_up_no_other_lease(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    notes(shop, listeners=COPY)
    service = await start(postgresql_url)
    await write(service, "a", "b")
    first, second = await claim(service)
    claims, delivery = service.runtime.relay._claims, shop.tables.delivery
    async with service.database.writer.connect() as frozen, asyncio.timeout(5):
        await frozen.execute(
            sa.select(delivery.c.id).where(delivery.c.id == first.id).with_for_update()
        )
        await claims.renew([first.id, second.id])
        await service.write(
            sa.update(delivery)
            .where(delivery.c.id == second.id)
            .values(lease_until=shop.module("bus.leases").from_now(-1))
        )
        assert [one.id for one in await claims.expire()] == [second.id]
    assert await states(service) == [("working", 0), ("pending", 1)]


async def test_stop_cuts_off_a_delivery_that_runs_alone(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(url, relay=options(shop, grace=0.01))
    await write(service, "a")
    await service.write("UPDATE bus_delivery SET losses = 2")
    task = relays(service)
    await until(lambda: bool(shop.seen))
    service.runtime.relay.stop()
    async with asyncio.timeout(5):
        await task
    assert await states(service) == [("pending", 2)]


async def test_stop_during_a_commit_begins_nothing_more(
    shop: Shop, start: Start, url: str, relays: Relays, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=10)
        async def each(event: NoteWritten) -> None:
            seen.append(event.text)
            if len(seen) == 1:
                raise TimeoutError
        """,
    )
    service = await start(url, relay=options(shop, grace=0.01))
    await write(service, "a", "b", "c")
    session = shop.module("bus.session").UnitSession
    commit, committing, go = session.commit_unit, asyncio.Event(), asyncio.Event()

    async def slowly(self: Any) -> None:
        committing.set()
        await go.wait()
        await commit(self)

    monkeypatch.setattr(session, "commit_unit", slowly)
    task = relays(service)
    await committing.wait()
    try:
        [delivery] = service.runtime.relay._running
        service.runtime.relay.stop()
        await until(lambda: delivery.cancelling() > 0)
    finally:
        go.set()
    async with asyncio.timeout(5):
        await task
    assert shop.seen == ["a", "a"]
    assert await states(service) == [("done", 0), ("pending", 0), ("pending", 0)]


async def test_lease_is_kept_while_requests_take_all_connections(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(postgresql_url, relay=options(shop, lease=0.3))
    await write(service, "a")
    relays(service)
    await until(lambda: shop.seen == ["a"])
    engine = service.database.writer
    async with AsyncExitStack() as taken:
        while engine.pool.checkedout() < engine.pool.size() + engine.pool._max_overflow:
            await taken.enter_async_context(engine.connect())
        [first] = await leases(service)
        async with asyncio.timeout(5):
            while await leases(service) == [first]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await service.runtime.relay._claims.expire() == []
    shop.gate("1").set()
    await service.settled()


async def leases(service: Service) -> list[Any]:
    """The ends of all leases, looked at beside the pool of the service."""
    async with service.database.worker_reader.connect() as connection:
        query = sa.select(service.shop.tables.delivery.c.lease_until)
        return list(await connection.scalars(query))
