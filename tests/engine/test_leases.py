"""A delivery is worked by one process at a time, and outlives the one that works it."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from .conftest import Relays, Service, Shop, Start, notes, options, until, write

pytestmark = pytest.mark.anyio

COPY = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession) -> None:
        seen.append(event.text)
        session.add(Note(text="copy of " + event.text))
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


async def claim(service: Service, **how: Any) -> Any:
    """Claim as a worker that then does nothing: one that dies."""
    [subscription] = await service.column("SELECT id FROM bus_subscription")
    return await service.runtime.relay._claims.claim([subscription], 10, **how)


async def leases_end(service: Service) -> None:
    """As if the time of all leases had passed."""
    delivery, claims = service.shop.tables.delivery, service.shop.module("bus.claims")
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
        assert len(await claim(service, suspects=losses > 0)) == 1
        await leases_end(service)
        await service.runtime.relay._claims.expire()
    [delivery] = await service.deliveries()
    assert (delivery.state, delivery.losses) == ("dead", 3)
    assert delivery.error_type == "ProcessDied"
    assert not await claim(service)


async def test_delivery_during_which_a_process_died_runs_alone(
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


async def test_lost_lease_rolls_back_what_the_listener_wrote(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(postgresql_url)
    await write(service, "a")
    relays(service)
    await until(lambda: bool(shop.seen))
    # Whoever takes a delivery over gives it another token.
    await service.write("UPDATE bus_delivery SET token = gen_random_uuid()")
    shop.gate("1").set()
    await until(lambda: not service.runtime.relay._running)
    assert await service.texts() == ["a"]
    assert await states(service) == [("working", 0)]
    await leases_end(service)
    shop.gate("2").set()
    await service.runtime.relay._check_others()
    await service.settled()
    assert await service.texts() == ["a", "copy of a"]


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


async def test_other_process_is_woken(shop: Shop, start: Start, url: str, relays: Relays) -> None:
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: gate('x').set()")
    here, there = await start(url), await start(url, relay=options(shop, poll=3600))
    relays(there)
    if here.database.dialect == "postgresql":
        # On PostgreSQL it is the relay that tells others; here it has nothing to run itself.
        here.runtime.relay._here.clear()
        relays(here)
        await until(lambda: here.runtime.relay._waker is not None)
    await until(lambda: there.runtime.relay.alive)
    async with asyncio.timeout(10):
        while not shop.gate("x").is_set():
            await write(here, str(len(await here.texts())))
            await asyncio.sleep(0.05)


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
            .values(lease_until=shop.module("bus.claims").from_now(-1))
        )
        assert [one.id for one in await claims.expire()] == [second.id]
    assert await states(service) == [("working", 0), ("pending", 1)]


async def test_stop_cuts_off_a_delivery_that_runs_alone(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    notes(shop, listeners=WAITS)
    service = await start(url, relay=options(shop, grace=0.01))
    await write(service, "a")
    await service.write("UPDATE bus_delivery SET losses = 1")
    task = relays(service)
    await until(lambda: bool(shop.seen))
    service.runtime.relay.stop()
    async with asyncio.timeout(5):
        await task
    assert await states(service) == [("pending", 1)]
