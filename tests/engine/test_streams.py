"""Event sourcing: what a stream holds, what it amounts to, and what two writers of it get."""

import asyncio
import datetime as dt
import textwrap
from contextlib import suppress
from itertools import accumulate
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.orm.exc import StaleDataError

from .conftest import Service, Shop, Start, notes, write

pytestmark = pytest.mark.anyio

# A counter: its events add to it, and it refuses to fall below zero. Every third version leaves a
# snapshot.
MODELS = """
from typing import assert_never
from shop.base.streams import Aggregate, StoredEvent, StoredSnapshot, StreamEvent, Streams

class Opened(StreamEvent):
    name: str

class Added(StreamEvent):
    amount: Decimal

class Counter(Aggregate[Opened | Added]):
    name: str
    total: Decimal = Decimal(0)

    def add(self, amount: int) -> None:
        if self.total + amount < 0:
            raise ValueError("below zero")
        self.apply(Added(amount=Decimal(amount)))

    def evolve(self, event: Opened | Added) -> None:
        match event:
            case Opened():
                self.name = event.name
            case Added():
                self.total += event.amount
            case _:
                assert_never(event)

class StoredCounterEvent(StoredEvent):
    __tablename__ = "notes_events"

class StoredCounterSnapshot(StoredSnapshot):
    __tablename__ = "notes_snapshots"

streams = Streams(Counter, StoredCounterEvent, StoredCounterSnapshot, snapshot_every=3)
"""


class Counters:
    """A service whose slice keeps counters, and what a test does with them, a unit each."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.models: Any = service.shop.module("slices.notes.models")

    async def run(self, work: Any, **context: Any) -> Any:
        """Do work(session, bus) in one unit of work."""
        self.service.shop.module("probe").work = work
        return await self.service.bus(**context).send(self.service.shop.messages().Run())

    async def open(self, *amounts: int) -> UUID:
        """A counter with a version for its opening and for each amount."""
        counter = self.models.Counter.begin(self.models.Opened(name="hits"))
        for amount in amounts:
            counter.add(amount)
        await self.append(counter)
        found: UUID = counter.id
        return found

    async def append(self, counter: Any) -> None:
        await self.run(lambda session, bus: self.models.streams.append(session, counter))

    async def load(self, stream_id: UUID, **options: Any) -> Any:
        return await self.run(
            lambda session, bus: self.models.streams.load(session, stream_id, **options)
        )

    async def add(self, stream_id: UUID, *amounts: int) -> None:
        """Load, add and append, in one unit of work."""

        async def work(session: Any, bus: Any) -> None:
            counter = await self.models.streams.load(session, stream_id)
            for amount in amounts:
                counter.add(amount)
            await self.models.streams.append(session, counter)

        await self.run(work)

    async def rows(self) -> list[Any]:
        table = self.models.StoredCounterEvent.__table__
        return await self.service.rows(sa.select(table).order_by(table.c.version))


async def counters(shop: Shop, start: Start, url: str, models: str = MODELS) -> Counters:
    run = """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> object:
            from shop import probe
            return await probe.work(session, bus)
    """
    notes(shop, run, models=models, messages="\nclass Run(Command[object]):\n    pass\n")
    return Counters(await start(url))


async def test_loaded_is_what_was_appended(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open(1)
    await some.add(stream_id, 2, 3)
    loaded = await some.load(stream_id)
    assert (loaded.id, loaded.name, loaded.total) == (stream_id, "hits", 6)
    assert (loaded.version, loaded.new_events) == (4, [])
    assert [row.version for row in await some.rows()] == [1, 2, 3, 4]


async def test_fields_are_stored_by_their_names_whatever_others_call_them(
    shop: Shop, start: Start, url: str
) -> None:
    models = MODELS.replace(
        "    name: str\n\nclass Added", '    name: str = Field(alias="label")\n\nclass Added'
    ).replace(
        "    name: str\n    total: Decimal = Decimal(0)",
        """
    name: str = Field("", alias="label")
    total: Decimal = Field(Decimal(0), serialization_alias="sum")
