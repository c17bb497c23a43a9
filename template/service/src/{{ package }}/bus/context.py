"""Who asked, and what belongs together: travels with messages and with the events they cause."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid5, uuid7

_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")


def new_correlation_id() -> str:
    """A fresh id for everything that one request, or one start from outside, causes."""
    return uuid7().hex


def is_correlation_id(text: str) -> bool:
    """Whether text from outside may serve as a correlation id: up to 64 harmless characters."""
    return _SAFE_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class User:
    """Whoever a message is sent for."""

    id: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a message inherits from what caused it.

    correlation_id is shared by all that one request causes; causation_id is the id of the event
    that caused this message, None if it came from outside; trace holds W3C trace headers.

    In a listener, delivery is the number of what it runs for, which that keeps when the listener
    gets another name, and which no replay has. replayed says that it ran long ago and runs again
    because somebody asked for that.
    """

    user: User | None = None
    correlation_id: str = field(default_factory=new_correlation_id)
    causation_id: UUID | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    delivery: int | str | None = None
    replayed: bool = False

    @property
    def message_id(self) -> UUID | None:
        """In a listener: what to give other systems, so that they can tell a repeated call.

        It is the same whenever this delivery runs.
        """
        if self.causation_id is None or self.delivery is None:
            return None
        return uuid5(self.causation_id, str(self.delivery))

    def headers(self) -> dict[str, Any]:
        """The part of the context that is stored with an event, as JSON values."""
        headers: dict[str, Any] = {}
        if self.user is not None:
            headers["user"] = {"id": self.user.id, "roles": list(self.user.roles)}
        if self.trace:
            headers["trace"] = dict(self.trace)
        return headers

    @classmethod
    def of_delivery(
        cls,
        event_id: UUID,
        correlation_id: str,
        headers: Mapping[str, Any],
        *,
        delivery: int | str,
        replayed: bool = False,
    ) -> "Context":
        """The context in which a listener of a stored event runs."""
        user = headers.get("user")
        return cls(
            user=User(user["id"], tuple(user["roles"])) if user else None,
            correlation_id=correlation_id,
            causation_id=event_id,
            trace=headers.get("trace", {}),
            delivery=delivery,
            replayed=replayed,
        )
