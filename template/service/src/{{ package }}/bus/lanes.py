"""Lanes: the deliveries of one ordered listener with one key, of which one may run at a time."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables

Lane = tuple[int, str]
"""A subscription's id and a key."""

_other = tables.delivery.alias("other")


async def lock_keys(connection: AsyncConnection, keys: Iterable[str]) -> None:
    """Take turns on the lanes of these keys until the transaction ends (PostgreSQL).

    Publishers and workers take the same locks, so that nobody adds to a lane, or finishes its
    first, while it is changed here.
    """
    # Sorted, so that two transactions never wait for each other.
    numbers = sorted({_lock_id(key) for key in keys})
    if numbers and connection.dialect.name == "postgresql":
        await connection.execute(_LOCK, {"keys": numbers})


async def promote_next(connection: AsyncConnection, subscription: int, lane: str) -> None:
    """Let the next of one lane be claimed, when the one before it is done: quick in a long lane."""
    delivery = tables.delivery
    first = sa.select(sa.func.min(delivery.c.id)).where(
        delivery.c.subscription_id == subscription,
        delivery.c.lane == lane,
        tables.is_in("waiting"),
        # Follows from the others, but SQLite takes the index of these only if it is told so.
        tables.is_unfinished(delivery),
    )
    await connection.execute(
        sa.update(delivery).where(delivery.c.id == first.scalar_subquery()).values(state="pending")
    )


async def promote(connection: AsyncConnection, lanes: Iterable[Lane]) -> None:
    """Let the first that waits in each of these lanes be claimed, if nothing is before it."""
    by_subscription: dict[int, set[str]] = defaultdict(set)
    for subscription, lane in lanes:
        by_subscription[subscription].add(lane)
    for subscription, keys in by_subscription.items():
        await _promote(connection, subscription, tables.delivery.c.lane.in_(sorted(keys)))


async def begin_lanes(connection: AsyncConnection, subscription: int) -> None:
    """What this one has before it takes turns from now on. Nobody may publish meanwhile.

    What runs, or is dead, stays outside of the lanes: it began when there was no order.
    """
    delivery, event = tables.delivery, tables.event
    key = sa.select(event.c.key).where(event.c.position == delivery.c.event_position)
    await connection.execute(
        tables.unlocked(
            delivery.c.subscription_id == subscription,
            tables.is_in("pending"),
            delivery.c.lane.is_(None),
        ).values(lane=key.scalar_subquery(), state="waiting")
    )
    await _promote(connection, subscription)


async def end_lanes(connection: AsyncConnection, subscription: int) -> None:
    """What waits for its turn need not any more. Nobody may publish meanwhile."""
    delivery = tables.delivery
    await connection.execute(
        tables.unlocked(
            delivery.c.subscription_id == subscription,
            delivery.c.lane.is_not(None),
            tables.is_in("waiting", "pending", "dead"),
        ).values(
            lane=None, state=sa.case((tables.is_in("waiting"), "pending"), else_=delivery.c.state)
        )
    )


async def _promote(
    connection: AsyncConnection, subscription: int, *conditions: sa.ColumnElement[bool]
) -> None:
    delivery = tables.delivery
    first = first_waiting(delivery.c.subscription_id == subscription, *conditions)
    await connection.execute(
        sa.update(delivery).where(delivery.c.id.in_(first)).values(state="pending")
    )


def first_waiting(*conditions: sa.ColumnElement[bool]) -> sa.Select[tuple[int]]:
    """The ids of the first in each lane in which all are waiting."""
    delivery = tables.delivery
    return (
        sa.select(sa.func.min(delivery.c.id))
        .where(tables.is_in("waiting"), tables.is_unfinished(delivery), *conditions)
        .group_by(delivery.c.subscription_id, delivery.c.lane)
        .having(~sa.exists().where(is_occupied(delivery)).correlate(delivery))
    )


def is_behind(row: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether another delivery of this one's lane has to be finished first."""
    occupied = sa.exists().where(is_occupied(row), _other.c.id != row.c.id).correlate(row)
    return sa.and_(row.c.lane.is_not(None), occupied)


def is_occupied(row: sa.FromClause) -> sa.ColumnElement[bool]:
    """Joins the deliveries of a row's lane that are ahead of those that wait."""
    return sa.and_(
        _other.c.subscription_id == row.c.subscription_id,
        _other.c.lane == row.c.lane,
        _other.c.state != "waiting",
        tables.is_unfinished(_other),
    )


def _lock_id(key: str) -> int:
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"bus-key").digest()
    return int.from_bytes(digest, signed=True)


_LOCK = sa.select(
    sa.func.pg_advisory_xact_lock(
        sa.func.unnest(sa.bindparam("keys", type_=sa.ARRAY(sa.BigInteger)))
    )
)
