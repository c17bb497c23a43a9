"""Looks at events and their deliveries, for people who operate the service."""

from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..errors import OperationError
from .filters import OF_SCHEDULED, Filter, parse
from .standing import Row, Standing, recorded, rows_of

_CHUNK = 500


class Inspection(Standing):
    """What there is in a database; changes nothing. Filters are texts, as `filters.parse` reads."""

    async def deliveries(self, where: str = "", *, limit: int = 50) -> list[Row]:
        """Deliveries with their events, the newest first. Raises OperationError."""
        async with self._database.reader.connect() as connection:
            conditions = await self._conditions(connection, where)
            query = _deliveries(*conditions).order_by(tables.delivery.c.id.desc()).limit(limit)
            return rows_of(await connection.execute(query))

    async def scheduled(self, where: str = "", *, limit: int = 50) -> list[Row]:
        """Events that are not due yet, the next one first. Raises OperationError."""
        scheduled = tables.scheduled
        columns = ("due", "name", "key", "id", "correlation_id", "causation_id")
        query = (
            sa.select(*(scheduled.c[name] for name in columns))
            .where(*self._scheduled_where(where))
            .order_by(scheduled.c.due, scheduled.c.position)
            .limit(limit)
        )
        async with self._database.reader.connect() as connection:
            return rows_of(await connection.execute(query))

    async def show(self, which: int | UUID) -> Row:
        """An event with its deliveries, each with every attempt that failed.

        corrected_by is the event that was delivered instead, if a delivery was corrected by hand;
        paused_until and paused_reason are those of its listener, if it is yet to run.
        which is the id of an event, or of one delivery, which is then the only one. Raises
        OperationError if there is none.
        """
        delivery, event, attempt = tables.delivery, tables.event, tables.attempt
        async with self._database.reader.connect() as connection:
            if isinstance(which, UUID):
                position = sa.select(event.c.position).where(event.c.id == which)
                chosen = delivery.c.event_position == position.scalar_subquery()
            else:
                chosen = delivery.c.id == which
                of = sa.select(delivery.c.event_position).where(chosen)
                position = sa.select(event.c.position).where(event.c.position.in_(of))
            events = rows_of(
                await connection.execute(sa.select(event).where(event.c.position.in_(position)))
            )
            if not events:
                return await self._scheduled(connection, which)
            query = sa.select(delivery, _LISTENER).join(*_TO_SUBSCRIPTION).where(chosen)
            deliveries = rows_of(await connection.execute(query.order_by(delivery.c.id)))
            failed = sa.select(attempt).where(
                attempt.c.delivery_id.in_([one["id"] for one in deliveries])
            )
            attempts = rows_of(await connection.execute(failed.order_by(attempt.c.id)))
            corrected = await _corrected(connection, events[0])
            subscribed = {one.id: one for one in await self._subscriptions(connection)}
        for one in deliveries:
            to_run = one["state"] in ("pending", "waiting")
            one |= self._pause(subscribed[one["subscription_id"]] if to_run else None)
            one["corrected_by"] = corrected.get(one["id"])
            one["failures"] = one.pop("attempts")
            one["failed_attempts"] = [row for row in attempts if row["delivery_id"] == one["id"]]
        return {"event": events[0], "deliveries": deliveries}

    async def export(self, where: str = "") -> AsyncIterator[Row]:
        """Every delivery that a filter means with its event, the oldest first. OperationError."""
        delivery, last = tables.delivery, 0
        while True:
            async with self._database.reader.connect() as connection:
                conditions = await self._conditions(connection, where)
                query = _deliveries(*conditions, delivery.c.id > last, everything=True)
                rows = rows_of(
                    await connection.execute(query.order_by(delivery.c.id).limit(_CHUNK))
                )
            for row in rows:
                yield row
            if len(rows) < _CHUNK:
                return
            last = rows[-1]["id"]

    async def dead_letters(self) -> list[Row]:
        """Dead letters by listener, type of the error and the first own frame, most first.

        Of the oldest and the newest of each: the delivery, and when its event was recorded.
        """
        delivery = tables.delivery
        kinds = (_LISTENER, delivery.c.error_type, delivery.c.error_frame)
        query = (
            sa.select(
                *kinds,
                sa.func.count().label("count"),
                sa.func.min(delivery.c.id).label("oldest_id"),
                sa.func.max(delivery.c.id).label("newest_id"),
            )
            .join(*_TO_SUBSCRIPTION)
            .where(tables.is_in("dead"))
            .group_by(*kinds)
            .order_by(sa.desc("count"), *kinds)
        )
        async with self._database.reader.connect() as connection:
            rows = rows_of(await connection.execute(query))
            ids = {row[which] for row in rows for which in ("oldest_id", "newest_id")}
            since = await recorded(connection, ids)
        for row in rows:
            row |= {"oldest": since[row["oldest_id"]], "newest": since[row["newest_id"]]}
        return rows

    async def changes(self, *, limit: int = 50) -> list[Row]:
        """What people changed by hand: who, when, what and why, the newest first."""
        query = sa.select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit)
        async with self._database.reader.connect() as connection:
            return rows_of(await connection.execute(query))

    def _scheduled_where(self, where: str) -> list[sa.ColumnElement[bool]]:
        found = parse(where, self._now()).only(OF_SCHEDULED)
        return found.conditions({}, tables.scheduled)

    async def _conditions(
        self, connection: AsyncConnection, where: str | Filter
    ) -> list[sa.ColumnElement[bool]]:
        found = parse(where, self._now()) if isinstance(where, str) else where
        subscribed = await self._subscriptions(connection)
        return found.conditions({name: one.id for one in subscribed for name in one.names})

    async def _scheduled(self, connection: AsyncConnection, which: int | UUID) -> Row:
        scheduled = tables.scheduled
        if isinstance(which, UUID):
            query = sa.select(scheduled).where(scheduled.c.id == which)
            if found := rows_of(await connection.execute(query)):
                return {"event": found[0], "deliveries": []}
        kind = "event" if isinstance(which, UUID) else "delivery"
        raise OperationError(
            f"No {kind} {which} is stored here: it may have been removed by retention, or, if it"
            " was scheduled, have been cancelled."
        )


