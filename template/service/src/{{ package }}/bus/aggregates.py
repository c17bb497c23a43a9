"""Event sourcing without a database: an aggregate is what its events have made of it."""

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, PrivateAttr
from uuid_utils.compat import uuid7

from .clock import utc_now

Payload = dict[str, Any]

Upcast = Callable[[Payload], Payload]
"""Takes what was stored of one version of an event to what the next version would have stored."""


class StreamEvent(BaseModel):
    """What happened to an aggregate, as it is stored in the aggregate's stream.

    It never leaves its slice: what others are told is an Event of contracts.py. So it may change:
    `class Settled(StreamEvent, upcast=(with_currency,))`. Each function of upcast takes the payload
    of one version to the next, the oldest first; with one of them the event is at version 2.

    name is what the class was called when the first of them was stored, if it was renamed since.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    event_name: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    event_upcast: ClassVar[tuple[Upcast, ...]] = ()

    def __init_subclass__(
        cls, *, name: str = "", upcast: tuple[Upcast, ...] = (), **config: Any
    ) -> None:
        super().__init_subclass__(**config)
        cls.event_name = name or cls.__name__
        cls.event_version = len(upcast) + 1
        cls.event_upcast = upcast


E = TypeVar("E", bound=StreamEvent)


class Aggregate(BaseModel, Generic[E]):
    """What is rebuilt from its events, of the types E: `class Payment(Aggregate[Made | Settled])`.

    Its fields are its state. Its methods decide: they raise, or apply an event. version counts its
    events; created_at is when the first one was recorded.

    snapshot_schema is to be raised with every change of the fields, or of what evolve makes of
    them: snapshots that were taken under another number are not used.
    """

    snapshot_schema: ClassVar[int] = 1

    id: UUID
    version: int = 0
    created_at: dt.datetime
    _new: list[E] = PrivateAttr(default_factory=list)

    @classmethod
    def begin(cls, event: E) -> Self:
        """A new one, by its first event."""
        aggregate = cls.from_events()
        aggregate.apply(event)
        return aggregate

    @classmethod
    def from_events(cls, *events: E) -> Self:
        """One to which these have happened; for tests of what it decides next."""
        aggregate = cls.blank(uuid7(), utc_now())
        for event in events:
            aggregate.replay(event)
        return aggregate

    @classmethod
    def blank(cls, stream_id: UUID, created_at: dt.datetime) -> Self:
        """One to which nothing has happened: its own fields are missing until events set them."""
        return cast("Self", cls.model_construct(id=stream_id, created_at=created_at))

    def evolve(self, event: E) -> None:
        """Change the state as the event says. Only that: it is done again at every load."""
        raise NotImplementedError

    def replay(self, event: E) -> None:
        """Let happen what is stored already."""
        self.evolve(event)
        self.version += 1

    def apply(self, event: E) -> None:
        """Let a new event happen; it is stored when the aggregate is appended to its stream."""
        # What evolve takes from it may change later: the event stays as it happened.
        self._new.append(event.model_copy(deep=True))
        self.replay(event)

    @property
    def new_events(self) -> Sequence[E]:
        """What was applied and is not appended yet."""
        return list(self._new)

    def appended(self) -> None:
        """Forget the new events: they are stored."""
        self._new.clear()
