"""Operators see and change deliveries: only what they were shown, and never what is worked."""

import asyncio
import datetime as dt
import textwrap
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

LISTENERS = """
    @listen
    async def copy(event: NoteWritten) -> None: ...
    @listen
    async def mail(event: NoteWritten) -> None: ...
"""
COPIES = """
    @listen
    async def copy(event: NoteWritten) -> None: ...
"""
WHO = {"who": "alice", "reason": "a gateway was down"}


class Desk:
    """A service with deliveries that a test puts into the states that it needs."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.tables = service.shop.tables
        module = service.shop.module("bus.operating.operations")
        self.operations = module.Operations(service.database, service.runtime.catalog)

    async def write(self, *texts: str) -> None:
        for text in texts:
            await self.service.send(self.service.shop.messages().Write(text=text))

    async def put(self, listener: str = "notes.copy", **values: Any) -> None:
        """Change all deliveries of a listener, in the order of their ids with lists."""
        ids = [one.id for one in await self.service.deliveries() if one.listener == listener]
        for number, each in enumerate(ids):
            given = {k: v[number] if isinstance(v, list) else v for k, v in values.items()}
            delivery = self.tables.delivery
            await self.service.write(
                sa.update(delivery).where(delivery.c.id == each).values(**given)
            )

    async def states(self, listener: str = "notes.copy") -> list[str]:
        return [one.state for one in await self.service.deliveries() if one.listener == listener]

    async def order(self) -> None:
        """Make the deliveries of notes.copy those of an ordered listener, all in one lane."""
        await self.service.write("UPDATE bus_subscription SET ordered = TRUE")
        await self.put(lane="k")

    async def change(self, action: str, where: str) -> int:
        chosen = await self.operations.select(action, where)
        changed: int = await getattr(self.operations, action)(chosen, **WHO)
        return changed

    async def audit(self) -> list[tuple[str, str, str, int]]:
        rows = await self.operations.changes()
        return [(one["who"], one["action"], one["reason"], one["count"]) for one in rows]


@pytest.fixture
async def desk(shop: Shop, start: Start, url: str) -> Desk:
    notes(shop, listeners=COPIES)
    return Desk(await start(url))


@pytest.mark.parametrize(
    ("text", "position", "told"),
    [
        ("state=dead colour=red", 12, "no field 'colour'. Fields: state, listener,"),
        ("state=dying", 7, "States: waiting, pending"),
        ("listener", 9, "expected listener=…"),
        ("state~dead", 1, "~ is for listener, event"),
        ("since=soon", 7, "expected 10m, 1h, 7d or a time"),
        ("since=1h,2m", 7, "since takes one time"),
        ("id=12", 4, "a UUID"),
        ("run=-1", 5, "expected a number"),
        ("delivery=99999999999999999999", 10, "expected a number"),
        ('error~"no luck', 7, "the quote is not closed"),
        ("state=", 7, "expected a value"),
        ("since=9999999999999w", 7, "expected a time span"),
        ("=dead", 1, "no field ''"),
        ("since=0001-01-01T00:00+05:00", 7, "out of range"),
        ("until=9999-12-31T23:59-05:00", 7, "out of range"),
        ("key=a,\udcff", 5, "expected a text in UTF-8, got '\\udcff'"),
        ("error~\udcff", 7, "expected a text in UTF-8"),
        ("error~'no luck'", 11, """no field "luck'". Fields: """),
        ("error~'no luck'", 11, 'stands in double quotes: error~"no luck"'),
        ("error~no state", 15, "expected state=… (A value with spaces stands in double quotes"),
        ("state!=done", 6, "there is no !=. Write what is meant, such as state=pending,dead"),
        ("state=pending key=a state=done", 21, "write state=pending,done."),
        ('key="a, b" key=c', 12, "nothing has two values as key."),
        ("run=1 run=2,3", 7, "write run=1,2,3."),
        ("since=1h until=2h", 10, "write since=2h until=1h."),
        ("until=2h since=1h", 10, "write since=2h until=1h."),
        ("since=1h until=1h", 10, "since has to be before until.\n"),
    ],
)
def test_bad_filter_is_told_with_its_place(shop: Shop, text: str, position: int, told: str) -> None:
    filters = shop.module("bus.operating.filters")
    with pytest.raises(shop.module("bus.errors").OperationError) as refused:
        filters.parse(text, dt.datetime.now(dt.UTC))
    message = str(refused.value)
    assert message.startswith(f"filter, position {position}: ")
    assert told in message
    assert message.endswith("\n  " + " " * (position - 1) + "^")


async def test_each_field_finds_its_deliveries(desk: Desk) -> None:
    await desk.write("a", "b, c", "d")
    await desk.put(
        state=["dead", "pending", "done"],
        error_type=["ReadTimeout", None, None],
        error_message=["it was 100% late", None, None],
        error_frame=["shop.slices.notes.listeners:copy:7", None, None],
        run=[0, 3, 0],
    )
    event = (await desk.service.events())[2]
    first = (await desk.service.deliveries())[0].id
    found = {
        "state=dead": ["a"],
        "state=dead,done": ["a", "d"],
        "listener=notes.copy state=pending": ["b, c"],
        "listener~COPY": ["a", "b, c", "d"],
        "event=notes.NoteWritten key=a,d": ["a", "d"],
        'key="b, c"': ["b, c"],
        "error=ReadTimeout": ["a"],
        "error=Timeout": [],
        "error~timeout": ["a"],
        "error~100%": ["a"],
        "error~_": [],
        "frame~copy": ["a"],
        f"correlation={event.correlation_id}": ["d"],
        f"id={event.id}": ["d"],
        f"delivery={first}": ["a"],
        "run=3": ["b, c"],
        "key=a,d key=d": ["d"],
        "error~read error~timeout": ["a"],
        "error~timeout error=ReadTimeout": ["a"],
        "since=1h since=2h": ["a", "b, c", "d"],
        "until=1h until=2h": [],
        "since=1h": ["a", "b, c", "d"],
        "until=1h": [],
        "since=2001-01-01 until=2001-01-02T10:00": [],
        "": ["a", "b, c", "d"],
    }
    for where, keys in found.items():
        rows = await desk.operations.deliveries(where)
        assert sorted(one["key"] for one in rows) == keys, where
        assert [one["key"] async for one in desk.operations.export(where)] == keys, where
    assert [one["key"] for one in await desk.operations.deliveries(limit=1)] == ["d"]
    with pytest.raises(Exception, match=r"position 1: no listener 'notes.cpy'.*notes\.copy"):
        await desk.operations.deliveries("listener=notes.cpy")


async def test_event_and_delivery_are_shown_with_every_attempt(desk: Desk) -> None:
    await desk.write("a")
    [delivery] = await desk.service.deliveries()
    [event] = await desk.service.events()
    failed = {"failed_at": event.recorded_at, "error_type": "E", "error_frame": ""}
    for number in (1, 2):
        row = {"delivery_id": delivery.id, "number": number, "error_message": "x", **failed}
        await desk.service.write(sa.insert(desk.tables.attempt).values(**row))
    by_delivery = await desk.operations.show(delivery.id)
    assert by_delivery == await desk.operations.show(event.id)
    assert by_delivery["event"]["payload"] == {"text": "a"}
    [shown] = by_delivery["deliveries"]
    assert [one["number"] for one in shown["failed_attempts"]] == [1, 2]
    for missing in (delivery.id + 1, uuid4()):
        with pytest.raises(Exception, match=f"{missing} is stored here"):
            await desk.operations.show(missing)


async def test_dead_letters_are_grouped(desk: Desk) -> None:
    await desk.write("a", "b", "c")
    await desk.put(state="dead", error_type=["E", "E", "F"], error_frame="here:1")
    groups = await desk.operations.dead_letters()
    told = [
        (one["listener"], one["error_type"], one["error_frame"], one["count"]) for one in groups
    ]
    assert told == [("notes.copy", "E", "here:1", 2), ("notes.copy", "F", "here:1", 1)]
    first, second, _ = await desk.service.events()
    assert (groups[0]["oldest"], groups[0]["newest"]) == (first.recorded_at, second.recorded_at)
    assert [groups[1]["oldest_id"]] == [
        one["id"] for one in await desk.operations.deliveries("error=F")
    ]


async def test_scheduled_events_are_listed_the_next_one_first(desk: Desk) -> None:
    now = dt.datetime.now(dt.UTC)
    for key, minutes in (("late", 20), ("soon", 10)):
        event = {"name": "notes.NoteWritten", "version": 1, "key": key, "payload": {"text": key}}
        due = now + dt.timedelta(minutes=minutes)
        rest = {"id": uuid4(), "headers": {}, "correlation_id": f"c-{key}", "due": due}
        await desk.service.write(sa.insert(desk.tables.scheduled).values(**event, **rest))
    found = {
        "": ["soon", "late"],
        "key=late": ["late"],
        "event~written correlation=c-soon": ["soon"],
        "event=notes.Gone": [],
    }
    for where, keys in found.items():
        assert [one["key"] for one in await desk.operations.scheduled(where)] == keys, where
    assert [one["key"] for one in await desk.operations.scheduled(limit=1)] == ["soon"]
    assert (await desk.operations.health())["scheduled"] == 2
    with pytest.raises(Exception, match="state cannot be used here, only event, key"):
        await desk.operations.scheduled("state=dead")


async def test_events_for_later_are_cancelled_unless_they_are_published_by_now(
    desk: Desk,
) -> None:
    due = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    for key in ("a", "b", "c"):
        event = {"name": "notes.NoteWritten", "version": 1, "key": key, "payload": {"text": key}}
        rest = {"id": uuid4(), "headers": {}, "correlation_id": "c", "due": due}
        await desk.service.write(sa.insert(desk.tables.scheduled).values(**event, **rest))
    chosen = await desk.operations.select_scheduled("event~written key=a,b")
    assert list(chosen.counts) == [{"event": "notes.NoteWritten", "count": 2}]
    scheduled = desk.tables.scheduled
    await desk.service.write(sa.delete(scheduled).where(scheduled.c.key == "a"))
    assert await desk.operations.cancel(chosen, **WHO) == 1
    assert [one["key"] for one in await desk.operations.scheduled()] == ["c"]
    [row] = await desk.operations.changes()
    assert (row["count"], row["details"]["chosen"]) == (1, 2)


async def test_lag_names_who_is_behind_and_whom_nobody_runs(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.put(state=["dead", "pending"])
    hour = dt.timedelta(hours=1)
    now = dt.datetime.now(dt.UTC)
    await desk.service.write(sa.update(desk.tables.event).values(recorded_at=now - hour))
    [row] = await desk.operations.lag()
    assert (row["pending"], row["dead"], row["attended"]) == (1, 1, False)
    assert 3600 <= row["oldest_seconds"] < 3700
    assert await desk.operations.unattended() == ["notes.copy"]
    health = await desk.operations.health()
    assert (health["pending"], health["dead"]) == (1, 1)
    assert 3600 <= health["oldest_pending_seconds"] < 3700

    worker = {"host": "h", "pid": 1, "version": "1", "slices": ["notes"], "started_at": now}
    for seen in (now, now - hour):
        row = {"id": uuid4(), "listeners": ["notes.copy"], "seen_at": seen, **worker}
        await desk.service.write(sa.insert(desk.tables.worker).values(**row))
    workers = await desk.operations.workers()
    assert [one["alive"] for one in workers] == [True, False]
    assert workers[0]["slices_with_listeners"] == ["notes"]
    assert await desk.operations.unattended() == []


async def test_lag_tells_what_waits_behind_a_dead_letter(desk: Desk) -> None:
    await desk.write("a", "b", "c", "d", "e")
    await desk.order()
    states = ["dead", "waiting", "waiting", "working", "waiting"]
    await desk.put(state=states, lane=["k", "k", "k", "other", "other"])
    now = dt.datetime.now(dt.UTC)
    first = (await desk.service.events())[0].id
    event = desk.tables.event
    minute = {event.c.recorded_at: now - dt.timedelta(minutes=1)}
    await desk.service.write(sa.update(event).where(event.c.id != first).values(minute))
    [row] = await desk.operations.lag()
    assert (row["pending"], row["waiting"], row["dead"], row["held"]) == (0, 3, 1, 2)
    assert 60 <= row["oldest_seconds"] < 120
    assert (await desk.operations.health())["held"] == 2


async def test_health_leaves_out_what_waits_for_retired_listeners(desk: Desk) -> None:
    await desk.write("a", "b", "c")
    await desk.order()
    await desk.put(state=["pending", "dead", "waiting"], lane=["other", "k", "k"])
    before = await desk.operations.health()
    assert (before["pending"], before["dead"], before["held"]) == (1, 1, 1)
    assert before["oldest_pending_seconds"] is not None
    await desk.service.write(sa.update(desk.tables.subscription).values(retired_at=sa.func.now()))
    after = await desk.operations.health()
    assert (after["pending"], after["dead"], after["held"]) == (0, 1, 0)
    assert after["oldest_pending_seconds"] is None


async def test_lag_tells_what_is_being_filled(desk: Desk) -> None:
    assert [one["filling"] for one in await desk.operations.lag()] == [False]
    await desk.service.write("UPDATE bus_subscription SET backfilled_to = 0")
    assert [one["filling"] for one in await desk.operations.lag()] == [True]
    await desk.service.write(sa.update(desk.tables.subscription).values(retired_at=sa.func.now()))
    assert [one["filling"] for one in await desk.operations.lag()] == [False]


async def test_retry_runs_what_was_shown_and_nothing_else(desk: Desk) -> None:
    await desk.write("dead", "backs off", "worked", "done", "due")
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    now = dt.datetime.now(dt.UTC)
    await desk.put(
        state=["dead", "pending", "working", "done", "pending"],
        due=[now, later, now, now, now],
        attempts=9,
        losses=[3, 0, 0, 0, 0],
    )
    chosen = await desk.operations.select("retry", "since=1h")
    assert [(one["state"], one["count"]) for one in chosen.counts] == [("dead", 1), ("pending", 1)]
    await desk.write("dead since it was shown")
    await desk.put(state=["dead", "pending", "working", "done", "pending", "dead"])
    assert await desk.operations.retry(chosen, **WHO) == 2
    assert await desk.states() == ["pending", "pending", "working", "done", "pending", "dead"]
    found = await desk.service.deliveries()
    assert [one.attempts for one in found] == [0, 0, 9, 9, 9, 0]
    assert found[0].losses == 2
    assert found[1].due < later
    assert await desk.audit() == [("alice", "retry", "a gateway was down", 2)]
    [row] = await desk.operations.changes()
    assert row["details"] == {"chosen": 2, "deliveries": [found[0].id, found[1].id]}


async def test_what_a_worker_has_taken_since_it_was_shown_is_left_alone(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.put(state="dead")
    retried = await desk.operations.select("retry", "state=dead")
    dropped = await desk.operations.select("drop", "state=dead")
    await desk.put(state=["working", "dead"])
    assert await desk.operations.retry(retried, **WHO) == 1
    await desk.put(state=["working", "dead"])
    assert await desk.operations.drop(dropped, **WHO) == 1
    assert await desk.states() == ["working", "dropped"]


async def test_what_a_transaction_holds_is_left_alone(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    notes(shop, listeners=COPIES)
    desk = Desk(await start(postgresql_url))
    await desk.write("held", "free")
    await desk.put(state="dead")
    held = "SELECT id FROM bus_delivery ORDER BY id LIMIT 1 FOR UPDATE"
    async with desk.service.database.writer.begin() as connection:
        await connection.execute(sa.text(held))
        assert await desk.change("retry", "state=dead") == 1
    assert await desk.states() == ["dead", "pending"]


async def test_looking_uses_the_indexes_of_what_is_unfinished(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    notes(shop, listeners=COPIES)
    desk = Desk(await start(sqlite_url))
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    sa.event.listen(desk.service.database.reader.sync_engine, "before_cursor_execute", note)
    await desk.operations.dead_letters()
    await desk.operations.lag()
    counting = [one for one in seen if "count(*)" in one]
    used = []
    for statement in counting:
        plan = await desk.service.rows(f"EXPLAIN QUERY PLAN {statement.replace('?', '1')}")
        used.append(" ".join(one.detail for one in plan))
    indexes = ("dead", "claim", "order", "lease", "dead", "dead")
    for detail, index in zip(used, indexes, strict=True):
        assert f"ix_bus_delivery_{index}" in detail
    assert "waiting USING INDEX ix_bus_delivery_order" in used[-1]


async def test_failed_change_leaves_no_audit_row(desk: Desk, monkeypatch: Any) -> None:
    await desk.write("a")
    await desk.put(state="dead")
    chosen = await desk.operations.select("drop", "state=dead")

    async def fail(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(desk.service.shop.module("bus.operating.audit").Audit, "add", fail)
    with pytest.raises(LookupError):
        await desk.operations.drop(chosen, **WHO)
    assert await desk.states() == ["dead"]
    assert await desk.audit() == []


async def test_dropping_the_first_of_a_lane_lets_the_next_one_run(desk: Desk) -> None:
    await desk.write("a", "b", "c", "d")
    await desk.order()
    await desk.put(state=["dead", "waiting", "waiting", "waiting"], lane=["k", "k", "k", "other"])
    assert await desk.change("drop", "state=dead") == 1
    assert await desk.states() == ["dropped", "pending", "waiting", "waiting"]
    assert await desk.change("drop", "key=c") == 1
    assert await desk.states() == ["dropped", "pending", "dropped", "waiting"]


async def test_retried_first_of_a_lane_stays_first(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.order()
    await desk.put(state=["dead", "waiting"])
    await desk.change("retry", "state=dead")
    assert await desk.states() == ["pending", "waiting"]
    await desk.put(state=["dead", "working"])
    await desk.change("retry", "state=dead")
    assert await desk.states() == ["waiting", "working"]


async def test_edited_event_takes_the_place_of_the_one_that_fails(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.order()
    await desk.put(state=["dead", "waiting"])
    first = (await desk.service.deliveries())[0]
    with pytest.raises(Exception, match=r"does not fit version 1 of notes.NoteWritten(.|\n)*text"):
        await desk.operations.edit(first.id, {"txt": "A"}, **WHO)
    assert await desk.states() == ["dead", "waiting"]
    # The key of the lane that these deliveries were put into.
    made = await desk.operations.edit(first.id, {"text": "k"}, other_key=True, **WHO)
    old, _, new = await desk.service.events()
    assert (old.payload, new.payload, new.id) == ({"text": "a"}, {"text": "k"}, made)
    assert (new.causation_id, new.headers["edited_from"]) == (old.id, str(old.id))
    assert new.correlation_id == old.correlation_id
    assert await desk.states() == ["dropped", "waiting", "pending"]
    with pytest.raises(Exception, match="is dropped; only one that is dead or pending"):
        await desk.operations.edit(first.id, {"text": "k"}, other_key=True, **WHO)
    assert await desk.audit() == [("alice", "edit", "a gateway was down", 1)]
    [row] = await desk.operations.changes()
    told = {"delivery": first.id, "listener": "notes.copy", "event": str(made), "key": "k"}
    assert row["details"] == told
    for event, corrected_by in ((old.id, [made]), (new.id, [None])):
        shown = (await desk.operations.show(event))["deliveries"]
        instead = [one["corrected_by"] for one in shown if one["listener"] == "notes.copy"]
        assert instead == corrected_by


async def test_edit_is_planned_and_refuses_another_key(desk: Desk) -> None:
    await desk.write("a")
    await desk.put(state="dead")
    [delivery] = await desk.service.deliveries()
    for attempt in (desk.operations.plan_edit, partial(desk.operations.edit, **WHO)):
        with pytest.raises(Exception, match=r"about 'a', the payload about 'b'.*--other-key"):
            await attempt(delivery.id, {"text": "b"})
    assert await desk.states() == ["dead"]
    planned = await desk.operations.plan_edit(delivery.id, {"text": "b"}, other_key=True)
    assert (planned.old_key, planned.key) == ("a", "b")
    assert planned.changes == {"text": ("a", "b")}
    # What another version has written there may be left as it is shown.
    event = desk.tables.event
    await desk.service.write(sa.update(event).values(payload={"text": "a", "was": 1}))
    planned = await desk.operations.plan_edit(delivery.id, {"text": "b", "was": 1}, other_key=True)
    assert planned.changes == {"text": ("a", "b"), "was": (1, None)}
    with pytest.raises(Exception, match="has no field is"):
        await desk.operations.plan_edit(delivery.id, {"text": "b", "is": 1}, other_key=True)


PARCELS = """
    from shop.bus import Event
    from pydantic import BaseModel
    class Line(BaseModel):
        amount: int = 1
    class Packed(Event, key="id"):
        id: str
        note: str = ""
        first: Line = Line()
        lines: list[Line] = []
