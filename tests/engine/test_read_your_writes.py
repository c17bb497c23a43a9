"""A read waits until the read models that it names have seen what was published."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from .conftest import Relays, Replica, Service, Shop, Start, notes, until, write

pytestmark = pytest.mark.anyio

COPIES = """
    class Kept(Entity):
        __tablename__ = "kept"
        text: Mapped[str]
"""
LISTENERS = """
    @listen
    async def keep(event: NoteWritten, session: AsyncSession) -> None:
        if event.text == "bad":
            raise LookupError("no")
        session.add(Kept(text=event.text))
    @listen
    async def mail(event: NoteWritten) -> None:
        await gate("mail").wait()
    @listen(inline=True)
    async def check(event: NoteWritten) -> None: ...
    def plain(event: NoteWritten) -> None: ...
"""
QUERIES = """
    class Kept_(Query[int]): ...
    class Number(Query[int]): ...
    @handle
    async def kept(query: Kept_, session: AsyncSession) -> int:
        return len((await session.scalars(select(Kept))).all())
    @handle
    def number(query: Number) -> int:
        return 7
    @handle
    async def run(command: Run, bus: Bus) -> None:
        for text in command.text.split():
            await bus.send(Write(text=text))
"""


class Reader:
    """Sends commands, and reads what came of them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.handlers = service.shop.module("slices.notes.handlers")

    async def write(self, texts: str) -> str:
        """Publish an event for each of the words, in one unit; the token."""
        bus = self.service.bus()
        await bus.send(self.service.shop.messages().Run(text=texts))
        return str(bus.published)

    async def kept(self, token: str | None, *names: str) -> int:
        listeners = self.service.shop.module("slices.notes.listeners") if names else None
        seen_by = [getattr(listeners, name) for name in names]
        query = self.handlers.Kept_()
        kept: int = await self.service.bus().send(query, after=token, seen_by=seen_by)
        return kept

    async def late(self, token: str, *names: str) -> int:
        """The same, for what is not to come."""
        self.service.runtime._resources.catch_up = 0.05
        try:
            return await self.kept(token, *names)
        finally:
            self.service.runtime._resources.catch_up = 10.0


Open = Any
# One that names an event.
V7 = "AaIZXvJIcU-kxoI_pI360w"


@pytest.fixture
def reader(shop: Shop, start: Start) -> Open:
    """`await reader(url)`: a service with two listeners, of which one waits for a gate."""
    notes(shop, QUERIES, models=COPIES, listeners=LISTENERS)

    async def reader(url: str, **options: Any) -> Reader:
        return Reader(await start(url, **options))

    return reader


async def test_read_waits_for_the_read_model_that_it_names(
    reader: Open, url: str, relays: Relays
) -> None:
    one = await reader(url)
    token = await one.write("a b c")
    assert await one.kept(None) == 0
    reading = asyncio.create_task(one.kept(token, "keep"))
    relays(one.service)
    assert await reading == 3
    one.service.runtime._resources.catch_up = 0.05
    with pytest.raises(one.service.shop.bus.NotSeenInTimeError, match=r"notes\.mail has not seen"):
        await one.kept(token, "mail")
    one.service.shop.gate("mail").set()
    await one.service.settled()
    assert await one.kept(token, "keep", "mail", "check") == 3
    await until(lambda: one.service.in_use() == 0)


async def test_many_reads_that_wait_leave_delivery_its_connections(
    reader: Open, url: str, relays: Relays
) -> None:
    one = await reader(url)
    token = await one.write("a")
    reading = [asyncio.create_task(one.kept(token, "keep")) for _ in range(50)]
    await until(lambda: one.service.in_use() == 0)
    relays(one.service)
    assert await asyncio.gather(*reading) == [1] * 50
    one.service.shop.gate("mail").set()


async def test_token_names_what_the_unit_has_published_and_nothing_else(
    reader: Open, url: str
) -> None:
    one = await reader(url)
    bus = one.service.bus()
    assert bus.published == ""
    await bus.send(one.service.shop.messages().Run(text=""))
    assert bus.published == ""
    await bus.send(one.service.shop.messages().Run(text="a"))
    (single,) = [row.id for row in await one.service.events()]
    spans_of = one.service.shop.module("bus.catch_up").spans_of
    assert spans_of(bus.published) == [(single, single)]
    token = await one.write("b c d")
    written = [row.id for row in await one.service.events()]
    assert spans_of(f"{token} , {bus.published}") == [(written[1], written[3]), (single, single)]
    assert len(token) == 43


