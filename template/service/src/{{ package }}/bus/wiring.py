"""Checks that what was found fits together: the service does not start if it does not."""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

from .catalog import Catalog, Marked, event_types, members_of, takes_list, where
from .errors import WiringError
from .injection import Plan, Source, plan
from .marks import Guards, Handles, Listens
from .messages import Command, Event, Query
from .payloads import secret_in
from .policy import GiveUp, Pause, Retry
from .services import Services
from .source import attributes_read
from .upcasting import upcaster_errors


@dataclass(frozen=True, slots=True)
class Wired:
    """A marked function that passed its checks, and the plan for calling it."""

    marked: Marked
    plan: Plan


@dataclass(slots=True)
class Wiring:
    """Who handles, guards and hears what; no function has run yet."""

    catalog: Catalog
    services: Services
    handlers: dict[type[Command[Any]], Wired] = field(default_factory=dict)
    listeners: dict[str, Wired] = field(default_factory=dict)
    guards: list[Wired] = field(default_factory=list)

    def needed_services(self) -> Iterator[Any]:
        """The types of the application's services that functions ask for."""
        for wired in [*self.handlers.values(), *self.listeners.values(), *self.guards]:
            yield from wired.plan.services

    def guards_of(self, command: type[Command[Any]]) -> list[Wired]:
        """The guards of a command or query, outermost first."""
        return [wired for wired in self.guards if _covers(wired, command)]


def check(catalog: Catalog, services: Services) -> Wiring:
    """Match messages with functions. Raises WiringError with everything that does not fit."""
    wiring = Wiring(catalog, services)
    errors: list[str] = []
    for event in catalog.events:
        errors += _event_errors(event)
    errors += _shared_names(catalog)
    errors += upcaster_errors(catalog)
    unwired: list[Marked] = []
    for marked, add in _marked(wiring):
        try:
            errors += add(wiring, Wired(marked, plan(marked.function, services)))
        except WiringError as error:
            errors.append(str(error))
            unwired.append(marked)
    errors += _unhandled(wiring, unwired)
    if errors:
        raise WiringError("\n".join(errors))
    return wiring


def result_type(command: type[Command[Any]]) -> Any:
    """The R of Command[R]; raises LookupError for a bare `class X(Command)`."""
    for cls in command.__mro__:
        for base in cls.__bases__:
            generic = getattr(base, "__pydantic_generic_metadata__", None) or {}
            if generic.get("origin") in (Command, Query) and generic["args"]:
                return _resolved(generic["args"][0], cls)
    raise LookupError(command)


def _resolved(annotation: Any, cls: type) -> Any:
    """The type behind a name in quotes, as in Query["list[Page]"]."""
    holder = SimpleNamespace(__annotations__={"answer": annotation})
    try:
        return get_type_hints(holder, vars(sys.modules[cls.__module__]))["answer"]
    except NameError as error:
        raise WiringError(
            f"{where(cls)}: {cls.__name__} answers with {error.name!r}, which its module does not"
            " have: import it outside of `if TYPE_CHECKING:`."
        ) from error


def _marked(wiring: Wiring) -> Iterator[tuple[Marked, Any]]:
    catalog = wiring.catalog
    yield from ((one, _add_guard) for one in catalog.guards)
    yield from ((one, _add_handler) for one in catalog.handlers)
    yield from ((one, _add_listener) for one in catalog.listeners)


def _add_guard(wiring: Wiring, wired: Wired) -> Iterator[str]:
    wiring.guards.append(wired)
    guarded = wired.plan.message
    if not inspect.isclass(guarded):
        yield _wrong(wired, "a message's type", guarded)
    elif issubclass(guarded, Event):
        yield f"{_at(wired)}: guards are for commands and queries, and nothing guards events."
    if Source.PROCEED in wired.plan.sources:
        if not wired.plan.is_async:
            yield f"{_at(wired)}: a guard that runs around a handler is `async def`."
        if Source.MESSAGE in wired.plan.sources:
            yield (
                f"{_at(wired)}: a guard that runs around a handler cannot ask for what lives for"
                " one message; give its provider Scope.APP."
            )


def _add_handler(wiring: Wiring, wired: Wired) -> Iterator[str]:
    command = wired.plan.message
    if command not in wiring.catalog.commands:
        yield _wrong(wired, "a command or query (that no other is made from)", command)
        return
    owner = wiring.catalog.commands[command]
    if owner != wired.marked.slice:
        yield (
            f"{_at(wired)}: {command.__name__} belongs to the slice {owner.name}: only that slice"
            " handles it. React to an event of its contracts.py instead."
        )
    if other := wiring.handlers.get(command):
        yield (
            f"{_at(wired)}: {command.__name__} has a handler already,"
            f" {other.marked.function.__name__} at {other.marked.where}. Remove one of them."
        )
    wiring.handlers[command] = wired
    yield from _result_errors(wired, command)
    if issubclass(command, Query) and Source.BUS in wired.plan.sources:
        yield f"{_at(wired)}: the handler of a query only reads: ask for a QueryBus, not a Bus."
    yield from _no_proceed(wired)


