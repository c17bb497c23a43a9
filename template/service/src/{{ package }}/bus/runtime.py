"""The bus, put together: build it, open it, take one Bus for each request from it."""

import asyncio
import datetime as dt
import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from pydantic_settings import BaseSettings

from .bus import Bus
from .catalog import Catalog, read
from .clock import Clock
from .context import Context
from .discovery import Slice, find_slices
from .due import Delivery
from .engines import UNREACHABLE, Database
from .errors import UnreachableError, WiringError
from .idempotency import LIFETIME, KeyedBus
from .loading import load
from .messages import Event
from .outbox import Outbox
from .relay import Relay, RelayOptions
from .routing import Routes, fill, listener_of
from .services import Services
from .strangers import warn_of_strangers
from .subscriptions import subscribe, wanted_by
from .unit import Resources, run_unit
from .upcasting import readers
from .watching import Timeline, WatchedWork
from .wiring import Wiring, check
from .work import Listener

_PART_OF_A_PAUSE = dt.timedelta(seconds=10)


class Runtime:
    """A wired bus. `async with runtime:` opens its services and writes its subscriptions.

    Raises UnreachableError if it cannot write them, WiringError if what a listener wants is gone.
    """

    def __init__(
        self,
        catalog: Catalog,
        wiring: Wiring,
        database: Database | None,
        options: RelayOptions,
        key_lifetime: dt.timedelta = LIFETIME,
        catch_up: float = 5.0,
    ) -> None:
        self.clock = Clock()
        self.catalog = catalog
        self.wiring = wiring
        self.database = database
        self._routes = Routes()
        outbox = Outbox(catalog.events, self.clock)
        self._resources = Resources(
            self._routes.messages,
            self._routes.inline,
            outbox,
            database,
            self.clock,
            catch_up=catch_up,
        )
        self.readers = readers(catalog)
        self.relay = Relay(self._resources, self._routes.listeners, self.readers, options)
        self._resources.on_commit = self.relay.committed
        self._key_lifetime = key_lifetime
        self._open = AsyncExitStack()

    @property
    def slices(self) -> list[Slice]:
        """The slices that run here."""
        return self.wiring.catalog.slices

    @property
    def _chosen(self) -> Collection[str] | None:
        """The names of the slices that run here; None if all do, those that are gone as well."""
        if len(self.slices) == len(self.catalog.slices):
            return None
        return {one.name for one in self.slices}

    @property
    def routers(self) -> list[Any]:
        """`router` of each slice that runs here and has one."""
        modules = [m for one in self.slices for m in self.catalog.modules[one.name]]
        return [m.router for m in modules if m.__name__.endswith(".router")]

    def bus(self, context: Context | None = None, idempotency_key: str | None = None) -> Bus:
        """A bus for one request; each send on it is a unit of work of its own.

        With an idempotency key, each command is sent under it: see Bus.send.
        """
        if idempotency_key is not None:
            return KeyedBus(self._routes.messages, context or Context(), idempotency_key)
        return Bus(self._routes.messages, context or Context())

    async def publish(self, *events: Event) -> None:
        """Publish events from outside of any handler, in a unit of work of their own."""

        async def publish(events: tuple[Event, ...], bus: Bus) -> None:
            for event in events:
                bus.publish(event)

        await run_unit(self._resources, Context(), publish, events)

    def watch(self, *, twice: bool = False) -> Timeline:
        """For tests, once it is open: what happens from now on, in order.

        twice: each listener runs once more before, and that is rolled back.
        """
        timeline = Timeline()
        self._routes.messages.wrap(timeline.sent)
        self._resources.on_commit = timeline.before(self._resources.on_commit)
        self.relay.work = partial(WatchedWork, timeline, twice)
        return timeline

    async def __aenter__(self) -> Self:
        services = self.wiring.services
        async with AsyncExitStack() as stack:
            stack.push_async_callback(services.container.close)
            needed = set(self.wiring.needed_services())
            constants = {one: await services.of_application(one) for one in needed}
            fill(self._resources, self._routes, self.wiring, constants, self._key_lifetime)
            if self.database is not None:
                await self._subscribe(self.database)
                stack.push_async_callback(self.relay.close)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._open.aclose()

    async def _subscribe(self, database: Database) -> None:
        wanted = wanted_by(self.catalog)
        try:
            subscriptions = await subscribe(database, wanted)
            await warn_of_strangers(database, wanted, self._chosen)
        except UNREACHABLE as error:
            raise UnreachableError(database.unreachable(error)) from error
        self.relay.use(wanted, subscriptions)
        self._resources.listeners = {
            one.function: (one.name, subscriptions.get(one.name)) for one in self.catalog.listeners
        }

    async def listener(self, name: str) -> Listener:
        """A listener with the services that it asks for, to run outside of deliveries."""
        wired, services = self.wiring.listeners[name], self.wiring.services
        constants = {one: await services.of_application(one) for one in wired.plan.services}
        return listener_of(wired, constants, services)

    async def settled(self, within: float = 10.0) -> None:
        """Wait until every delivery is done, those that they cause included; for tests.

        within is in seconds. Raises TimeoutError with what is unfinished, at once if nothing but
        dead letters is, and what they hold up.
        """
        if stuck := await self.at_rest(within):
            raise TimeoutError(f"Not settled:\n{told_of(stuck)}")

    async def at_rest(self, within: float = 10.0, *, skip: bool = False) -> Sequence[Delivery]:
        """The same, but returns dead letters, and what is held up by them, instead of raising.

        skip: what is to be tried again is not waited for, if no relay runs: the bus's clock is
        moved on to it.
        """
        try:
            async with asyncio.timeout(within):
                await self._progress()
                while not _is_at_rest(unfinished := await self.relay.unfinished()):
                    if skip:
                        self._skip_to(unfinished)
                    await self._progress()
                return unfinished
        except TimeoutError:
            told = told_of(await self.relay.unfinished())
            raise TimeoutError(f"Not settled:\n{told}") from None

    def _skip_to(self, unfinished: Sequence[Delivery]) -> None:
        if due := [one.due for one in unfinished if one.state == "pending"]:
            # What is due already waits for the end of its listener's pause.
            self.clock.advance(max(min(due) - self.clock.now(), _PART_OF_A_PAUSE))

    async def _progress(self) -> None:
        await asyncio.sleep(0.005)
        if not self.relay.alive:
            await self.relay.work_off()


