"""Read your writes: a token names events, and a read waits until read models have seen them."""

import asyncio
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from . import tables
from .errors import EventTokenError, NeverSeenError, NotSeenInTimeError
from .session import UnitSession

Span = tuple[UUID, UUID]
"""The ids of the first and the last event that one unit of work, or one request, has published."""

# One event, or the two ends of a span, in base64.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{22}|[A-Za-z0-9_-]{43}")
_MOST_TOKENS = 50
# More of one request are named by one. Fewer stay apart: sent again under its idempotency key, a
# request answers with tokens of others, too.
_MOST_APART = 5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


def token_of(stored: Sequence[Mapping[str, Any]]) -> str:
    """Names the events that a unit of work has stored, all but those for later; '' for none."""
    ids = [row["id"] for row in stored if row["due"] is None]
    return _naming(ids) if ids else ""


def joined(tokens: str, token: str) -> str:
    """What names what both do, which are of one request: never longer than a header may be."""
    both = ", ".join(filter(None, [tokens, token]))
    spans = spans_of(both)
    return both if len(spans) <= _MOST_APART else _naming([one for span in spans for one in span])


def _naming(ids: Sequence[UUID]) -> str:
    # They are numbered as they are made, so that all others lie between the two.
    ends = dict.fromkeys([min(ids), max(ids)])
    return urlsafe_b64encode(b"".join(one.bytes for one in ends)).decode().rstrip("=")


def spans_of(token: str) -> list[Span]:
    """What a token names, or several with commas in between. Raises EventTokenError."""
    parts = [one for part in token.split(",") if (one := part.strip())]
    if len(parts) <= _MOST_TOKENS and all(map(_TOKEN.fullmatch, parts)):
        spans = [_span(urlsafe_b64decode(one + "==")) for one in parts]
        if all(one.version == 7 for span in spans for one in span):
            return spans
    raise EventTokenError(
        "An event token is what the answer to a command gave as one, unchanged; up to"
        f" {_MOST_TOKENS} of them with commas in between."
    )


def _span(data: bytes) -> Span:
    return UUID(bytes=data[:16]), UUID(bytes=data[-16:])


async def wait(
    session: UnitSession, spans: Sequence[Span], listeners: Mapping[int, str], within: float
) -> None:
    """Wait until these listeners (names by subscription) have seen the events, as session sees it.

    within is in seconds. The transaction in which they were seen is the one that goes on. Raises
    NeverSeenError and NotSeenInTimeError.
    """
    # A guard may have set something for its transaction. Otherwise each look has one of its own, so
    # that no connection is held meanwhile, and that SQLite shows what was committed since.
    is_kept = session.in_transaction() and session.get_bind().dialect.name == "postgresql"
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + within, _SHORTEST_PAUSE
    while missing := await _missing(session, spans, listeners):
        if not is_kept:
            await session.start_over()
        if (left := end - loop.time()) <= 0:
            raise NotSeenInTimeError(f"{missing} after {within:g} s.")
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)


async def _missing(
    session: UnitSession, spans: Sequence[Span], listeners: Mapping[int, str]
) -> str | None:
    """What a read has to wait for; None if nothing."""
    event, subscription = tables.event, tables.subscription
    ids = {one for span in spans for one in span}
    ends = sa.select(event.c.id, event.c.correlation_id, event.c.causation_id)
    rows = await session.execute(ends.where(event.c.id.in_(ids)))
    found = {id_: (correlation_id, causation_id) for id_, correlation_id, causation_id in rows}
    known = sa.select(sa.func.count()).where(subscription.c.id.in_(listeners))
    if await session.scalar(known) != len(listeners) or (
        # Where they were written they are no more: events are removed when they are done with.
        len(found) < len(ids) and await _is_replica(session)
    ):
        return "The events have not arrived"
    # What others have published meanwhile is not meant.
    named = [
        sa.and_(
            event.c.id.between(*span),
            event.c.correlation_id == correlation_id,
            event.c.causation_id.is_not_distinct_from(causation_id),
        )
        for span in spans
        for correlation_id, causation_id in {found[end] for end in span if end in found}
    ]
    if not listeners or not named:
        return None
    undone = _undone().where(subscription.c.id.in_(listeners), sa.or_(*named))
    late = None
    for row in await session.execute(undone):
        name = listeners[row.id]
        if row.state in ("dead", "dropped") or row.retired_at is not None:
            how = row.state or "not made: the listener is retired"
            raise NeverSeenError(f"{name} will not see {row.name} {row.event}: delivery is {how}.")
        # Without a delivery: it was done so long ago that it is removed, or the listener is younger
        # than the event, unless that is still to be brought to it.
        if row.state is not None or row.backfilled_to is not None:
            late = f"{name} has not seen {row.name} {row.event}"
    return late


async def _is_replica(session: UnitSession) -> bool:
    if session.get_bind().dialect.name != "postgresql":
        return False
    return bool(await session.scalar(sa.select(sa.func.pg_is_in_recovery())))


def _undone() -> sa.Select[Any]:
    """Events with the listeners that want them, as far as no delivery says that it is done."""
    event, delivery = tables.event, tables.delivery
    subscription, name = tables.subscription, tables.subscription_name
    of_it = sa.and_(
        delivery.c.event_position == event.c.position,
        delivery.c.subscription_id == subscription.c.id,
        delivery.c.run == 0,
    )
    return (
        sa.select(
            subscription.c.id,
            subscription.c.retired_at,
            subscription.c.backfilled_to,
            event.c.id.label("event"),
            event.c.name,
            delivery.c.state,
        )
        .select_from(event)
        .join(name, sa.and_(name.c.kind == "event", name.c.name == event.c.name))
        .join(subscription, subscription.c.id == name.c.subscription_id)
        .outerjoin(delivery, of_it)
        .where(sa.or_(delivery.c.id.is_(None), delivery.c.state != "done"))
    )
