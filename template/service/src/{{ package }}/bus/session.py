"""The session that handlers get: it is part of a unit of work, which alone begins and ends it."""

import asyncio
import re
from typing import Any, NoReturn, Protocol

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only

from .errors import BusError
from .postgresql import PostgreSQLConnection
from .recording import EventLog, RecordingSession, use_log
from .sqlite import SQLiteConnection

_ENDS = "bus_unit_ends"
_CUT_OFF = "bus_unit_cut_off"
_DRIVER = "bus_unit_driver"
_CONNECTION = "bus_unit_connection"
_UNIT = "bus_unit"
# As SQL, behind comments, too; savepoints of SQLAlchemy's own are known by their names.
_ENDING = re.compile(
    r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
    r"(COMMIT|ROLLBACK|BEGIN|START|END|ABORT|SAVEPOINT|RELEASE)\b(?!.*\bsa_savepoint_\d+\s*$)",
    re.IGNORECASE | re.DOTALL,
)
# In a connection's info: the error of a statement that nothing has undone yet.
_FAILED = "bus_failed"


class Turn(Protocol):
    """What a session may have to wait for before its first statement."""

    async def acquire(self) -> object:
        """Wait for it."""

    def release(self) -> None:
        """Let the next have it."""


class _TurnTakingSession(RecordingSession):
    """Waits for its turn, if it has to, before its first statement; notes who has used it."""

    turn: Turn | None = None
    has_turn = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.used_by = set[asyncio.Task[Any] | None]()

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        self.used_by.add(asyncio.current_task())
        if self.turn is not None and not self.has_turn:
            await_only(self.turn.acquire())
            self.has_turn = True
        return super().get_bind(*arguments, **options)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self.turn is not None and self.has_turn:
                self.turn.release()
                self.has_turn = False


class UnitConnection(AsyncConnection):
    """The connection of a unit's session, which refuses the same."""

    async def commit(self) -> NoReturn:
        raise _refusal("connection().commit")

    async def rollback(self) -> NoReturn:
        raise _refusal("connection().rollback")

    async def close(self) -> NoReturn:
        raise _refusal("connection().close")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:
        raise _refusal("connection().invalidate")

    def begin_nested(self) -> NoReturn:
        # The session would not hear of it, and keep what was recorded meanwhile.
        raise _refusal("connection().begin_nested")


class UnitSession(AsyncSession):
    """An AsyncSession that refuses what would end or split its unit of work."""

    sync_session_class = _TurnTakingSession
    sync_session: _TurnTakingSession

    def __init__(
        self, engine: AsyncEngine | AsyncConnection, log: EventLog, turn: Turn | None = None
    ) -> None:
        """turn is held from the first statement to the end of the unit."""
        # Whoever still holds it when the unit is over cannot begin a transaction that nobody ends.
        super().__init__(engine, expire_on_commit=False, close_resets_only=False)
        self.sync_session.turn = turn
        use_log(self.sync_session, log)

    async def commit(self) -> NoReturn:
        raise _refusal("commit")

    async def rollback(self) -> NoReturn:
        raise _refusal("rollback")

    async def close(self) -> NoReturn:
        raise _refusal("close")

    async def reset(self) -> NoReturn:
        raise _refusal("reset")

    async def invalidate(self) -> NoReturn:
        raise _refusal("invalidate")

    def begin(self) -> NoReturn:
        raise _refusal("begin")

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        """What the session is on, such as for its dialect: nothing to wait for a turn for."""
        return RecordingSession.get_bind(self.sync_session, *arguments, **options)

    async def connection(self, *arguments: Any, **options: Any) -> AsyncConnection:
        """The connection of the unit, for statements that go around the ORM."""
        found = await super().connection(*arguments, **options)
        return UnitConnection(found.engine, found.sync_connection)

    @property
    def used_by(self) -> set[asyncio.Task[Any] | None]:
        """The tasks that have made it do something."""
        return self.sync_session.used_by

    @property
    def locked_at(self) -> float | None:
        """When it took SQLite's lock for writers, by `perf_counter`; None if it did not."""
        driver = self.sync_session.info.get(_DRIVER)
        return driver.began if isinstance(driver, SQLiteConnection) else None

    def refuse_half(self) -> None:
        """Raises BusError if the handler rolled back what it had done before."""
        if _CUT_OFF in self.sync_session.info:
            raise _refusal("rollback")

    def refuse_failed(self) -> None:
        """Raises BusError if the handler went on after a statement that failed.

        PostgreSQL has given up the transaction by then, and would roll back at the commit without
        an error.
        """
        connection = self.sync_session.info.get(_CONNECTION)
        if connection is None or connection.closed or connection.invalidated:
            return
        if (error := connection.info.get(_FAILED)) is not None:
            raise BusError(
                f"Nothing was committed: a statement failed ({error!r}), and the handler went on."
                " Let the error through, or execute it inside `async with bus.savepoint():`."
            ) from error

    async def start_over(self) -> None:
        """Roll back, and begin anew with the next statement; for queries that wait."""
        await super().rollback()
        self.sync_session.info.pop(_CUT_OFF, None)

    async def commit_unit(self) -> None:
        """Commit; for the unit of work."""
        self.sync_session.info[_ENDS] = True
        await super().commit()
        driver = self.sync_session.info.get(_DRIVER)
        if isinstance(driver, PostgreSQLConnection):
            driver.refuse_unsent()

    async def close_unit(self) -> None:
        """Roll back what is not committed and give the connection back; for the unit of work."""
        await super().close()


