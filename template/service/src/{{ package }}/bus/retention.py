"""Housekeeping: removes what is finished and old, in small batches."""

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .clock import utc_now
from .engines import Database
from .idempotency import remove_expired as remove_expired_keys

_FORGET_WORKERS = dt.timedelta(days=1)
_is_unfinished = tables.delivery.c.state.not_in(("done", "dropped"))
# Of an event: a subscription that is being filled has not got so far.
_is_lacked = sa.exists().where(
    tables.subscription.c.retired_at.is_(None),
    tables.subscription.c.backfilled_to < tables.event.c.position,
)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is finished is kept; None: for ever. Dead letters are never removed."""

    finished: dt.timedelta | None = dt.timedelta(days=7)
    events: dt.timedelta | None = None


async def keep_house(database: Database, retention: Retention) -> None:
    """Remove all that is old enough; to be called every minute or so, by any number of processes.

    It pauses after each batch for as long as that took, so that delivery keeps its turn.
    """
    await _repeat(lambda: remove_expired(database))
    if (finished := retention.finished) is not None:
        await _repeat(lambda: remove_finished(database, finished))
    if (events := retention.events) is not None:
        await _repeat(lambda: remove_events(database, events))


async def remove_finished(database: Database, older_than: dt.timedelta, limit: int = 1000) -> int:
    """Remove deliveries that were done or dropped so long ago, and their attempts.

    One batch in one transaction, of no more than limit; returns how many there were.
    """
    delivery = tables.delivery
    old = (
        sa.select(delivery.c.id)
        .where(tables.is_in("done", "dropped"), delivery.c.finished_at < _ago(older_than))
        .order_by(delivery.c.finished_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    async with database.writer.begin() as connection:
        ids = list(await connection.scalars(old))
        await _remove_deliveries(connection, ids)
    return len(ids)


async def remove_events(database: Database, older_than: dt.timedelta, limit: int = 1000) -> int:
    """Remove events that were recorded so long ago, with their finished deliveries.

    Those with a delivery that is unfinished or dead stay, and those that a subscription which is
    being filled has not got yet. Raises the log's floor in the same transaction. One batch, of no
    more than twice the limit; returns how many there were.
    """
    event, delivery = tables.event, tables.delivery
    async with database.writer.begin() as connection:
        floor = await _lock_floor(connection)
        # Below the floor is only what had to stay when the floor passed it.
        stays = sa.exists().where(_is_unfinished, delivery.c.event_position == event.c.position)
        left = await _old(connection, older_than, limit, event.c.position <= floor, ~stays)
        next_ = await _old(connection, older_than, limit, event.c.position > floor, ~_is_lacked)
        # Looked up when the events are locked: a replay may have wanted one of them.
        kept = await _kept(connection, [*left, *next_])
        gone = [one for one in (*left, *next_) if one not in kept]
        if gone:
            await _remove_deliveries_of(connection, gone)
            await connection.execute(sa.delete(event).where(event.c.position.in_(gone)))
        if next_:
            await connection.execute(sa.update(tables.log).values(floor=next_[-1]))
    return len(gone)


async def remove_expired(database: Database, limit: int = 1000) -> int:
    """Remove idempotency keys that have expired, and workers that were not seen for a day.

    One batch in one transaction, of no more than limit keys; returns how many keys there were.
    """
    worker = tables.worker
    async with database.writer.begin() as connection:
        await connection.execute(sa.delete(worker).where(worker.c.seen_at < _ago(_FORGET_WORKERS)))
        return await remove_expired_keys(connection, _ago(dt.timedelta()), limit)


async def _repeat(remove: Callable[[], Awaitable[int]]) -> None:
    while True:
        began = time.monotonic()
        if await remove() == 0:
            return
        await asyncio.sleep(time.monotonic() - began)


async def _lock_floor(connection: AsyncConnection) -> int:
    """The log's floor; one process at a time raises it."""
    floor = await connection.scalar(sa.select(tables.log.c.floor).with_for_update())
    if floor is None:
        await connection.execute(sa.insert(tables.log).values(id=1, floor=0))
    return floor or 0


async def _old(
    connection: AsyncConnection,
    older_than: dt.timedelta,
    limit: int,
    *place: sa.ColumnElement[bool],
) -> list[int]:
    """The first events of this place that are old, locked; no more than limit are looked at."""
    event = tables.event
    window = (
        sa.select(event.c.position, event.c.recorded_at)
        .where(*place)
        .order_by(event.c.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    found = (await connection.execute(window)).all()
    return [row.position for row in found if row.recorded_at < _ago(older_than)]


async def _kept(connection: AsyncConnection, positions: list[int]) -> set[int]:
    delivery = tables.delivery
    unfinished = sa.select(delivery.c.event_position).where(
        delivery.c.event_position.in_(positions), _is_unfinished
    )
    return set(await connection.scalars(unfinished))


async def _remove_deliveries_of(connection: AsyncConnection, positions: list[int]) -> None:
    delivery = tables.delivery
    query = sa.select(delivery.c.id).where(delivery.c.event_position.in_(positions))
    ids = list(await connection.scalars(query))
    for at in range(0, len(ids), 1000):
        await _remove_deliveries(connection, ids[at : at + 1000])


async def _remove_deliveries(connection: AsyncConnection, ids: list[int]) -> None:
    if ids:
        attempt, delivery = tables.attempt, tables.delivery
        await connection.execute(sa.delete(attempt).where(attempt.c.delivery_id.in_(ids)))
        await connection.execute(sa.delete(delivery).where(delivery.c.id.in_(ids)))


def _ago(span: dt.timedelta) -> dt.datetime:
    return utc_now() - span
