"""PostgreSQL: a connection that only its owner ends, in one message with a last statement."""

from typing import Any

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .ownership import Owner, is_ending, refusal

# What is no number: PostgreSQL gives the transaction up, and says this.
_NOT_ONE = "another number of rows than one"
_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


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
        prepared = await super().prepare(query, **options)
        return _Ending(self, query, prepared) if is_ending(query) else prepared

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        """The same as ever, but for what asyncpg's transactions end with."""
        if query == "COMMIT;":
            return await self._commit(query)
        if query == "ROLLBACK;" and self.owner is not None:
            self.owner.is_cut_off, self.owner = True, None
        return await super().execute(query, *arguments, **options)

    async def commit_unbegun(self) -> None:
        """Let what goes with the commit be a transaction of its own, if there is no other."""
        if self.owner is None or not self.owner.last or self.is_in_transaction():
            return
        try:
            await self._commit("")
        except _ERRORS as error:
            # SQLAlchemy knows nothing of this one: what it sends itself fails with such an error.
            lost = self.is_closed()
            raise DBAPIError(None, None, error, connection_invalidated=lost) from error

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


class _Ending:
    """What was prepared to end a transaction that nobody owned, and is kept: asked each time."""

    def __init__(self, connection: PostgreSQLConnection, query: str, prepared: Any) -> None:
        self._connection, self._query, self._prepared = connection, query, prepared

    def __getattr__(self, name: str) -> Any:
        if self._connection.owner is not None:
            self._connection.owner.check(self._query)
        return getattr(self._prepared, name)


def owner_of(connection: AsyncConnection) -> Owner | None:
    """Whose commit of this connection may have something go with it; None on another database."""
    known = connection.sync_connection
    driver = None if known is None else known.connection.driver_connection
    return driver.owner if isinstance(driver, PostgreSQLConnection) else None
