"""What handlers, listeners and routers hold: send a message, publish an event."""

import datetime as dt
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from .context import Context
from .errors import BusError
from .messages import Command, Event, Query

if TYPE_CHECKING:
    from .unit import UnitOfWork

R = TypeVar("R")

Route = Callable[[Any, "Bus"], Coroutine[Any, Any, Any]]
"""What a message's type leads to: guards, unit of work and handler, wired when the bus is built."""

KeyedRoute = Callable[[Any, "Bus", str], Coroutine[Any, Any, Any]]
"""The same for a command that is sent with an idempotency key."""

Listeners = Iterable[Callable[..., Any]]

WaitingRoute = Callable[[Any, "Bus", str, Listeners], Coroutine[Any, Any, Any]]
"""The same for a query that is sent with a token of events, and the listeners to wait for."""


class RouteTable(dict[type, Route]):
    """The routes by type of message; what is not there is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.keyed: dict[type, KeyedRoute] = {}
        self.waiting: dict[type, WaitingRoute] = {}

    def __missing__(self, message: type) -> Route:
        raise BusError(
            f"{message.__name__} is no command or query of a slice that runs here. Slices answer"
            " only their own messages: from another one, listen to an event of its contracts.py."
        )

    def wrap(self, around: Callable[[Callable[..., Any]], Any]) -> None:
        """Put something around every route; for tests."""
        self.update({kind: around(route) for kind, route in self.items()})
        self.keyed.update({kind: around(route) for kind, route in self.keyed.items()})
        self.waiting.update({kind: around(route) for kind, route in self.waiting.items()})

    def send_keyed(self, message: Any, bus: "Bus", key: str) -> Coroutine[Any, Any, Any]:
        """Take the route for messages with a key; queries, which change nothing, have none."""
        keyed = self.keyed.get(type(message))
        return keyed(message, bus, key) if keyed else self[type(message)](message, bus)

    def send_after(
        self, query: Any, bus: "Bus", token: str, seen_by: Listeners
    ) -> Coroutine[Any, Any, Any]:
        """Take the route for queries that wait. Raises BusError for any other message."""
        kind = type(query)
        if kind not in self:
            self.__missing__(kind)
        if kind not in self.waiting:
            raise BusError(f"{kind.__name__} is no query: only a query can wait.")
        return self.waiting[kind](query, bus, token, seen_by)


class QueryBus:
    """A bus that only asks. Each handler gets one of its own, bound to its unit of work."""

    # The scope is there only while a message runs that asks for services of its own.
    __slots__ = ("_depth", "_published", "_routes", "_scope", "_unit", "context")

    _scope: Any

    def __init__(
        self,
        routes: RouteTable,
        context: Context,
        unit: "UnitOfWork | None" = None,
        depth: int = 0,
    ) -> None:
        self._routes = routes
        self._unit = unit
        self._depth = depth
        self._published = ""
        self.context = context

    @property
    def session(self) -> AsyncSession | None:
        """The session of the unit of work; None outside of one, and without a database."""
        return self._unit.session if self._unit and self._unit.has_database else None

    def send(self, query: Query[R]) -> Coroutine[Any, Any, R]:
        """Await the answer of the query's handler; raises what the handler or a guard raises."""
        if not isinstance(query, Query):
            raise BusError(
                f"{type(query).__name__} is no query: the handler of a query only reads."
            )
        return self._routes[type(query)](query, self)  # type: ignore[arg-type]


class Bus(QueryBus):
    """Sends commands and queries, publishes events.

    In a handler it is bound to the handler's unit of work: what is sent joins that unit, what is
    published is delivered if it commits. Elsewhere, every send is a unit of its own.
    """

    __slots__ = ()

    @property
    def published(self) -> str:
        """A token that names the events of the last send on this bus that has published any.

        '' if none has. For the bus of a request, not of a handler. What listeners publish in their
        turn is not meant.
        """
        return self._published

    def send(
        self,
        command: Command[R],
        *,
        idempotency_key: str | None = None,
        after: str | None = None,
        seen_by: Listeners = (),
    ) -> Coroutine[Any, Any, R]:
        """Await what the command's handler returns; it is committed by then.

        Under an idempotency key the user's same command runs once, and is answered with the first
        result when it is sent again. Raises IdempotencyKeyError if it came with other data before.

        A query waits until these listeners have seen the events that a token names (see
        `published`): `bus.send(ListOrders(), after=token, seen_by=[list_order])`. Raises
        EventTokenError, NotSeenInTimeError, and NeverSeenError if that needs a person first.

        Raises what the handler or a guard raises, and BusError if the bus is used wrongly. Within
        a unit of work a failed send dooms the whole unit, unless it was sent in a `savepoint()`.
        """
        if after is not None or seen_by:
            return self._routes.send_after(command, self, after or "", seen_by)
        if idempotency_key is None:
            return self._routes[type(command)](command, self)
        return self._routes.send_keyed(command, self, idempotency_key)

    def publish(
        self,
        event: Event,
        *,
        after: dt.timedelta | None = None,
        at: dt.datetime | None = None,
    ) -> None:
        """Note the event: it is stored with the unit's changes and delivered after the commit.

        after, or at: it happens only then, unless it is cancelled. Raises BusError outside a unit
        of work, for an event that no slice declares, and for a time without a time zone.
        """
        if self._unit is None:
            raise BusError(
                f"{type(event).__name__} was published outside a unit of work: nothing would store"
                " it. Publish in a handler or listener, on the bus that it is given."
            )
        self._unit.publish(event, self._depth, after, at)

    def cancel(self, event: type[Event], key: object) -> None:
        """Take back events of this type and key that were published for later, if not due yet.

        Noted like an event that is published: it happens with the commit. One that is due is
        delivered all the same, so that its listener has to see whether it still matters.
        """
        if self._unit is None:
            raise BusError("What is cancelled is part of a unit of work: cancel in a handler.")
        self._unit.cancel(event, key, self._depth)

    def _tell(self, token: str) -> None:
        """Note what a send on this bus has published; for the unit of work."""
        self._published = token

    def within(self, context: Context, call: Route, message: Any) -> Coroutine[Any, Any, Any]:
        """Run a part of this unit of work in another context; for the relay."""
        if self._unit is None:
            raise BusError("There is no unit of work to run in.")
        return self._unit.within(context, call, message)

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """`async with bus.savepoint(): await bus.send(...)`: a failure inside undoes only that.

        What failed is raised from the block; catch it there and go on. Events published or
        recorded inside are undone too.
        """
        if self._unit is None:
            raise BusError("A savepoint is part of a unit of work: use it in a handler.")
        return self._unit.savepoint(self._depth)