"""


async def test_edit_refuses_what_would_change_nothing_or_vanish(
    shop: Shop, start: Start, url: str
) -> None:
    listener = COPIES.replace("NoteWritten", "Packed")
    notes(
        shop,
        listeners=f"from .contracts import Packed\n{textwrap.dedent(listener)}",
        contracts=PARCELS,
    )
    desk = Desk(await start(url))
    contracts = shop.module("slices.notes.contracts")
    given = {"id": "a", "lines": [{"amount": 1}]}
    await desk.service.runtime.publish(contracts.Packed.model_validate(given))
    await desk.put(state="dead")
    [delivery] = await desk.service.deliveries()
    refused = {
        "has no field nte. Did you mean note?": {**given, "nte": "x"},
        "has no field first.amuont. Did you mean amount?": {**given, "first": {"amuont": 2}},
        "has no field lines.0.colour.": {**given, "lines": [{"amount": 1, "colour": "red"}]},
        f"nothing to correct. To run the delivery again, `events retry {delivery.id}`.": given,
    }
    for attempt in (desk.operations.plan_edit, partial(desk.operations.edit, **WHO)):
        for told, payload in refused.items():
            with pytest.raises(shop.module("bus.errors").OperationError) as error:
                await attempt(delivery.id, payload)
            assert str(error.value).endswith(told)
    assert await desk.states() == ["dead"]
    await desk.service.write(sa.update(desk.tables.event).values(version=0))
    await desk.operations.plan_edit(delivery.id, given)


async def test_edited_event_is_delivered(desk: Desk) -> None:
    await desk.write("a")
    [delivery] = await desk.service.deliveries()
    await desk.put(state="dead")
    await desk.operations.edit(delivery.id, {"text": "b"}, other_key=True, **WHO)
    await desk.service.settled()
    assert await desk.states() == ["dropped", "done"]


async def test_replay_runs_a_listener_again(desk: Desk, monkeypatch: Any) -> None:
    monkeypatch.setattr(desk.service.shop.module("bus.operating.replays"), "_CHUNK", 2)
    await desk.write("a", "b", "c")
    await desk.service.settled()
    planned = await desk.operations.plan_replay("notes.copy", "key=a,b,c")
    await desk.write("d")
    steps: list[int] = []
    assert await desk.operations.replay(planned, **WHO, progress=steps.append) == 3
    assert steps == [2, 1]
    again = await desk.operations.plan_replay("notes.copy", "key=a")
    await desk.operations.replay(again, **WHO)
    await desk.service.settled()
    found = [(one.run, one.state) for one in await desk.service.deliveries()]
    assert sorted(found) == [(0, "done")] * 4 + [(1, "done")] * 3 + [(2, "done")]
    assert [count for *_, count in await desk.audit()] == [1, 3]
    with pytest.raises(Exception, match="state cannot be used here, only event, key"):
        await desk.operations.plan_replay("notes.copy", "state=dead")


async def test_replay_keeps_the_order_of_lanes(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.service.write("UPDATE bus_subscription SET ordered = TRUE")
    await desk.put(lane=["a", "b"], state=["done", "pending"])
    for _ in range(2):
        planned = await desk.operations.plan_replay("notes.copy")
        await desk.operations.replay(planned, **WHO)
    found = [(one.lane, one.run, one.state) for one in await desk.service.deliveries()]
    assert found[2:] == [
        ("a", 1, "pending"),
        ("b", 1, "waiting"),
        ("a", 2, "waiting"),
        ("b", 2, "waiting"),
    ]


HEARING = """
    @listen(ordered=True, retries=0)
    async def hear(event: NoteWritten) -> None:
        assert not event.text.startswith("bad")
        seen.append(event.text)
    @listen
    async def other(event: NoteWritten) -> None:
        seen.append(f"other {event.text}")
