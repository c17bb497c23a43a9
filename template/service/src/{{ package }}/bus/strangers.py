"""Warns of stored subscriptions whose listener is not in the code of this process."""

from collections.abc import Collection, Sequence

import structlog

from .engines import Database
from .subscriptions import Wanted, stored_in, tie

log = structlog.stdlib.get_logger(__name__)


async def warn_of_strangers(
    database: Database, wanted: Sequence[Wanted], slices: Collection[str] | None
) -> None:
    """Log each listener that is stored, not retired, and not in this code.

    It may be there as an alias of one that has a subscription already: nobody works it then.
    slices: only those of these slices, as other processes run the others; None: of all.
    """
    async with database.reader.connect() as connection:
        stored = await stored_in(connection)
    tied = tie(wanted, stored, is_upgrade=False)
    for one in stored:
        if one.is_retired or one.id in tied or (slices is not None and one.slice not in slices):
            continue
        log.warning(
            "the code has no such listener: unless a newer version runs beside it, see to it as"
            " `events check` says",
            listener=one.listener,
        )
