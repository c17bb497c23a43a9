"""Turns the wiring into one route per message: guards, unit of work, handler, in one closure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .bus import Bus, Route
from .catalog import event_types
from .errors import BusError
from .injection import Source, bind, getters_of, passing, scoped
from .marks import Listens, Proceed
from .messages import Command, Event, Query
from .unit import Resources, run_unit
from .wiring import Wired, Wiring


class RouteTable(dict[type, Route]):
    """The routes by type of message; what is not there is explained."""

    def __missing__(self, message: type) -> Route:
        raise BusError(
            f"{message.__name__} is no command or query of a slice that runs here. Slices answer"
            " only their own messages: from another one, listen to an event of its contracts.py."
        )


@dataclass(slots=True)
class Routes:
    """Where commands and queries go, and what inline and stored listeners run."""

    messages: RouteTable = field(default_factory=RouteTable)
    inline: dict[type[Event], list[Route]] = field(default_factory=dict)
    listeners: dict[str, Route] = field(default_factory=dict)


def fill(
    resources: Resources, routes: Routes, wiring: Wiring, constants: Mapping[Any, object]
) -> None:
    """Make the routes; constants holds the application's services by type."""
    for command, wired in wiring.handlers.items():
        routes.messages[command] = _route(resources, wiring, command, wired, constants)
    for name, wired in wiring.listeners.items():
        call = bind(wired.plan, constants)
        call = _listener(wired, scoped(call, [wired.plan], wiring.services))
        if isinstance(wired.marked.mark, Listens) and wired.marked.mark.inline:
            for event in event_types(wired.plan.message):
                routes.inline.setdefault(event, []).append(call)
        else:
            routes.listeners[name] = call


def _route(
    resources: Resources,
    wiring: Wiring,
    command: type[Command[Any]],
    wired: Wired,
    constants: Mapping[Any, object],
) -> Route:
    call = bind(wired.plan, constants)
    guards = wiring.guards_of(command)
    for guard in reversed(guards):
        call = _guarded(call, guard, constants)
    plans = [one.plan for one in (wired, *guards)]
    call = scoped(call, plans, wiring.services)
    needs_unit = any(plan.needs_unit for plan in plans)
    if issubclass(command, Query):
        return _query_route(resources, call, wired.marked.where, needs_unit=needs_unit)
    return _command_route(resources, call, wired.marked.where, needs_unit=needs_unit)


def _command_route(resources: Resources, call: Route, where: str, *, needs_unit: bool) -> Route:
    if not needs_unit:

        def route(message: Any, bus: Bus) -> Any:
            unit = bus._unit
            return call(message, bus) if unit is None else unit.join(call, message, bus._depth)

        return route

    def route_in_unit(message: Any, bus: Bus) -> Any:
        if bus._unit is not None:
            return bus._unit.join(call, message, bus._depth)
        return run_unit(resources, bus.context, call, message, where=where)

    return route_in_unit


def _query_route(resources: Resources, call: Route, where: str, *, needs_unit: bool) -> Route:
    if not needs_unit:
        return call

    def route(message: Any, bus: Bus) -> Any:
        if bus._unit is not None:
            return bus._unit.join_query(call, message, bus._depth)
        return run_unit(resources, bus.context, call, message, readonly=True, where=where)

    return route


def _guarded(call: Route, guard: Wired, constants: Mapping[Any, object]) -> Route:
    if Source.PROCEED in guard.plan.sources:
        return _around(call, guard, constants)
    if guard.plan.is_async:
        check = bind(guard.plan, constants)

        async def after_awaiting(message: Any, bus: Bus) -> Any:
            await check(message, bus)
            return await call(message, bus)

        return after_awaiting
    decide = passing(guard.plan.function, getters_of(guard.plan, constants))

    def after(message: Any, bus: Bus) -> Any:
        decide(message, bus)
        return call(message, bus)

    return after


def _around(call: Route, guard: Wired, constants: Mapping[Any, object]) -> Route:
    function, getters = guard.plan.function, getters_of(guard.plan, constants)

    if getters == [Proceed]:
        return lambda message, bus: function(message, partial(call, message, bus))

    def around(message: Any, bus: Bus) -> Any:
        proceed = partial(call, message, bus)
        return function(message, *[proceed if get is Proceed else get(bus) for get in getters])

    return around


def _listener(wired: Wired, call: Route) -> Route:
    if wired.plan.returns is type(None) or wired.plan.returns is None:
        return call

    async def listen_and_send(event: Any, bus: Bus) -> None:
        command = await call(event, bus)
        if command is not None:
            await bus.send(command)

    return listen_and_send
