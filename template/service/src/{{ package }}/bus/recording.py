"""Aggregates record events; the unit of work publishes them. Nobody collects them."""

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import event as sa_event
from sqlalchemy.orm import Session, SessionTransaction, object_mapper, object_session
from sqlalchemy.orm.attributes import instance_state

from .context import Context
from .messages import Event

T = TypeVar("T")

_EVENTS = "bus_events"
_SAVEPOINTS = "bus_savepoints"
_UNATTACHED = "_recorded_events"


class Cancellation(NamedTuple):
    """Takes back what was published for later, of this type and about one of these keys."""

    cls: type[Event]
    keys: Collection[str]


@dataclass(slots=True)
class Noted:
    """An event that will be stored, or cancelled, if the unit commits.

    owner is the aggregate that recorded it, context what it belongs to (None: to what the unit as a
    whole does), due the time before which it is not delivered.
    """

    event: Event | Cancellation
    owner: "Recorder | None" = None
    context: Context | None = None
    due: dt.datetime | None = None


class EventLog(list[Noted]):
    """What one unit of work will publish, in order.

    The list belongs to the session, not to the aggregates: a session forgets an aggregate that
    nobody holds, and flushes only those whose columns changed. context is what belongs to all that
    runs now: the unit's, or in one that works off several deliveries that of the one that runs.
    """

    __slots__ = ("context",)

    def __init__(self, context: Context | None = None) -> None:
        self.context = context

    def note(
        self,
        event: Event | Cancellation,
        due: dt.datetime | None = None,
        owner: "Recorder | None" = None,
    ) -> None:
        """Add an event, in the context of what runs now."""
        self.append(Noted(event, owner, self.context, due))


class Recorder:
    """Mixed into entities: `self.record(PaymentSettled(payment_id=self.id))`."""

    def record(self, event: Event) -> None:
        """Publish the event when the transaction that this object is part of commits."""
        session = object_session(self)
        if session is None:
            self.__dict__.setdefault(_UNATTACHED, []).append(event)
        else:
            log_of(session).note(event, owner=self)


def log_of(session: Session) -> EventLog:
    """The events recorded or published so far in this session's transaction."""
    log: EventLog = session.info.setdefault(_EVENTS, EventLog())
    return log


def use_log(session: Session, log: EventLog) -> None:
    """Let everything that is recorded in this session go to the log."""
    session.info[_EVENTS] = log


class RecordingSession(Session):
    """A session that keeps what its objects record, and forgets it with a savepoint."""

    def merge(self, instance: T, **options: Any) -> T:
        """Take over what the object, and those that are merged with it, recorded so far."""
        merged = super().merge(instance, **options)
        related = object_mapper(instance).cascade_iterator("merge", instance_state(instance))
        for one in (instance, *(found[0] for found in related)):
            _attached(self, one)
        return merged


def _attached(session: Session, instance: Any) -> None:
    for event in instance.__dict__.pop(_UNATTACHED, ()):
        log_of(session).note(event, owner=instance)


def _began(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        lengths = session.info.setdefault(_SAVEPOINTS, WeakKeyDictionary())
        lengths[transaction] = len(log_of(session))


def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    length = session.info.get(_SAVEPOINTS, {}).get(transaction)
    if length is not None:
        take_back(log_of(session), length)


def take_back(log: EventLog, length: int) -> None:
    """Shorten the log to what it held before.

    An object that was new in a savepoint is out of the session again: it keeps its events, and
    brings them back if it is added again.
    """
    for noted in log[length:]:
        event, owner = noted.event, noted.owner
        if isinstance(event, Event) and owner is not None and object_session(owner) is None:
            owner.record(event)
    del log[length:]


sa_event.listen(RecordingSession, "after_attach", _attached)
sa_event.listen(RecordingSession, "after_transaction_create", _began)
sa_event.listen(RecordingSession, "after_soft_rollback", _rolled_back)
