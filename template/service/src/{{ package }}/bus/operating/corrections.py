"""Corrections made by hand: for one listener, an event that stands in the place of another."""

import sys
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables


class Corrections:
    """What one listener gets in the place of events, all by their positions in the log.

    The correction of a correction stands where the first event did; of several, the last counts.
    """

    def __init__(self, subscription: int, events: Sequence[str]) -> None:
        """events are the stored names of those that the listener wants."""
        self._subscription = subscription
        self._events = events
        self._places = dict[int, int]()
        self._given = dict[int, int]()
        self._read_to = 0

    async def read(self, connection: AsyncConnection, upto: int = sys.maxsize) -> Collection[int]:
        """Look at what was stored since the last time; the places that have a new correction."""
        found = await connection.execute(_corrections(self._events, self._read_to, upto))
        places = set[int]()
        for row in found:
            # What retention has removed leaves its place to what corrected it.
            at = row.position if row.corrected is None else row.corrected
            place = self._places[row.position] = self.place_of(at)
            if row.subscription == self._subscription:
                self._given[place] = row.position
                places.add(place)
        self._read_to = max(self._read_to, upto)
        return places

    def place_of(self, position: int) -> int:
        """Where an event belongs: its own position, if it corrects no other."""
        return self._places.get(position, position)

    def given_at(self, place: int) -> int:
        """The event that the listener gets there: the one of that position, if it is right."""
        return self._given.get(place, place)


def _corrections(events: Sequence[str], after: int, upto: int) -> sa.Select[Any]:
    event, old = tables.event, tables.event.alias("old")
    corrected = sa.select(old.c.position).where(old.c.id == event.c.causation_id)
    return (
        sa.select(
            event.c.position,
            corrected.scalar_subquery().label("corrected"),
            tables.corrected_for().label("subscription"),
        )
        .where(event.c.name.in_(events), event.c.position > after, event.c.position <= upto)
        .where(tables.corrected_for().is_not(None))
        .order_by(event.c.position)
    )
