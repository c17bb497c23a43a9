"""Streams of events in a slice's own tables: aggregates are loaded from them and appended to them.

Everything goes through the session of the unit of work, so that events, what is published of them
and all else that a handler stores are committed together or not at all.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, get_args, get_type_hints
from uuid import UUID

import sqlalchemy as sa
import structlog
from pydantic import ValidationError
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from .aggregates import Aggregate, Payload, StreamEvent
from .clock import utc_now
from .context import Context
from .errors import BusError
from .payloads import from_payload, payload_of, secret_in
from .recording import log_of
from .texts import told
from .types import Utc

# The type of the last row of a stream that was erased.
ERASED = "erased"

log = structlog.stdlib.get_logger(__name__)

_JSON = sa.JSON(none_as_null=True)
_LATEST = 2**31 - 1


class StoredEvent:
    """The columns of a table of streams. payload is NULL in a stream that was erased."""

    stream_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(sa.String(200))
    event_version: Mapped[int]
    payload: Mapped[Payload | None] = mapped_column(_JSON)
    correlation_id: Mapped[str] = mapped_column(sa.String(64))
    causation_id: Mapped[UUID | None]
    recorded_at: Mapped[dt.datetime] = mapped_column(Utc())


class StoredSnapshot:
    """The columns of a table of snapshots: what a stream amounted to at some of its versions."""

    stream_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    schema: Mapped[int]
    state: Mapped[Payload] = mapped_column(_JSON)


A = TypeVar("A", bound=Aggregate[Any])


class Streams(Generic[A]):
    """The streams of all aggregates of one class, in the slice's tables of events and snapshots."""

    def __init__(
        self,
        aggregate: type[A],
        events: type[StoredEvent],
        snapshots: type[StoredSnapshot],
        *,
        snapshot_every: int = 100,
    ) -> None:
        """A snapshot is taken every so many versions; it saves time, and nothing depends on it.

        One that could not be read back as what it was is not taken; both that, and one that is
        stored and cannot be read, are logged as warnings.

        Raises TypeError if evolve does not say which events there are, or if two have one name.
        """
        self._aggregate = aggregate
        self._types = _event_types(aggregate)
        self._events: sa.Table = sa.inspect(events).local_table
        self._snapshots: sa.Table = sa.inspect(snapshots).local_table
        self._snapshot_every = snapshot_every
        self._load = _load(self._events, self._snapshots)
        self._insert_next = _insert_next(self._events)

    async def load(
        self, session: AsyncSession, stream_id: UUID, *, version: int | None = None
    ) -> A | None:
        """The aggregate as it is, or as it was at a version; None if there is none, or no more.

        Raises BusError for an event that this code does not know.
        """
        upto = _LATEST if version is None else version
        return await self._read(session, stream_id, upto, self._aggregate.snapshot_schema)

    async def append(self, session: AsyncSession, aggregate: A) -> None:
        """Store the new events of an aggregate, if there are any.

        Raises StaleDataError (409 over HTTP) if its stream has gone on since it was loaded.
        """
        new = aggregate.new_events
        if not new:
            return
        before = aggregate.version - len(new)
        rows = [
            {"type": one.event_name, "event_version": one.event_version}
            | {"payload": payload_of(one)}
            for one in new
        ]
        await self._insert(session, aggregate.id, before, rows, aggregate.created_at)
        aggregate.appended()
        if aggregate.version // self._snapshot_every > before // self._snapshot_every:
            await self._take_snapshot(session, aggregate)

    async def erase(self, session: AsyncSession, stream_id: UUID) -> bool:
        """Remove what the events of a stream say, for good; returns whether there was a stream.

        Types, versions and times stay, and one more row says when it was erased. What is erased
        cannot be loaded. Raises StaleDataError if the stream goes on at the same time.
        """
        events, snapshots = self._events, self._snapshots
        of_stream = events.c.stream_id == stream_id
        query = sa.select(events.c.version, events.c.type).where(of_stream)
        last = (await session.execute(query.order_by(events.c.version.desc()).limit(1))).first()
        if last is None:
            return False
        if last.type != ERASED:
            # Before the rest: who appends meanwhile is refused, and leaves nothing that stays.
            row = {"type": ERASED, "event_version": 1, "payload": None}
            await self._insert(session, stream_id, last.version, [row])
            await session.execute(sa.update(events).where(of_stream).values(payload=None))
            await session.execute(sa.delete(snapshots).where(snapshots.c.stream_id == stream_id))
        return True

    async def _read(
        self, session: AsyncSession, stream_id: UUID, upto: int, schema: int | None
    ) -> A | None:
        """What load gives, by snapshots of this schema; None: by none."""
        given = {"stream_id": stream_id, "upto": upto, "schema": schema}
        aggregate: A | None = None
        for row in await session.execute(self._load, given):
            if row.payload is None:
                return None
            if row.state is not None:
                aggregate = self._of_snapshot(row.state, stream_id)
                if aggregate is None:
                    return await self._read(session, stream_id, upto, None)
                continue
            if aggregate is None:
                aggregate = self._aggregate.blank(stream_id, row.recorded_at)
            aggregate.replay(self._event(row.type, row.event_version, row.payload))
        return aggregate

    def _of_snapshot(self, state: Payload, stream_id: UUID) -> A | None:
        try:
            return from_payload(self._aggregate, state)
        except Exception as error:
            self._warn("a snapshot cannot be read, all events are", stream_id, _why(error))
            return None

    def _warn(self, what: str, stream_id: UUID, why: str) -> None:
        log.warning(what, table=self._snapshots.name, stream=str(stream_id), error=why)

    def _event(self, type_: str, version: int, payload: Payload) -> StreamEvent:
        kind = self._types.get(type_)
        if kind is None or version > kind.event_version:
            raise BusError(
                f"{self._events.name} has an event {type_}, version {version}, which"
                f" {self._aggregate.__name__}.evolve does not take. A class that was renamed keeps"
                " its stored name (name=...), one that is in use no more stays for what is stored;"
                " a newer version is read by newer code only."
            )
        for upcast in kind.event_upcast[version - 1 :]:
            payload = upcast(payload)
        return from_payload(kind, payload)

    async def _insert(
        self,
        session: AsyncSession,
        stream_id: UUID,
        before: int,
        rows: Sequence[dict[str, Any]],
        began: dt.datetime | None = None,
    ) -> None:
        """Store rows behind the version `before`; began is the time of a stream's first row."""
        context = log_of(session.sync_session).context or Context()
        now = utc_now()
        first, *others = [
            {
                "stream_id": stream_id,
                "version": version,
                **row,
                "correlation_id": context.correlation_id,
                "causation_id": context.causation_id,
                "recorded_at": began if version == 1 else now,
            }
            for version, row in enumerate(rows, before + 1)
        ]
        connection = await session.connection()
        try:
            found = await connection.execute(self._insert_next, first)
            if found.rowcount != 1:
                raise _stale(self._events, stream_id, before)
            if others:
                await connection.execute(sa.insert(self._events), others)
        except IntegrityError as error:
            raise _stale(self._events, stream_id, before) from error

    async def _take_snapshot(self, session: AsyncSession, aggregate: A) -> None:
        try:
            state = payload_of(aggregate)
            read = from_payload(self._aggregate, state)
        except Exception as error:
            # Events may make what the types of the fields do not allow: that is no reason to fail.
            self._warn("no snapshot is taken: it could not be read", aggregate.id, _why(error))
            return
        if changed := _differing(aggregate, read):
            why = f"{', '.join(changed)}: not the same when it is read"
            self._warn("no snapshot is taken: it would change the state", aggregate.id, why)
            return
        row = {
            "stream_id": aggregate.id,
            "version": aggregate.version,
            "schema": aggregate.snapshot_schema,
            "state": state,
        }
        await session.execute(sa.insert(self._snapshots), row)