""",
    )
    some = await counters(shop, start, url, f"from pydantic import Field\n{models}")
    counter = some.models.Counter.begin(some.models.Opened(label="hits"))
    for amount in (1, 2, 3):
        counter.add(amount)
    await some.append(counter)
    loaded = await some.load(counter.id)
    assert (loaded.name, loaded.total, loaded.version) == ("hits", 6, 4)
    assert (await some.rows())[0].payload == {"name": "hits"}


async def test_event_stays_as_it_happened(shop: Shop, start: Start, sqlite_url: str) -> None:
    """Whatever becomes of the list that evolve has taken from it."""
    await counters(shop, start, sqlite_url)
    streams = shop.module("base.streams")

    class Filled(streams.StreamEvent):  # type: ignore[name-defined,misc]
        items: list[str]

    class Basket(streams.Aggregate[Filled]):  # type: ignore[name-defined,misc]
        items: list[str]

        def evolve(self, event: Filled) -> None:
            self.items = event.items

    basket = Basket.begin(Filled(items=["a"]))
    basket.items.append("b")
    assert list(basket.new_events) == [Filled(items=["a"])]


async def test_time_of_creation_is_that_of_the_first_event(
    shop: Shop, start: Start, url: str
) -> None:
    some = await counters(shop, start, url)
    counter = some.models.Counter.begin(some.models.Opened(name="hits"))
    await some.append(counter)
    assert (await some.load(counter.id)).created_at == counter.created_at


async def test_what_was_never_opened_is_none(shop: Shop, start: Start, sqlite_url: str) -> None:
    some = await counters(shop, start, sqlite_url)
    assert await some.load(uuid4()) is None


async def test_nothing_new_is_appended_as_nothing(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    some = await counters(shop, start, sqlite_url)
    counter = await some.load(await some.open(1))
    with pytest.raises(ValueError, match="below zero"):
        counter.add(-2)
    await some.append(counter)
    assert len(await some.rows()) == 2


async def test_thousand_events_are_one_query(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url, MODELS.replace("snapshot_every=3", ""))
    stream_id = await some.open(*[1] * 999)
    await some.service.write("DELETE FROM notes_snapshots")
    told: list[str] = []
    engine = some.service.database.writer.sync_engine
    sa.event.listen(engine, "before_cursor_execute", lambda *given: told.append(given[2]))
    assert (await some.load(stream_id)).version == 1000
    assert len([one for one in told if "notes_events" in one]) == 1


# ------------------------------------------------------------------------------ two writers at once


async def test_second_writer_of_a_version_is_refused(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()
    one, other = await some.load(stream_id), await some.load(stream_id)
    one.add(1)
    other.add(10)
    await some.append(one)
    with pytest.raises(StaleDataError, match="no longer at version 1: load it again"):
        await some.append(other)
    assert (await some.load(stream_id)).total == 1


async def test_one_of_two_concurrent_writers_wins(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    some = await counters(shop, start, postgresql_url)
    stream_id = await some.open()
    both_loaded = asyncio.Barrier(2)

    async def add(session: Any, bus: Any) -> None:
        counter = await some.models.streams.load(session, stream_id)
        await both_loaded.wait()
        counter.add(1)
        await some.models.streams.append(session, counter)

    results = await asyncio.gather(
        *(_sent(some.service, add) for _ in range(2)), return_exceptions=True
    )
    assert sorted(map(type, results), key=str) == [type(None), StaleDataError]
    assert (await some.load(stream_id)).version == 2


async def _sent(service: Service, work: Any) -> Any:
    service.shop.module("probe").work = work
    return await service.send(service.shop.messages().Run())


async def test_two_streams_do_not_meet(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    one, other = await some.open(1), await some.open(2)
    await some.add(one, 10)
    assert (await some.load(one)).total == 11
    assert (await some.load(other)).total == 2


# --------------------------------------------------------------------------------- one transaction


async def test_events_and_what_is_published_commit_together(
    shop: Shop, start: Start, url: str
) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()

    async def work(session: Any, bus: Any) -> None:
        counter = await some.models.streams.load(session, stream_id)
        counter.add(1)
        await some.models.streams.append(session, counter)
        bus.publish(shop.contracts().NoteWritten(text="added"))

    await some.run(work)
    assert [event.key for event in await some.service.events()] == ["added"]
    assert (await some.load(stream_id)).version == 2


async def test_failure_takes_back_events_and_what_is_published(
    shop: Shop, start: Start, url: str
) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()

    async def work(session: Any, bus: Any) -> None:
        counter = await some.models.streams.load(session, stream_id)
        counter.add(1)
        counter.add(1)
        await some.models.streams.append(session, counter)
        bus.publish(shop.contracts().NoteWritten(text="added"))
        raise LookupError

    with pytest.raises(LookupError):
        await some.run(work)
    assert await some.service.events() == []
    assert (await some.load(stream_id)).version == 1
    assert await some.service.rows("SELECT * FROM notes_snapshots") == []


async def test_refused_writer_publishes_nothing(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()
    stale = await some.load(stream_id)
    await some.add(stream_id, 1)

    async def work(session: Any, bus: Any) -> None:
        bus.publish(shop.contracts().NoteWritten(text="added"))
        stale.add(1)
        await some.models.streams.append(session, stale)

    with pytest.raises(StaleDataError):
        await some.run(work)
    assert await some.service.events() == []


async def test_what_a_savepoint_took_back_leaves_no_gap(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()

    async def work(session: Any, bus: Any) -> None:
        counter = await some.models.streams.load(session, stream_id)
        with suppress(LookupError):
            async with bus.savepoint():
                counter.add(1)
                await some.models.streams.append(session, counter)
                raise LookupError
        counter.add(1)
        await some.models.streams.append(session, counter)

    with pytest.raises(StaleDataError, match="no longer at version 2"):
        await some.run(work)
    assert (await some.load(stream_id)).version == 1


async def test_events_say_what_caused_them(shop: Shop, start: Start, sqlite_url: str) -> None:
    some = await counters(shop, start, sqlite_url)
    counter = some.models.Counter.begin(some.models.Opened(name="hits"))
    cause = uuid4()
    await some.run(
        lambda session, bus: some.models.streams.append(session, counter),
        correlation_id="request-1",
        causation_id=cause,
    )
    (row,) = await some.rows()
    assert (row.correlation_id, row.causation_id) == ("request-1", cause)


async def test_events_of_a_batch_say_each_what_caused_it(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    models = MODELS + textwrap.dedent("""
        from shop.bus import handle, listen
        class Open(Command[None]):
            name: str
        @handle
        async def open_counter(command: Open, session: AsyncSession) -> None:
            await streams.append(session, Counter.begin(Opened(name=command.name)))
        @listen(batch=10)
        def on_note(event: NoteWritten) -> Open:
            return Open(name=event.text)
    """)
    some = await counters(shop, start, sqlite_url, models)
    await write(some.service, "a", "b")
    await some.service.settled()
    caused = {row.payload["name"]: row.causation_id for row in await some.rows()}
    assert caused == {event.key: event.id for event in await some.service.events()}


# --------------------------------------------------------------------------------------- snapshots


async def test_snapshots_are_taken_every_so_many_versions(
    shop: Shop, start: Start, url: str
) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()
    for amounts in ([1], [1], [1, 1, 1, 1, 1], [1]):
        await some.add(stream_id, *amounts)
    versions = await some.service.column("SELECT version FROM notes_snapshots ORDER BY version")
    assert versions == [3, 8, 9]


async def test_state_is_the_same_without_snapshots(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open(1, 2, 3, 4)
    await some.add(stream_id, 5)
    with_snapshots = [await some.load(stream_id, version=n) for n in range(1, 7)]
    await some.service.write("DELETE FROM notes_snapshots")
    assert [await some.load(stream_id, version=n) for n in range(1, 7)] == with_snapshots
    assert [one.total for one in with_snapshots] == [0, 1, 3, 6, 10, 15]


async def test_snapshot_spares_the_events_before_it(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open(1, 2, 3)
    await some.service.write("UPDATE notes_events SET type = 'Unreadable' WHERE version < 4")
    assert (await some.load(stream_id)).total == 6
    some.models.Counter.snapshot_schema = 2
    with pytest.raises(some.service.shop.bus.BusError, match="Unreadable"):
        await some.load(stream_id)


# Events may leave less than the fields ask for, or what they do not allow.
LATE = ("total: Decimal = Decimal(0)", "total: Decimal = Decimal(0)\n    closed_by: str")
BOUNDED = ("total: Decimal = Decimal(0)", "total: Decimal = Field(Decimal(0), le=2)")
ODD = ("self.total += event.amount", "self.total += event.amount; self.name = object()")
WAITS = "no snapshot is taken: it could not be read"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (LATE, "Counter.closed_by: Field required"),
        (BOUNDED, "Counter.total: Input should be less than or equal to 2"),
        (ODD, "PydanticSerializationError"),
    ],
    ids=["late", "bounded", "odd"],
)
async def test_snapshot_that_could_not_be_read_is_not_taken(
    shop: Shop,
    start: Start,
    sqlite_url: str,
    logged: list[Any],
    change: tuple[str, str],
    error: str,
) -> None:
    models = f"from pydantic import Field\n{MODELS.replace(*change)}"
    some = await counters(shop, start, sqlite_url, models)
    stream_id = await some.open()
    for amount in range(2, 6):
        await some.add(stream_id, amount)
    loaded = await some.load(stream_id)
    assert (loaded.version, loaded.total) == (5, 14)
    assert await some.service.rows("SELECT * FROM notes_snapshots") == []
    (told,) = [one for one in logged if one["log_level"] == "warning"]
    assert (told["event"], told["table"], told["stream"], told["error"]) == (
        *(WAITS, "notes_snapshots", str(stream_id), error),
    )


# What the types of the fields let through, and JSON does not bring back as it was.
CHANGED = {
    "parts: dict[str, Any] = Field(default_factory=dict)": (
        "self.parts['a'] = event.amount",
        "parts",
    ),
    "parts: list[Any] = Field(default_factory=list, exclude=True)": (
        *("self.parts.append(event.amount)", "parts"),
    ),
    "ref: UUID | str = ''": ("self.ref = self.id", "ref"),
    "_count: int = 0": ("self._count += 1", "_count"),
}


@pytest.mark.parametrize(("field", "change", "name"), [(k, *v) for k, v in CHANGED.items()])
async def test_snapshot_that_would_change_the_state_is_not_taken(
    shop: Shop,
    start: Start,
    sqlite_url: str,
    logged: list[Any],
    field: str,
    change: str,
    name: str,
) -> None:
    models = MODELS.replace(
        "total: Decimal = Decimal(0)", f"total: Decimal = Decimal(0)\n    {field}"
    )
    models = models.replace("self.total += event.amount", f"self.total += event.amount; {change}")
    models = f"from pydantic import Field\nfrom uuid import UUID\n{models}"
    some = await counters(shop, start, sqlite_url, models)
    stream_id = await some.open(1, 2, 3)
    assert await some.service.rows("SELECT * FROM notes_snapshots") == []
    assert f"{name}: not the same" in str(logged)
    state = await some.load(stream_id)
    assert state.total == 6
    assert getattr(state, name)


async def test_snapshot_that_cannot_be_read_is_passed_over(
    shop: Shop, start: Start, url: str, logged: list[Any]
) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open(1, 2)
    await some.add(stream_id, 3, 4, 5)
    await some.service.write("""UPDATE notes_snapshots SET state = '{"name": "hits"}'""")
    loaded = await some.load(stream_id)
    assert (loaded.version, loaded.total) == (6, 15)
    assert (await some.load(stream_id, version=4)).total == 6
    warned = [one for one in logged if one["log_level"] == "warning"]
    assert [one["event"] for one in warned] == ["a snapshot cannot be read, all events are"] * 2
    assert "Counter.id: Field required" in warned[0]["error"]
    await some.add(stream_id, 1, 1, 1)
    logged.clear()
    assert (await some.load(stream_id)).total == 18
    assert [one for one in logged if one["log_level"] == "warning"] == []


# ------------------------------------------------------------------- events of another age


async def store(some: Counters, *rows: tuple[str, int, dict[str, Any]]) -> UUID:
    """Events as they were stored by older code."""
    stream_id = uuid4()
    given = {"correlation_id": "x", "recorded_at": dt.datetime.now(dt.UTC)}
    table = some.models.StoredCounterEvent.__table__
    for version, (type_, event_version, payload) in enumerate(rows, 1):
        row = {"type": type_, "event_version": event_version, "payload": payload}
        await some.service.write(
            sa.insert(table).values(stream_id=stream_id, version=version, **row, **given)
        )
    return stream_id


UPCAST = """
def with_amount(payload: dict[str, Any]) -> dict[str, Any]:
    return {"number": 1}

