"""A read model is made anew of the log while events keep coming, and ends as one built live."""

import asyncio
import random
import textwrap
from collections import defaultdict
from typing import Any

import pytest
import sqlalchemy as sa

from .conftest import Relays, Service, Shop, Start, notes, until

pytestmark = pytest.mark.anyio

WHO = {"who": "alice", "reason": "it was wrong"}
# The history hangs on the order of events, and on each of them coming once.
LEDGER = {
    "contracts": """
        class Booked(Event, key="account"):
            account: str
            amount: int
    """,
    "models": """
        class Balance(Base):
            __tablename__ = "ledger_balances"
            account: Mapped[str] = mapped_column(primary_key=True)
            amount: Mapped[int]
            history: Mapped[str]
        class Other(Entity):
            __tablename__ = "ledger_others"
            text: Mapped[str]
    """,
    "messages": """
        class Book(Command[None]):
            account: str
            amounts: tuple[int, ...]
    """,
    "handlers": """
        @handle
        async def book(command: Book, bus: Bus) -> None:
            for amount in command.amounts:
                bus.publish(Booked(account=command.account, amount=amount))
    """,
    "listeners": """
        async def apply(event: Booked, session: AsyncSession) -> None:
            found = await session.get(Balance, event.account)
            if found is None:
                found = Balance(account=event.account, amount=0, history="")
                session.add(found)
            found.amount += event.amount
            found.history += f"{event.amount} "
    """,
}
ONE_BY_ONE = """
    @listen(ordered=True, start="beginning", projects=Balance)
    async def balance(event: Booked, session: AsyncSession, bus: Bus) -> None:
        {first}
        await apply(event, session)
"""
MANY_AT_ONCE = """
    @listen(ordered=True, start="beginning", projects=(Balance,), batch=7)
    async def balance(events: list[Booked], session: AsyncSession) -> None:
        for event in events:
            await apply(event, session)
"""

LEDGER_AND_MAIL = f"""{ONE_BY_ONE}
    @listen
    async def mail(event: Booked) -> None: ...
"""


def ledger(shop: Shop, listeners: str = ONE_BY_ONE, first: str = "pass", **more: str) -> None:
    """A slice with a read model; first is what its listener does before anything else."""
    more = {"listeners": listeners.replace("{first}", first), **more}
    modules = {
        name: textwrap.dedent(source) + textwrap.dedent(more.get(name, ""))
        for name, source in LEDGER.items()
    }
    shop.slice("ledger", **modules)


class Desk:
    """Books, looks at balances, and makes them anew."""

    def __init__(self, service: Service) -> None:
        self.service = service
        module = service.shop.module("bus.operating.projections")
        self.projections = module.Projections(service.runtime)

    async def book(self, account: str, *amounts: int) -> None:
        await self.service.send(
            self.service.shop.messages("ledger").Book(account=account, amounts=amounts)
        )

    async def balances(self) -> dict[str, tuple[int, str]]:
        rows = await self.service.rows("SELECT account, amount, history FROM ledger_balances")
        return {row.account: (row.amount, row.history) for row in rows}

    async def expected(self) -> dict[str, tuple[int, str]]:
        """What the log says."""
        amounts = defaultdict[str, list[int]](list)
        for event in await self.service.events():
            amounts[event.payload["account"]].append(event.payload["amount"])
        return {
            account: (sum(found), "".join(f"{one} " for one in found))
            for account, found in amounts.items()
        }

    async def spoil(self) -> None:
        """Let the live rows be wrong: changed, missing, and too many."""
        await self.service.write("UPDATE ledger_balances SET amount = 0, history = '?'")
        await self.service.write("DELETE FROM ledger_balances WHERE account = 'a'")
        await self.service.write("INSERT INTO ledger_balances VALUES ('ghost', 1, '')")

    async def rebuild(self, progress: Any = lambda _: None) -> int:
        planned = await self.projections.plan("ledger.balance")
        rows: int = await self.projections.rebuild(planned, **WHO, progress=progress)
        return rows

    async def refusal(self) -> str:
        """Why it cannot be made anew; nothing has changed then."""
        before = await self.balances(), [one.state for one in await self.service.deliveries()]
        with pytest.raises(self.service.shop.module("bus.errors").OperationError) as refused:
            await self.rebuild()
        after = await self.balances(), [one.state for one in await self.service.deliveries()]
        assert after == before
        assert await self.audits() == []
        return str(refused.value)

    async def audits(self) -> list[tuple[str, str, str, int]]:
        audit = self.service.shop.tables.audit
        columns = (audit.c.who, audit.c.action, audit.c.reason, audit.c["count"])
        return [tuple(row) for row in await self.service.rows(sa.select(*columns))]


