"""What a function asks for, and how it is called with it: worked out once, not per message."""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from types import FunctionType
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from .bus import Bus, QueryBus, Route
from .catalog import where
from .context import Context
from .errors import WiringError
from .marks import Proceed
from .messages import Command
from .services import Services
from .threads import in_thread, refuse_awaitable


class Source(Enum):
    """Where a parameter comes from."""

    SESSION = auto()
    BUS = auto()
    QUERY_BUS = auto()
    CONTEXT = auto()
    PROCEED = auto()
    APPLICATION = auto()
    MESSAGE = auto()


_GIVEN = {
    AsyncSession: Source.SESSION,
    Bus: Source.BUS,
    QueryBus: Source.QUERY_BUS,
    Context: Source.CONTEXT,
    Proceed: Source.PROCEED,
}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_OF_THE_UNIT = {Source.SESSION, Source.BUS, Source.QUERY_BUS, Source.MESSAGE}


@dataclass(frozen=True, slots=True)
class Plan:
    """A function, the annotation of its message, and where each further parameter comes from."""

    function: FunctionType
    message: Any
    returns: Any
    parameters: tuple[tuple[Any, Source], ...]

    @property
    def sources(self) -> set[Source]:
        """The kinds of things that it asks for."""
        return {source for _, source in self.parameters}

    @property
    def services(self) -> list[Any]:
        """The types of the application's services that it asks for."""
        return [wanted for wanted, source in self.parameters if source is Source.APPLICATION]

    @property
    def needs_unit(self) -> bool:
        """Whether it can only run in a unit of work."""
        return bool(self.sources & _OF_THE_UNIT)

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)


def plan(function: FunctionType, services: Services) -> Plan:
    """Read a function's signature.

    Raises WiringError if a parameter's type is missing, cannot be resolved, or nobody provides it.
    """
    if problem := _never_runs(function):
        raise _error(function, problem)
    hints = _hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].name not in hints or parameters[0].kind not in _POSITIONAL:
        raise _error(function, "expected a message with its type as the first parameter")
    asked = [p for p in parameters[1:] if p.default is inspect.Parameter.empty]
    sources = tuple(_source(function, p, hints, services) for p in asked)
    made = Plan(function, hints[parameters[0].name], hints.get("return", Any), sources)
    if not made.is_async and made.needs_unit:
        raise _error(
            function,
            "a plain function runs in a thread and can use neither session nor bus (nor what"
            " lives for one message): make it `async def`",
        )
    return made


def bind(plan: Plan, constants: Mapping[Any, object]) -> Route:
    """Give a function `call(message, bus)` that passes what the plan asks for.

    constants holds the application's services by type. What lives for one message comes from the
    scope that `scoped` opens around all functions of the message.
    """
    function = plan.function if plan.is_async else _in_thread(plan)
    if Source.MESSAGE in plan.sources:
        return _scoped(function, plan, constants)
    return passing(function, getters_of(plan, constants))


def scoped(call: Route, plans: Iterable[Plan], services: Services) -> Route:
    """Let the functions that run in `call` share what lives for one message.

    Only messages with a function that asks for such a thing pay for a scope.
    """
    if not any(Source.MESSAGE in plan.sources for plan in plans):
        return call

    async def call_in_scope(message: Any, bus: Bus) -> Any:
        async with services.for_message(bus) as bus._scope:
            return await call(message, bus)

    return call_in_scope


def passing(function: Any, getters: list[Any]) -> Callable[[Any, Bus], Any]:
    """Give a function `call(message, bus)` that passes what the getters get; without a loop."""
    match getters:
        case []:
            return lambda message, bus: function(message)
        case [a]:
            return lambda message, bus: function(message, a(bus))
        case [a, b]:
            return lambda message, bus: function(message, a(bus), b(bus))
        case [a, b, c]:
            return lambda message, bus: function(message, a(bus), b(bus), c(bus))
        case [a, b, c, d]:
            return lambda message, bus: function(message, a(bus), b(bus), c(bus), d(bus))
        case _:
            return lambda message, bus: function(message, *[get(bus) for get in getters])


def getters_of(plan: Plan, constants: Mapping[Any, object]) -> list[Any]:
    """A function `get(bus)` for each parameter behind the message; Proceed stands for itself."""
    return [_getter(wanted, source, constants) for wanted, source in plan.parameters]


def _never_runs(function: FunctionType) -> str | None:
    """Why nothing would happen if it is called and what it returns is awaited, if it is async."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "it has a `yield`, so that a call would not run it: return instead"
    inside = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inside) and not inspect.iscoroutinefunction(function):
        return (
            "a decorator made a plain function of an `async def`, and nothing would await it: let"
            " the decorator's inner function be `async def`, too"
        )
    return None


def _hints(function: FunctionType) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise _error(
            function,
            f"its annotation {error.name!r} is not there when the service runs: import it outside"
            " of `if TYPE_CHECKING:`",
        ) from error


def _source(
    function: FunctionType,
    parameter: inspect.Parameter,
    hints: Mapping[str, Any],
    services: Services,
) -> tuple[Any, Source]:
    if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise _error(function, f"parameter {parameter.name!r} has to be a plain one")
    if parameter.name not in hints:
        raise _error(function, f"parameter {parameter.name!r} needs a type: it is passed by type")
    wanted = hints[parameter.name]
    if given := _GIVEN.get(wanted) if isinstance(wanted, type) or wanted == Proceed else None:
        return wanted, given
    if not services.knows(wanted):
        raise _error(
            function,
            f"nothing provides {parameter.name}: {_named(wanted)}. Expected AsyncSession, Bus,"
            " QueryBus, Context, a settings class, or a type that a provider in a providers.py"
            " gives",
        )
    return wanted, Source.MESSAGE if services.per_message(wanted) else Source.APPLICATION


def _getter(wanted: Any, source: Source, constants: Mapping[Any, object]) -> Any:
    match source:
        case Source.SESSION:
            return lambda bus: bus._unit.session
        case Source.BUS | Source.QUERY_BUS:
            return lambda bus: bus
        case Source.CONTEXT:
            return lambda bus: bus.context
        case Source.PROCEED:
            return Proceed
        case _:
            constant = constants[wanted]
            return lambda bus: constant


def _scoped(function: Any, plan: Plan, constants: Mapping[Any, object]) -> Route:
    async def call(message: Any, bus: Bus) -> Any:
        arguments = [
            await bus._scope.get(wanted)
            if source is Source.MESSAGE
            else _getter(wanted, source, constants)(bus)
            for wanted, source in plan.parameters
        ]
        return await function(message, *arguments)

    return call


def _in_thread(plan: Plan) -> Any:
    function = plan.function
    if isinstance(plan.returns, type) and issubclass(plan.returns, Command):
        # It only decides which command is next: a thread would cost more than the call.
        async def decide(*arguments: Any) -> Any:
            return refuse_awaitable(function, function(*arguments))

        return decide

    return partial(in_thread, function)


def _named(annotation: Any) -> str:
    if typing.get_args(annotation):
        return str(annotation)
    return getattr(annotation, "__qualname__", None) or str(annotation)


def _error(function: FunctionType, what: str) -> WiringError:
    return WiringError(f"{where(function)}: {function.__name__}: {what}.")
