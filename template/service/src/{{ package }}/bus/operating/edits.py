"""A corrected event in the place of one that fails."""

import datetime as dt
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from .. import tables
from ..catalog import Catalog
from ..errors import OperationError
from ..lanes import is_behind, lock_keys, promote
from ..outbox import key_of
from ..payloads import from_payload, payload_of
from ..texts import told


@dataclass(frozen=True, slots=True)
class Edit:
    """What a corrected payload makes of the event of a delivery.

    changes has each field that is another, as it was stored and as it will be (None: it is not
    there).
    """

    listener: str
    event: str
    old_key: str
    key: str
    changes: Mapping[str, tuple[Any, Any]]


async def plan_edit(
    connection: AsyncConnection,
    catalog: Catalog,
    delivery_id: int,
    payload: Mapping[str, Any],
    *,
    other_key: bool,
) -> Edit:
    """What `edit` would do; changes nothing. Raises OperationError."""
    old = await _failed(connection, delivery_id)
    values = _corrected(catalog, delivery_id, old, payload, other_key=other_key)
    before, after = old.payload, values["payload"]
    changes = {
        field: (before.get(field), after.get(field))
        for field in dict.fromkeys((*before, *after))
        if before.get(field) != after.get(field)
    }
    return Edit(old.listener, values["name"], old.key, values["key"], changes)


async def edit(
    connection: AsyncConnection,
    catalog: Catalog,
    delivery_id: int,
    payload: Mapping[str, Any],
    now: dt.datetime,
    *,
    other_key: bool,
) -> tuple[UUID, Mapping[str, Any]]:
    """Store a new event with this payload, and a delivery of it for the same listener.

    The old event stays as it is, its delivery is dropped; where it was first in its lane, the new
    one is first. Returns the id of the new event, and what to audit. Raises OperationError.
    """
    delivery = tables.delivery
    old = await _failed(connection, delivery_id, locked=True)
    values = _corrected(catalog, delivery_id, old, payload, other_key=other_key)
    await lock_keys(connection, {old.key, values["key"]})
    dropped = await connection.execute(
        sa.update(delivery)
        .where(delivery.c.id == delivery_id, tables.is_in("dead", "pending"))
        .values(state="dropped", finished_at=now)
    )
    if dropped.rowcount == 0:
        raise OperationError(f"Delivery {delivery_id} is being worked by now: look again.")
    position, event_id = await _store(connection, old, values, delivery_id, now)
    lane = values["key"] if old.lane is not None else None
    made = await connection.scalar(
        sa.insert(delivery)
        .values(
            event_position=position,
            subscription_id=old.subscription_id,
            run=old.run,
            event_version=values["version"],
            lane=lane,
            state="waiting" if lane is not None else "pending",
            due=now,
            attempts=0,
            losses=0,
        )
        .returning(delivery.c.id)
    )
    # Before those that wait: it stands for one that was before them.
    first = sa.update(delivery).where(
        delivery.c.id == made, tables.is_in("waiting"), ~is_behind(delivery)
    )
    await connection.execute(first.values(state="pending"))
    if old.lane is not None:
        await promote(connection, {(old.subscription_id, old.lane)})
    details = {"delivery": delivery_id, "listener": old.listener, "event": str(event_id)}
    return event_id, {**details, "key": values["key"]}


async def _failed(
    connection: AsyncConnection, delivery_id: int, *, locked: bool = False
) -> sa.Row[*tuple[Any, ...]]:
    delivery, event, subscription = tables.delivery, tables.event, tables.subscription
    query = (
        sa.select(
            delivery.c.subscription_id,
            subscription.c.listener,
            delivery.c.run,
            delivery.c.lane,
            delivery.c.state,
            event.c.id,
            event.c.name,
            event.c.version,
            event.c.key,
            event.c.payload,
            event.c.headers,
            event.c.correlation_id,
        )
        .join(event, event.c.position == delivery.c.event_position)
        .join(subscription, subscription.c.id == delivery.c.subscription_id)
        .where(delivery.c.id == delivery_id)
    )
    if locked:
        query = query.with_for_update(of=delivery)
    # Beyond that are numbers that the database cannot even be asked for.
    found = (await connection.execute(query)).first() if delivery_id <= sys.maxsize else None
    if found is None:
        raise OperationError(f"No delivery {delivery_id} is stored here.")
    if found.state not in ("dead", "pending"):
        raise OperationError(
            f"Delivery {delivery_id} is {found.state}; only one that is dead or pending can be"
            " given another event."
        )
    return found


def _corrected(
    catalog: Catalog,
    delivery_id: int,
    old: sa.Row[*tuple[Any, ...]],
    payload: Mapping[str, Any],
    *,
    other_key: bool,
) -> dict[str, Any]:
    found = next((one for one in catalog.events.values() if old.name in one.names), None)
    if found is None:
        raise OperationError(f"This code has no event {old.name!r}, to read the payload by.")
    try:
        event = from_payload(found.cls, payload)
    except ValidationError as error:
        version = found.cls.event_version
        raise OperationError(
            f"The payload does not fit version {version} of {found.name}: {told(error)}"
        ) from error
    stored = payload_of(event)
    if unknown := list(_unknown(payload, stored, old.payload)):
        raise OperationError("\n".join(f"{found.name} has no field {one}" for one in unknown))
    if (stored, found.cls.event_version) == (old.payload, old.version):
        raise OperationError(
            "The payload is as it was: there is nothing to correct. To run the delivery again,"
            f" `events retry {delivery_id}`."
        )
    key = key_of(event)
    if key != old.key and not other_key:
        raise OperationError(
            f"The event is about {old.key!r}, the payload about {key!r}: what is about {old.key!r}"
            " would go on without it. Is that meant? Then add --other-key."
        )
    return {
        "name": found.name,
        "version": found.cls.event_version,
        "key": key,
        "payload": stored,
    }


def _unknown(given: Any, stored: Any, old: Any, place: str = "") -> Iterator[str]:
    """What is given and would not be stored: the place of each field, and what may be meant.

    But for what the old payload has, too: a newer version may have written it, or an older one.
    """
    if isinstance(given, Mapping) and isinstance(stored, Mapping):
        before = old if isinstance(old, Mapping) else {}
        for name, value in given.items():
            if name in stored:
                yield from _unknown(value, stored[name], before.get(name), f"{place}{name}.")
                continue
            if name in before:
                continue
            close = get_close_matches(name, sorted(stored.keys() - given.keys()), n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            yield f"{place}{name}.{hint}"
    elif isinstance(given, list) and isinstance(stored, list):
        was = old if isinstance(old, list) and len(old) == len(given) else [None] * len(given)
        for number, (value, kept, one) in enumerate(zip(given, stored, was, strict=False)):
            yield from _unknown(value, kept, one, f"{place}{number}.")


async def _store(
    connection: AsyncConnection,
    old: sa.Row[*tuple[Any, ...]],
    values: Mapping[str, Any],
    delivery_id: int,
    now: dt.datetime,
) -> tuple[int, UUID]:
    event = tables.event
    transaction: Any = 0
    if connection.dialect.name == "postgresql":
        transaction = tables.current_transaction()
    event_id = uuid7()
    edited = {
        "edited_from": str(old.id),
        "edited_for": old.subscription_id,
        "edited_delivery": delivery_id,
    }
    insert = sa.insert(event).values(
        id=event_id,
        **values,
        headers={**old.headers, **edited},
        correlation_id=old.correlation_id,
        causation_id=old.id,
        tx=transaction,
        recorded_at=now,
    )
    position = (await connection.execute(insert.returning(event.c.position))).scalar_one()
    return position, event_id