def _result_errors(wired: Wired, command: type[Command[Any]]) -> Iterator[str]:
    try:
        expected = result_type(command)
    except LookupError:
        yield (
            f"{where(command)}: {command.__name__} does not say what it answers with: write"
            f" `class {command.__name__}(Command[None])`, or the view in place of None."
        )
        return
    found = wired.plan.returns
    if found is not Any and (found or NoneType) != (expected or NoneType):
        yield (
            f"{_at(wired)}: expected it to return {_named(expected)}, which {command.__name__}"
            f" promises, got {_named(found)}."
        )


def _add_listener(wiring: Wiring, wired: Wired) -> Iterator[str]:
    events = event_types(wired.plan.message)
    for other in wiring.listeners.values():
        for shared in set(wired.marked.names) & set(other.marked.names):
            yield (
                f"{_at(wired)}: {other.marked.where} is a listener named {shared} too: rename one."
            )
    wiring.listeners[wired.marked.name] = wired
    for event in events:
        yield from _heard_event_errors(wiring, wired, event)
    yield from _no_proceed(wired)
    yield from _option_errors(wired)
    yield from _next_command_errors(wiring, wired)
    yield from _projection_errors(wiring, wired)
    is_one = not takes_list(wired.plan.message)
    if is_one and all(inspect.isclass(event) and issubclass(event, Event) for event in events):
        yield from _unknown_attributes(wired, events)


def _heard_event_errors(wiring: Wiring, wired: Wired, event: Any) -> Iterator[str]:
    if not (inspect.isclass(event) and issubclass(event, Event)):
        yield _wrong(wired, "an event", event)
        return
    found = wiring.catalog.events.get(event)
    if found is None:
        yield f"{_at(wired)}: {event.__name__} ({where(event)}) belongs to no slice."
        return
    own = wired.marked.slice is not None and found.slice == wired.marked.slice.name
    if not own and not event.__module__.endswith(".contracts"):
        yield (
            f"{_at(wired)}: {event.__name__} is private to the slice {found.slice}"
            f" ({where(event)}). Only events in its contracts.py are for others."
        )
    if not own and isinstance(wired.marked.mark, Listens) and wired.marked.mark.inline:
        yield (
            f"{_at(wired)}: an inline listener is part of the publisher's transaction, so that it"
            f" hears its own slice only; {event.__name__} is from {found.slice}. Drop `inline`."
        )


def _option_errors(wired: Wired) -> Iterator[str]:
    mark = wired.marked.mark
    assert isinstance(mark, Listens)
    takes_many = takes_list(wired.plan.message)
    if mark.inline and (takes_many or mark != Listens(inline=True, aliases=mark.aliases)):
        yield (
            f"{_at(wired)}: an inline listener is part of the publisher's transaction: order,"
            " batches, retries and timeouts are for deliveries. Drop `inline`, or the rest."
        )
    elif takes_many and mark.batch < 2:
        yield f"{_at(wired)}: takes a list of events: say how many, as in @listen(batch=100)."
    retry = mark.policy.default
    if isinstance(retry, Retry) and not (
        mark.batch >= 1 and _is_possible(retry) and mark.policy.timeout > 0
    ):
        yield (
            f"{_at(wired)}: expected batch >= 1, retries >= 0, backoff > 0 and timeout > 0, got"
            f" batch={mark.batch}, retries={retry.retries}, backoff={retry.backoff},"
            f" timeout={mark.policy.timeout}."
        )
    if mark.start not in ("now", "beginning"):
        yield f'{_at(wired)}: expected start="now" or "beginning", got {mark.start!r}.'
    for alias in mark.aliases:
        if not alias.isidentifier():
            yield (
                f"{_at(wired)}: expected aliases to be names that the function had before, in this"
                f" slice, got {alias!r}. From another slice `events move` brings over what waits."
            )
    for error, decision in mark.policy.errors.items():
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            yield f"{_at(wired)}: expected a class of exceptions in errors, got {error!r}."
        if not _is_possible(decision):
            yield (
                f"{_at(wired)}: expected Retry(retries >= 0, backoff > 0), GiveUp() or"
                f" Pause(seconds > 0) for {_named(error)}, got {decision!r}."
            )


def _is_possible(decision: object) -> bool:
    match decision:
        case Retry(retries, backoff):
            return retries >= 0 and backoff > 0
        case Pause(seconds):
            return seconds > 0
        case _:
            return isinstance(decision, GiveUp)


