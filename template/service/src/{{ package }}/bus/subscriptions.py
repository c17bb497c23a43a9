"""Writes down which listeners want which events; deliveries are made from these rows."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .catalog import Catalog, event_types
from .clock import utc_now
from .engines import Database
from .errors import OperationError, WiringError
from .lanes import begin_lanes, end_lanes
from .marks import Listens

# Any number: processes that start at once take turns on it (PostgreSQL).
_LOCK = 7_305_110_001
# Whoever waits for publishers makes all that come later wait, too: briefly, and then once more. But
# an autovacuum gives way only to those that have waited for deadlock_timeout, which is 1 s.
LOCK_TIMEOUT = sa.text("SET LOCAL lock_timeout = '1200ms'")
_LOCKED = ("55P03", "40P01")  # It waited too long, or for somebody who waits for it.
_MOST_TRIES = 20

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A listener by its stored name, its old names, and the stored names of its events."""

    listener: str
    aliases: tuple[str, ...]
    slice: str
    events: tuple[str, ...]
    ordered: bool = False
    from_beginning: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Its stored name, and the old ones."""
        return (self.listener, *self.aliases)


def wanted_by(catalog: Catalog) -> list[Wanted]:
    """The subscriptions that the code of all slices asks for."""
    return [
        Wanted(
            marked.name,
            marked.aliases,
            marked.slice.name if marked.slice else "",
            tuple(
                name
                for event in event_types(marked.first_annotation)
                if event in catalog.events
                for name in catalog.events[event].names
            ),
            marked.mark.ordered,
            marked.mark.start == "beginning",
        )
        for marked in catalog.listeners
        if isinstance(marked.mark, Listens) and not marked.mark.inline
    ]


def names_of_events(catalog: Catalog) -> set[str]:
    """What the events of all slices are, or were, stored as."""
    return {name for one in catalog.events.values() for name in one.names}


@dataclass(frozen=True, slots=True)
class Stored:
    """A subscription as it is stored: under its listener's current name, and those before it."""

    id: int
    listener: str
    names: frozenset[str]
    slice: str
    ordered: bool
    is_retired: bool


async def stored_in(connection: AsyncConnection, *, held: bool = False) -> list[Stored]:
    """All subscriptions, by their listeners; held: they stay so until the transaction ends."""
    row, name = tables.subscription, tables.subscription_name
    query = sa.select(row).order_by(row.c.listener)
    rows = (await connection.execute(query.with_for_update() if held else query)).all()
    names = defaultdict[int, set[str]](set)
    of_listeners = sa.select(name.c.subscription_id, name.c.name).where(name.c.kind == "listener")
    for number, one in await connection.execute(of_listeners):
        names[number].add(one)
    return [
        Stored(
            id=one.id,
            listener=one.listener,
            names=frozenset({one.listener, *names[one.id]}),
            slice=one.slice,
            ordered=one.ordered,
            is_retired=one.retired_at is not None,
        )
        for one in rows
    ]


def tie(
    wanted: Sequence[Wanted], stored: Sequence[Stored], *, is_upgrade: bool = True
) -> dict[int, Wanted]:
    """Which listener each subscription (by its id) is for; some are for none, or not there yet.

    A listener is found by its current name; if there is none, by an alias that is the current name
    of one; else by a name that one had before. A start that is no upgrade may be that of an older
    process, whose listeners have newer names by now: before an alias it looks for its own name.
    Raises WiringError if one would be for two.
    """
    tied: dict[int, Wanted] = {}
    for fits in _FITS if is_upgrade else _FITS_OF_START:
        # What has got its own before is no candidate: so an old name that became another
        # listener's own is that one's. In a rolling deploy a process of before the renaming knows
        # only the old name, which is stored until somebody else has it; one that starts even later
        # takes the new listener's for its own, as nothing tells the two apart.
        free = [row for row in stored if row.id not in tied]
        have = set(tied.values())
        for one in wanted:
            found = [row for row in free if fits(one, row)]
            if one in have or not found:
                continue
            best = min(found, key=lambda row: (row.is_retired, row.id))
            if (other := tied.setdefault(best.id, one)) is not one:
                raise WiringError(
                    f"{other.listener} and {one.listener} were both names of {best.listener}, whose"
                    f" subscription can be only one's: let that one have {best.listener} in its"
                    " aliases."
                )
    return tied


