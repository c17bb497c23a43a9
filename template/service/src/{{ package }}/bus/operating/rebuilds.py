"""Makes a read model anew from the event log, beside the live one, while events keep coming."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..bus import Bus, Route
from ..context import Context
from ..errors import OperationError
from ..messages import Event
from ..runtime import Runtime
from ..subscriptions import LOCK_TIMEOUT, lock_log, log_floor, until_locked
from ..unit import Completion
from ..work import Listener
from .audit import Audit
from .corrections import Corrections
from .rows_only import RowsOnly
from .standing import Subscribed
from .temporary import is_refused, make_like, writing_nothing_else

_CHUNK = 1000
# With no more events than that left to go through, publishers wait for the rest.
_LITTLE = 1000


@dataclass(frozen=True, slots=True)
class ReadModel:
    """A listener, the stored names of its events, old ones too, and the tables that it makes."""

    listener: str
    names: tuple[str, ...]
    events: tuple[str, ...]
    tables: tuple[sa.Table, ...]


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A read model that is to be made anew, and how many events there are for it so far."""

    model: ReadModel
    subscribed: Subscribed
    events: int


async def refuse_below_floor(connection: AsyncConnection) -> None:
    """Raises OperationError if events may have been removed: what they have made would be lost."""
    if floor := await log_floor(connection):
        raise OperationError(
            f"Events up to position {floor} of the log may have been removed: nothing that they"
            " were part of can be made anew. (KEEP_EVENTS_DAYS says how long they are kept.)"
        )


