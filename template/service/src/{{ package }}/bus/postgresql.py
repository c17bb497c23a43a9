"""PostgreSQL: a connection that only its owner commits, in one message with a last statement."""

from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from .ownership import Owner, refusal

# What is no number: PostgreSQL gives the transaction up, and says this.
_NOT_ONE = "another number of rows than one"


class PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # It has no types.
    """A statement and the COMMIT behind it are one round trip, where asyncpg's own makes two."""

    __slots__ = ("owner",)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.owner: Owner | None = None

    async def prepare(self, query: str, **options: Any) -> Any:
        """What SQLAlchemy executes; the same statement comes once."""
        if self.owner is not None:
            self.owner.check(query)
        return await super().prepare(query, **options)

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        """What asyncpg's transactions begin and end with, and what SQLAlchemy does not know of."""
        if query == "COMMIT;":
            return await self._commit(query)
        if self.owner is not None:
            if query == "ROLLBACK;":
                self.owner.is_cut_off, self.owner = True, None
            elif not query.startswith("BEGIN "):
                self.owner.check(query)
        return await super().execute(query, *arguments, **options)

    async def _commit(self, query: str) -> Any:
        owner, self.owner = self.owner, None
        if owner is None:
            return await super().execute(query)
        if not owner.is_over:
            # Reached around the session. SQLAlchemy takes the transaction for ended in any case.
            owner.is_cut_off = True
            await super().execute("ROLLBACK;")
            raise refusal("connection().commit")
        update, otherwise = owner.take_last()
        if not update:
            return await super().execute(query)
        last = (
            f"WITH changed AS ({update} RETURNING 1) SELECT CAST("
            f"CASE count(*) WHEN 1 THEN '1' ELSE '{_NOT_ONE}' END AS integer) FROM changed; "
        )
        try:
            return await super().execute(last + query)
        except asyncpg.PostgresError as error:
            # The commit was not come to, if it is this that has failed.
            if self.is_in_transaction() and not self.is_closed():
                await super().execute("ROLLBACK;")
            if _NOT_ONE in str(error):
                raise otherwise from error
            raise


def owner_of(connection: AsyncConnection) -> Owner | None:
    """Whose COMMIT may have something go with it; None on other databases, or if none will be sent.

    None is sent if no statement has begun a transaction.
    """
    known = connection.sync_connection
    driver = None if known is None else known.connection.driver_connection
    if not isinstance(driver, PostgreSQLConnection) or not driver.is_in_transaction():
        return None
    return driver.owner