async def test_event_for_later_is_not_waited_for(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            bus.publish(NoteWritten(text="later"), after=dt.timedelta(days=1))
        """,
    )
    service = await start(url)
    bus = service.bus()
    await bus.send(shop.messages().Run())
    assert bus.published == ""


async def test_other_units_of_the_same_time_are_not_waited_for(
    reader: Open, postgresql_url: str
) -> None:
    one = await reader(postgresql_url)
    token = await one.write("a b")
    delivery = one.service.shop.tables.delivery
    # As if the second of them had been numbered after one of another transaction.
    await one.write("bad")
    await one.service.write("UPDATE bus_event SET position = 100 WHERE position = 2")
    await one.service.write("UPDATE bus_delivery SET event_position = 100 WHERE event_position = 2")
    await one.service.write(
        delivery.update().where(delivery.c.event_position.in_([1, 100])).values(state="done")
    )
    assert [row.position for row in await one.service.events()] == [1, 3, 100]
    assert await one.kept(token, "keep") == 0


@pytest.mark.parametrize("state", ["dead", "dropped"])
async def test_what_will_never_be_seen_is_told_at_once(reader: Open, url: str, state: str) -> None:
    one = await reader(url)
    token = await one.write("a")
    await one.service.write(f"UPDATE bus_delivery SET state = '{state}'")
    with pytest.raises(one.service.shop.bus.NeverSeenError, match=rf"notes\.keep.*is {state}"):
        await one.kept(token, "keep")
    assert await one.kept(token) == 0
    await until(lambda: one.service.in_use() == 0)


async def test_event_that_the_read_model_does_not_want_needs_no_waiting(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        QUERIES,
        models=COPIES,
        contracts="class Other(Event, key='text'):\n    text: str",
        listeners="""
        @listen
        async def keep(event: Other) -> None: ...
        """,
    )
    one = Reader(await start(url))
    assert await one.kept(await one.write("a b"), "keep") == 0


async def test_delivery_that_was_done_and_removed_counts_as_seen(reader: Open, url: str) -> None:
    one = await reader(url)
    token = await one.write("a")
    await one.service.write("DELETE FROM bus_delivery")
    assert await one.kept(token, "keep") == 0


async def test_listener_that_is_being_filled_is_waited_for(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, QUERIES, models=COPIES)
    token = await Reader(await start(url)).write("a")
    shop.forget()
    from_the_beginning = LISTENERS.replace("@listen\n", '@listen(start="beginning")\n')
    notes(shop, QUERIES, models=COPIES, listeners=from_the_beginning)
    one = Reader(await start(url))
    reading = asyncio.create_task(one.kept(token, "keep"))
    shop.gate("mail").set()
    await one.service.settled()
    assert await reading == 1


async def test_removed_event_counts_as_seen(reader: Open, url: str) -> None:
    one = await reader(url)
    token = await one.write("a b")
    event, delivery = one.service.shop.tables.event, one.service.shop.tables.delivery
    for position in (1, 2):
        with pytest.raises(one.service.shop.bus.NotSeenInTimeError, match="has not seen"):
            await one.late(token, "keep")
        done = delivery.delete().where(delivery.c.event_position == position)
        await one.service.write(done)
        await one.service.write(event.delete().where(event.c.position == position))
    assert await one.kept(token, "keep") == 0
    assert await one.kept(token) == 0
    with pytest.raises(one.service.shop.bus.NotSeenInTimeError, match="has not seen"):
        await one.late(f"{token}, {await one.write('c')}", "keep")


async def test_unknown_event_is_waited_for_on_a_replica(
    reader: Open, postgresql_url: str, following: Replica
) -> None:
    one = await reader(postgresql_url, replica=following.url)
    await following.catch_up()
    token = one.service.shop.module("bus.catch_up").token_of([{"id": uuid7(), "due": None}])
    for names in ((), ("keep",)):
        with pytest.raises(one.service.shop.bus.NotSeenInTimeError, match="have not arrived"):
            await one.late(token, *names)


async def test_one_token_names_what_a_request_has_published(reader: Open, url: str) -> None:
    one = await reader(url)
    bus, run = one.service.bus(), one.service.shop.messages().Run
    tokens = ""
    for text in ("a b", "c", "d e", "f", "g", "h"):
        await bus.send(run(text=text))
        await one.write(f"other-{text[0]}")
        tokens = one.service.shop.module("bus.catch_up").joined(tokens, bus.published)
    assert len(tokens) == 43
    event, delivery = one.service.shop.tables.event, one.service.shop.tables.delivery
    mine = sa.select(event.c.position).where(event.c.correlation_id == bus.context.correlation_id)
    positions = await one.service.column(mine)
    assert len(positions) == 8
    for position in positions:
        with pytest.raises(one.service.shop.bus.NotSeenInTimeError, match="has not seen"):
            await one.late(tokens, "keep")
        done = delivery.update().where(delivery.c.event_position == position)
        await one.service.write(done.values(state="done"))
    assert await one.kept(tokens, "keep") == 0


@pytest.mark.parametrize(
    "token",
    ["x", "A" * 22, "A" * 43, V7[:21], V7 + "A", V7[:21] + "!", ",".join([V7] * 51)],
)
async def test_malformed_token_is_refused(reader: Open, sqlite_url: str, token: str) -> None:
    one = await reader(sqlite_url)
    with pytest.raises(one.service.shop.bus.EventTokenError, match="unchanged; up to 50"):
        await one.kept(token, "keep")


async def test_what_cannot_wait_is_refused(reader: Open, sqlite_url: str, shop: Shop) -> None:
    one = await reader(sqlite_url)
    token = await one.write("a")
    for after in (None, "", token):
        with pytest.raises(shop.bus.BusError, match=r"expected functions with @listen.*got plain"):
            await one.kept(after, "plain")
    with pytest.raises(shop.bus.BusError, match="Run is no query"):
        await one.service.bus().send(shop.messages().Run(), after=token)
    assert await one.service.bus().send(one.handlers.Number(), after=token) == 7


async def test_nested_query_does_not_wait(shop: Shop, start: Start, sqlite_url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Count(), after="")
        """,
    )
    service = await start(sqlite_url)
    with pytest.raises(shop.bus.BusError, match="let the outermost query wait"):
        await service.send(shop.messages().Run())