def build(
    package: str,
    *,
    database: Database | None,
    settings: Sequence[BaseSettings] = (),
    slices: Collection[str] | None = None,
    overrides: Mapping[type, object] | None = None,
    relay: RelayOptions | None = None,
    key_lifetime: dt.timedelta = LIFETIME,
    catch_up: float = 5.0,
) -> Runtime:
    """Find, check and wire the slices of a service.

    package is the service's, such as 'shop'. slices names those that run here (all, if None). The
    functions of the others do not run, but their subscriptions are written. overrides replaces
    services by type, in tests; relay says how events are delivered, key_lifetime how long
    idempotency keys are known, catch_up how many seconds a query waits for read models. Raises
    WiringError with everything that does not fit.
    """
    found = find_slices(package)
    catalog = read(found, _service_modules(package))
    active = catalog.only(choose(found, slices))
    modules = [module for one in active.slices for module in catalog.modules[one.name]]
    services = Services([*_service_modules(package), *modules], settings, overrides)
    wiring = check(active, services)
    if database is None and (stored := wanted_by(active)):
        raise WiringError(f"{stored[0].listener} listens to stored events, which need a database.")
    return Runtime(catalog, wiring, database, relay or RelayOptions(), key_lifetime, catch_up)


def choose(found: Sequence[Slice], wanted: Collection[str] | None) -> list[Slice]:
    """Those of the slices that are named; all, if None. Raises WiringError for unknown names."""
    if wanted is None:
        return list(found)
    if unknown := set(wanted) - {one.name for one in found}:
        names = ", ".join(one.name for one in found)
        raise WiringError(f"SLICES: no slice {', '.join(sorted(unknown))}; here are: {names}.")
    return [one for one in found if one.name in wanted]


def _service_modules(package: str) -> list[ModuleType]:
    """Modules outside of the slices that may hold guards or providers; most are optional."""
    folder = Path(importlib.import_module(f"{package}.slices").__path__[0]).parent
    names = [f"{package}.base.auth", f"{package}.guards", f"{package}.providers"]
    return [module for name in names if (module := _load_if_there(name, folder))]


def _load_if_there(name: str, folder: Path) -> ModuleType | None:
    try:
        return load(name, folder)
    except WiringError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and name.startswith(cause.name):
            return None
        raise


def told_of(unfinished: Iterable[Delivery]) -> str:
    """What to tell of deliveries that did not get done: what they are for, and why."""
    return "\n".join(map(_told, unfinished))


def _is_at_rest(unfinished: Sequence[Delivery]) -> bool:
    """Whether nothing but dead letters is unfinished, and what waits behind them."""
    dead = {(one.subscription_id, one.lane) for one in unfinished if one.state == "dead"}
    return all(
        one.state == "dead" or (one.state == "waiting" and (one.subscription_id, one.lane) in dead)
        for one in unfinished
    )


def _told(delivery: Delivery) -> str:
    return (
        f"  {delivery.state} {delivery.name} {delivery.payload}, attempt {delivery.attempts}:"
        f" {delivery.error_message or 'no listener has run it'}"
    )