def with_decimal(payload: dict[str, Any]) -> dict[str, Any]:
    return {"amount": payload["number"]}

class Added(StreamEvent, name="Incremented", upcast=(with_amount, with_decimal)):
"""


async def test_old_versions_of_an_event_are_upcast(shop: Shop, start: Start, url: str) -> None:
    models = MODELS.replace("class Added(StreamEvent):\n", UPCAST)
    some = await counters(shop, start, url, models)
    stream_id = await store(
        some,
        ("Opened", 1, {"name": "hits"}),
        ("Incremented", 1, {}),
        ("Incremented", 2, {"number": 10}),
        ("Incremented", 3, {"amount": "100"}),
    )
    assert (await some.load(stream_id)).total == 111
    await some.add(stream_id, 1000)
    last = (await some.rows())[-1]
    assert (last.type, last.event_version) == ("Incremented", 3)


@pytest.mark.parametrize("row", [("Removed", 1, {}), ("Opened", 2, {"name": "a", "by": "b"})])
async def test_event_that_the_code_does_not_know_is_refused(
    shop: Shop, start: Start, sqlite_url: str, row: Any
) -> None:
    some = await counters(shop, start, sqlite_url)
    stream_id = await store(some, row)
    with pytest.raises(shop.bus.BusError, match=f"{row[0]}, version {row[1]}, which"):
        await some.load(stream_id)


async def test_fields_that_newer_code_added_are_ignored(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    some = await counters(shop, start, sqlite_url)
    stream_id = await store(some, ("Opened", 1, {"name": "hits", "by": "alice"}))
    assert (await some.load(stream_id)).name == "hits"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("event: Opened | Added)", "event: Any)"), "evolve takes typing.Any: expected the union"),
        (("class Added(StreamEvent)", "class Added(Event)"), "expected the union of its events"),
        (("Added(StreamEvent)", "Added(StreamEvent, name='Opened')"), "are stored as 'Opened'"),
        (("Added(StreamEvent)", "Added(StreamEvent, name='erased')"), "are stored as 'erased'"),
    ],
)
def test_aggregate_whose_events_are_not_clear_does_not_start(
    shop: Shop, change: tuple[str, str], message: str
) -> None:
    models = MODELS.replace("Counter(Aggregate[Opened | Added])", "Counter(Aggregate[Any])")
    notes(shop, models=models.replace(*change))
    refusal = shop.refusal()
    assert message in refusal
    assert "models.py:" in refusal


# ----------------------------------------------------------------------------------------- erasing


async def test_erased_stream_keeps_types_and_versions(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id, other = await some.open(1, 2, 3), await some.open()
    assert await some.run(lambda session, bus: some.models.streams.erase(session, stream_id))
    rows = [row for row in await some.rows() if row.stream_id == stream_id]
    assert [(row.version, row.type, row.payload) for row in rows] == [
        (1, "Opened", None),
        (2, "Added", None),
        (3, "Added", None),
        (4, "Added", None),
        (5, "erased", None),
    ]
    assert await some.service.column("SELECT stream_id FROM notes_snapshots") == []
    assert await some.load(stream_id) is None
    assert await some.load(stream_id, version=2) is None
    assert (await some.load(other)).name == "hits"


async def test_erasing_twice_is_erasing_once(shop: Shop, start: Start, sqlite_url: str) -> None:
    some = await counters(shop, start, sqlite_url)
    stream_id = await some.open()
    for _ in range(2):
        assert await some.run(lambda session, bus: some.models.streams.erase(session, stream_id))
    assert len(await some.rows()) == 2
    assert not await some.run(lambda session, bus: some.models.streams.erase(session, uuid4()))


async def test_nothing_is_appended_to_what_was_erased(shop: Shop, start: Start, url: str) -> None:
    some = await counters(shop, start, url)
    stream_id = await some.open()
    counter = await some.load(stream_id)
    await some.run(lambda session, bus: some.models.streams.erase(session, stream_id))
    counter.add(1)
    with pytest.raises(StaleDataError):
        await some.append(counter)


async def test_appending_while_it_is_erased_leaves_nothing_behind(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    some = await counters(shop, start, postgresql_url)
    stream_id = await some.open()
    counter = await some.load(stream_id)
    counter.add(1)
    appended, go_on = asyncio.Event(), asyncio.Event()

    async def append(session: Any, bus: Any) -> None:
        await some.models.streams.append(session, counter)
        appended.set()
        await go_on.wait()

    appending = asyncio.create_task(_sent(some.service, append))
    await appended.wait()
    erasing = asyncio.create_task(
        some.run(lambda session, bus: some.models.streams.erase(session, stream_id))
    )
    await waiting_for_a_lock(some.service)
    go_on.set()
    await appending
    with pytest.raises(StaleDataError):
        await erasing
    assert await some.run(lambda session, bus: some.models.streams.erase(session, stream_id))
    assert {row.payload for row in await some.rows()} == {None}


async def waiting_for_a_lock(service: Service) -> None:
    """Until a transaction waits for another one."""
    async with asyncio.timeout(10):
        while not await service.column("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------- a simple model


@pytest.fixture
async def some(shop: Shop, start: Start, sqlite_url: str) -> Counters:
    return await counters(shop, start, sqlite_url)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(st.integers(-3, 5), max_size=5)),
    st.tuples(st.just("look back"), st.integers(1, 20)),
    st.tuples(st.just("add to what was seen"), st.integers(0, 5)),
    st.tuples(st.just("forget snapshots"), st.none()),
    st.tuples(st.just("raise the schema"), st.none()),
    st.tuples(st.just("erase"), st.none()),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(STEPS, max_size=15))
async def test_stream_does_what_a_list_does(some: Counters, steps: list[tuple[str, Any]]) -> None:
    """Each example has a stream of its own, and a list of the amounts that were added to it."""
    stream_id, added, erased = await some.open(), list[int](), False
    seen = await some.load(stream_id)
    for step, given_ in steps:
        match step:
            case "add" if not erased:
                if sum(added) + min(accumulate(given_), default=0) >= 0:
                    await some.add(stream_id, *given_)
                    added += given_
                else:
                    with pytest.raises(ValueError, match="below zero"):
                        await some.add(stream_id, *given_)
            case "look back" if not erased:
                seen = await some.load(stream_id, version=given_)
                then = added[: given_ - 1]
                assert (seen.version, seen.total) == (len(then) + 1, sum(then))
            case "add to what was seen":
                seen.add(given_)
                new = [int(event.amount) for event in seen.new_events]
                if erased or seen.version - len(new) != len(added) + 1:
                    with pytest.raises(StaleDataError):
                        await some.append(seen)
                else:
                    await some.append(seen)
                    added += new
            case "forget snapshots":
                await some.service.write("DELETE FROM notes_snapshots")
            case "raise the schema":
                some.models.Counter.snapshot_schema += 1
            case "erase":
                assert await some.run(
                    lambda session, bus: some.models.streams.erase(session, stream_id)
                )
                erased = True
        loaded = await some.load(stream_id)
        if erased:
            assert loaded is None
        else:
            assert (loaded.version, loaded.total) == (len(added) + 1, sum(added))
