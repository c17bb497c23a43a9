"""What people change by hand leaves a row that says who, why, and how much."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables


class Audit:
    """The row of one change. A change in several transactions counts in each what that one did."""

    def __init__(
        self, action: str, where: str, *, who: str, reason: str, details: Mapping[str, Any]
    ) -> None:
        self._row = {
            "action": action,
            "filter": where,
            "who": who[:200],
            "reason": reason,
            "details": dict(details),
        }
        self._id: int | None = None
        self.count = 0

    async def add(self, connection: AsyncConnection, count: int, now: dt.datetime) -> None:
        """Write down, in this transaction, that it changed count rows."""
        self.count += count
        if self._id is None:
            insert = sa.insert(tables.audit).values(at=now, count=count, **self._row)
            self._id = await connection.scalar(insert.returning(tables.audit.c.id))
        else:
            await connection.execute(
                sa.update(tables.audit)
                .where(tables.audit.c.id == self._id)
                .values(count=self.count)
            )
