"""The session that handlers get: it is part of a unit of work, which alone begins and ends it."""

from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from .errors import BusError
from .recording import EventLog, RecordingSession, use_log


class UnitSession(AsyncSession):
    """An AsyncSession that refuses what would end or split its unit of work."""

    sync_session_class = RecordingSession

    def __init__(self, engine: AsyncEngine, log: EventLog) -> None:
        super().__init__(engine, expire_on_commit=False)
        use_log(self.sync_session, log)

    async def commit(self) -> NoReturn:
        raise _refusal("commit")

    async def rollback(self) -> NoReturn:
        raise _refusal("rollback")

    async def close(self) -> NoReturn:
        raise _refusal("close")

    def begin(self) -> NoReturn:
        raise _refusal("begin")

    async def commit_unit(self) -> None:
        """Commit; for the unit of work."""
        await super().commit()

    async def close_unit(self) -> None:
        """Roll back what is not committed and give the connection back; for the unit of work."""
        await super().close()


def _refusal(what: str) -> BusError:
    return BusError(
        f"session.{what}() in a handler: the unit of work commits when the handler returns, and"
        " rolls back when it raises. To undo only a part, use `async with bus.savepoint():`."
    )