_LISTENER = tables.subscription.c.listener
_TO_SUBSCRIPTION = (
    tables.subscription,
    tables.subscription.c.id == tables.delivery.c.subscription_id,
)


async def _corrected(connection: AsyncConnection, corrected: Row) -> Mapping[int, UUID]:
    """The events that stand in the place of this one, by the delivery that was dropped for each."""
    event = tables.event
    instead_of = event.c.headers["edited_delivery"].as_integer()
    found = await connection.execute(
        sa.select(instead_of.label("delivery"), event.c.id).where(
            # That has an index, what caused an event has none.
            event.c.correlation_id == corrected["correlation_id"],
            event.c.causation_id == corrected["id"],
            instead_of.is_not(None),
        )
    )
    return {row.delivery: row.id for row in found}


def _deliveries(
    *conditions: sa.ColumnElement[bool], everything: bool = False
) -> sa.Select[tuple[Any, ...]]:
    delivery, event = tables.delivery, tables.event
    columns = [
        delivery.c.id,
        delivery.c.state,
        _LISTENER,
        event.c.name.label("event"),
        event.c.id.label("event_id"),
        event.c.key,
        delivery.c.run,
        # It counts those that have failed, since the last retry by hand.
        delivery.c.attempts.label("failures"),
        delivery.c.due,
        event.c.recorded_at,
        delivery.c.finished_at,
        delivery.c.error_type,
        delivery.c.error_frame,
    ]
    if everything:
        columns += [
            delivery.c.error_message,
            event.c.version,
            event.c.payload,
            event.c.headers,
            event.c.correlation_id,
            event.c.causation_id,
        ]
    return (
        sa.select(*columns)
        .join(event, event.c.position == delivery.c.event_position)
        .join(*_TO_SUBSCRIPTION)
        .where(*conditions)
    )
