"""Stores events, and a delivery per subscription, in the transaction that caused them."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from . import tables
from .context import Context
from .errors import BusError
from .messages import Event

log = structlog.get_logger()


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

    async def store(self, session: AsyncSession, events: Sequence[Event], context: Context) -> None:
        """Insert the events and their deliveries; to be called last before the commit.

        Nothing of a unit may be flushed after this: the rows of the aggregates are locked by then,
        so that events of one aggregate are numbered in the order in which they commit.
        """
        now = dt.datetime.now(dt.UTC)
        rows = [self._row(event, context, now) for event in events]
        connection = await session.connection()
        statements = _STATEMENTS[connection.dialect.name]
        positions = list((await connection.execute(statements.events, rows)).scalars())
        await connection.execute(statements.deliveries, {"positions": positions, "now": now})
        for row in rows:
            log.info("event stored", event_name=row["name"], event_id=str(row["id"]))

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


@dataclass(frozen=True, slots=True)
class _Statements:
    events: sa.Executable
    deliveries: sa.Executable


def _statements(transaction_id: sa.ColumnElement[int]) -> _Statements:
    event, subscription, name = tables.event, tables.subscription, tables.subscription_name
    events = (
        sa.insert(event)
        .values(tx=transaction_id)
        .returning(event.c.position, sort_by_parameter_order=True)
    )
    # The stored subscriptions decide, not this process's code: a listener may run elsewhere.
    wanted = (
        sa.select(
            event.c.position,
            subscription.c.id,
            sa.literal(0),
            event.c.version,
            sa.case((subscription.c.ordered, event.c.key)),
            sa.literal("pending"),
            sa.bindparam("now", type_=tables.delivery.c.due.type),
            sa.literal(0),
            sa.literal(0),
        )
        .join(name, sa.and_(name.c.kind == "event", name.c.name == event.c.name))
        .join(subscription, subscription.c.id == name.c.subscription_id)
        .where(
            event.c.position.in_(sa.bindparam("positions", expanding=True)),
            subscription.c.retired_at.is_(None),
        )
        .order_by(event.c.position, subscription.c.id)
    )
    columns = ["event_position", "subscription_id", "run", "event_version", "lane"]
    columns += ["state", "due", "attempts", "losses"]
    return _Statements(events, sa.insert(tables.delivery).from_select(columns, wanted))


_STATEMENTS = {
    "sqlite": _statements(sa.literal(0)),
    "postgresql": _statements(
        sa.cast(sa.cast(sa.func.pg_current_xact_id(), sa.Text), sa.BigInteger)
    ),
}
