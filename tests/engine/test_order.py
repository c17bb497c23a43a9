"""Ordered listeners: deliveries with one key in commit order, one at a time."""

import asyncio
import dataclasses
import datetime as dt
import random

import pytest
import sqlalchemy as sa

from .conftest import Relays, Service, Shop, Start, options, until

pytestmark = pytest.mark.anyio

CONTRACTS = """
    class Counted(Event, key="counter"):
        counter: str
        number: int
    class Closed(Event, key="counter"):
        counter: str
        number: int = -1
"""
MODELS = """
    class Counter(Entity):
        __tablename__ = "counters"
        name: Mapped[str] = mapped_column(unique=True)
        number: Mapped[int] = mapped_column(default=0)
"""
MESSAGES = """
    class Add(Command[None]):
        counter: str
    class Tell(Command[None]):
        counter: str
        numbers: list[int]
        close: bool = False
"""
HANDLERS = """
    @handle
    async def add(command: Add, session: AsyncSession, bus: Bus) -> None:
        query = select(Counter).where(Counter.name == command.counter).with_for_update()
        counter = (await session.scalars(query)).one()
        counter.number += 1
        bus.publish(Counted(counter=command.counter, number=counter.number))
    @handle
    async def tell(command: Tell, bus: Bus) -> None:
        for number in command.numbers:
            bus.publish(Counted(counter=command.counter, number=number))
        if command.close:
            bus.publish(Closed(counter=command.counter))
"""
LISTENS = """
    @listen(ordered=True)
    async def follow(event: Counted | Closed, session: AsyncSession) -> None:
        seen.append(("+", event.counter, event.number))
        await session.execute(text("SELECT 1"))
        if event.number == 13 and not gate("lucky").is_set():
            raise LookupError("unlucky")
        seen.append(("-", event.counter, event.number))
"""


def counters(shop: Shop, listeners: str = LISTENS) -> None:
    shop.slice(
        "counters",
        contracts=CONTRACTS,
        models=MODELS,
        messages=MESSAGES,
        handlers=HANDLERS,
        listeners=listeners,
    )


async def tell(service: Service, counter: str, *numbers: int, close: bool = False) -> None:
    message = service.shop.messages("counters").Tell
    await service.send(message(counter=counter, numbers=list(numbers), close=close))


def heard(shop: Shop, counter: str) -> list[int]:
    return [number for sign, name, number in shop.seen if (sign, name) == ("-", counter)]


async def states(service: Service) -> list[str]:
    return [one.state for one in await service.deliveries()]


async def test_only_the_first_of_a_key_can_be_claimed(shop: Shop, start: Start, url: str) -> None:
    counters(shop)
    service = await start(url)
    await tell(service, "a", 1, 2)
    await tell(service, "b", 1)
    await tell(service, "a", 3, close=True)
    assert await states(service) == ["pending", "waiting", "pending", "waiting", "waiting"]
    await service.settled()
    # One listener of several events hears them in one order.
    assert heard(shop, "a") == [1, 2, 3, -1]
    assert heard(shop, "b") == [1]


async def test_dead_letter_holds_back_its_own_key_only(shop: Shop, start: Start, url: str) -> None:
    counters(shop, LISTENS.replace("ordered=True", "ordered=True, retries=0"))
    service = await start(url)
    await tell(service, "a", 1, 13, 14)
    await tell(service, "b", 1, 2)
    await service.runtime.relay.work_off()
    assert await states(service) == ["done", "dead", "waiting", "done", "done"]
    # That behind it is gone, so that only the dead one holds back what comes next.
    delivery = shop.tables.delivery
    await service.write(sa.delete(delivery).where(delivery.c.state == "waiting"))
    await tell(service, "a", 15)
    assert (await states(service))[-1] == "waiting"
    shop.gate("lucky").set()
    await service.write(
        sa.update(delivery).where(delivery.c.state == "dead").values(state="pending")
    )
    await service.settled()
    assert heard(shop, "a") == [1, 13, 15]


