"""The same calls through other libraries, each used as its documentation shows.

Where a library takes its container from the user (diator, python-cqrs), it gets the cheapest one
that there can be, a dict of factories, and no middleware that was not asked for: faster than what
comes with it.

What does the work of a handler, guard or listener has a name that begins so: `prove` in bus.py
counts by that.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Send = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    """One kind of call: what its handler needs, what guards it, who listens to its event."""

    name: str
    needs: int = 0
    guards: int = 0
    around: bool = False
    listeners: int = 0


class A: ...


class B: ...


class C: ...


class D: ...


SERVICES = (A(), B(), C(), D())


async def handle_0(command: Any) -> None: ...


async def handle_1(command: Any, a: A) -> None: ...


async def handle_4(command: Any, a: A, b: B, c: C, d: D) -> None: ...


async def listen(event: Any) -> None: ...


def bare(case: Case) -> Send:
    """What one would write by hand, without a bus."""

    class Command: ...

    class Event: ...

    a, b, c, d = SERVICES
    event, listeners = Event(), [listen] * case.listeners
    simple: dict[int, Callable[[Command], Awaitable[None]]] = {
        0: handle_0,
        1: lambda command: handle_1(command, a),
        4: lambda command: handle_4(command, a, b, c, d),
    }
    handler = simple[case.needs]

    def guard(command: Command) -> None: ...

    async def handle_and_tell(command: Command) -> None:
        for one in listeners:
            await one(event)

    def check_first(command: Command) -> Awaitable[None]:
        for _ in range(case.guards):
            guard(command)
        return simple[case.needs](command)

    if case.listeners:
        handler = handle_and_tell
    elif case.around:
        for _ in range(case.guards):
            handler = _wrapped(handler)
    elif case.guards:
        handler = check_first
    handlers = {Command: handler}
    command = Command()
    return lambda: handlers[type(command)](command)


def _wrapped(handler: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def guard(command: Any) -> None:
        return await handler(command)

    return guard


def mediatr(case: Case) -> Send | None:
    if case.listeners:
        return None  # has no events
    from mediatr import Mediator
    from mediatr import mediator as module

    class Command: ...

    class Handler:
        def __init__(self, *services: object) -> None:
            self.services = services

        async def handle(self, request: Command) -> None: ...

    # Its registry is global: what other cases left in it would slow this one.
    module.__handlers__.clear()
    module.__behaviors__.clear()
    for _ in range(case.guards):

        async def guard(request: Command, proceed: Callable[[], Awaitable[Any]]) -> Any:
            return await proceed()

        Mediator.register_behavior(guard)
    Mediator.register_handler(Handler)
    factories = _factories(Handler, case.needs)
    mediator = Mediator(lambda handler, is_behavior=False: factories[handler]())
    command = Command()
    return lambda: mediator.send_async(command)


def diator(case: Case) -> Send:
    import diator.events as events
    import diator.mediator as mediators
    import diator.middlewares as middlewares
    import diator.requests as requests

    class Command(requests.Request): ...

    class Event(events.DomainEvent): ...

    handler = _handler_class(Command, Event(), case)
    factories = _factories(handler, case.needs)
    event_map = events.EventMap()
    for _ in range(case.listeners):
        event_map.bind(Event, one := _listener_class())
        factories[one] = one
    request_map = requests.RequestMap()
    request_map.bind(Command, handler)
    chain = middlewares.MiddlewareChain()
    for _ in range(case.guards):
        chain.add(_Guard())
    container = _Container(factories)
    mediator = mediators.Mediator(
        request_map, container, events.EventEmitter(event_map, container), chain
    )
    command = Command()
    return lambda: mediator.send(command)


def python_cqrs(case: Case) -> Send:
    import cqrs
    from cqrs.bootstrap import requests as bootstrap

    class Command(cqrs.Request[None]): ...

    class Event(cqrs.DomainEvent): ...

    handler = _handler_class(Command, Event(), case, cqrs.RequestHandler)
    factories = _factories(handler, case.needs)
    listeners = [_listener_class(cqrs.EventHandler) for _ in range(case.listeners)]
    factories |= {one: one for one in listeners}

    def bind_events(event_map: Any) -> None:
        for one in listeners:
            event_map.bind(Event, one)

    container = _Container(factories)
    mediator = bootstrap.setup_mediator(
        bootstrap.setup_event_emitter(container, bind_events),
        container,
        middlewares=[_Guard() for _ in range(case.guards)],
        commands_mapper=lambda requests: requests.bind(Command, handler),
        concurrent_event_handle_enable=False,
    )
    command = Command()
    return lambda: mediator.send(command)


def anywise(case: Case) -> Send:
    from anywise import Anywise, BaseGuard, MessageRegistry

    class Command: ...

    class Event: ...

    async def handle_0(command: Command) -> None: ...

    async def handle_1(command: Command, a: A) -> None: ...

    async def handle_4(command: Command, a: A, b: B, c: C, d: D) -> None: ...

    event = Event()

    async def handle_and_tell(command: Command, bus: Anywise) -> None:
        await bus.publish(event)

    registry = MessageRegistry(command_base=Command, event_base=Event)
    registry(
        handle_and_tell if case.listeners else {0: handle_0, 1: handle_1, 4: handle_4}[case.needs]
    )
    for _ in range(case.listeners):

        async def listen(event: Event) -> None: ...

        registry(listen)
    for _ in range(case.guards):
        if case.around:

            class Guard(BaseGuard):
                def __init__(self) -> None:
                    super().__init__()

                async def __call__(self, command: Command, context: Any) -> Any:
                    return await super().__call__(command, context)

            registry.add_guards(Guard)
        else:

            async def guard(command: Command, context: Any) -> None: ...

            registry.pre_handle(guard)
    bus = Anywise(registry)
    for service in SERVICES:
        bus.graph.register_singleton(service)
    command = Command()
    return lambda: bus.send(command)


class _Container:
    external_container = None

    def __init__(self, factories: dict[type, Callable[[], Any]]) -> None:
        self.factories = factories

    def attach_external_container(self, container: object) -> None: ...

    async def resolve(self, type_: type) -> Any:
        return self.factories[type_]()


def _factories(handler: Callable[..., Any], needs: int) -> dict[Any, Callable[[], Any]]:
    a, b, c, d = SERVICES
    return {handler: {0: handler, 1: lambda: handler(a), 4: lambda: handler(a, b, c, d)}[needs]}


def _handler_class(command: type, event: object, case: Case, base: Any = object) -> Any:
    happened = [event] if case.listeners else []

    class Handler(base):
        def __init__(self, *services: object) -> None:
            self.services = services
            self._events: list[object] = []

        @property
        def events(self) -> list[object]:
            return self._events

        async def handle(self, request: Any) -> None:
            self._events += happened

    return Handler


def _listener_class(base: Any = object) -> Any:
    class Listener(base):
        async def handle(self, event: Any) -> None: ...

    return Listener


class _Guard:
    async def __call__(self, request: Any, handle: Callable[[Any], Awaitable[Any]]) -> Any:
        return await handle(request)
