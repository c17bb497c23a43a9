"""Gives a new listener the events that were stored before it, if it starts at the beginning."""

import datetime as dt
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .engines import Database
from .lanes import first_waiting
from .outbox import deliveries_of
from .subscriptions import lock_log

_CHUNK = 5_000
_row = tables.subscription
_is_filling = sa.and_(_row.c.backfilled_to.is_not(None), _row.c.retired_at.is_(None))

log = structlog.stdlib.get_logger(__name__)


async def backfill(database: Database, now: dt.datetime) -> bool:
    """Take the next step for one subscription that is being filled; whether one was taken.

    Until it is full it gets nothing of what is published. The log is locked for moments only: to
    fix how far all is committed, and for the last chunk, with which it goes live. One that fails is
    logged when no other has a step to take, and holds up none.
    """
    filling = sa.select(_row.c.id, _row.c.listener).where(_is_filling).order_by(_row.c.id)
    async with database.worker_reader.connect() as connection:
        found = (await connection.execute(filling)).all()
    failed = list[tuple[str, Exception]]()
    for one in found:
        try:
            if await _fill(database, one.id, now):
                return True
        except Exception as error:
            failed.append((one.listener, error))
    for listener, reason in failed:
        log.warning("could not be filled, trying again", listener=listener, error=repr(reason))
    return False


async def _fill(database: Database, subscription: int, now: dt.datetime) -> bool:
    """Take a step for this one, unless another process does, or it is full by now."""
    this = _row.c.id == subscription
    filling = sa.select(_row.c.id, _row.c.listener, _row.c.from_position, _row.c.backfilled_to)
    async with database.worker.begin() as connection:
        locked = filling.where(this, _is_filling).with_for_update(skip_locked=True)
        found = (await connection.execute(locked)).first()
        if found is None:
            return False
        step = await _step(connection, found, now)
        await connection.execute(sa.update(_row).where(this).values(step))
    if step["backfilled_to"] is None:
        log.info("filled with what was stored before it", listener=found.listener)
        await promote_stuck(database)
    return True


async def _step(connection: AsyncConnection, found: Any, now: dt.datetime) -> dict[str, int | None]:
    """Insert a chunk of deliveries; what the subscription's row says then."""
    done, boundary = found.backfilled_to or 0, found.from_position
    if done >= boundary:
        boundary = await lock_log(connection)
    upto = min(done + _CHUNK, boundary)
    await connection.execute(
        _FILL[connection.dialect.name],
        {"subscription": found.id, "above": done, "upto": upto, "now": now},
    )
    is_live = found.from_position <= done and upto == boundary
    return {"from_position": boundary, "backfilled_to": None if is_live else upto}


async def promote_stuck(database: Database) -> int:
    """Let the first of each lane be claimed in which all are waiting; returns how many.

    Filling leaves them so. A lane in which nothing is claimable stays as it is until somebody does
    this, so that no lock is needed.
    """
    delivery = tables.delivery
    async with database.worker_reader.connect() as connection:
        stuck = list(await connection.scalars(first_waiting()))
    for at in range(0, len(stuck), _CHUNK):
        async with database.worker.begin() as connection:
            await connection.execute(
                sa.update(delivery)
                .where(delivery.c.id.in_(stuck[at : at + _CHUNK]), tables.is_in("waiting"))
                .values(state="pending")
            )
    return len(stuck)


_DELIVERIES = deliveries_of(
    tables.event,
    tables.subscription.c.id == sa.bindparam("subscription"),
    tables.event.c.position > sa.bindparam("above"),
    tables.event.c.position <= sa.bindparam("upto"),
    # Corrections are for the listeners that could not do with what was published.
    tables.corrected_for().is_(None),
    waiting=sa.true(),
)
# What was moved to it from another listener is there already.
_FILL = {
    dialect: insert(tables.delivery).from_select(*_DELIVERIES).on_conflict_do_nothing()
    for dialect, insert in (("postgresql", postgresql.insert), ("sqlite", sqlite.insert))
}
