"""Tells before a deploy what this code could not deliver of what a database holds."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from .. import tables
from ..catalog import Catalog
from ..engines import Database
from ..subscriptions import Wanted, stored_in, tie, wanted_by
from ..texts import message_of
from ..upcasting import readers

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Subscription:
    """A stored subscription by its listener's name, and what this code wants of it, if anything."""

    listener: str
    wanted: Wanted | None
    is_retired: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Deliveries, or scheduled events, that this code cannot deliver, all for one reason."""

    problem: str
    listener: str | None
    event: str
    count: int
    example: str


# By words of the problem; one that is not here says itself what to do.
_REMEDIES = {
    "no such listener in this code": "If it has another name now, which has no subscription yet,"
    " declare the old one (aliases=). If it has one, or another listener takes its place, `events"
    " move OLD NEW`, then `events retire OLD`; if none does, `events retire OLD`.",
    "the listener does not take this event any more": "Let it take the event until they are"
    " done, or give them up: `events drop --where 'listener=… event=…'`.",
    "no such event in this code": "If it has another name now, declare the old one (aliases=)."
    " If it is gone, keep its class until they are done, or give them up: `events drop`, or"
    " `events cancel` if they are scheduled.",
    "is newer than this code's": "A newer version of the service stored them: let that deliver"
    " them before you go back to this one.",
    "has no upcaster in this code any more": "Bring it back: @upcast(Event, from_version=…).",
    "the payload cannot be read": "Give it up: `events drop ID`, or `events cancel ID` if it is"
    " scheduled.",
    "the payload does not fit": "If all of an old form do not, give the event a new version and"
    " an upcaster from the old one; `events retry ID --edit FILE` corrects a single one.",
    "the upcaster of version": "Mend the upcaster; `events retry ID --edit FILE` corrects a single"
    " one.",
}


def remedies(found: Iterable[Finding]) -> Mapping[str, str]:
    """What to do, by the kind of the problem."""
    problems = [one.problem for one in found]
    return {
        words: remedy
        for words, remedy in _REMEDIES.items()
        if any(words in problem for problem in problems)
    }


async def check(database: Database, catalog: Catalog) -> list[Finding]:
    """What of all that is unfinished, dead or scheduled this code could not decode or route.

    catalog is that of all slices. Memory is bounded: the rows are read in chunks. What a retired
    listener left is not looked at, but that it gets nothing is told if the code has it again.
    """
    checker = _Checker(catalog)
    counts: Counter[tuple[str, str | None, str]] = Counter()
    examples: dict[tuple[str, str | None, str], str] = {}
    subscriptions = await _subscriptions(database, catalog)
    async for subscription, row, example in _stored(database, subscriptions):
        for problem in checker.problems(subscription, row):
            kind = (problem, subscription.listener if subscription else None, row.name)
            counts[kind] += 1
            examples.setdefault(kind, example)
    found = [
        Finding(*kind, count, examples[kind]) for kind, count in sorted(counts.items(), key=str)
    ]
    lost = _lost(subscriptions.values(), {one.listener for one in found})
    return [*found, *lost, *_retired(subscriptions.values())]


class _Checker:
    def __init__(self, catalog: Catalog) -> None:
        self._readers = readers(catalog)
        # Deliveries of one event follow each other, and its payload is the same for all of them.
        self._last: tuple[Any, tuple[str, ...]] = (None, ())

    def problems(self, subscription: Subscription | None, row: sa.Row[Any]) -> tuple[str, ...]:
        routing = self._routing(subscription, row.name) if subscription else ()
        if self._last[0] != row.id:
            self._last = (row.id, tuple(self._decoding(row)))
        return (*routing, *self._last[1])

    def _routing(self, subscription: Subscription, event: str) -> tuple[str, ...]:
        if (wanted := subscription.wanted) is None:
            return ("no such listener in this code",)
        if event in self._readers and event not in wanted.events:
            return ("the listener does not take this event any more",)
        return ()

    def _decoding(self, row: sa.Row[Any]) -> tuple[str, ...]:
        known = self._readers.get(row.name)
        if known is None:
            return ("no such event in this code",)
        if row.version > max(known):
            return (f"version {row.version} is newer than this code's, {max(known)}",)
        if row.version not in known:
            return (f"version {row.version} has no upcaster in this code any more",)
        try:
            payload = json.loads(row.payload)
        except ValueError as error:
            return (f"the payload cannot be read: {error}",)
        try:
            known[row.version](payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            return (f"the payload does not fit: {field}: {message_of(first)}",)
        except Exception as error:
            return (f"the upcaster of version {row.version} failed: {error!r}",)
        return ()


def _lost(subscriptions: Iterable[Subscription], told: Collection[str | None]) -> Iterator[Finding]:
    """Listeners that the code has no more, though nothing is there for them yet."""
    for one in subscriptions:
        if one.wanted is None and not one.is_retired and one.listener not in told:
            problem = "no such listener in this code, and events are still kept for it"
            yield Finding(problem, one.listener, "", 0, "")


def _retired(subscriptions: Iterable[Subscription]) -> Iterator[Finding]:
    for one in subscriptions:
        if one.wanted and one.is_retired:
            problem = "retired, so that it gets nothing: `events resume` takes it up again"
            yield Finding(problem, one.listener, ", ".join(one.wanted.events), 0, "")


async def _subscriptions(database: Database, catalog: Catalog) -> dict[int, Subscription]:
    async with database.reader.connect() as connection:
        stored = await stored_in(connection)
    tied = tie(wanted_by(catalog), stored)
    return {one.id: Subscription(one.listener, tied.get(one.id), one.is_retired) for one in stored}


async def _stored(
    database: Database, subscriptions: Mapping[int, Subscription]
) -> AsyncIterator[tuple[Subscription | None, sa.Row[Any], str]]:
    delivery, event, scheduled = tables.delivery, tables.event, tables.scheduled
    deliveries = (
        sa.select(delivery.c.id.label("at"), delivery.c.subscription_id, *_decoded(event))
        .join(event, event.c.position == delivery.c.event_position)
        .where(tables.is_in("pending", "waiting", "working", "dead"))
    )
    async for row in _in_chunks(database, deliveries, delivery.c.id):
        found = subscriptions.get(row.subscription_id)
        if found and not found.is_retired:
            yield found, row, f"delivery {row.at}"
    later = sa.select(scheduled.c.position.label("at"), *_decoded(scheduled))
    async for row in _in_chunks(database, later, scheduled.c.position):
        yield None, row, f"scheduled event {row.id}"


def _decoded(table: sa.FromClause) -> tuple[sa.ColumnElement[Any], ...]:
    # As text: one that is no JSON is a finding, and not the end of the search.
    payload = sa.cast(table.c.payload, sa.Text()).label("payload")
    return table.c.id, table.c.name, table.c.version, payload


async def _in_chunks(
    database: Database, query: sa.Select[Any], number: sa.Column[Any]
) -> AsyncIterator[sa.Row[Any]]:
    last = 0
    while True:
        async with database.reader.connect() as connection:
            chunk = query.where(number > last).order_by(number).limit(_CHUNK)
            rows = (await connection.execute(chunk)).all()
        for row in rows:
            yield row
        if len(rows) < _CHUNK:
            return
        last = rows[-1].at
