"""Given, when, then: what a test says that has happened, what it does, and what must follow."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import pytest

from .bus import Command, Event, User
from .bus.bus import Listeners
from .testing import ALICE, Service

R = TypeVar("R")

Expected = Event | type[Event]
"""An event as it must be, or its kind alone."""


class Scenario:
    """Tells a test as a story. What `then` looks at begins with the last `when` or `later`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._since = 0

    async def given(self, *facts: Event | Command[Any]) -> None:
        """What has happened before, and all that followed: events of any slice, or commands."""
        for fact in facts:
            await self._cause(fact, ALICE)
        self._since = await self._last()

    @overload
    async def when(self, message: Command[R], user: User = ..., *, dead: Listeners = ...) -> R: ...
    @overload
    async def when(self, message: Event, *, dead: Listeners = ...) -> None: ...
    async def when(
        self, message: Event | Command[Any], user: User = ALICE, *, dead: Listeners = ()
    ) -> Any:
        """Send a command, or publish an event as its slice does, and wait for all that follows.

        Returns the command's answer, and raises what its handler raises. dead: listeners that give
        up, so that what they were to do is a dead letter; any other one fails the test.
        """
        self._since = await self._last()
        return await self._cause(message, user, dead)

    async def later(self, by: dt.timedelta, *, dead: Listeners = ()) -> None:
        """Let time pass, and wait for all that is due by then, and follows; dead as for `when`."""
        self._since = await self._last()
        await self.service.later(by)
        await self.service.settled(dead=dead)

    async def then(self, *expected: Expected) -> None:
        """These events have been published, in any order, and no others. Raises AssertionError."""
        __tracebackhide__ = True
        events = await self._news()
        if any(_compared(expected, events)):
            raise AssertionError(_told("just", expected, events))

    async def then_also(self, *expected: Expected) -> None:
        """These events have been published, maybe among others. Raises AssertionError."""
        __tracebackhide__ = True
        events = await self._news()
        if _compared(expected, events)[0]:
            raise AssertionError(_told("at least", expected, events))

    async def then_not(self, *kinds: type[Event]) -> None:
        """No events of these kinds have been published. Raises AssertionError."""
        __tracebackhide__ = True
        events = await self._news()
        if any(isinstance(event, kinds) for event in events):
            raise AssertionError(_told("none of", kinds, events))

    async def _cause(self, message: Event | Command[Any], user: User, dead: Listeners = ()) -> Any:
        answer = None
        if isinstance(message, Event):
            await self.service.runtime.publish(message)
            # It is no consequence of itself.
            self._since = await self._last()
        else:
            answer = await self.service.send(message, user)
        await self.service.settled(dead=dead)
        return answer

    async def _last(self) -> int:
        """The position of the last event so far."""
        positions = [position for position, _ in await self.service.events(self._since)]
        return max(positions, default=self._since)

    async def _news(self) -> list[Event]:
        return [event for _, event in await self.service.events(self._since)]


@pytest.fixture
def scenario(service: Service) -> Scenario:
    """Given, when, then, on the running service."""
    return Scenario(service)


def _compared(
    expected: Sequence[Expected], events: Sequence[Event]
) -> tuple[list[Expected], list[Event]]:
    """What is missing, and what is there besides."""
    missing, others = list[Expected](), list(events)
    # Whole events choose first: a kind is content with any.
    for one in sorted(expected, key=lambda one: isinstance(one, type)):
        found = next((event for event in others if one in (event, type(event))), None)
        if found is None:
            missing.append(one)
        else:
            others.remove(found)
    return missing, others


def _told(how: str, expected: Sequence[Expected], events: Sequence[Event]) -> str:
    wanted = [one.__name__ if isinstance(one, type) else repr(one) for one in expected]
    lines = [f"expected {how}", *(wanted or ["nothing"]), "got", *(map(repr, events))]
    return "\n  ".join([*lines, *([] if events else ["nothing"])]).replace("\n  got", "\ngot")
