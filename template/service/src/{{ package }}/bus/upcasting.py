"""Reads stored events: the payload of an older version is brought to the current one first."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

from .catalog import Catalog, Marked, where
from .marks import Upcaster, Upcasts
from .messages import Event
from .payloads import from_payload

Reader = Callable[[dict[str, Any]], Event]
"""Makes an event of its stored payload. Raises ValidationError if that does not fit."""

Readers = Mapping[str, Mapping[int, Reader]]
"""By the stored name of an event, and by its version."""

Steps = dict[int, Marked]
"""The upcasters of one event by the version that they start from."""


def readers(catalog: Catalog) -> Readers:
    """What reads each event, in each version from which upcasters lead to the current one."""
    steps = steps_of(catalog)
    return {
        name: _readers_of(cls, steps.get(cls, {}))
        for cls, found in catalog.events.items()
        for name in found.names
    }


def steps_of(catalog: Catalog) -> dict[type[Event], Steps]:
    """The upcasters of each event that has some."""
    steps: dict[type[Event], Steps] = {}
    for marked in catalog.upcasters:
        assert isinstance(marked.mark, Upcasts)
        steps.setdefault(marked.mark.event, {})[marked.mark.from_version] = marked
    return steps


def oldest_readable(event: type[Event], steps: Mapping[int, object]) -> int:
    """The version from which on nothing is missing up to the current one."""
    version = event.event_version
    while version - 1 in steps:
        version -= 1
    return version


def upcaster_errors(catalog: Catalog) -> Iterator[str]:
    """What keeps stored versions from being read; the one before the current is always read."""
    seen: dict[tuple[type[Event], int], Marked] = {}
    for marked in catalog.upcasters:
        assert isinstance(marked.mark, Upcasts)
        yield from _misplaced(catalog, marked, marked.mark)
        other = seen.setdefault((marked.mark.event, marked.mark.from_version), marked)
        if other is not marked:
            yield f"{_at(marked)}: {other.where} starts from the same version: remove one of them."
    steps = steps_of(catalog)
    for event in catalog.events:
        yield from _broken_chain(event, steps.get(event, {}))


def _readers_of(event: type[Event], steps: Steps) -> dict[int, Reader]:
    current = event.event_version
    read: Reader = partial(from_payload, event)
    found = {current: read}
    for version in range(current - 1, oldest_readable(event, steps) - 1, -1):
        read = _after(steps[version].function, read)
        found[version] = _of_copy(read)
    return found


def _after(step: Upcaster, read: Reader) -> Reader:
    return lambda payload: read(step(payload))


def _of_copy(read: Reader) -> Reader:
    # Upcasters may change what they are given, which is read again if the listener runs again.
    return lambda payload: read(deepcopy(payload))


def _misplaced(catalog: Catalog, marked: Marked, mark: Upcasts) -> Iterator[str]:
    event = mark.event
    if event not in catalog.events:
        yield f"{_at(marked)}: expected an event of a slice in @upcast(…), got {event!r}."
        return
    if marked.function.__module__ != event.__module__:
        yield (
            f"{_at(marked)}: an upcaster stands beside its event, so that it is wherever that is:"
            f" {event.__name__} is at {where(event)}."
        )
    if not 1 <= mark.from_version < event.event_version:
        yield (
            f"{_at(marked)}: expected from_version to be a version before the current one of"
            f" {event.__name__}, {event.event_version} ({where(event)}), got {mark.from_version}."
        )
    parameters = len(inspect.signature(marked.function).parameters)
    if parameters != 1 or inspect.iscoroutinefunction(marked.function):
        yield (
            f"{_at(marked)}: an upcaster is a plain function of one payload:"
            f" def {marked.function.__name__}(payload: dict[str, Any]) -> dict[str, Any]."
        )


def _broken_chain(event: type[Event], steps: Steps) -> Iterator[str]:
    version, oldest = event.event_version, oldest_readable(event, steps)
    name = event.__name__
    if version > 1 and oldest == version:
        yield (
            f"{where(event)}: {name} is version {version}, but nothing reads what was stored as"
            f" version {version - 1}: write beside it"
            f" @upcast({name}, from_version={version - 1}) def …(payload: dict[str, Any])"
            " -> dict[str, Any]."
        )
    elif lost := [one for one in steps if one < oldest]:
        yield (
            f"{_at(steps[max(lost)])}: brings {name} to version {max(lost) + 1}, from which nothing"
            f" leads on to version {oldest}: write @upcast({name}, from_version={max(lost) + 1}),"
            " or remove this one."
        )


def _at(marked: Marked) -> str:
    return f"{marked.where}: {marked.function.__name__}"
