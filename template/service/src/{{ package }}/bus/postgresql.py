"""PostgreSQL: a connection that can send a last statement in one message with its COMMIT."""

from typing import Any, Self

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

from .errors import BusError

# What is no number: PostgreSQL gives the transaction up, and says this.
_NOT_ONE = "another number of rows than one"


class PostgreSQLConnection(asyncpg.Connection):  # type: ignore[misc]  # It has no types.
    """A statement and the COMMIT behind it are one round trip, where asyncpg's own makes two."""

    __slots__ = ("_last", "_otherwise")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
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

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        """The same as ever, but for the COMMIT that asyncpg's transactions send by it."""
        if not self._last or query != "COMMIT;":
            return await super().execute(query, *arguments, **options)
        last, self._last = self._last, ""
        try:
            return await super().execute(last + query, **options)
        except asyncpg.PostgresError as error:
            # The commit was not come to: SQLAlchemy takes the transaction for ended.
            if self.is_in_transaction():
                await super().execute("ROLLBACK;")
            if _NOT_ONE in str(error):
                raise self._otherwise from error
            raise