GUARDED = """
    @guard
    async def note_who(query: Kept_, session: AsyncSession) -> None:
        seen.append("guarded")
        await session.execute(text("SELECT 1"))
        if session.get_bind().dialect.name == "postgresql":
            await session.execute(text("SET LOCAL application_name = 'guarded'"))
"""


async def test_guards_run_once_and_keep_what_they_have_set(
    shop: Shop, start: Start, url: str, relays: Relays
) -> None:
    tells = QUERIES.replace(
        "async def kept(query: Kept_, session: AsyncSession) -> int:",
        "async def kept(query: Kept_, session: AsyncSession) -> int:\n"
        '        if session.get_bind().dialect.name == "postgresql":\n'
        '            seen.append(await session.scalar(text("SHOW application_name")))',
    )
    notes(shop, tells + GUARDED, models=COPIES, listeners=LISTENERS)
    one = Reader(await start(url))
    token = await one.write("a")
    reading = asyncio.create_task(one.kept(token, "keep"))
    await until(lambda: bool(shop.seen))
    relays(one.service)
    assert await reading == 1
    assert shop.seen == ["guarded"] * (1 if url.startswith("sqlite") else 2)
    shop.gate("mail").set()


async def test_delivery_on_the_replica_counts(
    reader: Open, postgresql_url: str, following: Replica
) -> None:
    one = await reader(postgresql_url, replica=following.url)
    await write(one.service, "before")
    one.service.shop.gate("mail").set()
    await one.service.settled()
    await following.stop()
    token = await one.write("a b")
    await one.service.settled()
    one.service.runtime._resources.catch_up = 0.05
    for names in ((), ("keep",)):
        with pytest.raises(one.service.shop.bus.NotSeenInTimeError):
            await one.kept(token, *names)
    assert await one.kept(None) == 1
    one.service.runtime._resources.catch_up = 10.0
    reading = asyncio.create_task(one.kept(token, "keep"))
    await following.go_on()
    assert await reading == 3
