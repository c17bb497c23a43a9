"""The decorators. They only mark functions; what is marked is collected when the bus is built."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])

Proceed = Callable[[], Awaitable[Any]]
"""What a guard that runs around a handler awaits to go on; answers what the handler answers."""

_MARK = "__bus_mark__"


@dataclass(frozen=True, slots=True)
class Handles:
    """Marks the one function that a command or query goes to."""


@dataclass(frozen=True, slots=True)
class Listens:
    """Marks a function that reacts to an event."""

    inline: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Guards:
    """Marks a function that runs before, or around, handlers."""

    queries: bool = True


Mark = Handles | Listens | Guards


def mark_of(function: object) -> Mark | None:
    """The mark that a decorator left on this function, if any."""
    mark: Mark | None = getattr(function, "__dict__", {}).get(_MARK)
    return mark


def handle(function: F) -> F:
    """Mark the handler of the command or query that is its first parameter.

    Further parameters are passed by their types: AsyncSession, Bus (QueryBus in the handler of a
    query), Context, a settings class, or a service of a `providers.py`.
    """
    return _marked(function, Handles())


@overload
def listen(function: F, /) -> F: ...
@overload
def listen(*, inline: bool = False, aliases: tuple[str, ...] = ()) -> Callable[[F], F]: ...
def listen(
    function: F | None = None, /, *, inline: bool = False, aliases: tuple[str, ...] = ()
) -> F | Callable[[F], F]:
    """Mark a listener of the event, or the union of events, that is its first parameter.

    It runs in its own transaction after the publisher's commit; what it returns, a command of its
    own slice or None, is sent in that transaction.

    inline: run inside the publisher's transaction instead, just before the commit; only for events
    of its own slice. aliases: names that the function had before.
    """
    mark = Listens(inline, aliases)
    if function is not None:
        return _marked(function, mark)
    return lambda function: _marked(function, mark)


@overload
def guard(function: F, /) -> F: ...
@overload
def guard(*, queries: bool = True) -> Callable[[F], F]: ...
def guard(function: F | None = None, /, *, queries: bool = True) -> F | Callable[[F], F]:
    """Mark a guard of the messages that its first parameter's type covers, subtypes included.

    It runs before the handler and refuses by raising. If it takes a Proceed it runs around the
    handler: it is async, awaits `proceed()`, and returns what that gives.

    queries: whether it guards queries too.
    """
    mark = Guards(queries)
    if function is not None:
        return _marked(function, mark)
    return lambda function: _marked(function, mark)


def _marked(function: F, mark: Mark) -> F:
    function.__dict__[_MARK] = mark
    return function
