"""Stores events, and a delivery per subscription, in the transaction that caused them."""

import datetime as dt
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from . import tables
from .clock import Clock
from .context import Context
from .errors import BusError
from .lanes import lock_keys
from .messages import Event
from .payloads import check_storable, payload_of
from .recording import Cancellation, Noted

_LONGEST_KEY = 200
_MOVED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class EventType:
    """An event class under the name that it is stored with, such as 'payments.PaymentCreated'."""

    name: str
    cls: type[Event]
    slice: str

    @property
    def names(self) -> tuple[str, ...]:
        """The current name, and those that stored events may still have."""
        return (self.name, *(f"{self.slice}.{old}" for old in self.cls.event_aliases))


class Written(NamedTuple):
    """What a unit of work has written: rows of events, and those of scheduled ones taken back."""

    events: Sequence[Mapping[str, Any]] = ()
    cancelled: Sequence[sa.Row[*tuple[Any, ...]]] = ()


class Outbox:
    """Writes what units of work publish."""

    def __init__(self, types: Mapping[type[Event], EventType], clock: Clock) -> None:
        self._types = types
        self._clock = clock
        # Names of events that an ordered listener wants, as far as it was met here.
        self._ordered: set[str] = set()

    def name_of(self, cls: type[Event]) -> str:
        """The name that an event is stored with. Raises BusError if no slice declares it."""
        if (found := self._types.get(cls)) is None:
            raise BusError(
                f"{cls.__name__} is not an event of any slice here: declare it in the"
                " contracts.py (or, for the slice's own use, messages.py) of the slice that"
                " publishes it."
            )
        return found.name

    async def store(
        self,
        connection: AsyncConnection,
        noted: Sequence[Noted],
        context: Context,
        lanes: Collection[str] = (),
    ) -> Written:
        """Insert the events and their deliveries, take back those that are cancelled.

        To be called last before the commit, and nothing of a unit may be flushed after it: the rows
        of the aggregates are locked by then, so that events of one aggregate are numbered in the
        order in which they commit. context is for events that were noted with none; lanes are keys
        of ordered deliveries that this transaction completes.
        """
        rows, cancelled = list[dict[str, Any]](), list[sa.Row[*tuple[Any, ...]]]()
        for one in noted:
            if isinstance(one.event, Cancellation):
                rows = [row for row in rows if not self._is_cancelled(row, one.event)]
                cancelled += await self._cancel(connection, one.event)
            else:
                rows.append(self._row(one.event, one.context or context, one.due))
        await self._insert(connection, [row for row in rows if row["due"] is None], lanes)
        if later := [row for row in rows if row["due"] is not None]:
            await connection.execute(sa.insert(tables.scheduled), later)
        return Written(rows, cancelled)

    async def move_due(
        self, connection: AsyncConnection, only: int | None = None
    ) -> Sequence[Mapping[str, Any]]:
        """Move scheduled events that are due to the log, in this transaction; returns their rows.

        They take their place in order, and their deliveries, now. only: just the one at this
        position; else no more than a hundred.
        """
        scheduled = tables.scheduled
        due = self._due(scheduled).with_for_update(skip_locked=True)
        if only is not None:
            due = due.where(scheduled.c.position == only)
        found = (await connection.execute(due)).mappings().all()
        if found:
            await self._insert(connection, [dict(row) for row in found])
            positions = [row["position"] for row in found]
            await connection.execute(
                sa.delete(scheduled).where(scheduled.c.position.in_(positions))
            )
        return [{**row, "due": None} for row in found]

    async def due(self, connection: AsyncConnection) -> Sequence[sa.Row[Any]]:
        """Position and id of those that `move_due` would move."""
        scheduled = tables.scheduled
        return list(await connection.execute(self._due(scheduled.c.position, scheduled.c.id)))

    async def put_off(self, connection: AsyncConnection, position: int, span: dt.timedelta) -> None:
        """Let a scheduled event be due later."""
        scheduled = tables.scheduled
        later = sa.update(scheduled).values(due=self._clock.now() + span)
        await connection.execute(later.where(scheduled.c.position == position))

    def _due(self, *what: Any) -> sa.Select[Any]:
        scheduled = tables.scheduled
        return (
            sa.select(*what)
            .where(scheduled.c.due <= self._clock.now())
            .order_by(scheduled.c.due, scheduled.c.position)
            .limit(_MOVED_AT_ONCE)
        )

    async def _insert(
        self,
        connection: AsyncConnection,
        rows: Sequence[Mapping[str, Any]],
        lanes: Collection[str] = (),
    ) -> None:
        now = self._clock.now()
        events = [
            {name: row[name] for name in _GIVEN if name != "recorded_at"} | {"recorded_at": now}
            for row in rows
        ]
        if connection.dialect.name == "postgresql":
            await self._insert_ordered(connection, events, lanes)
        elif events:
            # The one writer needs no locks: it commits in the order in which it inserts.
            positions = list((await connection.execute(_EVENTS, events)).scalars())
            await connection.execute(_DELIVERIES, {"positions": positions, "now": now})

    async def _insert_ordered(
        self,
        connection: AsyncConnection,
        events: Sequence[Mapping[str, Any]],
        lanes: Collection[str],
    ) -> None:
        names = {event["name"] for event in events}
        locked = not self._ordered.isdisjoint(names)
        await lock_keys(connection, {*lanes, *(one["key"] for one in events if locked)})
        if not events:
            return
        numbered = [{"n": n, **event} for n, event in enumerate(events)]
        given = {"rows": json.dumps(numbered, default=str), "now": events[0]["recorded_at"]}
        stored = await connection.scalar(_BOTH, {**given, "locked": locked})
        if not stored:
            # An ordered listener wants them, which this process did not know: nothing was inserted.
            self._ordered |= names
            await lock_keys(connection, {one["key"] for one in events})
            stored = await connection.scalar(_BOTH, {**given, "locked": True})
        if stored != len(events):
            raise BusError(
                f"Of {len(events)} events {stored} were stored: nothing may be committed."
            )

    def _row(self, event: Event, context: Context, due: dt.datetime | None) -> dict[str, Any]:
        headers = context.headers()
        check_storable(headers, "the context")
        return {
            "id": uuid7(),
            "name": self.name_of(type(event)),
            "version": event.event_version,
            "key": key_of(event),
            "payload": payload_of(event),
            "headers": headers,
            "correlation_id": context.correlation_id,
            "causation_id": context.causation_id,
            "due": due,
        }

    def _is_cancelled(self, row: Mapping[str, Any], what: Cancellation) -> bool:
        is_wanted = row["name"] == self.name_of(what.cls) and row["key"] in what.keys
        return row["due"] is not None and is_wanted

    async def _cancel(
        self, connection: AsyncConnection, what: Cancellation
    ) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        scheduled = tables.scheduled
        gone = (
            sa.delete(scheduled)
            .where(
                scheduled.c.name.in_(self._types[what.cls].names), scheduled.c.key.in_(what.keys)
            )
            .returning(scheduled.c.name, scheduled.c.id, scheduled.c.due)
        )
        return (await connection.execute(gone)).all()