_FITS: Sequence[Callable[[Wanted, Stored], bool]] = (
    lambda one, row: row.listener == one.listener,
    lambda one, row: row.listener in one.aliases,
    lambda one, row: not row.names.isdisjoint(one.names),
)
_FITS_OF_START = (_FITS[0], lambda one, row: one.listener in row.names, *_FITS[1:])


async def subscribe(
    database: Database, wanted: Sequence[Wanted], *, upgrade_to: Collection[str] | None = None
) -> dict[str, int]:
    """Store what is wanted and not stored yet, in one transaction.

    Returns the id of each wanted listener's subscription by its current name. A new subscription
    gets what is published from now on, and what is stored already if it asks for that: `backfill`
    brings it. Subscriptions of listeners that are gone stay, with their deliveries.

    upgrade_to are the names of all events that the code knows; not for a start, which may be that
    of an older process while a newer one runs. Listeners get their current names and settings then,
    and those of the events that they want no more are forgotten. Other names may be of a newer
    version, and nothing is published under them if they are not. Raises WiringError if an alias is
    the current name of a further subscription; a start goes on, as that may be of a newer version.
    """
    is_upgrade = upgrade_to is not None

    async def subscribe() -> dict[str, int]:
        async with database.writer.begin() as connection:
            if database.dialect == "postgresql":
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            stored = await stored_in(connection, held=is_upgrade)
            tied = tie(wanted, stored, is_upgrade=is_upgrade)
            if is_upgrade:
                _refuse_further(tied, stored)
            rows = {tied[row.id].listener: row for row in stored if row.id in tied}
            found = {
                one.listener: await _subscribe(connection, one, rows.get(one.listener), upgrade_to)
                for one in wanted
            }
            await _forget_names(connection)
            for name in await _retired(connection, found.values()):
                log.warning("retired: it gets nothing until `events resume`", listener=name)
            return found

    return await until_locked(subscribe)


async def until_locked(attempt: Callable[[], Awaitable[T]]) -> T:
    """Do what needs `lock_log`, again if others held it; returns what that returns.

    Raises OperationError if they do not let go of it.
    """
    for tries in range(1, _MOST_TRIES + 1):
        try:
            return await attempt()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _LOCKED:
                raise
            if tries == _MOST_TRIES:
                raise OperationError(
                    "Others kept bus_event locked all the time, such as a VACUUM or CREATE INDEX"
                    " by hand, or a long transaction that has published: try again later."
                ) from error
            await asyncio.sleep(0.05 * tries)
    raise AssertionError  # The last try has raised.


