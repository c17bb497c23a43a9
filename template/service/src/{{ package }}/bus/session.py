"""The session that handlers get: it is part of a unit of work, which alone begins and ends it."""

import asyncio
from typing import Any, NoReturn, Protocol

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.util import await_only

from .errors import BusError
from .ownership import Owner, refusal
from .recording import EventLog, RecordingSession, use_log
from .sqlite import SQLiteConnection


class Turn(Protocol):
    """What a session may have to wait for before its first statement."""

    async def acquire(self) -> object:
        """Wait for it."""

    def release(self) -> None:
        """Let the next have it."""


class _SyncSession(RecordingSession):
    """Waits for its turn, if it has to, before its first statement; notes who has used it.

    begun is the connection that its transaction began on, driver what is behind that. failed_before
    has what had failed by then for each savepoint.
    """

    turn: Turn | None = None
    has_turn = False
    begun: Connection | None = None
    driver: object = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.owner = Owner()
        self.failed_before = dict[SessionTransaction, BaseException | None]()
        self.used_by = set[asyncio.Task[Any] | None]()

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        self.used_by.add(asyncio.current_task())
        if self.turn is not None and not self.has_turn:
            await_only(self.turn.acquire())
            self.has_turn = True
        return super().get_bind(*arguments, **options)

    def begin(self, nested: bool = False) -> SessionTransaction:
        failed = self.owner.failed
        transaction = super().begin(nested)
        if nested:
            self.failed_before[transaction] = failed
        return transaction

    def close(self) -> None:
        self.owner.end()
        self.failed_before.clear()
        try:
            super().close()
        finally:
            if self.turn is not None and self.has_turn:
                self.turn.release()
                self.has_turn = False


class UnitConnection(AsyncConnection):
    """The connection of a unit's session, which refuses the same."""

    async def commit(self) -> NoReturn:
        raise refusal("connection().commit")

    async def rollback(self) -> NoReturn:
        raise refusal("connection().rollback")

    async def close(self) -> NoReturn:
        raise refusal("connection().close")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:
        raise refusal("connection().invalidate")

    def begin_nested(self) -> NoReturn:
        # The session would not hear of it, and keep what was recorded meanwhile.
        raise refusal("connection().begin_nested")


