"""What handlers, listeners and routers hold: send a message, publish an event."""

from collections.abc import Callable, Coroutine, Mapping
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


class QueryBus:
    """A bus that only asks. Each handler gets one of its own, bound to its unit of work."""

    # The scope is there only while a message runs that asks for services of its own.
    __slots__ = ("_depth", "_routes", "_scope", "_unit", "context")

    _scope: Any

    def __init__(
        self,
        routes: Mapping[type, Route],
        context: Context,
        unit: "UnitOfWork | None" = None,
        depth: int = 0,
    ) -> None:
        self._routes = routes
        self._unit = unit
        self._depth = depth
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

    def send(self, command: Command[R]) -> Coroutine[Any, Any, R]:
        """Await what the command's handler returns; it is committed by then.

        Raises what the handler or a guard raises, and BusError if the bus is used wrongly. Within
        a unit of work a failed send dooms the whole unit, unless it was sent in a `savepoint()`.
        """
        return self._routes[type(command)](command, self)

    def publish(self, event: Event) -> None:
        """Note the event: it is stored with the unit's changes and delivered after the commit.

        Raises BusError outside a unit of work, and for an event that no slice declares.
        """
        if self._unit is None:
            raise BusError(
                f"{type(event).__name__} was published outside a unit of work: nothing would store"
                " it. Publish in a handler or listener, on the bus that it is given."
            )
        self._unit.publish(event, self._depth)

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """`async with bus.savepoint(): await bus.send(...)`: a failure inside undoes only that.

        What failed is raised from the block; catch it there and go on. Events published or
        recorded inside are undone too.
        """
        if self._unit is None:
            raise BusError("A savepoint is part of a unit of work: use it in a handler.")
        return self._unit.savepoint(self._depth)