def _after_begin(session: Session, _: SessionTransaction, connection: Connection) -> None:
    session.info[_CONNECTION] = connection
    connection.info[_UNIT] = session.info
    session.info[_DRIVER] = connection.connection.driver_connection


def _before_commit(session: Session) -> None:
    # Reached around the methods above, as in `session.run_sync(lambda session: session.commit())`.
    if _ENDS not in session.info and not session.in_nested_transaction():
        raise _refusal("commit")


def _after_rollback(session: Session, transaction: SessionTransaction) -> None:
    # As in `session.run_sync(lambda session: session.rollback())`: known when it is too late.
    if transaction.parent is None and _ENDS not in session.info:
        session.info[_CUT_OFF] = True


def watch(engine: AsyncEngine) -> None:
    """Let the units of work on this engine know of statements that failed, or would end them."""
    event.listen(engine.sync_engine, "before_cursor_execute", _refuse_end)
    event.listen(engine.sync_engine, "commit", _refuse_commit)
    event.listen(engine.sync_engine, "handle_error", _after_error)
    event.listen(engine.sync_engine, "rollback_savepoint", _forget_failure)
    event.listen(engine.sync_engine, "checkin", _forget_at_the_end)


def _refuse_end(connection: Connection, cursor: object, statement: str, *_: object) -> None:
    # SQLAlchemy would not know, and the unit would store the events of what was rolled back.
    if _UNIT in connection.info and (found := _ENDING.match(statement)):
        raise _refusal("execute", f'text("{found[1]}")')


def _refuse_commit(connection: Connection) -> None:
    # Reached around the session, as in `connection.run_sync(lambda connection: …)`.
    unit = connection.info.get(_UNIT)
    if unit is not None and _ENDS not in unit:
        # SQLAlchemy takes it for ended whatever happens here, and would not roll back any more.
        connection.connection.rollback()
        unit[_CUT_OFF] = True
        raise _refusal("connection().commit")


def _after_error(context: ExceptionContext) -> None:
    if context.connection is not None and not context.connection.invalidated:
        context.connection.info[_FAILED] = context.original_exception


def _forget_failure(connection: Connection, *_: object) -> None:
    # One that is lost has no info any more, and would connect anew for it.
    if not connection.invalidated:
        connection.info.pop(_FAILED, None)


def _forget_at_the_end(_: object, record: ConnectionPoolEntry) -> None:
    # The error would keep alive all that its traceback knows.
    record.info.pop(_FAILED, None)
    record.info.pop(_UNIT, None)


def _refusal(what: str, arguments: str = "") -> BusError:
    return BusError(
        f"session.{what}({arguments}) in a handler: the unit of work commits when the handler"
        " returns, and rolls back when it raises. To undo only a part, use"
        " `async with bus.savepoint():`."
    )


event.listen(RecordingSession, "after_begin", _after_begin)
event.listen(RecordingSession, "before_commit", _before_commit)
event.listen(RecordingSession, "after_soft_rollback", _after_rollback)