async def test_failed_one_is_tried_again_before_its_successors(
    shop: Shop, start: Start, url: str
) -> None:
    counters(shop)
    service = await start(url)
    await tell(service, "a", 13, 14)
    await service.runtime.relay.work_off()
    assert await states(service) == ["pending", "waiting"]
    shop.gate("lucky").set()
    await service.due_now()
    await service.settled()
    assert heard(shop, "a") == [13, 14]


async def test_order_holds_across_processes_under_load(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    counters(shop)
    services = [await start(postgresql_url) for _ in range(2)]
    names = [f"c{number}" for number in range(5)]
    counter = shop.module("slices.counters.models").Counter.__table__
    for name in names:
        row = {"id": shop.module("names").uuid4(), "name": name, "number": 0, "version": 1}
        row["created_at"] = services[0].runtime.clock.now()
        await services[0].write(sa.insert(counter).values(**row))
    for service in services:
        relays(service)
    shop.gate("lucky").set()
    add = shop.messages("counters").Add
    drawn = random.Random(7)
    sends = [drawn.choice(names) for _ in range(150)]

    async def publish(service: Service, mine: list[str]) -> None:
        for name in mine:
            await service.send(add(counter=name))

    await asyncio.gather(*(publish(services[n % 2], sends[n::8]) for n in range(8)))
    await services[0].settled(30)
    for name in names:
        assert heard(shop, name) == list(range(1, sends.count(name) + 1))
        mine = [entry for entry in shop.seen if entry[1] == name]
        assert [sign for sign, *_ in mine] == ["+", "-"] * sends.count(name)


async def test_process_that_does_not_know_of_an_order_keeps_it(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    counters(shop)
    service = await start(postgresql_url)
    assert not service.runtime._resources.outbox._ordered
    await tell(service, "a", 1, 2)
    assert service.runtime._resources.outbox._ordered == {"counters.Counted"}
    assert await states(service) == ["pending", "waiting"]


UNORDERED = LISTENS.replace("(ordered=True)", "")


async def upgraded(shop: Shop, start: Start, url: str, listeners: str) -> Service:
    """The service after `db upgrade` by code with other listeners."""
    shop.forget()
    counters(shop, listeners)
    service, subscribing = await start(url), shop.module("bus.subscriptions")
    wanted = subscribing.wanted_by(service.runtime.catalog)
    await subscribing.subscribe(service.database, wanted, upgrade_to=())
    return service


async def put_first(service: Service, state: str) -> None:
    delivery = service.shop.tables.delivery
    await service.write(sa.update(delivery).where(delivery.c.id == 1).values(state=state))


async def test_what_a_listener_has_before_it_when_it_becomes_ordered_takes_turns(
    shop: Shop, start: Start, url: str
) -> None:
    counters(shop, UNORDERED)
    service = await start(url)
    await tell(service, "a", 1, 13, 3)
    await tell(service, "b", 1)
    # What is dead by then holds nobody up.
    await put_first(service, "dead")
    service = await upgraded(shop, start, url, LISTENS)
    found = [(one.state, one.lane) for one in await service.deliveries()]
    assert found == [("dead", None), ("pending", "a"), ("waiting", "a"), ("pending", "b")]
    await tell(service, "a", 4)
    await service.runtime.relay.work_off()
    assert (heard(shop, "a"), heard(shop, "b")) == ([], [1])
    shop.gate("lucky").set()
    await service.due_now()
    await service.runtime.relay.work_off()
    assert heard(shop, "a") == [13, 3, 4]


async def test_what_a_listener_has_before_it_when_its_order_ends_waits_for_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    counters(shop)
    service = await start(url)
    await tell(service, "a", 1, 2, 3)
    await put_first(service, "dead")
    service = await upgraded(shop, start, url, UNORDERED)
    found = [(one.state, one.lane) for one in await service.deliveries()]
    assert found == [("dead", None), ("pending", None), ("pending", None)]
    await tell(service, "a", 4)
    await service.runtime.relay.work_off()
    assert sorted(heard(shop, "a")) == [2, 3, 4]


@pytest.mark.parametrize("ordered", [True, False])
async def test_nothing_that_is_published_meanwhile_escapes_a_change_of_order(
    shop: Shop, start: Start, postgresql_url: str, ordered: bool
) -> None:
    counters(shop, UNORDERED if ordered else LISTENS)
    service = await start(postgresql_url)
    going, rounds = True, list[str]()

    async def publish(counter: str) -> None:
        while going:
            await tell(service, counter, 1, 2)
            rounds.append(counter)

    tasks = [asyncio.create_task(publish(counter)) for counter in "aabb"]
    await until(lambda: len(rounds) > 20)
    subscribing = shop.module("bus.subscriptions")
    [wanted] = subscribing.wanted_by(service.runtime.catalog)
    changed = dataclasses.replace(wanted, ordered=ordered)
    await subscribing.subscribe(service.database, [changed], upgrade_to=())
    before = len(rounds)
    await until(lambda: len(rounds) > before + 20)
    going = False
    await asyncio.gather(*tasks)
    found = [(one.lane is not None, one.state) for one in await service.deliveries()]
    # One of each key may run.
    expected = [(True, "pending")] * 2 + [(True, "waiting")] * (len(found) - 2)
    assert sorted(found) == (expected if ordered else [(False, "pending")] * len(found))


async def test_lane_that_is_stuck_is_freed(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    counters(shop)
    service = await start(url, relay=options(shop, lease=3))
    await tell(service, "a", 1, 2)
    delivery = shop.tables.delivery
    await service.write(sa.update(delivery).values(state="waiting"))
    relays(service)
    await service.settled()
    assert heard(shop, "a") == [1, 2]


async def test_many_behind_a_dead_one_do_not_slow_the_others(
    shop: Shop, start: Start, url: str
) -> None:
    counters(shop, LISTENS.replace("ordered=True", "ordered=True, retries=0"))
    service = await start(url)
    await tell(service, "a", 13, *range(1000))
    await tell(service, "b", 1, 2, 3)
    await service.runtime.relay.work_off()
    found = await states(service)
    assert (found.count("dead"), found.count("waiting"), found.count("done")) == (1, 1000, 3)
    assert heard(shop, "b") == [1, 2, 3]
    await until(lambda: not service.runtime.relay._running)


async def test_whatever_is_asked_of_deliveries_has_an_index(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    """Else it takes longer with each that is stored. SQLite tells its plan without any rows."""
    counters(shop, LISTENS)
    service = await start(sqlite_url)
    statements = set[str]()

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if "bus_delivery" in statement:
            statements.add(statement)

    for engine in (service.database.writer, service.database.reader):
        sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    await tell(service, "a", 1, 2)
    await tell(service, "b", 13, 14)
    await service.runtime.relay.work_off()
    assert len(statements) > 8
    for statement in sorted(statements):
        plan = await service.rows(f"EXPLAIN QUERY PLAN {statement.replace('?', '1')}")
        for step in (one.detail for one in plan):
            names = ("bus_delivery", "other", "earlier", "active", "on_probation")
            if step.split()[1] in names:
                assert " USING " in step, (step, statement)


MIXED = """
    @handle
    async def tell(command: Tell, bus: Bus) -> None:
        later = dt.timedelta(minutes=1) if command.close else None
        bus.publish(Closed(counter=command.counter), after=later)
        for number in command.numbers:
            bus.publish(Counted(counter=command.counter, number=number), after=later)
    @handle
    async def add(command: Add) -> None: ...
"""


@pytest.mark.parametrize("due", [False, True])
async def test_unit_stores_the_events_that_an_ordered_listener_wants_and_the_others(
    shop: Shop, start: Start, url: str, due: bool
) -> None:
    shop.slice(
        "counters",
        contracts=CONTRACTS,
        messages=MESSAGES,
        handlers=MIXED,
        listeners=LISTENS.replace("Counted | Closed", "Counted"),
    )
    # This process does not know yet which of them have an ordered listener.
    service = await start(url)
    await tell(service, "a", 1, 2, close=due)
    if due:
        service.runtime.clock.advance(dt.timedelta(minutes=2))
        await service.runtime.relay.work_off()
    await service.settled()
    assert [event.name for event in await service.events()] == [
        "counters.Closed",
        "counters.Counted",
        "counters.Counted",
    ]
    assert heard(shop, "a") == [1, 2]
