"""The engine: messages, their handlers and listeners, the unit of work, outbox and delivery."""

from .bus import Bus, QueryBus
from .context import Context, User
from .errors import (
    BusError,
    EventTokenError,
    IdempotencyKeyError,
    NeverSeenError,
    NotSeenInTimeError,
    RefusedError,
    UnitDoomedError,
    WiringError,
)
from .marks import Proceed, guard, handle, listen, upcast
from .messages import Command, Event, Message, Query, View
from .policy import GiveUp, Pause, Retry

__all__ = [
    "Bus",
    "BusError",
    "Command",
    "Context",
    "Event",
    "EventTokenError",
    "GiveUp",
    "IdempotencyKeyError",
    "Message",
    "NeverSeenError",
    "NotSeenInTimeError",
    "Pause",
    "Proceed",
    "Query",
    "QueryBus",
    "RefusedError",
    "Retry",
    "UnitDoomedError",
    "User",
    "View",
    "WiringError",
    "guard",
    "handle",
    "listen",
    "upcast",
]
