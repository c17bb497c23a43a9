"""What the slices declare: messages and marked functions, found in their modules."""

import inspect
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .discovery import Slice
from .errors import WiringError
from .loading import last_line
from .marks import Guards, Handles, Listens, Mark, Upcasts, mark_of
from .messages import Command, Event, R_co
from .outbox import EventType


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked function and the slice that it belongs to (None: the service's own)."""

    function: FunctionType
    mark: Mark
    slice: Slice | None

    @property
    def name(self) -> str:
        """Its stored name, such as 'orders.start_order'."""
        owner = self.slice.name if self.slice else "service"
        return f"{owner}.{self.function.__name__}"

    @property
    def where(self) -> str:
        """File and line of the function."""
        return where(self.function)

    @property
    def names(self) -> tuple[str, ...]:
        """Its stored name, and those that it had before."""
        return (self.name, *self.aliases)

    @property
    def first_annotation(self) -> Any:
        """The type of its first parameter, the message; None if it has none."""
        parameters = list(inspect.signature(self.function).parameters)
        return get_type_hints(self.function).get(parameters[0]) if parameters else None

    @property
    def aliases(self) -> tuple[str, ...]:
        """Stored names that a listener had before."""
        old = self.mark.aliases if isinstance(self.mark, Listens) else ()
        return tuple(f"{self.name.partition('.')[0]}.{name}" for name in old)


@dataclass(slots=True)
class Catalog:
    """Everything that was found, slice by slice."""

    slices: list[Slice] = field(default_factory=list)
    modules: dict[str, list[ModuleType]] = field(default_factory=dict)
    events: dict[type[Event], EventType] = field(default_factory=dict)
    commands: dict[type[Command[Any]], Slice] = field(default_factory=dict)
    handlers: list[Marked] = field(default_factory=list)
    listeners: list[Marked] = field(default_factory=list)
    guards: list[Marked] = field(default_factory=list)
    upcasters: list[Marked] = field(default_factory=list)

    def only(self, slices: Collection[Slice]) -> "Catalog":
        """What these slices declare, and the service itself; all events stay known."""
        return Catalog(
            slices=[one for one in self.slices if one in slices],
            modules=self.modules,
            events=self.events,
            commands={cls: owner for cls, owner in self.commands.items() if owner in slices},
            handlers=[one for one in self.handlers if one.slice in slices],
            listeners=[one for one in self.listeners if one.slice in slices],
            guards=[one for one in self.guards if one.slice is None or one.slice in slices],
            upcasters=self.upcasters,
        )


def where(thing: Any) -> str:
    """File and line of a function or class, for messages."""
    if isinstance(thing, FunctionType):
        return f"{thing.__code__.co_filename}:{thing.__code__.co_firstlineno}"
    try:
        return f"{inspect.getsourcefile(thing)}:{inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return f"{thing.__module__}.{thing.__qualname__}"


def relative(place: str) -> str:
    """A file, or a file and line, as seen from the folder that this runs in."""
    path, here = Path(place), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else place


def read(
    slices: Iterable[Slice],
    service_modules: Iterable[ModuleType] = (),
    *,
    broken: dict[str, WiringError] | None = None,
) -> Catalog:
    """Import the slices and collect what they declare.

    service_modules are searched for guards. Raises WiringError if modules are broken, or import
    a slice that is not here, or an event that the other slice does not publish, with the first
    such error of each slice. If `broken` is given, these are put there instead, by the slice,
    whose modules up to then are read.
    """
    catalog = Catalog()
    refused = dict[str, WiringError]() if broken is None else broken
    known = list(slices)
    # The service's own guards come first, around those of the slices.
    for module in service_modules:
        _read_module(catalog, module, None)
    for one in known:
        catalog.slices.append(one)
        modules = catalog.modules[one.name] = []
        try:
            for module in _import(one, known):
                modules.append(module)
        except WiringError as error:
            refused[one.name] = error
        for module in modules:
            _read_module(catalog, module, one)
    if refused and broken is None:
        raise _all_of(list(refused.values()))
    return catalog


def is_concrete(command: type[Command[Any]]) -> bool:
    """Whether it can be sent: not a generic, not one that others only build on."""
    generic = command.__pydantic_generic_metadata__
    # A bare `class X(Command)` still has the parameter of Command itself: it is refused later.
    is_generic = generic["parameters"] not in ((), (R_co,)) or generic["origin"]
    return not is_generic and not command.__subclasses__()


def _read_module(catalog: Catalog, module: ModuleType, owner: Slice | None) -> None:
    for value in list(vars(module).values()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            _read_function(catalog, value, owner)
        elif isinstance(value, type) and owner is not None:
            _read_class(catalog, value, owner)


def _read_function(catalog: Catalog, function: FunctionType, owner: Slice | None) -> None:
    mark = mark_of(function)
    if isinstance(mark, Handles):
        catalog.handlers.append(Marked(function, mark, owner))
    elif isinstance(mark, Listens):
        catalog.listeners.append(Marked(function, mark, owner))
    elif isinstance(mark, Guards):
        catalog.guards.append(Marked(function, mark, owner))
    elif isinstance(mark, Upcasts):
        catalog.upcasters.append(Marked(function, mark, owner))


def _read_class(catalog: Catalog, cls: type, owner: Slice) -> None:
    if issubclass(cls, Event):
        catalog.events[cls] = EventType(f"{owner.name}.{cls.__name__}", cls, owner.name)
    elif issubclass(cls, Command) and is_concrete(cls):
        catalog.commands[cls] = owner


def _import(one: Slice, known: list[Slice]) -> Iterator[ModuleType]:
    try:
        yield from one.modules()
    except WiringError as error:
        cause = error.__cause__
        if isinstance(cause, ImportError) and (explained := _explain(cause, one, known)):
            raise WiringError(explained) from cause
        raise


def _all_of(errors: list[WiringError]) -> WiringError:
    # What is broken in a contract is the error of all slices that import it.
    told = WiringError("\n".join(dict.fromkeys(map(str, errors))))
    told.__cause__ = errors[0].__cause__
    return told


def _explain(error: ImportError, importer: Slice, known: list[Slice]) -> str | None:
    """What to do about an import of another slice that failed; None if it is another import."""
    parent = importer.package.rpartition(".")[0]
    wanted = str(error).partition("'")[2].partition("'")[0]
    module = f"{parent}.{wanted}" if error.name == parent else error.name or ""
    folder = module.removeprefix(f"{parent}.").partition(".")[0]
    if not module.startswith(f"{parent}.") or folder == importer.path.name:
        return None
    at = last_line(error, importer.path) or importer.package
    here = sorted(one.path.name for one in known)
    if folder not in here:
        if renamed := next((one.path.name for one in known if one.name == folder), None):
            return (
                f"{at} imports {module}, which is not here: the slice that was born as {folder} is"
                f" in the folder {renamed}. Import {parent}.{renamed}.contracts instead."
            )
        return (
            f"{at} imports {module}, which is not here (the slices here: {', '.join(here)}). Add"
            f" the slice {folder}, or stop listening to it."
        )
    what = module if isinstance(error, ModuleNotFoundError) else f"{wanted} from {module}"
    return (
        f"{at} imports {what}, which has no such name. Look in the contracts.py of the slice"
        f" {folder} for what it publishes, or add the event to it."
    )


def event_types(annotation: Any) -> tuple[Any, ...]:
    """The events that a listener's first parameter names: one, those of a union, or of a list."""
    if takes_list(annotation):
        (annotation,) = get_args(annotation)
    return members_of(annotation)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one that it is."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def takes_list(annotation: Any) -> bool:
    """Whether a listener takes a whole batch of events at once."""
    return get_origin(annotation) is list
