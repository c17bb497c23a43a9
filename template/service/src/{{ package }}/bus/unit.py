"""The unit of work: one transaction, from the first message in to the commit."""

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncConnection

from .bus import Bus, Route, RouteTable
from .catch_up import token_of
from .clock import Clock
from .context import Context
from .engines import Database
from .errors import BusError, UnitDoomedError
from .messages import Event
from .outbox import Outbox, Written, keys_of
from .recording import Cancellation, EventLog, take_back
from .session import Turn, UnitSession
from .sqlite import LEFT_READONLY

log = structlog.stdlib.get_logger(__name__)

_current: ContextVar["UnitOfWork | None"] = ContextVar("unit_of_work", default=None)

# A transaction that the database gave up for another's sake may simply run again.
_TRANSIENT_SQLSTATES = {"40001", "40P01"}
_MOST_RUNS = 3
_LONGEST_PAUSE_SECONDS = 0.05
_MOST_INLINE_ROUNDS = 100
# On SQLite a writer keeps all other writers waiting.
_SLOW_WRITE_SECONDS = 0.25


@dataclass(slots=True)
class Resources:
    """What every unit of work of one bus uses."""

    routes: RouteTable
    inline: Mapping[type, Sequence[Route]]
    outbox: Outbox
    database: Database | None
    clock: Clock
    on_commit: Callable[[Sequence[Mapping[str, Any]]], None] = field(default=lambda stored: None)
    # Listeners by their functions: name, and subscription (None: inline). Filled when it opens.
    listeners: Mapping[Callable[..., Any], tuple[str, int | None]] = field(default_factory=dict)
    # How many seconds a query waits for them.
    catch_up: float = 5.0


class Completion(Protocol):
    """What a unit does last of all before its commit: completes the deliveries that it is for."""

    @property
    def lanes(self) -> Collection[str]:
        """The keys of ordered deliveries among them."""

    async def __call__(self, connection: AsyncConnection) -> None:
        """Mark them done, now or with the commit; raises if they are another worker's by now."""


async def run_unit(
    resources: Resources,
    context: Context,
    call: Route,
    message: object,
    where: str = "",
    sender: Bus | None = None,
    *,
    readonly: bool = False,
    completion: Completion | None = None,
    turn: Turn | None = None,
) -> Any:
    """Run call(message, bus) as one transaction; returns what it returns, after the commit.

    turn is waited for before the first statement, and held until the end. sender is the bus that is
    told of what was published. A deadlock or a serialization failure runs it again. Raises BusError
    if this task is already inside of a unit of work.
    """
    outer = _current.get()
    if outer is not None and outer.is_open:
        raise BusError(
            f"{type(message).__name__} would open a second unit of work inside of one, and both"
            " could wait for each other: send it on the bus that the handler is given."
        )
    runs = 1
    while True:
        unit = UnitOfWork(resources, context, readonly, where, completion, turn)
        try:
            result = await unit.run(call, message)
            if sender is not None and (token := unit.token):
                sender._tell(token)
            return result
        except DBAPIError as error:
            if runs == _MOST_RUNS or not is_transient(error):
                raise
            # Those that met once would meet again.
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS * runs))
            runs += 1