async def lock_log(connection: AsyncConnection) -> int:
    """Let nobody publish until the transaction ends; the last position in the log.

    All up to it is committed. Events after it find what this transaction changes in subscriptions.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(LOCK_TIMEOUT)
        await connection.execute(sa.text("LOCK TABLE bus_event IN SHARE ROW EXCLUSIVE MODE"))
    newest: int | None = await connection.scalar(sa.select(sa.func.max(tables.event.c.position)))
    return newest or 0


def _refuse_further(tied: Mapping[int, Wanted], stored: Sequence[Stored]) -> None:
    """Leave it to a person to bring two subscriptions together: the other may still be worked."""
    for kept in stored:
        aliases = tied[kept.id].aliases if kept.id in tied else ()
        for other in stored:
            if other.listener in aliases and other.id not in tied and not other.is_retired:
                resume = f"`events resume {kept.listener}`, then " if kept.is_retired else ""
                raise WiringError(
                    f"{other.listener} is an alias of {tied[kept.id].listener}, but has a"
                    f" subscription beside that of {kept.listener}, and nothing would run what it"
                    f" gets: type {resume}`events move {other.listener} {kept.listener}`, then"
                    f" `events retire {other.listener}`, and upgrade again."
                )


async def _subscribe(
    connection: AsyncConnection,
    wanted: Wanted,
    stored: Stored | None,
    upgrade_to: Collection[str] | None,
) -> int:
    found = stored.id if stored else await _create(connection, wanted)
    await _store_names(connection, found, "listener", wanted.names)
    await _store_names(connection, found, "event", wanted.events)
    if upgrade_to is not None:
        await _forget_events(connection, found, wanted, upgrade_to)
        if stored and stored.ordered != wanted.ordered:
            await _reorder(connection, found, wanted)
        row = tables.subscription
        await connection.execute(
            sa.update(row)
            .where(row.c.id == found)
            .values(listener=wanted.listener, ordered=wanted.ordered)
        )
    return found


async def _reorder(connection: AsyncConnection, subscription_id: int, wanted: Wanted) -> None:
    """What is there already is as what comes from now on: in lanes, or in none."""
    # Nothing of what is published comes between, and finds no lane, or one that is gone.
    await lock_log(connection)
    await (begin_lanes if wanted.ordered else end_lanes)(connection, subscription_id)
    told = "ordered from now on" if wanted.ordered else "not ordered any more"
    log.info(told, listener=wanted.listener)


async def _retired(connection: AsyncConnection, ids: Collection[int]) -> Sequence[str]:
    row = tables.subscription
    query = sa.select(row.c.listener).where(row.c.id.in_(ids), row.c.retired_at.is_not(None))
    return (await connection.scalars(query.order_by(row.c.listener))).all()


async def _create(connection: AsyncConnection, wanted: Wanted) -> int:
    # Held, so that retention removes nothing before it sees that this one is to be filled.
    floor = await log_floor(connection, held=True) if wanted.from_beginning else 0
    newest = await lock_log(connection)
    if floor:
        raise WiringError(
            f"{wanted.listener} wants all events from the beginning, but those up to position"
            f' {floor} have been removed: let it start="now".'
        )
    created: int = (
        await connection.execute(
            sa.insert(tables.subscription)
            .values(
                listener=wanted.listener,
                slice=wanted.slice,
                ordered=wanted.ordered,
                from_position=newest,
                backfilled_to=0 if wanted.from_beginning and newest else None,
                created_at=utc_now(),
            )
            .returning(tables.subscription.c.id)
        )
    ).scalar_one()
    return created


async def log_floor(connection: AsyncConnection, *, held: bool = False) -> int:
    """The position up to which events may have been removed from the log; 0 if none were.

    held: it stays so until the transaction ends.
    """
    query = sa.select(tables.log.c.floor)
    floor: int | None = await connection.scalar(query.with_for_update(read=True) if held else query)
    return floor or 0


async def _store_names(
    connection: AsyncConnection, subscription_id: int, kind: str, names: Sequence[str]
) -> None:
    name = tables.subscription_name
    stored = set(
        await connection.scalars(
            sa.select(name.c.name).where(
                name.c.kind == kind, name.c.subscription_id == subscription_id
            )
        )
    )
    for new in dict.fromkeys(names):
        if new not in stored:
            await connection.execute(
                sa.insert(name).values(kind=kind, name=new, subscription_id=subscription_id)
            )


async def _forget_names(connection: AsyncConnection) -> None:
    """An old name that is another listener's now means that one only."""
    name, row = tables.subscription_name, tables.subscription
    is_anothers = sa.exists().where(
        row.c.listener == name.c.name, row.c.id != name.c.subscription_id
    )
    await connection.execute(sa.delete(name).where(name.c.kind == "listener", is_anothers))


async def _forget_events(
    connection: AsyncConnection, subscription_id: int, wanted: Wanted, known: Collection[str]
) -> None:
    name = tables.subscription_name
    gone = await connection.scalars(
        sa.delete(name)
        .where(
            name.c.kind == "event",
            name.c.subscription_id == subscription_id,
            name.c.name.in_(known),
            name.c.name.not_in(wanted.events),
        )
        .returning(name.c.name)
    )
    if names := sorted(gone):
        log.warning("gets these events no more", listener=wanted.listener, events=names)
