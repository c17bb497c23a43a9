"""Stores events, and a delivery per subscription, in the transaction that caused them."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from . import tables
from .context import Context
from .errors import BusError
from .messages import Event


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


class Stored(NamedTuple):
    """Name and id of an event in the log."""

    name: str
    id: UUID


class Outbox:
    """Writes what a unit of work published."""

    def __init__(self, types: Mapping[type[Event], EventType]) -> None:
        self._types = types

    def check(self, event: Event) -> None:
        """Raises BusError if no slice declares this event."""
        if type(event) not in self._types:
            raise BusError(
                f"{type(event).__name__} is not an event of any slice here: declare it in the"
                " contracts.py (or, for the slice's own use, messages.py) of the slice that"
                " publishes it."
            )

    async def store(
        self, session: AsyncSession, events: Sequence[Event], context: Context
    ) -> list[Stored]:
        """Insert the events and their deliveries; to be called last before the commit.

        Nothing of a unit may be flushed after this: the rows of the aggregates are locked by then,
        so that events of one aggregate are numbered in the order in which they commit.
        """
        now = dt.datetime.now(dt.UTC)
        rows = [self._row(event, context, now) for event in events]
        connection = await session.connection()
        if connection.dialect.name == "postgresql":
            numbered = json.dumps([{"n": n, **row} for n, row in enumerate(rows)], default=str)
            await connection.execute(_BOTH, {"rows": numbered, "now": now})
        else:
            positions = list((await connection.execute(_EVENTS, rows)).scalars())
            await connection.execute(_DELIVERIES, {"positions": positions, "now": now})
        return [Stored(row["name"], row["id"]) for row in rows]

    def _row(self, event: Event, context: Context, now: dt.datetime) -> dict[str, Any]:
        self.check(event)
        return {
            "id": uuid7(),
            "name": self._types[type(event)].name,
            "version": event.event_version,
            "key": str(getattr(event, event.event_key)),
            "payload": event.model_dump(mode="json"),
            "headers": context.headers(),
            "correlation_id": context.correlation_id,
            "causation_id": context.causation_id,
            "recorded_at": now,
        }


def _deliveries(events: sa.FromClause, *conditions: sa.ColumnElement[bool]) -> sa.Insert:
    """Insert the deliveries of these events; `now` is bound when it is executed."""
    # The stored subscriptions decide, not this process's code: a listener may run elsewhere.
    subscription, name = tables.subscription, tables.subscription_name
    values: dict[str, Any] = {
        "event_position": events.c.position,
        "subscription_id": subscription.c.id,
        "run": sa.literal(0),
        "event_version": events.c.version,
        "lane": sa.case((subscription.c.ordered, events.c.key)),
        "state": sa.literal("pending"),
        "due": sa.bindparam("now", type_=tables.delivery.c.due.type),
        "attempts": sa.literal(0),
        "losses": sa.literal(0),
    }
    wanted = (
        sa.select(*values.values())
        .join(name, sa.and_(name.c.kind == "event", name.c.name == events.c.name))
        .join(subscription, subscription.c.id == name.c.subscription_id)
        .where(subscription.c.retired_at.is_(None), *conditions)
        .order_by(events.c.position, subscription.c.id)
    )
    return sa.insert(tables.delivery).from_select(list(values), wanted)


def _both() -> sa.Insert:
    """Events and deliveries in one statement, for one way to the server and back."""
    event = tables.event
    given = [one for one in event.c if one not in (event.c.position, event.c.tx)]
    rows = (
        sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        .table_valued(sa.column("n", sa.Integer), *(sa.column(c.name, c.type) for c in given))
        .render_derived(with_types=True)
    )
    transaction = sa.cast(sa.cast(sa.func.pg_current_xact_id(), sa.Text), sa.BigInteger)
    stored = (
        sa.insert(event)
        .from_select(
            [*(c.name for c in given), "tx"],
            sa.select(*(rows.c[c.name] for c in given), transaction).order_by(rows.c.n),
        )
        .returning(event.c.position, event.c.name, event.c.version, event.c.key)
        .cte("stored")
    )
    return _deliveries(stored)


_BOTH = _both()

# SQLite knows no statement that does both.
_EVENTS = (
    sa.insert(tables.event)
    .values(tx=0)
    .returning(tables.event.c.position, sort_by_parameter_order=True)
)
_DELIVERIES = _deliveries(
    tables.event, tables.event.c.position.in_(sa.bindparam("positions", expanding=True))
)