class UnitOfWork:
    """One transaction and the events that it will store. Sends inside of it join it."""

    __slots__ = (
        "_completion",
        "_doomed_by",
        "_inside",
        "_readonly",
        "_resources",
        "_session",
        "_turn",
        "_where",
        "context",
        "first_token",
        "is_open",
        "log",
        "stored",
    )

    def __init__(
        self,
        resources: Resources,
        context: Context,
        readonly: bool = False,
        where: str = "",
        completion: Completion | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.context = context
        self.log = EventLog(context)
        self.is_open = True
        # The token of the first command under a key, whose answer is given again.
        self.first_token = ""
        # The rows of the events that it stores.
        self.stored: Sequence[Mapping[str, Any]] = ()
        self._resources = resources
        self._readonly = readonly
        self._where = where
        self._completion = completion
        self._turn = turn
        self._session: UnitSession | None = None
        self._inside: list[asyncio.Task[Any] | None] = []
        self._doomed_by: BaseException | None = None

    @property
    def has_database(self) -> bool:
        """Whether there is a session to ask for."""
        return self._resources.database is not None

    @property
    def session(self) -> UnitSession:
        """The session of this unit; its transaction begins with the first statement."""
        if self._session is None:
            database = self._resources.database
            if database is None:
                raise BusError("This bus was built without a database.")
            engine = database.queries if self._readonly else database.writer
            self._session = UnitSession(engine, self.log, self._turn)
        return self._session

    @property
    def token(self) -> str:
        """Names the events that it has stored, or that the first under its key had; '' for none."""
        return token_of(self.stored) if self.stored else self.first_token

    def complete_with(self, completion: Completion) -> None:
        """Do this last of all before the commit."""
        self._completion = completion

    async def run(self, call: Route, message: object) -> Any:
        """Run the outermost message and commit."""
        token = _current.set(self)
        bus = Bus(self._resources.routes, self.context, self)
        try:
            result = await call(message, bus)
            await self._commit(bus)
            return result
        finally:
            self.is_open = False
            _current.reset(token)
            if self._session is not None or self._inside:
                await self._end()

    async def join(self, call: Route, message: object, depth: int) -> Any:
        """Run a nested command. If it fails, nothing of this unit may be committed."""
        self._enter(depth)
        try:
            return await self.whole(call, message, self._bus())
        finally:
            self._inside.pop()

    async def whole(self, call: Route, message: object, bus: Bus) -> Any:
        """Run what may leave a half behind: if it fails, nothing of this unit may be committed."""
        try:
            return await call(message, bus)
        except BaseException as error:
            self._doomed_by = error
            raise

    async def join_query(self, call: Route, query: object, depth: int) -> Any:
        """Run a nested query: it sees what this unit has written, and cannot write."""
        self._enter(depth)
        try:
            if self._readonly:
                return await call(query, self._bus())
            async with self._reading():
                return await call(query, self._bus())
        finally:
            self._inside.pop()

    async def within(self, context: Context, call: Route, message: object) -> Any:
        """Run one of several deliveries that this unit works off, in a context of its own."""
        self.log.context = context
        try:
            return await call(message, self._bus())
        finally:
            self.log.context = self.context

    def publish(
        self, event: Event, depth: int, after: dt.timedelta | None, at: dt.datetime | None
    ) -> None:
        """Add the event to what is stored at the commit."""
        self._check(depth)
        self._resources.outbox.name_of(type(event))
        if after is not None and at is not None:
            raise BusError(f"{type(event).__name__} was published with after and at: give one.")
        if after is not None:
            at = self._resources.clock.now() + after
        elif at is not None and at.tzinfo is None:
            raise BusError(f"at={at!r}: expected a datetime with a time zone.")
        self.log.note(event, at)

    def cancel(self, cls: type[Event], key: object, depth: int) -> None:
        """Note that what is scheduled is taken back at the commit."""
        self._check(depth)
        self._resources.outbox.name_of(cls)
        self.log.note(Cancellation(cls, keys_of(cls, key)))

    @asynccontextmanager
    async def savepoint(self, depth: int) -> AsyncIterator[None]:
        """Undo what happens inside if it raises, and only that."""
        self._check(depth)
        doomed_by, length = self._doomed_by, len(self.log)
        try:
            if self._resources.database is None:
                yield
            else:
                async with self.session.begin_nested():
                    yield
        except BaseException:
            self._doomed_by = doomed_by
            take_back(self.log, length)
            raise

    def _bus(self) -> Bus:
        context = self.log.context or self.context
        return Bus(self._resources.routes, context, self, len(self._inside))

    def _enter(self, depth: int) -> None:
        self._check(depth)
        self._inside.append(asyncio.current_task())

    def _check(self, depth: int) -> None:
        if not self.is_open:
            raise BusError("The unit of work of this bus is over: its handler has returned.")
        if depth != len(self._inside):
            raise BusError(
                "Two tasks use one unit of work at once (asyncio.gather?): a transaction does one"
                " thing after the other. Await each send before the next."
            )

    def _check_whole(self) -> None:
        """Raises if another task still uses this unit, or if only a part would be committed."""
        self._check(0)
        if self._doomed_by is not None:
            raise UnitDoomedError(
                "Nothing was committed: a nested send, or what a guard proceeded to, failed"
                f" ({self._doomed_by!r}) and its caller went on. Let the error through, or do it"
                " inside `async with bus.savepoint():`."
            ) from self._doomed_by
        if self._session is not None:
            if not self._readonly:
                self._session.refuse_failed()
            self._session.refuse_half()

    async def _commit(self, bus: Bus) -> None:
        self._check_whole()
        if self._readonly:
            await self._refuse_changes()
            return
        if self.log or self._session is not None:
            await self._settle(bus)
            self._check_whole()
        self.is_open = False
        written = None
        if (self.log or self._completion) and self.has_database:
            written = await self._store()
        if self._session is not None:
            await _to_the_end(self._session.commit_unit())
        if written is not None:
            _tell(written)
            if written.events:
                self._resources.on_commit(written.events)

    async def _store(self) -> Written:
        """Write the events, and complete the deliveries that this unit is for."""
        completion, written = self._completion, Written()
        connection = await self.session.begun_connection()
        lanes = completion.lanes if completion else ()
        if self.log or lanes:
            store = self._resources.outbox.store
            written = await store(connection, self.log, self.context, lanes)
            self.stored = written.events
        if completion:
            await completion(connection)
        return written

    async def _settle(self, bus: Bus) -> None:
        """Flush and run inline listeners, which may change and publish more, until all is quiet."""
        log, inline, heard = self.log, self._resources.inline, 0
        for _ in range(_MOST_INLINE_ROUNDS):
            if self._session is not None:
                await self._session.flush()
            if heard == len(log):
                return
            news, heard = log[heard:], len(log)
            for noted in news:
                event, context = noted.event, noted.context or self.context
                for listener in inline.get(type(event), ()):
                    # Mostly it is the unit's own context: nothing to put into place.
                    if context is self.context:
                        await listener(event, bus)
                    else:
                        await self.within(context, listener, event)
        raise BusError(
            f"Inline listeners published on and on ({type(self.log[-1].event).__name__} last):"
            " one of them causes its own event."
        )

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        database, told = self._resources.database, len(self.log)
        if database is None:
            yield
            await self._refuse_changes(told)
            return
        on, off = _READONLY[database.dialect]
        await self.session.flush()
        info = (await self.session.connection()).info
        info[LEFT_READONLY] = True
        try:
            async with self.session.begin_nested():
                await self.session.execute(on)
                yield
                await self._refuse_changes(told)
        finally:
            if off is not None:
                # A cancelled statement loses the whole transaction: nothing to write any more.
                with suppress(PendingRollbackError):
                    await self.session.execute(off)
                    info[LEFT_READONLY] = False

    async def _refuse_changes(self, told: int = 0) -> None:
        """For queries: what they changed fails in the flush, what they published after `told`."""
        if self._session is not None:
            await self._session.flush()
        if len(self.log) > told:
            raise BusError(
                f"{type(self.log[-1].event).__name__} was published in a query, which only reads:"
                " publish it in the handler of a command."
            )

    async def _end(self) -> None:
        """Give everything back, when no other task uses it any more: a gather may have failed."""
        users = {*self._inside, *(self._session.used_by if self._session is not None else ())}
        users.discard(asyncio.current_task())
        tasks = [one for one in users if one is not None and not one.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await _to_the_end(asyncio.wait(tasks))
        if self._session is not None:
            await self._close(self._session)

    async def _close(self, session: UnitSession) -> None:
        if session.in_transaction():
            await _to_the_end(session.close_unit())
        else:
            # Nothing to wait for after a commit, and no task to make.
            session.sync_session.close()
        if self._readonly or (began := session.locked_at) is None:
            return
        seconds = perf_counter() - began
        if seconds > _SLOW_WRITE_SECONDS:
            log.warning("other writers had to wait", held_seconds=round(seconds, 3), by=self._where)


def _tell(written: Written) -> None:
    for row in written.events:
        told = {"event_name": row["name"], "event_id": str(row["id"])}
        if row["due"] is not None:
            told["due"] = row["due"].isoformat()
        log.info("event stored", correlation_id=row["correlation_id"], **told)
    for gone in written.cancelled:
        told = {"event_name": gone.name, "event_id": str(gone.id), "due": gone.due.isoformat()}
        log.info("scheduled event cancelled", **told)


# PostgreSQL ends this with the savepoint; SQLite has to be told.
_READONLY = {
    "postgresql": (text("SET TRANSACTION READ ONLY"), None),
    "sqlite": (text("PRAGMA query_only = 1"), text("PRAGMA query_only = 0")),
}


async def _to_the_end(step: Any) -> None:
    """Await a step that must not be cut off. A cancellation that comes meanwhile is too late.

    It is not raised again: its sender would take for failed what was committed.
    """
    task = asyncio.ensure_future(step)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()


def is_transient(error: DBAPIError) -> bool:
    """Whether the database gave the transaction up for another's sake."""
    return getattr(error.orig, "sqlstate", None) in _TRANSIENT_SQLSTATES