class UnitSession(AsyncSession):
    """An AsyncSession that refuses what would end or split its unit of work."""

    sync_session_class = _SyncSession
    sync_session: _SyncSession

    def __init__(
        self, engine: AsyncEngine | AsyncConnection, log: EventLog, turn: Turn | None = None
    ) -> None:
        """turn is held from the first statement to the end of the unit."""
        # Whoever still holds it when the unit is over cannot begin a transaction that nobody ends.
        super().__init__(engine, expire_on_commit=False, close_resets_only=False)
        self._engine = engine.engine if isinstance(engine, AsyncConnection) else engine
        self.sync_session.turn = turn
        use_log(self.sync_session, log)

    async def commit(self) -> NoReturn:
        raise refusal("commit")

    async def rollback(self) -> NoReturn:
        raise refusal("rollback")

    async def close(self) -> NoReturn:
        raise refusal("close")

    async def reset(self) -> NoReturn:
        raise refusal("reset")

    async def invalidate(self) -> NoReturn:
        raise refusal("invalidate")

    def begin(self) -> NoReturn:
        raise refusal("begin")

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        """What the session is on, such as for its dialect: nothing to wait for a turn for."""
        return RecordingSession.get_bind(self.sync_session, *arguments, **options)

    async def connection(self, *arguments: Any, **options: Any) -> AsyncConnection:
        """The connection of the unit, for statements that go around the ORM."""
        found = await super().connection(*arguments, **options)
        return UnitConnection(found.engine, found.sync_connection)

    async def begun_connection(self) -> AsyncConnection:
        """The same, for the unit of work: at once, if the transaction has begun."""
        begun = self.sync_session.begun
        if begun is None or begun.closed:
            return await super().connection()
        return AsyncConnection(self._engine, begun)

    @property
    def used_by(self) -> set[asyncio.Task[Any] | None]:
        """The tasks that have made it do something."""
        return self.sync_session.used_by

    @property
    def locked_at(self) -> float | None:
        """When it took SQLite's lock for writers, by `perf_counter`; None if it did not."""
        driver = self.sync_session.driver
        return driver.began if isinstance(driver, SQLiteConnection) else None

    def refuse_half(self) -> None:
        """Raises BusError if the handler rolled back what it had done before."""
        if self.sync_session.owner.is_cut_off:
            raise refusal("rollback")

    def refuse_failed(self) -> None:
        """Raises BusError if the handler went on after a statement that failed.

        PostgreSQL has given up the transaction by then, and would roll back at the commit without
        an error.
        """
        connection, error = self.sync_session.begun, self.sync_session.owner.failed
        if connection is None or connection.closed or connection.invalidated:
            return
        if error is not None:
            raise BusError(
                f"Nothing was committed: a statement failed ({error!r}), and the handler went on."
                " Let the error through, or execute it inside `async with bus.savepoint():`."
            ) from error

    async def start_over(self) -> None:
        """Roll back, and begin anew with the next statement; for queries that wait."""
        await super().rollback()
        self.sync_session.owner.is_cut_off = False

    async def commit_unit(self) -> None:
        """Commit; for the unit of work."""
        owner = self.sync_session.owner
        owner.end()
        await super().commit()
        if owner.last:
            raise BusError(
                "This version of asyncpg or SQLAlchemy does not commit as bus/postgresql.py expects"
                " it: something was committed that its delivery does not know of."
            )

    async def close_unit(self) -> None:
        """Roll back what is not committed and give the connection back; for the unit of work."""
        await super().close()


def _after_begin(session: _SyncSession, _: SessionTransaction, connection: Connection) -> None:
    # Where a statement names another engine than the unit's, that has a transaction of its own.
    if session.bind is None or connection.engine is not session.bind.engine:
        return
    driver: Any = connection.connection.driver_connection
    session.begun, session.driver = connection, driver
    driver.owner = session.owner


def _before_commit(session: _SyncSession) -> None:
    # Reached around the methods above, as in `session.run_sync(lambda session: session.commit())`.
    if not session.owner.is_over and not session.in_nested_transaction():
        raise refusal("commit")


def _after_rollback(session: _SyncSession, transaction: SessionTransaction) -> None:
    # As in `session.run_sync(lambda session: session.rollback())`: known when it is too late.
    if transaction.parent is None:
        session.owner.is_cut_off = True
    elif transaction in session.failed_before:
        # A failure of before the savepoint is none that this undoes.
        session.owner.failed = session.failed_before[transaction]


def watch(engine: AsyncEngine) -> None:
    """Let the units of work on this engine know of statements that failed.

    What is asked for at each statement or commit would cost each of them.
    """
    event.listen(engine.sync_engine, "handle_error", _after_error)
    event.listen(engine.sync_engine, "checkin", _disown)


def _after_error(context: ExceptionContext) -> None:
    connection = context.connection
    # One that is lost has no driver any more, and would connect anew for it.
    if connection is None or connection.invalidated:
        return
    driver: Any = connection.connection.driver_connection
    if driver.owner is not None and not driver.owner.is_over:
        # The first is the cause: PostgreSQL refuses whatever comes after it.
        driver.owner.failed = driver.owner.failed or context.original_exception


def _disown(connection: Any, _: object) -> None:
    # A unit that was rolled back before its first statement may go on, while others commit on it.
    if connection is not None:
        connection.driver_connection.owner = None


event.listen(_SyncSession, "after_begin", _after_begin)
event.listen(_SyncSession, "before_commit", _before_commit)
event.listen(_SyncSession, "after_soft_rollback", _after_rollback)
