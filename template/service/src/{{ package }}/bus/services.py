"""The user's own services, such as the client of a payment gateway, given to functions by type.

They come from the `providers.py` of the slices, and of the service, and are dishka's providers:
Scope.APP lives as long as the application, Scope.REQUEST as long as one message.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

from dishka import AsyncContainer, Provider, Scope, make_async_container
from dishka.exception_base import DishkaError
from pydantic import ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy.ext.asyncio import AsyncSession

from .bus import Bus, QueryBus
from .context import Context
from .errors import WiringError
from .texts import told


class Services:
    """Which types the providers can give, for how long, and the container that makes them."""

    def __init__(
        self,
        modules: Iterable[ModuleType],
        settings: Sequence[BaseSettings] = (),
        overrides: Mapping[type, object] | None = None,
    ) -> None:
        """Raises WiringError if a provider asks for what nobody provides, or settings are wrong."""
        modules = list(modules)
        overrides = dict(overrides or {})
        self._instances: dict[Any, object] = {type(one): one for one in settings}
        self._instances |= {one: overrides.pop(one) for one in [*overrides] if _is_settings(one)}
        for found in settings_classes(modules):
            self._settings_of(found)
        providers = [*_providers(modules), _replacing(overrides)]
        self._scopes = _scopes(providers)
        try:
            self.container: AsyncContainer = make_async_container(
                *providers, _per_message(), context=self._instances
            )
        except DishkaError as error:
            raise WiringError(f"providers.py: {error}") from error

    def knows(self, wanted: Any) -> bool:
        """Whether a parameter of this type can be given."""
        return wanted in self._scopes or _is_settings(wanted)

    def per_message(self, wanted: Any) -> bool:
        """Whether it is made anew for each message."""
        return self._scopes.get(wanted, Scope.APP) is not Scope.APP

    async def of_application(self, wanted: Any) -> object:
        """The one instance of this type that the whole application uses."""
        if _is_settings(wanted):
            return self._settings_of(wanted)
        return await self.container.get(wanted)

    @asynccontextmanager
    async def for_message(self, bus: Bus) -> AsyncIterator[Any]:
        """Open what lives for one message; gives an object with `await get(type)`."""
        given: dict[Any, object] = {Bus: bus, QueryBus: bus, Context: bus.context}
        if bus.session is not None:
            given[AsyncSession] = bus.session
        async with self.container(context=given) as scope:
            yield scope

    def _settings_of(self, wanted: type[BaseSettings]) -> object:
        if wanted not in self._instances:
            try:
                self._instances[wanted] = wanted()
            except ValidationError as error:
                raise WiringError(told(error, wanted)) from error
        return self._instances[wanted]


def _is_settings(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, BaseSettings)


def settings_classes(modules: Iterable[ModuleType]) -> Iterable[type[BaseSettings]]:
    """The settings that these modules define."""
    for module in modules:
        for value in vars(module).values():
            if _is_own_class(value, BaseSettings, module):
                yield value


def _providers(modules: Iterable[ModuleType]) -> Iterable[Provider]:
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Provider):
                yield value
            elif _is_own_class(value, Provider, module):
                yield value()


def _is_own_class(value: Any, base: type, module: ModuleType) -> bool:
    return (
        isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    )


def _replacing(overrides: Mapping[type, object]) -> Provider:
    provider = Provider(scope=Scope.APP)
    for wanted, instance in overrides.items():
        provider.provide(_giving(instance), provides=wanted)
    return provider


def _giving(instance: object) -> Callable[[], object]:
    return lambda: instance


def _per_message() -> Provider:
    provider = Provider(scope=Scope.REQUEST)
    for given in (Bus, QueryBus, Context, AsyncSession):
        provider.from_context(provides=given)
    return provider


def _scopes(providers: Iterable[Provider]) -> dict[Any, Any]:
    scopes: dict[Any, Any] = {}
    aliases: dict[Any, Any] = {}
    for provider in providers:
        for factory in provider.factories:
            scopes[factory.provides.type_hint] = factory.scope
        for alias in provider.aliases:
            aliases[alias.provides.type_hint] = alias.source.type_hint
    for wanted, source in aliases.items():
        scopes[wanted] = scopes.get(source, Scope.REQUEST)
    return scopes
