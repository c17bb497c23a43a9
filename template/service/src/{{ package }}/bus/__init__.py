"""The engine: messages, dispatch, unit of work, outbox, delivery. README: docs 'Follow one request'."""

from .bus import Bus, QueryBus
from .context import Context, User
from .errors import BusError, UnitDoomedError, WiringError
from .marks import Proceed, guard, handle, listen
from .messages import Command, Event, Message, Query, View

__all__ = [
    "Bus",
    "BusError",
    "Command",
    "Context",
    "Event",
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
