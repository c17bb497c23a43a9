"""Turns the wiring into one route per message: guards, unit of work, handler, in one closure."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .bus import Bus, KeyedRoute, Listeners, Route, RouteTable, WaitingRoute
from .catalog import event_types, takes_list
from .catch_up import spans_of, wait
from .errors import BusError
from .idempotency import LIFETIME, Once, check_key
from .injection import Plan, Source, bind, getters_of, passing, scoped
from .marks import Listens, Proceed
from .messages import Query
from .services import Services
from .threads import refuse_awaitable
from .unit import Resources, run_unit
from .wiring import Wired, Wiring, result_type
from .work import Listener


@dataclass(slots=True)
class Routes:
    """Where commands and queries go, and what inline and stored listeners run."""

    messages: RouteTable = field(default_factory=RouteTable)
    inline: dict[type, list[Route]] = field(default_factory=dict)
    listeners: dict[str, Listener] = field(default_factory=dict)


def fill(
    resources: Resources,
    routes: Routes,
    wiring: Wiring,
    constants: Mapping[Any, object],
    key_lifetime: dt.timedelta = LIFETIME,
) -> None:
    """Make the routes; constants holds the application's services by type."""
    for command, wired in wiring.handlers.items():
        guards = wiring.guards_of(command)
        plans = [one.plan for one in (wired, *guards)]
        guarded = partial(_behind_guards, plans, guards, constants, wiring.services)
        call, where = bind(wired.plan, constants), wired.marked.where
        needs_unit = any(plan.needs_unit for plan in plans)
        route = _query_route if issubclass(command, Query) else _command_route
        routes.messages[command] = route(resources, guarded(call), where, needs_unit=needs_unit)
        if issubclass(command, Query):
            routes.messages.waiting[command] = _waiting_route(resources, call, guarded, where)
        else:
            name = f"{wiring.catalog.commands[command].name}.{command.__name__}"
            once = Once(name, result_type(command), key_lifetime)
            routes.messages.keyed[command] = _keyed_route(resources, once, call, guarded, where)
    for name, wired in wiring.listeners.items():
        listener = listener_of(wired, constants, wiring.services)
        if listener.mark.inline:
            for event in event_types(wired.plan.message):
                routes.inline.setdefault(event, []).append(listener.call)
        else:
            routes.listeners[name] = listener


def listener_of(wired: Wired, constants: Mapping[Any, object], services: Services) -> Listener:
    """What runs when this listener gets an event; constants as for `fill`."""
    call = scoped(bind(wired.plan, constants), [wired.plan], services)
    mark = wired.marked.mark
    assert isinstance(mark, Listens)
    takes_many = takes_list(wired.plan.message)
    return Listener(wired.marked.name, _listener(wired, call), mark, takes_many)


def _command_route(resources: Resources, call: Route, where: str, *, needs_unit: bool) -> Route:
    if not needs_unit:

        def route(message: Any, bus: Bus) -> Any:
            unit = bus._unit
            return call(message, bus) if unit is None else unit.join(call, message, bus._depth)

        return route

    def route_in_unit(message: Any, bus: Bus) -> Any:
        if bus._unit is not None:
            return bus._unit.join(call, message, bus._depth)
        return run_unit(resources, bus.context, call, message, where, bus)

    return route_in_unit


def _keyed_route(
    resources: Resources,
    once: Once,
    call: Route,
    guarded: Callable[[Route], Route],
    where: str,
) -> KeyedRoute:
    def route(message: Any, bus: Bus, key: str) -> Any:
        if bus._unit is not None:
            raise BusError(
                f"{type(message).__name__} was sent with an idempotency key within a unit of work,"
                " which commits or fails as one: give the key to the outermost send."
            )
        check_key(key)
        once.storable()
        # The guards decide first, whether the handler runs or its first result is given again.
        run = guarded(partial(once.run, call, key))
        return run_unit(resources, bus.context, run, message, where, bus)

    return route


def _query_route(resources: Resources, call: Route, where: str, *, needs_unit: bool) -> Route:
    if not needs_unit:
        return call

    def route(message: Any, bus: Bus) -> Any:
        if bus._unit is not None:
            return bus._unit.join_query(call, message, bus._depth)
        return run_unit(resources, bus.context, call, message, readonly=True, where=where)

    return route


def _waiting_route(
    resources: Resources, call: Route, guarded: Callable[[Route], Route], where: str
) -> WaitingRoute:
    def route(query: Any, bus: Bus, token: str, seen_by: Listeners) -> Any:
        if bus._unit is not None:
            raise BusError(
                f"{type(query).__name__} was sent with `after` or `seen_by` within a unit of work,"
                " which would hold its transaction meanwhile: let the outermost query wait."
            )
        spans, listeners = spans_of(token), _subscriptions(resources, seen_by)

        async def when_seen(query: Any, bus: Bus) -> Any:
            assert bus._unit is not None
            if spans:
                await wait(bus._unit.session, spans, listeners, resources.catch_up)
            return await call(query, bus)

        run = guarded(when_seen)
        return run_unit(resources, bus.context, run, query, readonly=True, where=where)

    return route


def _subscriptions(resources: Resources, listeners: Listeners) -> dict[int, str]:
    """The names of these functions by their subscriptions; those that are inline have none."""
    found = dict[int, str]()
    for function in listeners:
        if function not in resources.listeners:
            called = getattr(function, "__qualname__", repr(function))
            raise BusError(f"seen_by: expected functions with @listen of a slice, got {called}.")
        name, subscription = resources.listeners[function]
        if subscription is not None:
            found[subscription] = name
    return found


def _behind_guards(
    plans: Sequence[Plan],
    guards: Sequence[Wired],
    constants: Mapping[Any, object],
    services: Services,
    call: Route,
) -> Route:
    for guard in reversed(guards):
        call = _guarded(call, guard, constants)
    return scoped(call, plans, services)


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
        if (result := decide(message, bus)) is not None:
            refuse_awaitable(guard.plan.function, result)
        return call(message, bus)

    return after


def _around(call: Route, guard: Wired, constants: Mapping[Any, object]) -> Route:
    function, getters = guard.plan.function, getters_of(guard.plan, constants)

    if getters == [Proceed]:
        return lambda message, bus: function(message, _proceed(call, message, bus))

    def around(message: Any, bus: Bus) -> Any:
        proceed = _proceed(call, message, bus)
        return function(message, *[proceed if get is Proceed else get(bus) for get in getters])

    return around


def _proceed(call: Route, message: Any, bus: Bus) -> Callable[[], Any]:
    """What goes on behind a guard, which may catch what it raises, and answer in its place."""
    if bus._unit is None or isinstance(message, Query):
        return partial(call, message, bus)
    return partial(bus._unit.whole, call, message, bus)


def _listener(wired: Wired, call: Route) -> Route:
    if wired.plan.returns is type(None) or wired.plan.returns is None:
        return call

    async def listen_and_send(event: Any, bus: Bus) -> None:
        command = await call(event, bus)
        if command is not None:
            await bus.send(command)

    return listen_and_send