class Making:
    """Makes one read model anew, on a connection that has temporary tables for it.

    A temporary table is what its name means on its connection, so that the listener runs as ever.
    """

    def __init__(
        self,
        runtime: Runtime,
        planned: Rebuild,
        listener: Listener,
        connection: AsyncConnection,
        audit: Audit,
    ) -> None:
        assert runtime.database is not None
        self._database = runtime.database
        self._clock = runtime.clock
        self._readers = runtime.readers
        self._planned = planned
        self._listener = listener
        self._connection = connection
        self._audit = audit
        # Live tables and temporary ones, by names that do not mean the other.
        self._pairs = list[tuple[sa.Table, sa.Table]]()
        self._corrections = Corrections(planned.subscribed.id, planned.model.events)
        # The new rows are what the events up to this position make.
        self._at = 0

    @property
    def _is_sqlite(self) -> bool:
        return self._database.dialect == "sqlite"

    async def make(self, progress: Callable[[int], None]) -> None:
        """Do it, from the first event to the last. Raises OperationError."""
        async with self._connection.begin():
            for table in self._planned.model.tables:
                self._pairs.append(await make_like(self._connection, table))
        upto, before = 0, sys.maxsize
        while True:
            newest = await until_locked(self._newest)
            left = newest - upto
            # Where as much comes as goes, no round leaves less than the one before.
            if left <= _LITTLE or left >= before:
                break
            upto, before = newest, left
            while count := await self._run(self._play, upto):
                progress(count)
        at = self._at

        async def finish() -> int:
            # Whatever an attempt before has done is rolled back.
            self._at = at
            count: int = await self._run(self._play_the_rest, None, _Last(self._replace))
            return count

        progress(await until_locked(finish))

    async def _newest(self) -> int:
        """A position up to which all is committed."""
        # A reader of SQLite sees just that, and keeps nobody waiting.
        engine = self._database.reader if self._is_sqlite else self._database.writer
        async with engine.begin() as connection:
            return await lock_log(connection)

    async def _run(self, call: Route, message: Any, completion: Completion | None = None) -> Any:
        """Run call(message, bus) as a transaction of this connection."""
        unit = RowsOnly(self._database, self._connection, self._clock, completion)
        return await unit.run(call, message)

    async def _play(self, upto: int, bus: Bus) -> int:
        """Run the listener for the next events; how many there were."""
        session = bus.session
        assert session is not None
        connection = await session.connection()
        row = None
        try:
            rows = await self._next(connection, upto)
            given = await self._given(connection, rows)
            async with writing_nothing_else(session):
                for group in self._grouped(given):
                    row = group[-1]
                    await self._listen(group, bus)
        except Exception as error:
            raise self._failure(error, row) from error
        self._at = rows[-1].position if len(rows) == _CHUNK else upto
        return len(rows)

    async def _next(self, connection: AsyncConnection, upto: int) -> Sequence[Any]:
        """The next events, without those that correct others."""
        places = await self._corrections.read(connection, upto)
        if any(place <= self._at for place in places):
            raise OperationError("an event of it was corrected meanwhile: begin once more")
        event = tables.event
        query = (
            _EVENTS.where(event.c.name.in_(self._planned.model.events))
            .where(event.c.position > self._at, event.c.position <= upto)
            .where(tables.corrected_for().is_(None))
            .limit(_CHUNK)
        )
        return (await connection.execute(query)).all()

    async def _given(self, connection: AsyncConnection, rows: Sequence[Any]) -> Sequence[Any]:
        """What the listener gets for these events, in their order."""
        given = [self._corrections.given_at(row.position) for row in rows]
        found = {row.position: row for row in rows}
        if others := [position for position in given if position not in found]:
            query = _EVENTS.where(tables.event.c.position.in_(others))
            found |= {row.position: row for row in await connection.execute(query)}
        # If one is gone, more are: what replaces the live rows refuses.
        return [found[position] for position in given if position in found]

    def _grouped(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The events that the listener gets at once."""
        many = self._listener.mark.batch if self._listener.takes_list else 1
        return (rows[at : at + many] for at in range(0, len(rows), many))

    async def _listen(self, rows: Sequence[Any], bus: Bus) -> None:
        listener, last = self._listener, rows[-1]
        events = [self._event(row) for row in rows]
        context = Context.of_delivery(
            last.id, last.correlation_id, last.headers, delivery=f"rebuild of {listener.name}"
        )
        await bus.within(context, listener.call, events if listener.takes_list else events[0])

    def _event(self, row: Any) -> Event:
        if row.version not in self._readers[row.name]:
            raise OperationError(f"this code cannot read version {row.version} of {row.name}")
        return self._readers[row.name][row.version](row.payload)

    def _failure(self, error: Exception, row: Any) -> OperationError:
        name, told = self._listener.name, str(error) or repr(error)
        if isinstance(error, DBAPIError):
            told = f"{type(error).__name__}: {error.orig}"
            if is_refused(error):
                told = f"it writes to tables that its `projects` does not name ({error.orig})"
        at = f" at or before {row.name} {row.id}, position {row.position}" if row else ""
        return OperationError(f"{name} failed{at}: {told}. Nothing was changed.")

    async def _play_the_rest(self, _: None, bus: Bus) -> int:
        """With the log and the live tables locked; how many events there were."""
        session = bus.session
        assert session is not None
        connection = await session.connection()
        await self._lock(connection)
        upto, before = await lock_log(connection), 0
        while count := await self._play(upto, bus):
            before += count
            session.expunge_all()
        return before

    async def _lock(self, connection: AsyncConnection) -> None:
        """Keep out other writers: those of the read model, before those of the log."""
        row = tables.subscription
        if not self._is_sqlite:
            await connection.execute(LOCK_TIMEOUT)
        # One that is being filled needs no more: it goes live. (SQLite is locked by this as well.)
        mine = row.c.id == self._planned.subscribed.id
        await connection.execute(sa.update(row).where(mine).values(backfilled_to=None))
        if not self._is_sqlite:
            quoted = connection.dialect.identifier_preparer.format_table
            names = ", ".join(quoted(live) for live, _ in self._pairs)
            await connection.exec_driver_sql(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE")

    async def _replace(self, connection: AsyncConnection) -> None:
        """Take over the new rows, and what was to be delivered as done."""
        await refuse_below_floor(connection)
        count = 0
        for live, temporary in self._pairs:
            await connection.execute(sa.delete(live))
            names = [column.name for column in live.c if column.computed is None]
            rows = sa.select(*(temporary.c[name] for name in names))
            count += (await connection.execute(sa.insert(live).from_select(names, rows))).rowcount
        delivery, now = tables.delivery, self._clock.now()
        # Whoever works on one of them has no token for it any more, and rolls back.
        await connection.execute(
            sa.update(delivery)
            .where(delivery.c.subscription_id == self._planned.subscribed.id)
            .where(tables.is_in("waiting", "pending", "working", "dead"))
            .values(state="done", token=None, finished_at=now)
        )
        await self._audit.add(connection, count, now)


class _Last:
    """What the last transaction does last."""

    lanes: Sequence[str] = ()

    def __init__(self, replace: Callable[[AsyncConnection], Any]) -> None:
        self._replace = replace

    async def __call__(self, connection: AsyncConnection) -> None:
        await self._replace(connection)


_EVENTS = sa.select(
    *(
        tables.event.c[name]
        for name in ("id", "position", "name", "version", "payload", "headers", "correlation_id")
    )
).order_by(tables.event.c.position)