def _projection_errors(wiring: Wiring, wired: Wired) -> Iterator[str]:
    """What would keep a read model from being the same when it is made anew from the log."""
    mark, owner = wired.marked.mark, wired.marked.slice
    assert isinstance(mark, Listens)
    if mark.projects and not mark.inline and mark.start != "beginning":
        yield f'{_at(wired)}: a read model is made of all events: add start="beginning".'
    if mark.projects and wired.plan.returns not in (Any, None, NoneType):
        yield f"{_at(wired)}: what `projects` a read model writes its rows, and returns no command."
    for cls in mark.projects:
        table = getattr(cls, "__table__", None)
        if table is None or owner is None or not cls.__module__.startswith(f"{owner.package}."):
            yield (
                f"{_at(wired)}: expected mapped classes of its own slice in `projects`, got"
                f" {_named(cls)}."
            )
            continue
        if table.autoincrement_column is not None or table.foreign_keys:
            yield (
                f"{_at(wired)}: {cls.__name__} ({where(cls)}) is made anew from events alone: give"
                " it a key that comes with them, no number that the database counts, and no"
                " foreign keys."
            )
        for other in wiring.listeners.values():
            theirs = other.marked.mark
            if other is not wired and isinstance(theirs, Listens) and cls in theirs.projects:
                yield (
                    f"{_at(wired)}: {cls.__name__} is made by {other.marked.name} already"
                    f" ({other.marked.where}): let one listener take a union of the events."
                )


def _next_command_errors(wiring: Wiring, wired: Wired) -> Iterator[str]:
    for command in members_of(wired.plan.returns):
        if command in (Any, None, NoneType):
            continue
        if wiring.catalog.commands.get(command) != wired.marked.slice:
            yield (
                f"{_at(wired)}: a listener returns a command of its own slice, or None, got"
                f" {_named(command)}."
            )


def _unknown_attributes(wired: Wired, events: tuple[type[Event], ...]) -> Iterator[str]:
    """What the listener reads from its event but the event (none of a union's) does not have."""
    message = next(iter(inspect.signature(wired.marked.function).parameters))
    for attribute in sorted(attributes_read(wired.marked.function, message)):
        if not any(hasattr(one, attribute) or attribute in one.model_fields for one in events):
            has = " and ".join(
                f"{one.__name__} ({where(one)}) has {', '.join(one.model_fields)}" for one in events
            )
            yield f"{_at(wired)}: reads {message}.{attribute}, but {has}."


def _event_errors(event: type[Event]) -> Iterator[str]:
    at = f"{where(event)}: {event.__name__}"
    if event.event_key not in event.model_fields:
        fields = ", ".join(event.model_fields)
        yield (
            f'{at}: an event names the field with the id of what it is about: key="…", one of its'
            f" fields ({fields}); got {event.event_key!r}."
        )
    if secret := secret_in(event):
        yield f"{at}.{secret}: a secret cannot be stored, only asterisks: tell an id of it."
    if event.event_version < 1:
        yield f"{at}: expected a version >= 1, got {event.event_version}."


def _shared_names(catalog: Catalog) -> Iterator[str]:
    owners: dict[str, type[Event]] = {}
    for event, found in catalog.events.items():
        for name in found.names:
            other = owners.setdefault(name, event)
            if other is not event:
                yield f"{where(event)} and {where(other)} are both stored as {name}: rename one."


def _unhandled(wiring: Wiring, unwired: list[Marked]) -> Iterator[str]:
    """Commands without a handler; one that was found but does not fit has been told already."""
    meant = [_first_annotation(one) for one in unwired if isinstance(one.mark, Handles)]
    for command, owner in wiring.catalog.commands.items():
        told = any(one in (command, command.__name__) for one in meant)
        if command not in wiring.handlers and not told:
            yield (
                f"{where(command)}: {command.__name__} has no handler. Write one in"
                f" {owner.path / 'handlers.py'}: @handle async def …(message: {command.__name__})."
            )


def _first_annotation(marked: Marked) -> Any:
    """As it is written, maybe in quotes: what the others stand for may not be known."""
    parameters = inspect.signature(marked.function).parameters.values()
    return next((one.annotation for one in parameters), None)


def _covers(wired: Wired, command: type[Command[Any]]) -> bool:
    guarded = wired.plan.message
    generic = getattr(guarded, "__pydantic_generic_metadata__", None) or {}
    if not issubclass(command, generic.get("origin") or guarded):
        return False
    takes_queries = isinstance(wired.marked.mark, Guards) and wired.marked.mark.queries
    return takes_queries or not issubclass(command, Query)


def _no_proceed(wired: Wired) -> Iterator[str]:
    if Source.PROCEED in wired.plan.sources:
        yield f"{_at(wired)}: only a @guard takes a Proceed."


def _wrong(wired: Wired, expected: str, found: Any) -> str:
    return f"{_at(wired)}: expected {expected} as the first parameter, got {_named(found)}."


def _at(wired: Wired) -> str:
    return f"{wired.marked.where}: {wired.marked.function.__name__}"


def _named(annotation: Any) -> str:
    if annotation is None or annotation is NoneType:
        return "None"
    if get_args(annotation):
        return str(annotation)
    return getattr(annotation, "__name__", None) or str(annotation)
