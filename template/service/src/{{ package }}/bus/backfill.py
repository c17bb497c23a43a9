"""Gives a new listener the events that were stored before it, if it starts at the beginning."""

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .engines import Database
from .outbox import insert_deliveries
from .subscriptions import lock_log

_CHUNK = 5_000


async def backfill(database: Database, now: dt.datetime) -> bool:
    """Take the next step for one subscription that is being filled; whether there was one.

    Until it is full it gets nothing of what is published. The log is locked for moments only: to
    fix how far all is committed, and for the last chunk, with which it goes live.
    """
    row = tables.subscription
    filling = (
        sa.select(row.c.id, row.c.from_position, row.c.backfilled_to)
        .where(row.c.backfilled_to.is_not(None), row.c.retired_at.is_(None))
        .order_by(row.c.id)
        .limit(1)
    )
    async with database.worker_reader.connect() as connection:
        if (await connection.execute(filling)).first() is None:
            return False
    async with database.worker.begin() as connection:
        locked = filling.with_for_update(skip_locked=True)
        found = (await connection.execute(locked)).first()
        if found is None:
            return False
        step = await _step(connection, found, now)
        await connection.execute(sa.update(row).where(row.c.id == found.id).values(step))
    if step["backfilled_to"] is None:
        await promote_stuck(database)
    return True


async def _step(connection: AsyncConnection, found: Any, now: dt.datetime) -> dict[str, int | None]:
    """Insert a chunk of deliveries; what the subscription's row says then."""
    done, boundary = found.backfilled_to or 0, found.from_position
    if done >= boundary:
        boundary = await lock_log(connection)
    upto = min(done + _CHUNK, boundary)
    await connection.execute(
        _FILL, {"subscription": found.id, "above": done, "upto": upto, "now": now}
    )
    is_live = found.from_position <= done and upto == boundary
    return {"from_position": boundary, "backfilled_to": None if is_live else upto}


async def promote_stuck(database: Database) -> int:
    """Let the first of each lane be claimed in which all are waiting; returns how many.

    Filling leaves them so. A lane in which nothing is claimable stays as it is until somebody does
    this, so that no lock is needed.
    """
    delivery, active = tables.delivery, tables.delivery.alias("active")
    heads = (
        sa.select(sa.func.min(delivery.c.id))
        .where(delivery.c.lane.is_not(None), tables.is_in("waiting"))
        .group_by(delivery.c.subscription_id, delivery.c.lane)
        .having(
            ~sa.exists()
            .where(
                active.c.subscription_id == delivery.c.subscription_id,
                active.c.lane == delivery.c.lane,
                tables.is_unfinished(active),
                active.c.state != "waiting",
            )
            .correlate(delivery)
        )
    )
    async with database.worker_reader.connect() as connection:
        stuck = list(await connection.scalars(heads))
    for at in range(0, len(stuck), _CHUNK):
        async with database.worker.begin() as connection:
            await connection.execute(
                sa.update(delivery)
                .where(delivery.c.id.in_(stuck[at : at + _CHUNK]), tables.is_in("waiting"))
                .values(state="pending")
            )
    return len(stuck)


_FILL = insert_deliveries(
    tables.event,
    tables.subscription.c.id == sa.bindparam("subscription"),
    tables.event.c.position > sa.bindparam("above"),
    tables.event.c.position <= sa.bindparam("upto"),
    # Corrections are for the listeners that could not do with what was published.
    tables.corrected_for().is_(None),
    waiting=sa.true(),
)