def key_of(event: Event) -> str:
    """What the event is about, as it is stored. Raises BusError if it is too long for that."""
    key = str(getattr(event, event.event_key))
    if len(key) > _LONGEST_KEY:
        raise BusError(
            f"{type(event).__name__}.{event.event_key}: a key has up to {_LONGEST_KEY} characters,"
            f" got {len(key)}."
        )
    return key


def keys_of(cls: type[Event], key: object) -> Collection[str]:
    """What `key_of` may make of an event with this key: as it is, and as its field would read it.

    So a UUID may be given as a text in capitals, and an enum by its value.
    """
    found, reader = {str(key)}, _key_reader(cls)
    for one in (key, str(key)):
        with suppress(ValidationError):
            found.add(str(reader.validate_python(one)))
    return found


@cache
def _key_reader(cls: type[Event]) -> TypeAdapter[Any]:
    field = cls.model_fields[cls.event_key]
    kind: Any = (
        Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    )
    return TypeAdapter(kind, config=cls.model_config)


_GIVEN = [one.name for one in tables.event.c if one.name not in ("position", "tx")]


def insert_deliveries(
    events: sa.FromClause,
    *conditions: sa.ColumnElement[bool],
    waiting: sa.ColumnElement[bool] | None = None,
) -> sa.Insert:
    """Insert the deliveries of these events; as for `deliveries_of`."""
    columns, wanted = deliveries_of(events, *conditions, waiting=waiting)
    return sa.insert(tables.delivery).from_select(columns, wanted)


