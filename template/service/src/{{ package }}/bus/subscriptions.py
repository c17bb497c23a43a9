"""Writes down which listeners want which events; deliveries are made from these rows."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from . import tables
from .catalog import Catalog, event_types
from .marks import Listens

# Any number: processes that start at once take turns on it (PostgreSQL).
_LOCK = 7_305_110_001


@dataclass(frozen=True, slots=True)
class Wanted:
    """A listener by its stored name, its old names, and the stored names of its events."""

    listener: str
    aliases: tuple[str, ...]
    slice: str
    events: tuple[str, ...]


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
        )
        for marked in catalog.listeners
        if isinstance(marked.mark, Listens) and not marked.mark.inline
    ]


async def subscribe(
    connection: AsyncConnection, wanted: Iterable[Wanted], *, prune: bool = False
) -> dict[str, int]:
    """Store what is wanted and not stored yet, in the connection's transaction.

    Returns the id of each wanted listener's subscription by its current name. A new subscription
    gets what is published from now on. Subscriptions of listeners that are gone stay, with their
    deliveries. prune also forgets events that a listener wants no more; not for a start, which may
    be that of an older process while a newer one runs.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    return {one.listener: await _subscribe(connection, one, prune=prune) for one in wanted}


async def _subscribe(connection: AsyncConnection, wanted: Wanted, *, prune: bool) -> int:
    found = await _find(connection, (wanted.listener, *wanted.aliases))
    if found is None:
        found = await _create(connection, wanted)
    await _store_names(connection, found, "listener", (wanted.listener, *wanted.aliases))
    await _store_names(connection, found, "event", wanted.events)
    if prune:
        await _forget_events(connection, found, wanted.events)
    return found


async def _find(connection: AsyncConnection, names: Sequence[str]) -> int | None:
    name = tables.subscription_name
    found: int | None = await connection.scalar(
        sa.select(sa.func.min(name.c.subscription_id)).where(
            name.c.kind == "listener", name.c.name.in_(names)
        )
    )
    return found


async def _create(connection: AsyncConnection, wanted: Wanted) -> int:
    newest = sa.select(sa.func.coalesce(sa.func.max(tables.event.c.position), 0))
    created: int = (
        await connection.execute(
            sa.insert(tables.subscription)
            .values(
                listener=wanted.listener,
                slice=wanted.slice,
                ordered=False,
                from_position=newest.scalar_subquery(),
                created_at=dt.datetime.now(dt.UTC),
            )
            .returning(tables.subscription.c.id)
        )
    ).scalar_one()
    return created


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


async def _forget_events(
    connection: AsyncConnection, subscription_id: int, wanted: Sequence[str]
) -> None:
    name = tables.subscription_name
    await connection.execute(
        sa.delete(name).where(
            name.c.kind == "event",
            name.c.subscription_id == subscription_id,
            name.c.name.not_in(wanted),
        )
    )