def _differing(one: Aggregate[Any], other: Aggregate[Any]) -> list[str]:
    """The names of the fields and private attributes in which they differ."""
    mine, theirs = ({**dict(each), **(each.__pydantic_private__ or {})} for each in (one, other))
    missing = object()
    return [name for name in mine if theirs.get(name, missing) != mine[name]]


def _why(error: Exception) -> str:
    # What the fields hold is not told: it may be erased one day, and the log is not.
    return told(error) if isinstance(error, ValidationError) else type(error).__name__


def _stale(events: sa.Table, stream_id: UUID, version: int) -> StaleDataError:
    return StaleDataError(
        f"{events.name}: the stream {stream_id} is no longer at version {version}: load it again."
    )


def _event_types(aggregate: type[Aggregate[Any]]) -> dict[str, type[StreamEvent]]:
    """The events that evolve takes, by their stored names."""
    hints = get_type_hints(aggregate.evolve)
    hints.pop("return", None)
    wanted = next(iter(hints.values()), None)
    found: dict[str, type[StreamEvent]] = {}
    for kind in get_args(wanted) or (wanted,):
        if not (isinstance(kind, type) and issubclass(kind, StreamEvent)):
            raise TypeError(
                f"{aggregate.__name__}.evolve takes {wanted}: expected the union of its events,"
                " each a StreamEvent, such as `event: Created | Changed`"
            )
        if secret := secret_in(kind):
            raise TypeError(f"{kind.__name__}.{secret}: a secret cannot be stored, only asterisks")
        if kind.event_name in found or kind.event_name == ERASED:
            raise TypeError(f"two events of {aggregate.__name__} are stored as {kind.event_name!r}")
        found[kind.event_name] = kind
    return found


def _load(events: sa.Table, snapshots: sa.Table) -> sa.Select[Any]:
    """The events behind the last snapshot, and before them the one that it was taken at."""
    stream_id = sa.bindparam("stream_id", type_=sa.Uuid())
    upto = sa.bindparam("upto", type_=sa.Integer())
    snapshot = (
        sa.select(snapshots.c.version, snapshots.c.state)
        .where(snapshots.c.stream_id == stream_id, snapshots.c.version <= upto)
        .where(snapshots.c.schema == sa.bindparam("schema", type_=sa.Integer()))
        .order_by(snapshots.c.version.desc())
        .limit(1)
        .cte("snapshot")
    )
    since = sa.func.coalesce(sa.select(snapshot.c.version).scalar_subquery(), 0)
    columns = (events.c[name] for name in ("type", "event_version", "payload", "recorded_at"))
    return (
        sa.select(*columns, snapshot.c.state)
        .select_from(events.outerjoin(snapshot, snapshot.c.version == events.c.version))
        .where(events.c.stream_id == stream_id, events.c.version.between(since, upto))
        .order_by(events.c.version)
    )


def _insert_next(events: sa.Table) -> sa.Insert:
    """Insert a row if the one before it is there: a savepoint may have taken it back."""
    given = {column.name: sa.bindparam(column.name, type_=column.type) for column in events.c}
    before = sa.exists().where(
        events.c.stream_id == given["stream_id"], events.c.version == given["version"] - 1
    )
    row = sa.select(*given.values()).where(sa.or_(given["version"] == 1, before))
    return sa.insert(events).from_select(list(given), row)