def deliveries_of(
    events: sa.FromClause,
    *conditions: sa.ColumnElement[bool],
    waiting: sa.ColumnElement[bool] | None = None,
) -> tuple[list[str], sa.Select[Any]]:
    """The deliveries of these events as columns and rows; `now` is bound when it is executed.

    waiting: which ordered ones cannot run yet; if None, those behind another of their lane.
    """
    # The stored subscriptions decide, not this process's code: a listener may run elsewhere.
    subscription, name = tables.subscription, tables.subscription_name
    if waiting is None:
        waiting = _is_behind_another(events)
    values: dict[str, Any] = {
        "event_position": events.c.position,
        "subscription_id": subscription.c.id,
        "run": sa.literal_column("0"),
        "event_version": events.c.version,
        "lane": sa.case((subscription.c.ordered, events.c.key)),
        "state": sa.case(
            (sa.and_(subscription.c.ordered, waiting), sa.literal_column("'waiting'")),
            else_=sa.literal_column("'pending'"),
        ),
        "due": sa.bindparam("now", type_=tables.delivery.c.due.type),
        "attempts": sa.literal_column("0"),
        "losses": sa.literal_column("0"),
    }
    wanted = (
        sa.select(*values.values())
        .join(name, sa.and_(name.c.kind == "event", name.c.name == events.c.name))
        .join(subscription, subscription.c.id == name.c.subscription_id)
        .where(*conditions)
        .order_by(events.c.position, subscription.c.id)
    )
    return list(values), wanted


def _is_behind_another(events: sa.FromClause) -> sa.ColumnElement[bool]:
    subscription, earlier = tables.subscription, tables.delivery.alias("earlier")
    number = sa.func.row_number().over(
        partition_by=(subscription.c.id, events.c.key), order_by=events.c.position
    )
    return sa.or_(
        number > 1,
        sa.exists().where(
            earlier.c.subscription_id == subscription.c.id,
            earlier.c.lane == events.c.key,
            tables.is_unfinished(earlier),
        ),
    )


def _both() -> sa.Select[Any]:
    """Events and deliveries in one statement, for one way to the server and back.

    Inserts nothing, and answers 0, if an ordered listener wants one of the events and their keys
    are not `locked`.
    """
    event, subscription, name = tables.event, tables.subscription, tables.subscription_name
    columns = [event.c[name] for name in _GIVEN]
    rows = (
        sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        .table_valued(sa.column("n", sa.Integer), *(sa.column(c.name, c.type) for c in columns))
        .render_derived(with_types=True)
    )
    given = sa.select(rows).cte("given")
    # By another name than in the statement around it: all of them are meant, not the row at hand.
    any_given = given.alias("any_given")
    ordered = (
        sa.exists()
        .where(name.c.kind == "event", name.c.name == any_given.c.name)
        .where(subscription.c.id == name.c.subscription_id, subscription.c.ordered)
        .where(tables.is_live(subscription))
        .select_from(any_given)
    )
    stored = (
        sa.insert(event)
        .from_select(
            [*_GIVEN, "tx"],
            sa.select(*(given.c[one] for one in _GIVEN), tables.current_transaction())
            .where(sa.or_(sa.bindparam("locked", type_=sa.Boolean), ~ordered))
            .order_by(given.c.n),
        )
        .returning(event.c.position, event.c.name, event.c.version, event.c.key)
        .cte("stored")
    )
    return (
        sa.select(sa.func.count())
        .select_from(stored)
        .add_cte(insert_deliveries(stored, tables.is_live()).cte("made"))
    )


_BOTH = _both()

# SQLite knows no statement that does both.
_EVENTS = (
    sa.insert(tables.event)
    .values(tx=0)
    .returning(tables.event.c.position, sort_by_parameter_order=True)
)
_DELIVERIES = insert_deliveries(
    tables.event,
    tables.is_live(),
    tables.event.c.position.in_(sa.bindparam("positions", expanding=True)),
)
