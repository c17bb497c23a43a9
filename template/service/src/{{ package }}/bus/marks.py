"""The decorators. They only mark functions; what is marked is collected when the bus is built."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Literal, TypeVar, overload

from .messages import Event, names_of
from .policy import Decision, Policy, Retry

F = TypeVar("F", bound=Callable[..., Any])

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

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
    ordered: bool = False
    batch: int = 1
    start: Literal["now", "beginning"] = "now"
    projects: tuple[type, ...] = ()
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Guards:
    """Marks a function that runs before, or around, handlers."""

    queries: bool = True


@dataclass(frozen=True, slots=True)
class Upcasts:
    """Marks a function that brings a stored payload from one version of an event to the next."""

    event: type[Event]
    from_version: int


Mark = Handles | Listens | Guards | Upcasts


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
def listen(
    *,
    inline: bool = False,
    ordered: bool = False,
    batch: int = 1,
    retries: int = 10,
    backoff: float = 1.0,
    timeout: float = 60.0,
    errors: Mapping[type[BaseException], Decision] | None = None,
    start: Literal["now", "beginning"] = "now",
    projects: type | tuple[type, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Callable[[F], F]: ...
def listen(
    function: F | None = None,
    /,
    *,
    inline: bool = False,
    ordered: bool = False,
    batch: int = 1,
    retries: int = 10,
    backoff: float = 1.0,
    timeout: float = 60.0,
    errors: Mapping[type[BaseException], Decision] | None = None,
    start: Literal["now", "beginning"] = "now",
    projects: type | tuple[type, ...] = (),
    aliases: tuple[str, ...] = (),
) -> F | Callable[[F], F]:
    """Mark a listener of the event, or the union of events, that is its first parameter.

    It runs in its own transaction after the publisher's commit; what it returns, a command of its
    own slice or None, is sent in that transaction.

    inline: run inside the publisher's transaction instead, just before the commit; only for events
    of its own slice.
    ordered: events with the same key one at a time, in the order in which they were committed; one
    that is given up holds back the later ones of its key.
    batch: up to this many deliveries in one transaction, for a listener that only touches the
    database; it may also take the whole `list[...]` of events.
    retries, backoff: how often to try again, and after how many seconds at first (then twice as
    long each time, five minutes at most); then it is a dead letter.
    timeout: seconds that it may take.
    errors: what these kinds of exceptions mean instead: Retry, GiveUp, or Pause the listener.
    start: what a new listener gets: what is published from now on, or all that is stored, too.
    projects: the mapped classes, of its own slice, whose rows it makes of these events, and nobody
    else does: a read model, which `projections rebuild` can make anew.
    aliases: names that the function had before.
    """
    policy = Policy(timeout, Retry(retries, backoff), dict(errors or {}))
    tables = projects if isinstance(projects, tuple) else (projects,)
    mark = Listens(inline, names_of(aliases), ordered, batch, start, tables, policy)
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


def upcast(event: type[Event], *, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Mark what brings a stored payload of this version of an event to the next version.

    It stands beside the event, takes the payload as JSON values and returns it as the next version
    has it. From older versions the functions run one after the other, before the event is made.
    """
    return lambda function: _marked(function, Upcasts(event, from_version))


def _marked(function: F, mark: Mark) -> F:
    holder = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not isinstance(function, FunctionType) or (holder and not holder.endswith("<locals>")):
        # It would never be found, and never run.
        raise TypeError(f"expected a function of a module, got {function!r}")
    function.__dict__[_MARK] = mark
    return function
