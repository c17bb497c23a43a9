"""Changes of many deliveries, or events for later, by hand: never of what is being worked."""

import datetime as dt
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..due import ALONE_AFTER
from ..engines import Database
from ..errors import OperationError
from ..lanes import is_behind, lock_keys, promote
from ..waking import waking
from .audit import Audit
from .standing import Row, Subscribed

# What is worked belongs to its worker until that has said how it went, or is given up for dead.
FITTING = {
    "retry": ("dead", "pending"),
    "drop": ("dead", "pending", "waiting"),
    "move": ("dead", "pending", "waiting"),
}
# So many lanes are locked at a time; PostgreSQL has room for some thousands of locks.
_CHUNK = 500
_AUDITED_IDS = 1000

Id = int | UUID
"""Of a delivery, or of an event."""

Change = Callable[[AsyncConnection, Sequence[Id]], Awaitable[int]]
"""Changes those with these ids in a transaction; returns how many it could."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The deliveries, or the events for later, that a change is for: fixed when they were counted.

    counts has how many deliveries there are by listener and state, or how many events by name.
    """

    action: str
    filter: str
    ids: tuple[Id, ...]
    counts: tuple[Row, ...]
    what: str = "deliveries"


async def change_all(
    database: Database,
    chosen: Selection,
    change: Change,
    *,
    now: Callable[[], dt.datetime],
    who: str,
    reason: str,
    **details: Any,
) -> int:
    """Change what was chosen, with one audit row; returns how many were changed."""
    named = [one if isinstance(one, int) else str(one) for one in chosen.ids[:_AUDITED_IDS]]
    details |= {"chosen": len(chosen.ids), chosen.what: named}
    audit = Audit(chosen.action, chosen.filter, who=who, reason=reason, details=details)
    for ids in batched(chosen.ids):
        async with waking(database) as connection:
            changed = await change(connection, ids)
            await audit.add(connection, changed, now())
    return audit.count


async def drop_all_of(connection: AsyncConnection, subscription: int, now: dt.datetime) -> int:
    """Give up what a retired listener has left: nothing of it will run, so that no lane matters."""
    left = tables.delivery.c.subscription_id == subscription
    dropping = tables.unlocked(left, tables.is_in(*FITTING["drop"]))
    dropped = await connection.execute(dropping.values(state="dropped", finished_at=now))
    return dropped.rowcount


def batched(ids: Sequence[Id]) -> Iterator[Sequence[Id]]:
    """The ids in parts that are not too many for one statement."""
    for at in range(0, len(ids), _CHUNK):
        yield ids[at : at + _CHUNK]


async def cancelling(connection: AsyncConnection, ids: Sequence[Id]) -> int:
    """Will not be published: a Change."""
    scheduled = tables.scheduled
    gone = await connection.execute(sa.delete(scheduled).where(scheduled.c.id.in_(ids)))
    return gone.rowcount


def retrying(now: dt.datetime) -> Change:
    """Runs again, with all attempts anew."""
    delivery, losses = tables.delivery, tables.delivery.c.losses
    return _setting(
        "retry",
        {
            "state": sa.case((is_behind(delivery), "waiting"), else_="pending"),
            "due": now,
            "attempts": 0,
            # What was given up for taking its processes down runs once more, and alone.
            "losses": sa.case((losses > ALONE_AFTER, ALONE_AFTER), else_=losses),
            "token": None,
            "worker_id": None,
            "lease_until": None,
            "finished_at": None,
        },
    )


def dropping(now: dt.datetime) -> Change:
    """Will not run any more."""
    return _setting("drop", {"state": "dropped", "finished_at": now})


def moving(to: Subscribed, now: dt.datetime) -> Change:
    """Goes to another listener, but for what that one has already, or does not listen to."""
    delivery, event = tables.delivery, tables.event
    there = delivery.alias("there")
    is_there = sa.exists().where(
        there.c.event_position == delivery.c.event_position,
        there.c.run == delivery.c.run,
        there.c.subscription_id == to.id,
    )
    its_event = event.c.position == delivery.c.event_position
    is_heard = sa.exists().where(its_event, event.c.name.in_(to.events))
    key = sa.select(event.c.key).where(its_event)
    # In a lane they take turns; elsewhere a dead letter stays one, for a person to look at.
    kept = sa.case((delivery.c.state == "dead", "dead"), else_="pending")
    return _setting(
        "move",
        {
            "subscription_id": to.id,
            "lane": key.scalar_subquery() if to.ordered else None,
            "state": "waiting" if to.ordered else kept,
            "due": now,
            "attempts": 0,
        },
        ~is_there,
        is_heard,
        to=to,
    )


async def hold_order(connection: AsyncConnection, listener: Subscribed) -> None:
    """Let nobody change whether it is ordered until the transaction ends.

    Raises OperationError if that was done since it was read.
    """
    row = tables.subscription
    query = sa.select(row.c.ordered).where(row.c.id == listener.id).with_for_update(read=True)
    if await connection.scalar(query) != listener.ordered:
        raise OperationError(
            f"{listener.listener} has become ordered meanwhile, or is not any more: do this again."
        )


def _setting(
    action: str,
    values: Mapping[str, Any],
    *conditions: sa.ColumnElement[bool],
    to: Subscribed | None = None,
) -> Change:
    delivery = tables.delivery

    async def change(connection: AsyncConnection, ids: Sequence[Id]) -> int:
        if to is not None:
            await hold_order(connection, to)
        before = await _lock(connection, ids)
        # What somebody else holds is being worked, and left alone.
        fitting = tables.is_in(*FITTING[action])
        changed = await connection.execute(
            tables.unlocked(delivery.c.id.in_(ids), fitting, *conditions)
            .values(values)
            .returning(delivery.c.subscription_id, delivery.c.lane)
        )
        rows = changed.all()
        after = {(row.subscription_id, row.lane) for row in rows if row.lane is not None}
        await promote(connection, before | after)
        return len(rows)

    return change


async def _lock(connection: AsyncConnection, ids: Sequence[Id]) -> set[tuple[int, str]]:
    """Take turns on the keys of these deliveries; returns the lanes that they are in."""
    delivery, event = tables.delivery, tables.event
    found = await connection.execute(
        sa.select(delivery.c.subscription_id, delivery.c.lane, event.c.key)
        .join(event, event.c.position == delivery.c.event_position)
        .where(delivery.c.id.in_(ids))
    )
    rows = found.all()
    await lock_keys(connection, {row.key for row in rows})
    return {(row.subscription_id, row.lane) for row in rows if row.lane is not None}
