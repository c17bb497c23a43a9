"""What slices are made of whose aggregates are stored as their events; docs: event sourcing."""

from typing import Generic, TypeVar

from ..bus import aggregates, streams
from ..bus.aggregates import StreamEvent
from ..bus.streams import Streams
from .database import Base
from .errors import expect_version

__all__ = ["Aggregate", "StoredEvent", "StoredSnapshot", "StreamEvent", "Streams"]

E = TypeVar("E", bound=StreamEvent)


class Aggregate(aggregates.Aggregate[E], Generic[E]):
    """What is rebuilt from its events, and changed by methods that apply new ones."""

    def expect_version(self, version: int) -> None:
        """Raises Conflict if this is no longer the version that the caller has seen."""
        expect_version(self.version, version)


class StoredEvent(streams.StoredEvent, Base):
    """A row of a slice's table of streams; the table is called `<slice>_events`."""

    __abstract__ = True


class StoredSnapshot(streams.StoredSnapshot, Base):
    """A row of a slice's table of snapshots; the table is called `<slice>_snapshots`."""

    __abstract__ = True
