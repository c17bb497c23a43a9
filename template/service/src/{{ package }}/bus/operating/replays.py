"""Runs a listener again over past events, by new deliveries of a run of their own."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..engines import Database
from ..errors import OperationError
from ..lanes import lock_keys, promote
from ..subscriptions import log_floor
from ..waking import waking
from .audit import Audit
from .changes import hold_order
from .corrections import Corrections
from .filters import OF_EVENTS, Filter
from .standing import Subscribed

_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Replay:
    """The events that a listener is to run over again, fixed when they were counted.

    places are their positions in the log; where one was corrected for the listener, corrected has
    the position of what it gets instead. counts has how many there are by name. is_read_model: it
    makes rows of events, which are there already.
    """

    listener: Subscribed
    filter: str
    places: tuple[int, ...]
    corrected: Mapping[int, int]
    counts: Mapping[str, int]
    is_read_model: bool = False


async def plan(
    connection: AsyncConnection, listener: Subscribed, found: Filter, *, is_read_model: bool
) -> Replay:
    """The past events that a listener wants and a filter means. Raises OperationError.

    A correction that was made for the listener stands for the event that it corrects, and is meant
    if either of them is; one for another listener is none of its events.
    """
    if listener.retired_at is not None:
        raise OperationError(
            f"{listener.listener} is retired: nothing would run the replay. `events resume` takes"
            " it up again."
        )
    event = tables.event
    conditions = found.only(OF_EVENTS).conditions({})
    if found.value("id") is None:
        await _refuse_below_floor(connection, found.value("since"))
    corrections = Corrections(listener.id, listener.events)
    await corrections.read(connection)
    mine = sa.or_(tables.corrected_for().is_(None), tables.corrected_for() == listener.id)
    rows = await connection.execute(
        sa.select(event.c.position, event.c.name)
        .where(event.c.name.in_(listener.events), mine, *conditions)
        .order_by(event.c.position)
    )
    places, counts = set[int](), Counter[str]()
    for position, name in rows:
        place = corrections.place_of(position)
        if place not in places:
            places.add(place)
            counts[name] += 1
    corrected = {
        place: given for place in places if (given := corrections.given_at(place)) != place
    }
    return Replay(
        listener, found.text, tuple(sorted(places)), corrected, counts, is_read_model=is_read_model
    )


async def play(
    database: Database,
    planned: Replay,
    *,
    now: Callable[[], dt.datetime],
    who: str,
    reason: str,
    progress: Callable[[int], None],
) -> int:
    """Insert the deliveries, a thousand in each transaction; returns how many there are.

    An event that was removed meanwhile gets none. The audit row counts what is inserted, so that
    it is right even if this is interrupted.
    """
    run, details = 0, {"listener": planned.listener.listener, "events": len(planned.places)}
    audit = Audit("replay", planned.filter, who=who, reason=reason, details=details)
    for at in range(0, len(planned.places), _CHUNK):
        chunk = planned.places[at : at + _CHUNK]
        async with waking(database) as connection:
            run = run or await _next_run(connection, planned.listener.id)
            await hold_order(connection, planned.listener)
            made = await _insert(connection, planned, run, chunk, now())
            await audit.add(connection, made, now())
        progress(len(chunk))
    return audit.count


async def _refuse_below_floor(connection: AsyncConnection, since: dt.datetime | None) -> None:
    event = tables.event
    floor = await log_floor(connection)
    if floor == 0:
        return
    begins = await connection.scalar(
        sa.select(event.c.recorded_at)
        .where(event.c.position > floor)
        .order_by(event.c.position)
        .limit(1)
    )
    if begins is not None and since is not None and since >= begins:
        return
    left = f"since={begins.isoformat()}" if begins else "id=… of an event that is left"
    raise OperationError(
        f"Events up to position {floor} of the log may have been removed, so that nothing can be"
        f" replayed from the beginning. What is left: {left}"
    )


async def _next_run(connection: AsyncConnection, subscription: int) -> int:
    """A number for the run. Another replay of this listener waits until the first rows are in."""
    delivery, row = tables.delivery, tables.subscription
    await connection.execute(sa.select(row.c.id).where(row.c.id == subscription).with_for_update())
    highest = sa.select(sa.func.max(delivery.c.run)).where(
        delivery.c.subscription_id == subscription
    )
    return (await connection.scalar(highest) or 0) + 1


async def _insert(
    connection: AsyncConnection,
    planned: Replay,
    run: int,
    places: Sequence[int],
    now: dt.datetime,
) -> int:
    event, delivery, listener = tables.event, tables.delivery, planned.listener
    corrected = {planned.corrected[one]: one for one in places if one in planned.corrected}
    of_these = event.c.position.in_([planned.corrected.get(one, one) for one in places])
    place: sa.ColumnElement[int] = event.c.position
    if corrected:
        place = sa.case(corrected, value=event.c.position, else_=event.c.position)
    if listener.ordered:
        await lock_keys(
            connection, await connection.scalars(sa.select(event.c.key).where(of_these))
        )
    values: dict[str, Any] = {
        "event_position": event.c.position,
        "subscription_id": sa.literal(listener.id, sa.BigInteger),
        "run": sa.literal(run, sa.Integer),
        "event_version": event.c.version,
        "lane": event.c.key if listener.ordered else sa.null(),
        "state": sa.literal("waiting" if listener.ordered else "pending", sa.String),
        "due": sa.literal(now, delivery.c.due.type),
        "attempts": sa.literal(0, sa.Integer),
        "losses": sa.literal(0, sa.Integer),
    }
    # Held, so that retention does not remove an event that gets a delivery.
    rows = sa.select(*values.values()).where(of_these).order_by(place).with_for_update(read=True)
    made = await connection.execute(
        sa.insert(delivery).from_select(list(values), rows).returning(delivery.c.lane)
    )
    lanes = [lane for (lane,) in made]
    await promote(connection, {(listener.id, lane) for lane in lanes if lane is not None})
    return len(lanes)
