"""The engine: messages, their handlers and listeners, the unit of work, outbox and delivery."""

from .bus import Bus, QueryBus
from .context import Context, User
from .errors import BusError, IdempotencyKeyError, UnitDoomedError, WiringError
from .marks import Proceed, guard, handle, listen
from .messages import Command, Event, Message, Query, View

__all__ = [
    "Bus",
    "BusError",
    "Command",
    "Context",
    "Event",
    "IdempotencyKeyError",
    "Message",
    "Proceed",
    "Query",
    "QueryBus",
    "UnitDoomedError",
    "User",
    "View",
    "WiringError",
    "guard",
    "handle",
    "listen",
]
