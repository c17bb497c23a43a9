"""PostgreSQL: a connection that only its owner ends, in one message with a last statement."""

from typing import Any, Self

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from .errors import BusError
from .ownership import Owner, refusal

# What is no number: PostgreSQL gives the transaction up, and says this.
_NOT_ONE = "another number of rows than one"


class PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # It has no types.
    """A statement and the COMMIT behind it are one round trip, where asyncpg's own makes two."""

    __slots__ = ("_last", "_otherwise", "owner")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.owner: Owner | None = None
        self._last = ""
        self._otherwise: Exception = BusError()

    @classmethod
    def of(cls, connection: AsyncConnection) -> Self | None:
        """The one behind this connection, if its transaction has begun."""
        known = connection.sync_connection
        driver = None if known is None else known.connection.driver_connection
        return driver if isinstance(driver, cls) and driver.is_in_transaction() else None

    def commit_with(self, update: str, otherwise: Exception) -> None:
        """Let this be executed just before the transaction that is open commits.

        update has all its values in it. It has to change one row: else nothing is committed, and
        the commit raises otherwise.
        """
        self._otherwise = otherwise
        self._last = (
            f"WITH changed AS ({update} RETURNING 1) SELECT CAST("
            f"CASE count(*) WHEN 1 THEN '1' ELSE '{_NOT_ONE}' END AS integer) FROM changed; "
        )

    def refuse_unsent(self) -> None:
        """Raises BusError if a transaction was committed without what was to go with it."""
        if self._last:
            raise BusError(
                "This version of asyncpg or SQLAlchemy does not commit as bus/postgresql.py expects"
                " it: something was committed that its delivery does not know of."
            )

    def transaction(self, **options: Any) -> Any:
        """A new one, which has nothing to go with its commit."""
        self._last = ""
        return super().transaction(**options)

    async def prepare(self, query: str, **options: Any) -> Any:
        """What SQLAlchemy executes; the same statement comes once."""
        if self.owner is not None:
            self.owner.check(query)
        return await super().prepare(query, **options)

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        """The same as ever, but for what asyncpg's transactions end with."""
        if query == "COMMIT;":
            return await self._commit(query)
        if query == "ROLLBACK;" and self.owner is not None:
            self.owner.is_cut_off, self.owner = True, None
        return await super().execute(query, *arguments, **options)

    async def _commit(self, query: str) -> Any:
        if self.owner is not None and not self.owner.is_over:
            # Reached around the session. SQLAlchemy takes the transaction for ended in any case.
            await self.execute("ROLLBACK;")
            raise refusal("connection().commit")
        self.owner, last, self._last = None, self._last, ""
        try:
            return await super().execute(last + query)
        except asyncpg.PostgresError as error:
            # The commit was not come to, if what went with it has failed.
            if self.is_in_transaction():
                await super().execute("ROLLBACK;")
            if _NOT_ONE in str(error):
                raise self._otherwise from error
            raise
