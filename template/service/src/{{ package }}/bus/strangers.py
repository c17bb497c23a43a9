"""Warns of stored subscriptions whose listener is not in the code of this process."""

from collections.abc import Collection, Sequence

import sqlalchemy as sa
import structlog

from . import tables
from .engines import Database
from .subscriptions import Wanted

log = structlog.stdlib.get_logger(__name__)


async def warn_of_strangers(
    database: Database, wanted: Sequence[Wanted], slices: Collection[str] | None
) -> None:
    """Log each listener that is stored, not retired, and not in this code.

    slices: only those of these slices, as other processes run the others; None: of all.
    """
    subscription, name = tables.subscription, tables.subscription_name
    known = [old_or_new for one in wanted for old_or_new in one.names]
    ours = sa.select(name.c.subscription_id).where(
        name.c.kind == "listener", name.c.name.in_(known)
    )
    query = sa.select(subscription.c.listener).where(
        subscription.c.retired_at.is_(None), subscription.c.id.not_in(ours)
    )
    if slices is not None:
        query = query.where(subscription.c.slice.in_(slices))
    async with database.reader.connect() as connection:
        found = await connection.scalars(query.order_by(subscription.c.listener))
        for listener in found:
            log.warning(
                "the code has no such listener: unless a newer version runs beside it, `events"
                " move` its deliveries to the new name, or `events retire` it",
                listener=listener,
            )
