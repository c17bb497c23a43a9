"""What handlers raise to say no; each becomes a problem document with its status."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..bus import RefusedError


class ProblemError(Exception):
    """The caller cannot have what was asked for; detail tells the caller why.

    The detail is sent to the caller, and so are the members, which are added to the problem
    document: no secrets, no internals. Subclasses give status and title.
    """

    status: ClassVar[int] = 400
    title: ClassVar[str] = "Bad request"
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class NotAuthenticated(ProblemError, RefusedError):
    """Nobody is known to ask: no valid credentials came with the request."""

    status = 401
    title = "Not authenticated"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotAllowed(ProblemError, RefusedError):
    """Whoever asks is known, and may not."""

    status = 403
    title = "Not allowed"


class NotFound(ProblemError, RefusedError):
    """There is no such thing: `raise NotFound("payment", query.id)`."""

    status = 404
    title = "Not found"

    def __init__(self, what: str, key: object) -> None:
        super().__init__(f"There is no {what} {key}.")


class Conflict(ProblemError, RefusedError):
    """What was asked for does not fit what is stored; a stale version, say."""

    status = 409
    title = "Conflict"


def expect_version(version: int, seen: int) -> None:
    """Raises Conflict if the version is no longer the one that the caller has seen."""
    if version != seen:
        raise Conflict(f"It is version {version} by now, not {seen}: look again.")


class Invalid(ProblemError, RefusedError):
    """A business rule that only the handler can check refuses the data."""

    status = 422
    title = "Invalid"


class Unavailable(ProblemError):
    """Something that this service needs does not answer; the same request may work later."""

    status = 503
    title = "Unavailable"