"""


@pytest.fixture
async def corrected(shop: Shop, start: Start, url: str) -> Desk:
    """notes.hear was given "better" in the place of "bad", and that after a first correction."""
    notes(shop, listeners=HEARING)
    desk = Desk(await start(url))
    await desk.write("bad", "last")
    for text in ("bad again", "better"):
        await desk.service.runtime.relay.work_off()
        states = [(one.id, one.state) for one in await desk.service.deliveries()]
        (dead,) = [each for each, state in states if state == "dead"]
        await desk.operations.edit(dead, {"text": text}, other_key=True, **WHO)
    await desk.service.settled()
    assert sorted(shop.seen) == ["better", "last", "other bad", "other last"]
    shop.seen.clear()
    return desk


async def test_replay_runs_a_correction_in_the_place_of_what_it_corrects(
    corrected: Desk, monkeypatch: Any
) -> None:
    desk, seen = corrected, corrected.service.shop.seen
    monkeypatch.setattr(desk.service.shop.module("bus.operating.replays"), "_CHUNK", 1)
    for _ in range(2):
        planned = await desk.operations.plan_replay("notes.hear")
        assert planned.counts == {"notes.NoteWritten": 2}
        assert await desk.operations.replay(planned, **WHO) == 2
        await desk.service.settled()
    made = [one for one in await desk.service.deliveries() if one.run]
    events = {one.position: one.payload["text"] for one in await desk.service.events()}
    assert [events[one.event_position] for one in made] == ["better", "last"] * 2
    assert sorted(seen) == ["better", "better", "last", "last"]


async def test_replay_in_one_step_keeps_the_places(corrected: Desk) -> None:
    desk = corrected
    await desk.operations.replay(await desk.operations.plan_replay("notes.hear"), **WHO)
    made = [one for one in await desk.service.deliveries() if one.run]
    events = {one.position: one.payload["text"] for one in await desk.service.events()}
    assert [events[one.event_position] for one in made] == ["better", "last"]


@pytest.mark.parametrize("which", range(4))
async def test_correction_is_meant_by_itself_and_by_what_it_corrects(
    corrected: Desk, which: int
) -> None:
    desk, events = corrected, await corrected.service.events()
    bad, last, _, better = events
    planned = await desk.operations.plan_replay("notes.hear", f"id={events[which].id}")
    given = [planned.corrected.get(place, place) for place in planned.places]
    assert given == [last.position if events[which] is last else better.position]
    planned = await desk.operations.plan_replay("notes.other", f"id={events[which].id}")
    assert planned.corrected == {}
    assert planned.places == ((events[which].position,) if events[which] in (bad, last) else ())


async def test_replay_of_another_listener_runs_what_was_published(corrected: Desk) -> None:
    desk, seen = corrected, corrected.service.shop.seen
    planned = await desk.operations.plan_replay("notes.other")
    assert await desk.operations.replay(planned, **WHO) == 2
    await desk.service.settled()
    assert sorted(seen) == ["other bad", "other last"]


async def test_correction_whose_event_was_removed_keeps_its_own_place(corrected: Desk) -> None:
    desk = corrected
    bad, last, _, better = await desk.service.events()
    event = desk.tables.event
    await desk.service.write(sa.delete(event).where(event.c.id == bad.id))
    planned = await desk.operations.plan_replay("notes.hear")
    given = [planned.corrected.get(place, place) for place in planned.places]
    assert given == [last.position, better.position]


async def test_replay_that_was_planned_before_an_order_is_refused(desk: Desk) -> None:
    await desk.write("a")
    await desk.service.settled()
    planned = await desk.operations.plan_replay("notes.copy", "key=a")
    row = desk.tables.subscription
    await desk.service.write(sa.update(row).where(row.c.listener == "notes.copy").values(ordered=1))
    with pytest.raises(Exception, match="has become ordered meanwhile"):
        await desk.operations.replay(planned, **WHO)


async def test_replay_refuses_what_is_below_the_floor(desk: Desk) -> None:
    await desk.write("a", "b")
    first, second = await desk.service.events()
    log = {"id": 1, "floor": first.position}
    await desk.service.write(sa.insert(desk.tables.log).values(**log))
    with pytest.raises(Exception, match=r"from the beginning. What is left: since=") as refused:
        await desk.operations.plan_replay("notes.copy")
    left = str(refused.value).rpartition(" ")[2]
    planned = await desk.operations.plan_replay("notes.copy", left)
    assert planned.places == (second.position,)
    assert (await desk.operations.plan_replay("notes.copy", f"id={first.id}")).places
    with pytest.raises(Exception, match="from the beginning"):
        await desk.operations.plan_replay("notes.copy", "since=1h")


async def test_pause_lasts_until_it_is_resumed(desk: Desk) -> None:
    await desk.operations.pause("notes.copy", **WHO)
    [row] = await desk.operations.lag()
    assert (row["paused_until"].year, row["paused_reason"]) == (9999, "a gateway was down (alice)")
    await desk.operations.resume("notes.copy", who="bob")
    [row] = await desk.operations.lag()
    assert (row["paused_until"], row["paused_reason"]) == (None, None)
    until = await desk.operations.pause("notes.copy", span=dt.timedelta(minutes=10), who="bob")
    assert dt.timedelta(minutes=9) < until - dt.datetime.now(dt.UTC) <= dt.timedelta(minutes=10)
    assert [action for _, action, *_ in await desk.audit()] == ["pause", "resume", "pause"]


async def without_copy(shop: Shop, start: Start, url: str, *states: str) -> Desk:
    """A database with deliveries of notes.copy, and code that has only notes.mail."""
    notes(shop, listeners=LISTENERS)
    old = Desk(await start(url))
    await old.write(*(f"note {number}" for number, _ in enumerate(states)))
    await old.put(state=list(states))
    await old.put("notes.mail", state="done")
    shop.forget()
    notes(shop, listeners=LISTENERS.replace("copy", "new_copy"))
    return Desk(await start(url))


async def test_listener_that_is_gone_is_retired(shop: Shop, start: Start, url: str) -> None:
    desk = await without_copy(shop, start, url, "dead", "pending", "working", "done")
    with pytest.raises(Exception, match=r"notes.mail is still in this code"):
        await desk.operations.retire("notes.mail", **WHO)
    assert await desk.operations.retire("notes.copy", **WHO) == 0
    await desk.write("later")
    assert await desk.states() == ["dead", "pending", "working", "done"]
    assert await desk.operations.retire("notes.copy", drop=True, **WHO) == 2
    assert await desk.states() == ["dropped", "dropped", "working", "done"]
    audit = [("alice", "retire", "a gateway was down", 1)] * 2
    assert sorted(await desk.audit()) == [("alice", "drop", "a gateway was down", 2), *audit]
    with pytest.raises(Exception, match=r"notes.copy is retired"):
        await desk.operations.plan_replay("notes.copy")
    with pytest.raises(Exception, match="not in this code"):
        await desk.operations.resume("notes.copy", **WHO)


@pytest.mark.parametrize("slices", [None, ("notes",), ("other",)])
async def test_start_warns_of_a_listener_that_is_gone(
    shop: Shop, start: Start, url: str, logged: list[Any], slices: Any
) -> None:
    shop.slice("other")
    desk = await without_copy(shop, start, url, "pending")

    async def warned() -> list[str]:
        logged.clear()
        await start(url, slices=slices)
        return [one["listener"] for one in logged if "no such listener" in one["event"]]

    # Of another process's slices that one tells.
    assert await warned() == ([] if slices == ("other",) else ["notes.copy"])
    await desk.operations.retire("notes.copy", **WHO)
    assert await warned() == []


@pytest.mark.parametrize("options", ["", '(start="beginning")'])
async def test_retired_listener_that_is_back_is_taken_up_again(
    shop: Shop, start: Start, url: str, options: str, logged: list[Any]
) -> None:
    hears = f"@listen{options}\nasync def hear(event: NoteWritten) -> None: seen.append(event.text)"
    notes(shop, listeners=hears)
    desk = Desk(await start(url))
    await desk.write("before")
    await desk.service.settled()
    for text, code in (("gone", ""), ("back", hears)):
        shop.forget()
        notes(shop, listeners=code)
        desk = Desk(await start(url))
        if not code:
            await desk.operations.retire("notes.hear", **WHO)
        await desk.write(text)
    assert "retired: it gets nothing" in str(logged)
    assert await desk.states("notes.hear") == ["done"]
    [finding] = await desk.operations.check()
    assert (finding.listener, finding.count) == ("notes.hear", 0)
    assert "events resume" in finding.problem
    resumed = await desk.operations.resume("notes.hear", **WHO)
    assert resumed.retired_since is not None
    assert await desk.operations.resume("notes.hear", **WHO) is None
    assert await desk.operations.check() == []
    await desk.write("after")
    await desk.service.runtime.relay.work_off()
    missed = ["gone", "back"] if options else []
    assert shop.seen == ["before", *missed, "after"]


async def test_listener_that_is_retired_during_the_last_step_of_its_filling_has_seen_all(
    shop: Shop, start: Start, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop)
    desk = Desk(await start(postgresql_url))
    await desk.write("a", "b")
    filled = COPIES.replace("@listen", '@listen(start="beginning")')
    shop.forget()
    notes(shop, listeners=filled)
    await start(postgresql_url)
    shop.forget()
    notes(shop, listeners="")
    desk = Desk(await start(postgresql_url))
    module, now = shop.module("bus.backfill"), desk.service.runtime.clock.now
    step, tasks = module._step, []

    async def slow(*arguments: Any) -> Any:
        taken = await step(*arguments)
        if taken["backfilled_to"] is None:
            tasks.append(asyncio.create_task(desk.operations.retire("notes.copy", **WHO)))
            tasks.append(asyncio.create_task(desk.write("c")))
            await asyncio.sleep(0.3)
        return taken

    monkeypatch.setattr(module, "_step", slow)
    while await module.backfill(desk.service.database, now()):
        pass
    await asyncio.gather(*tasks)
    [(seen, filling)] = await desk.service.rows(
        "SELECT from_position, backfilled_to FROM bus_subscription"
    )
    assert filling is None
    # "c" may have come before it was retired, or after it, but was not missed between the two.
    positions = [one.event_position for one in await desk.service.deliveries()]
    assert positions == list(range(1, seen + 1))


async def test_listener_whose_events_are_gone_is_not_taken_up_again(
    shop: Shop, start: Start, url: str
) -> None:
    desk = await without_copy(shop, start, url, "done")
    await desk.operations.retire("notes.copy", **WHO)
    await desk.write("gone")
    await desk.service.write("INSERT INTO bus_log (id, floor) VALUES (1, 2)")
    shop.forget()
    notes(shop, listeners=LISTENERS.replace("@listen", '@listen(start="beginning")', 1))
    desk = Desk(await start(url))
    with pytest.raises(Exception, match="up to position 2 have been removed"):
        await desk.operations.resume("notes.copy", **WHO)
    assert (await desk.operations.lag())[0]["retired_at"] is not None


async def test_what_is_left_is_moved_to_another_listener(
    shop: Shop, start: Start, url: str
) -> None:
    desk = await without_copy(shop, start, url, "dead", "pending", "working", "done")
    left = await desk.operations.select_left("move", "notes.copy")
    assert await desk.operations.move(left, "notes.mail", **WHO) == 0
    assert await desk.operations.not_moved(left, "notes.mail") == {"dead": 1, "pending": 1}
    assert await desk.operations.move(left, "notes.new_copy", **WHO) == 2
    assert await desk.operations.not_moved(left, "notes.new_copy") == {}
    assert await desk.states() == ["working", "done"]
    assert await desk.states("notes.new_copy") == ["dead", "pending"]
    with pytest.raises(Exception, match=r"no listener 'notes.nobody'"):
        await desk.operations.move(left, "notes.nobody", **WHO)


async def test_what_the_other_listener_does_not_hear_is_not_moved(
    shop: Shop, start: Start, url: str
) -> None:
    desk = await without_copy(shop, start, url, "dead", "pending", "working", "done")
    await desk.service.write("UPDATE bus_event SET name = 'notes.Other' WHERE position = 1")
    left = await desk.operations.select_left("move", "notes.copy")
    assert await desk.operations.move(left, "notes.new_copy", **WHO) == 1
    assert await desk.states("notes.new_copy") == ["pending"]
    assert await desk.operations.not_moved(left, "notes.new_copy") == {
        "notes.Other, which notes.new_copy does not hear": 1
    }
    left = await desk.operations.select_left("move", "notes.copy")
    with pytest.raises(Exception, match=r"notes.new_copy does not listen to notes.Other:"):
        await desk.operations.move(left, "notes.new_copy", **WHO)
    assert await desk.states() == ["dead", "working", "done"]


async def test_what_is_moved_to_an_ordered_listener_takes_turns(
    shop: Shop, start: Start, url: str
) -> None:
    desk = await without_copy(shop, start, url, "dead", "pending")
    await desk.service.write("UPDATE bus_event SET key = 'k'")
    await desk.service.write(
        "UPDATE bus_subscription SET ordered = TRUE WHERE listener = 'notes.new_copy'"
    )
    left = await desk.operations.select_left("move", "notes.copy")
    assert await desk.operations.move(left, "notes.new_copy", **WHO) == 2
    assert await desk.states("notes.new_copy") == ["pending", "waiting"]


async def test_check_goes_on_behind_what_cannot_be_read(desk: Desk) -> None:
    await desk.write("a", "b")
    await desk.service.spoil("bus_event", "a")
    [found] = await desk.operations.check()
    assert found.problem.startswith("the payload cannot be read: ")
    assert found.count == 1


async def test_check_names_what_this_code_cannot_deliver(
    shop: Shop, start: Start, url: str
) -> None:
    desk = await without_copy(shop, start, url, "dead", "done")
    await desk.write("fine", "newer", "renamed", "torn")
    event = desk.tables.event
    damage: dict[str, dict[str, Any]] = {
        "newer": {"version": 2},
        "renamed": {"name": "notes.Gone"},
        "torn": {"payload": {"txt": 1}},
    }
    for key, values in damage.items():
        await desk.service.write(sa.update(event).where(event.c.key == key).values(**values))
    await desk.service.write("UPDATE bus_delivery SET state = 'done' WHERE state = 'pending'")
    findings = await desk.operations.check()
    assert [(one.problem, one.listener, one.count) for one in findings] == [
        ("no such listener in this code", "notes.copy", 1)
    ]
    await desk.put("notes.mail", state=["done", "done", *["waiting", "dead"] * 2])
    stored = (await desk.service.events())[4]
    later = {name: getattr(stored, name) for name in ("name", "version", "key", "payload")}
    later |= {"headers": {}, "correlation_id": "c", "due": stored.recorded_at, "id": uuid4()}
    await desk.service.write(sa.insert(desk.tables.scheduled).values(**later))
    findings = await desk.operations.check()
    told = {(one.problem, one.listener, one.event, one.count) for one in findings}
    assert told == {
        ("no such listener in this code", "notes.copy", "notes.NoteWritten", 1),
        ("version 2 is newer than this code's, 1", "notes.mail", "notes.NoteWritten", 1),
        ("no such event in this code", "notes.mail", "notes.Gone", 1),
        ("no such event in this code", None, "notes.Gone", 1),
        (
            "the payload does not fit: text: Field required",
            "notes.mail",
            "notes.NoteWritten",
            1,
        ),
    }
    assert list(shop.module("bus.operating.checks").remedies(findings)) == [
        "no such listener in this code",
        "no such event in this code",
        "is newer than this code's",
        "the payload does not fit",
    ]
    await desk.operations.retire("notes.copy", **WHO)
    assert "notes.copy" not in {one.listener for one in await desk.operations.check()}


async def test_ids_are_read_back_as_ids(desk: Desk) -> None:
    await desk.write("a")
    [row] = await desk.operations.deliveries()
    assert isinstance(row["event_id"], UUID)
