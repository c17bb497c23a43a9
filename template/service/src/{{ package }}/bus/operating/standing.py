"""How listeners stand: what waits for them, since when, and which processes run them."""

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..clock import utc_now
from ..engines import Database
from ..errors import OperationError
from .filters import unknown_listener

Row = dict[str, Any]
"""One thing that was found, by the names of its columns."""

T = TypeVar("T")

# A worker says every few seconds that it lives; one that does not is gone, or hangs.
ALIVE = dt.timedelta(seconds=30)
# When a pause ends that lasts until it is resumed.
FOR_EVER = dt.datetime(9999, 1, 1, tzinfo=dt.UTC)
_UNFINISHED = ("pending", "waiting", "working", "dead")


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A stored subscription: names are the listener's, old ones too; events are those it wants.

    from_position and backfilled_to are as in its row.
    """

    id: int
    listener: str
    names: tuple[str, ...]
    events: tuple[str, ...]
    ordered: bool
    paused_until: dt.datetime | None
    paused_reason: str | None
    retired_at: dt.datetime | None
    from_position: int
    backfilled_to: int | None

    @property
    def filled_to(self) -> int:
        """Up to which position of the log it has got what it wants, once it is retired."""
        return self.from_position if self.backfilled_to is None else self.backfilled_to


class Standing:
    """Subscriptions of a database, and how far they are.

    now tells the time by which deliveries are due.
    """

    def __init__(self, database: Database, now: Callable[[], dt.datetime] = utc_now) -> None:
        self._database = database
        self._now = now

    async def lag(self) -> list[Row]:
        """What each listener has before it, and since when: one row per subscription.

        held counts those of waiting that a dead letter holds up; oldest_seconds is the age of the
        event that has waited longest (None: nothing is pending or waiting); filling says whether
        it still gets what was published before; attended whether a live process runs the listener.
        """
        async with self._database.reader.connect() as connection:
            subscribed = await self._subscriptions(connection)
            counts = {state: await _counts(connection, state) for state in _UNFINISHED}
            held = await _held(connection)
            firsts = [*counts["pending"].values(), *counts["waiting"].values()]
            since = await recorded(connection, [first for _, first in firsts])
            live = await self._workers(connection)
        running = {name for worker in live if worker["alive"] for name in worker["listeners"]}
        rows = []
        for one in subscribed:
            found = [counts[state].get(one.id, (0, 0)) for state in ("pending", "waiting")]
            oldest = min((since[first] for _, first in found if first in since), default=None)
            rows.append(
                {
                    "listener": one.listener,
                    **{state: counts[state].get(one.id, (0, 0))[0] for state in _UNFINISHED},
                    "held": held.get(one.id, 0),
                    "oldest_seconds": oldest and (self._now() - oldest).total_seconds(),
                    **self._pause(one),
                    "retired_at": one.retired_at,
                    "filling": one.backfilled_to is not None and one.retired_at is None,
                    "attended": not running.isdisjoint(one.names),
                }
            )
        return rows

    async def workers(self) -> list[Row]:
        """Processes that deliver, or did, the last seen first; alive: seen within 30 seconds."""
        async with self._database.reader.connect() as connection:
            return await self._workers(connection)

    async def unattended(self) -> list[str]:
        """Listeners, not retired, that no live process runs."""
        lag = await self.lag()
        return [one["listener"] for one in lag if not one["attended"] and not one["retired_at"]]

    async def is_retired(self, listener: str) -> bool:
        """Whether no more deliveries are made for it. Raises OperationError if it is not known."""
        async with self._database.reader.connect() as connection:
            return (await self._subscription(connection, listener)).retired_at is not None

    async def health(self) -> Row:
        """pending, scheduled and dead: how many; oldest_pending_seconds: since when, or None.

        held: how many wait behind a dead letter. What retired listeners have left waits for nobody,
        and is not counted, but for dead letters.
        """
        async with self._database.reader.connect() as connection:
            retired = await _retired(connection)
            pending = _without(retired, await _counts(connection, "pending"))
            dead = await _counts(connection, "dead")
            held = _without(retired, await _held(connection))
            since = await recorded(connection, [first for _, first in pending.values()])
            oldest = min(since.values(), default=None)
            scheduled = await connection.scalar(
                sa.select(sa.func.count()).select_from(tables.scheduled)
            )
        return {
            "pending": sum(count for count, _ in pending.values()),
            "oldest_pending_seconds": oldest and (self._now() - oldest).total_seconds(),
            "scheduled": scheduled or 0,
            "dead": sum(count for count, _ in dead.values()),
            "held": sum(held.values()),
        }

    async def _subscription(self, connection: AsyncConnection, listener: str) -> Subscribed:
        subscribed = await self._subscriptions(connection)
        # The one that has this name now goes before one that had it.
        for one in sorted(subscribed, key=lambda one: one.listener != listener):
            if listener in one.names:
                return one
        known = [name for one in subscribed for name in one.names]
        raise OperationError(unknown_listener(listener, known))

    async def _subscriptions(self, connection: AsyncConnection) -> Sequence[Subscribed]:
        subscription, name = tables.subscription, tables.subscription_name
        stored = (await connection.execute(sa.select(name).order_by(name.c.name))).all()

        def names(of: int, kind: str) -> tuple[str, ...]:
            return tuple(
                row.name for row in stored if (row.subscription_id, row.kind) == (of, kind)
            )

        found = await connection.execute(sa.select(subscription).order_by(subscription.c.listener))
        return [
            Subscribed(
                id=row.id,
                listener=row.listener,
                names=tuple(dict.fromkeys((row.listener, *names(row.id, "listener")))),
                events=names(row.id, "event"),
                ordered=row.ordered,
                paused_until=row.paused_until,
                paused_reason=row.paused_reason,
                retired_at=row.retired_at,
                from_position=row.from_position,
                backfilled_to=row.backfilled_to,
            )
            for row in found
        ]

    async def _workers(self, connection: AsyncConnection) -> list[Row]:
        query = sa.select(tables.worker).order_by(tables.worker.c.seen_at.desc())
        rows = rows_of(await connection.execute(query))
        for row in rows:
            # A slice without listeners has nothing to deliver, and is not written down.
            row["slices_with_listeners"] = row.pop("slices")
            row["alive"] = row["seen_at"] > self._now() - ALIVE
        return rows

    def _pause(self, one: Subscribed | None) -> Row:
        """paused_until and paused_reason; None if it is not paused, or is None."""
        if one is None or one.paused_until is None or one.paused_until <= self._now():
            return {"paused_until": None, "paused_reason": None}
        return {"paused_until": one.paused_until, "paused_reason": one.paused_reason}


async def _retired(connection: AsyncConnection) -> Collection[int]:
    subscription = tables.subscription
    query = sa.select(subscription.c.id).where(subscription.c.retired_at.is_not(None))
    return set(await connection.scalars(query))


def _without(retired: Collection[int], found: Mapping[int, T]) -> Mapping[int, T]:
    # There are few: to ask the database for the others could cost it the index.
    return {one: value for one, value in found.items() if one not in retired}


async def _counts(connection: AsyncConnection, state: str) -> Mapping[int, tuple[int, int]]:
    """How many deliveries each subscription has in a state, and the first of them."""
    delivery = tables.delivery
    query = sa.select(
        delivery.c.subscription_id, sa.func.count().label("count"), sa.func.min(delivery.c.id)
    )
    conditions = [tables.is_in(state)]
    if state == "waiting":
        conditions.append(tables.is_unfinished(delivery))
    found = await connection.execute(query.where(*conditions).group_by(delivery.c.subscription_id))
    return {subscription: (count, first) for subscription, count, first in found}


async def _held(connection: AsyncConnection) -> Mapping[int, int]:
    """How many deliveries of each subscription wait in a lane that has a dead letter."""
    delivery, waiting = tables.delivery, tables.delivery.alias("waiting")
    dead = (
        sa.select(delivery.c.subscription_id, delivery.c.lane)
        .where(tables.is_in("dead"), delivery.c.lane.is_not(None))
        .distinct()
        .subquery()
    )
    in_lane = sa.and_(
        waiting.c.subscription_id == dead.c.subscription_id, waiting.c.lane == dead.c.lane
    )
    found = await connection.execute(
        sa.select(waiting.c.subscription_id, sa.func.count().label("held"))
        .join_from(dead, waiting, in_lane)
        .where(tables.is_in("waiting", of=waiting), tables.is_unfinished(waiting))
        .group_by(waiting.c.subscription_id)
    )
    return {row.subscription_id: row.held for row in found}


async def recorded(
    connection: AsyncConnection, deliveries: Collection[int]
) -> Mapping[int, dt.datetime]:
    """When the events of these deliveries were recorded, by the ids of the deliveries."""
    event, delivery = tables.event, tables.delivery
    query = (
        sa.select(delivery.c.id, event.c.recorded_at)
        .join(event, event.c.position == delivery.c.event_position)
        .where(delivery.c.id.in_(deliveries))
    )
    return {row.id: row.recorded_at for row in await connection.execute(query)}


def rows_of(found: sa.CursorResult[Any]) -> list[Row]:
    """Rows by the names of their columns."""
    return [dict(row) for row in found.mappings()]