@pytest.fixture
def small_steps(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks, and a last one, of a log that a test fills in no time."""
    for name, value in (("_CHUNK", 5), ("_LITTLE", 10)):
        monkeypatch.setattr(shop.module("bus.operating.rebuilds"), name, value)


async def test_replay_knows_that_a_listener_keeps_a_read_model(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    ledger(shop, LEDGER_AND_MAIL)
    desk = Desk(await start(sqlite_url))
    operations = shop.module("bus.operating.operations").Operations(
        desk.service.database, desk.service.runtime.catalog
    )
    assert (await operations.plan_replay("ledger.balance")).is_read_model
    assert not (await operations.plan_replay("ledger.mail")).is_read_model


@pytest.mark.parametrize("listeners", [ONE_BY_ONE, MANY_AT_ONCE], ids=["one", "many"])
async def test_wrong_rows_are_replaced(
    shop: Shop, start: Start, url: str, listeners: str, small_steps: None
) -> None:
    ledger(shop, listeners)
    desk = Desk(await start(url))
    for amount in range(8):
        for account in "abc":
            await desk.book(account, amount, -3)
    await desk.service.settled()
    assert await desk.balances() == await desk.expected()
    await desk.spoil()
    went = list[int]()
    assert await desk.rebuild(went.append) == 3
    assert await desk.balances() == await desk.expected()
    assert sum(went) == 48
    assert len(went) > 9
    assert await desk.audits() == [("alice", "rebuild", "it was wrong", 3)]
    await desk.book("a", 100)
    await desk.service.settled()
    assert await desk.balances() == await desk.expected()
    assert desk.service.in_use() == 0


async def test_rows_that_a_statement_changes_are_read_again(
    shop: Shop, start: Start, url: str
) -> None:
    first = """
        if event.amount % 2:
            await session.execute(text("UPDATE ledger_balances SET amount = amount + 100"))
    """
    ledger(shop, first=first.strip())
    desk = Desk(await start(url))
    await desk.book("a", *range(10))
    await desk.service.settled()
    assert (live := await desk.balances()) == {"a": (545, "0 1 2 3 4 5 6 7 8 9 ")}
    await desk.spoil()
    await desk.rebuild()
    assert await desk.balances() == live


async def test_little_is_made_in_one_transaction(shop: Shop, start: Start, url: str) -> None:
    ledger(shop)
    desk = Desk(await start(url))
    assert await desk.rebuild() == 0
    await desk.book("a", 1, 2)
    assert await desk.rebuild() == 1
    assert await desk.balances() == {"a": (3, "1 2 ")}
    assert {one.state for one in await desk.service.deliveries()} == {"done"}


@pytest.mark.parametrize("listeners", [ONE_BY_ONE, MANY_AT_ONCE], ids=["one", "many"])
async def test_it_equals_a_live_one_under_load(
    shop: Shop, start: Start, url: str, relays: Relays, listeners: str, small_steps: None
) -> None:
    ledger(shop, listeners)
    desks = [Desk(await start(url)) for _ in range(2)]
    seeded = random.Random(6)

    async def publish(desk: Desk) -> None:
        for _ in range(40):
            await desk.book(seeded.choice("abcdef"), seeded.randrange(100), seeded.randrange(100))

    for desk in desks:
        for account in "abcdef":
            await desk.book(account, *range(3))
        relays(desk.service)
    publishing = asyncio.gather(*(publish(desks[n % 2]) for n in range(4)))
    meanwhile = list[int]()
    while not publishing.done():
        before = len(await desks[0].service.events())
        await desks[0].service.write("UPDATE ledger_balances SET history = '?' WHERE account = 'a'")
        await desks[0].rebuild()
        meanwhile.append(len(await desks[0].service.events()) - before)
    await publishing
    for desk in desks:
        await desk.service.settled(20)
    assert await desks[0].balances() == await desks[0].expected()
    assert meanwhile[0] > 0, "nothing was published during the first"
    assert {one.state for one in await desks[0].service.deliveries()} == {"done"}


async def test_worker_in_the_middle_of_a_delivery_rolls_back(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    first = 'seen.append(bus._unit); await gate("on").wait() if len(seen) == 1 else None'
    ledger(shop, first=first)
    desk = Desk(await start(url))
    relays(desk.service)
    await desk.book("a", 5)
    await until(lambda: len(shop.seen) == 1)
    assert await desk.rebuild() == 1
    shop.gate("on").set()
    await desk.book("a", 7)
    await desk.service.settled()
    assert await desk.balances() == {"a": (12, "5 7 ")}
    assert [one.state for one in await desk.service.deliveries()] == ["done", "done"]


async def test_worker_that_has_read_what_is_replaced_rolls_back(
    shop: Shop, start: Start, postgresql_url: str, relays: Relays
) -> None:
    first = """
        found = await session.get(Balance, event.account)
        seen.append(found)
        if event.amount == 7 and len(seen) == 2:
            await gate("on").wait()
    """
    ledger(shop, first=first.strip())
    desk = Desk(await start(postgresql_url))
    relays(desk.service)
    await desk.book("a", 5)
    await desk.service.settled()
    await desk.spoil()
    await desk.service.write("INSERT INTO ledger_balances VALUES ('a', 1000, '?')")
    await desk.book("a", 7)
    await until(lambda: len(shop.seen) == 2)
    await desk.rebuild()
    shop.gate("on").set()
    await desk.book("a", 9)
    await desk.service.settled()
    assert await desk.balances() == {"a": (21, "5 7 9 ")}


async def test_dead_letters_are_made_good(shop: Shop, start: Start, url: str) -> None:
    bug = 'if event.amount == 13 and not gate("fixed").is_set(): raise LookupError("bug")'
    ledger(shop, ONE_BY_ONE.replace("ordered=True", "ordered=True, retries=0"), bug)
    desk = Desk(await start(url))
    await desk.book("a", 1, 13, 2)
    await desk.book("b", 3)
    await desk.service.runtime.relay.work_off()
    assert [one.state for one in await desk.service.deliveries()] == [
        *("done", "dead", "waiting", "done")
    ]
    told = await desk.refusal()
    assert "ledger.balance failed at or before ledger.Booked" in told
    assert told.endswith("bug. Nothing was changed.")
    shop.gate("fixed").set()
    await desk.rebuild()
    await desk.book("a", 4)
    await desk.service.settled()
    assert await desk.balances() == {"a": (20, "1 13 2 4 "), "b": (3, "3 ")}
    assert {one.state for one in await desk.service.deliveries()} == {"done"}


async def test_what_is_cut_off_leaves_the_live_one_as_it_was(
    shop: Shop, start: Start, url: str, small_steps: None
) -> None:
    first = 'seen.append(event); await gate("on").wait() if len(seen) == 31 else None'
    ledger(shop, first=first)
    desk = Desk(await start(url))
    await desk.book("a", *range(20))
    await desk.service.settled()
    before = await desk.balances()
    making = asyncio.create_task(desk.rebuild())
    await until(lambda: len(shop.seen) == 31)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await desk.balances() == before
    assert await desk.audits() == []
    await desk.book("a", 20)
    await desk.service.settled()
    assert await desk.rebuild() == 1
    assert await desk.balances() == await desk.expected()


async def test_failure_at_the_very_end_leaves_the_live_one_as_it_was(
    shop: Shop, start: Start, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger(shop)
    desk = Desk(await start(url))
    await desk.book("a", 1)

    async def fail(*_: Any) -> None:
        raise shop.module("bus.errors").OperationError("no")

    with monkeypatch.context() as patch:
        patch.setattr(shop.module("bus.operating.audit").Audit, "add", fail)
        assert await desk.refusal() == "no"
    assert await desk.balances() == {}
    await desk.service.settled()
    assert await desk.balances() == {"a": (1, "1 ")}


async def test_connection_that_is_lost_leaves_the_live_one_as_it_was(
    shop: Shop, start: Start, postgresql_url: str, small_steps: None
) -> None:
    kill = (
        "if len(seen) == 40: await session.execute("
        'text("SELECT pg_terminate_backend(pg_backend_pid())"))'
    )
    ledger(shop, first=f"seen.append(event)\n        {kill}")
    desk = Desk(await start(postgresql_url))
    await desk.book("a", *range(25))
    await desk.service.settled()
    await desk.spoil()
    assert "Nothing was changed" in await desk.refusal()
    await desk.rebuild()
    assert await desk.balances() == await desk.expected()


@pytest.mark.parametrize(
    ("first", "told"),
    [
        ("bus.publish(event)", "it publishes or cancels Booked"),
        ("bus.cancel(Booked, 'a')", "it publishes or cancels Booked"),
        ("await bus.send(Book(account='a', amounts=()))", "it sends Book"),
        ("o = Other(text='x'); session.add(o); o.record(event)", "it records Booked"),
        ("session.add(Other(text='x'))", "its `projects` does not name"),
        ("await session.execute(sa.delete(Other))", "its `projects` does not name"),
        ("await session.execute(text('DELETE FROM bus_event'))", "its `projects` does not name"),
        ("await session.commit()", r"session.commit() in a handler"),
    ],
)
async def test_what_does_more_than_its_rows_is_refused(
    shop: Shop, start: Start, url: str, first: str, told: str
) -> None:
    ledger(shop, first=first)
    desk = Desk(await start(url))
    await desk.book("a", 1)
    assert told in await desk.refusal()
    assert await desk.service.column("SELECT text FROM ledger_others") == []
    assert len(await desk.service.events()) == 1
    await until(lambda: desk.service.in_use() == 0)


async def test_log_that_is_no_longer_whole_is_refused(shop: Shop, start: Start, url: str) -> None:
    ledger(shop, first='seen.append(event); await gate("on").wait()')
    desk = Desk(await start(url))
    await desk.book("a", 1)
    making = asyncio.create_task(desk.rebuild())
    planned = await desk.projections.plan("ledger.balance")
    shop.gate("on").set()
    assert await making == 1
    await desk.service.write("INSERT INTO bus_log (id, floor) VALUES (1, 1)")
    refused = pytest.raises(shop.module("bus.errors").OperationError, match="up to position 1")
    with refused:
        await desk.projections.plan("ledger.balance")
    with refused:
        await desk.projections.rebuild(planned, **WHO)
    assert await desk.balances() == {"a": (1, "1 ")}


async def test_what_is_no_read_model_is_told(shop: Shop, start: Start, sqlite_url: str) -> None:
    ledger(shop)
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: ...")
    desk = Desk(await start(sqlite_url))
    error = shop.module("bus.errors").OperationError
    for name in ("notes.hear", "notes.nothing"):
        with pytest.raises(error, match=rf"{name} is no read model.*Here: ledger\.balance\."):
            await desk.projections.plan(name)
    await desk.service.write("UPDATE bus_subscription SET retired_at = CURRENT_TIMESTAMP")
    with pytest.raises(error, match="is retired"):
        await desk.projections.plan("ledger.balance")


async def test_table_that_is_not_there_is_told(shop: Shop, start: Start, url: str) -> None:
    ledger(shop)
    desk = Desk(await start(url))
    await desk.service.write("DROP TABLE ledger_balances")
    with pytest.raises(shop.module("bus.errors").OperationError, match="run `db upgrade` first"):
        await desk.rebuild()


async def test_old_names_and_versions_are_read(shop: Shop, start: Start, url: str) -> None:
    ledger(shop)
    desk = Desk(await start(url))
    await desk.book("a", 1, 2)
    await desk.service.write("UPDATE bus_event SET name = 'ledger.Noted' WHERE position = 1")
    payload = '{"account": "a", "cents": 200}'
    await desk.service.write(f"UPDATE bus_event SET payload = '{payload}'")
    shop.forget()
    contracts = """
        class Booked(Event, key="account", version=2, aliases=("Noted",)):
            account: str
            amount: int
        @upcast(Booked, from_version=1)
        def cents(payload: dict[str, Any]) -> dict[str, Any]:
            return {"account": payload["account"], "amount": payload["cents"] // 100}
    """
    ledger(shop, contracts=contracts)
    desk = Desk(await start(url))
    await desk.book("b", 3)
    await desk.rebuild()
    assert await desk.balances() == {"a": (4, "2 2 "), "b": (3, "3 ")}
    await desk.service.write("UPDATE bus_event SET version = 7 WHERE position = 2")
    with pytest.raises(
        shop.module("bus.errors").OperationError, match=r"cannot read version 7 of ledger\.Booked"
    ):
        await desk.rebuild()


TOO_MUCH = 'assert event.amount < 100, "too much"'
OTHER = """
    @listen(retries=0)
    async def other(event: Booked) -> None: assert event.amount != 13
"""


async def correct(desk: Desk, listener: str, amount: int) -> None:
    """Give a listener this amount in the place of the one that is dead."""
    operations = desk.service.shop.module("bus.operating.operations").Operations(
        desk.service.database, desk.service.runtime.catalog
    )
    (dead,) = [
        one.id
        for one in await desk.service.deliveries()
        if (one.state, one.listener) == ("dead", listener)
    ]
    await operations.edit(dead, {"account": "a", "amount": amount}, **WHO)


@pytest.mark.parametrize("listeners", [ONE_BY_ONE, MANY_AT_ONCE], ids=["one", "many"])
async def test_corrected_events_take_the_place_of_those_that_failed(
    shop: Shop, start: Start, url: str, listeners: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CHUNK", "_LITTLE"):
        monkeypatch.setattr(shop.module("bus.operating.rebuilds"), name, 2)
    refusing = listeners.replace("ordered=True", "ordered=True, retries=0")
    ledger(shop, refusing.replace("await apply", f"{TOO_MUCH}; await apply") + OTHER)
    desk = Desk(await start(url))
    await desk.book("a", 1, 500, 2, 13, 3)
    await desk.service.runtime.relay.work_off()
    await correct(desk, "ledger.balance", 600)
    await desk.service.runtime.relay.work_off()
    await desk.book("a", 4)
    await correct(desk, "ledger.balance", 50)
    await desk.service.runtime.relay.work_off()
    await correct(desk, "ledger.other", 14)
    await desk.service.runtime.relay.work_off()
    live = await desk.balances()
    assert live == {"a": (73, "1 50 2 13 3 4 ")}
    assert {one.state for one in await desk.service.deliveries()} == {"done", "dropped"}
    went = list[int]()
    await desk.rebuild(went.append)
    assert await desk.balances() == live
    assert sum(went) == (await desk.projections.plan("ledger.balance")).events == 6


async def test_correction_takes_that_place_even_if_the_live_listener_kept_no_order(
    shop: Shop, start: Start, url: str
) -> None:
    ledger(shop, ONE_BY_ONE.replace("ordered=True", "retries=0"), TOO_MUCH)
    desk = Desk(await start(url))
    for amount in (1, 500, 2):
        await desk.book("a", amount)
        await desk.service.runtime.relay.work_off()
    await correct(desk, "ledger.balance", 50)
    await desk.service.runtime.relay.work_off()
    assert await desk.balances() == {"a": (53, "1 2 50 ")}
    await desk.rebuild()
    assert await desk.balances() == {"a": (53, "1 50 2 ")}


async def test_what_is_corrected_when_it_has_run_begins_once_more(
    shop: Shop, start: Start, url: str, small_steps: None
) -> None:
    first = """
        if gate("fixed").is_set():
            seen.append(event)
        else:
            assert event.amount < 100, "too much"
        if len(seen) == 20:
            await gate("on").wait()
    """
    ledger(shop, ONE_BY_ONE.replace("ordered=True", "ordered=True, retries=0"), first.strip())
    desk = Desk(await start(url))
    await desk.book("a", 1, 500, *range(2, 22))
    await desk.service.runtime.relay.work_off()
    shop.gate("fixed").set()
    making = asyncio.create_task(desk.rebuild())
    await until(lambda: len(shop.seen) == 20)
    await correct(desk, "ledger.balance", 50)
    shop.gate("on").set()
    with pytest.raises(shop.module("bus.errors").OperationError, match="corrected meanwhile"):
        await making
    await desk.rebuild()
    assert (await desk.balances())["a"][1].startswith("1 50 2 3 ")


async def test_listener_that_is_being_filled_is_filled_by_it(
    shop: Shop, start: Start, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop.module("bus.backfill"), "_CHUNK", 2)
    ledger(shop, listeners="")
    desk = Desk(await start(url))
    await desk.book("a", *range(7))
    shop.forget()
    ledger(shop)
    desk = Desk(await start(url))
    backfill = shop.module("bus.backfill").backfill
    assert await backfill(desk.service.database, desk.service.runtime.clock.now())
    await desk.rebuild()
    await desk.book("a", 7)
    await desk.service.settled()
    assert await desk.balances() == await desk.expected()
    assert len(await desk.service.deliveries()) == 3


async def test_read_models_are_listed(shop: Shop, start: Start, sqlite_url: str) -> None:
    ledger(shop, first="raise LookupError")
    desk = Desk(await start(sqlite_url))
    await desk.book("a", 1, 2)
    await desk.book("b", 3)
    await desk.service.write("UPDATE bus_delivery SET state = 'dead' WHERE id = 3")
    assert await desk.projections.all() == [
        {
            "listener": "ledger.balance",
            "tables": ["ledger_balances"],
            "events": ["ledger.Booked"],
            "unfinished": 2,
            "dead": 1,
        }
    ]
