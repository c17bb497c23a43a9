"""Tells from the code what there is and what may follow a message. Nothing runs for it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from types import FunctionType
from typing import Any

from .catalog import event_types, relative, where
from .discovery import Slice
from .errors import WiringError
from .marks import Listens
from .messages import Command, Event, Query
from .runtime import Runtime
from .source import made_by
from .wiring import Wired

Node = dict[str, Any]
MessageType = type[Command[Any]] | type[Event]


@dataclass(frozen=True, slots=True)
class Description:
    """The same twice: data is plain JSON, text is for people."""

    data: Node
    text: str


@dataclass(frozen=True, slots=True)
class _Function:
    """A handler, listener or guard, and the messages that run it."""

    kind: str
    wired: Wired
    takes: list[MessageType]


def describe_service(runtime: Runtime) -> Description:
    """Slices, their commands and queries with handlers and guards, their events and who listens."""
    slices = [_slice(runtime, one) for one in runtime.slices]
    rows = [row for one in slices for row in _slice_rows(one)]
    return Description({"slices": slices}, _table(rows) or "No slices yet.")


def describe_named(runtime: Runtime, name: str) -> Description:
    """Where a message goes and what may follow, as a tree; the same of one function; or a slice.

    A slice has its messages, and its listeners with what they hear. name is a slice's, a class's,
    such as 'PaymentCreated', or a handler's, listener's or guard's, such as 'start_order'; but for
    the slice's it may have its slice before it, as stored events have:
    'payments.PaymentCreated'. A message that a function makes stands at the line that makes it; a
    message that was told before is not told again. An event has what makes it before that. Raises
    WiringError if nothing, or more than one, has this name.
    """
    found, tracer = _find(runtime, name), _Tracer(runtime)
    if isinstance(found, Slice):
        one = {**_slice(runtime, found), "listeners": _listeners(runtime, found)}
        return Description(one, _table([*_slice_rows(one), *_listener_rows(one)]))
    if isinstance(found, _Function):
        tree = tracer.alone(found)
    else:
        tree = tracer.message(found)
        if issubclass(found, Event):
            tree["made_by"] = list(_makers(runtime, found))
    return Description(tree, _table(_tree_rows(tree)))


def _slice(runtime: Runtime, one: Slice) -> Node:
    commands = [cls for cls, owner in runtime.wiring.catalog.commands.items() if owner == one]
    events = [cls for cls, found in runtime.catalog.events.items() if found.slice == one.name]
    return {
        "name": one.name,
        "at": relative(str(one.path)),
        "commands": [_command(runtime, cls) for cls in commands if not issubclass(cls, Query)],
        "queries": [_command(runtime, cls) for cls in commands if issubclass(cls, Query)],
        "events": [_event(runtime, cls) for cls in events],
    }


def _listeners(runtime: Runtime, one: Slice) -> list[Node]:
    return [
        {
            **_function(found.kind, found.wired),
            "takes": [_message(runtime, cls) for cls in found.takes],
        }
        for found in _functions(runtime)
        if "listener" in found.kind and found.wired.marked.slice == one
    ]


def _command(runtime: Runtime, cls: type[Command[Any]]) -> Node:
    *guards, handler = (_function(kind, wired) for kind, wired in _goes_to(runtime, cls))
    return {**_message(runtime, cls), "handler": handler, "guards": guards}


def _event(runtime: Runtime, cls: type[Event]) -> Node:
    listeners = [_function(kind, wired) for kind, wired in _goes_to(runtime, cls)]
    about = {"key": cls.event_key, "version": cls.event_version}
    return {**_message(runtime, cls), **about, "listeners": listeners}


def _message(runtime: Runtime, cls: MessageType) -> Node:
    kind = next(base.__name__ for base in (Query, Command, Event) if issubclass(cls, base))
    return {"kind": kind.lower(), "name": _names(runtime, cls)[0], "at": relative(where(cls))}


def _function(kind: str, wired: Wired) -> Node:
    return {"kind": kind, "name": wired.marked.name, "at": relative(wired.marked.where)}


def _makers(runtime: Runtime, event: type[Event]) -> Iterator[Node]:
    for one in _functions(runtime):
        made = made_by(one.wired.marked.function)
        if event in made:
            node = _function(one.kind, one.wired)
            yield {**node, "at": relative(made[event] or one.wired.marked.where)}


def _goes_to(runtime: Runtime, cls: type[Any]) -> list[tuple[str, Wired]]:
    """The functions that a message runs, in the order in which they begin."""
    wiring = runtime.wiring
    if cls in wiring.handlers:
        guards = [("guard", guard) for guard in wiring.guards_of(cls)]
        return [*guards, ("handler", wiring.handlers[cls])]
    heard = [one for one in wiring.listeners.values() if cls in event_types(one.plan.message)]
    inline = [one for one in heard if _is_inline(one)]
    return [
        *(("inline listener", one) for one in inline),
        *(("listener", one) for one in heard if one not in inline),
    ]


def _is_inline(wired: Wired) -> bool:
    return isinstance(wired.marked.mark, Listens) and wired.marked.mark.inline


def _messages(runtime: Runtime) -> list[MessageType]:
    return [*runtime.wiring.catalog.commands, *runtime.catalog.events]


def _names(runtime: Runtime, cls: MessageType) -> list[str]:
    """What it can be called, its full name first."""
    if issubclass(cls, Event):
        names = runtime.catalog.events[cls].names
        return [*names, *(name.partition(".")[2] for name in names)]
    return [f"{runtime.catalog.commands[cls].name}.{cls.__name__}", cls.__name__]


def _functions(runtime: Runtime) -> Iterable[_Function]:
    found = dict[FunctionType, _Function]()
    for cls in _messages(runtime):
        for kind, wired in _goes_to(runtime, cls):
            one = found.setdefault(wired.marked.function, _Function(kind, wired, []))
            one.takes.append(cls)
    return found.values()


def _find(runtime: Runtime, name: str) -> Slice | MessageType | _Function:
    # A function of the same name can be told by its slice, a slice by nothing else.
    if slices := [one for one in runtime.slices if one.name == name]:
        return slices[0]
    called = [
        *((cls, _names(runtime, cls), where(cls)) for cls in _messages(runtime)),
        *((one, _names_of(one), one.wired.marked.where) for one in _functions(runtime)),
    ]
    match [one for one in called if name in one[1]]:
        case [(found, _, _)]:
            return found
        case []:
            known = {one for _, names, _ in called for one in names}
            close = get_close_matches(name, known | {one.name for one in runtime.slices})
            hint = f"Did you mean {', '.join(close)}?" if close else "`describe` alone lists all."
            raise WiringError(
                f"No slice, command, query, event, handler, listener or guard is called {name!r}."
                f" {hint}"
            )
        case several:
            choice = ", ".join(f"{names[0]} ({relative(at)})" for _, names, at in several)
            raise WiringError(f"{name!r} is the name of several: {choice}. Say which one.")


def _guards_around(runtime: Runtime, function: _Function) -> list[Wired]:
    if function.kind != "handler":
        return []
    goes_to = [one for cls in function.takes for one in _goes_to(runtime, cls)]
    return list({id(wired): wired for kind, wired in goes_to if kind == "guard"}.values())


def _names_of(function: _Function) -> list[str]:
    names = function.wired.marked.names
    return [*names, *(name.partition(".")[2] for name in names)]


class _Tracer:
    """Follows a message from function to function."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known = set(_messages(runtime))
        self._told: set[MessageType] = set()

    def message(self, cls: MessageType, path: tuple[MessageType, ...] = ()) -> Node:
        node = _message(self._runtime, cls)
        if cls in self._told:
            return {**node, "cut": "cycle" if cls in path else "told above"}
        self._told.add(cls)
        then = [self._function(*one, (*path, cls)) for one in _goes_to(self._runtime, cls)]
        return {**node, "then": then}

    def alone(self, function: _Function) -> Node:
        """One function of those that its messages run; a handler, with the guards around it."""
        self._told.update(function.takes)
        takes = [_message(self._runtime, cls) for cls in function.takes]
        path = tuple(function.takes)
        around = _guards_around(self._runtime, function)
        guards = [self._function("guard", one, path) for one in around]
        tree = self._function(function.kind, function.wired, path)
        return {**tree, "takes": takes, "guards": guards}

    def _function(self, kind: str, wired: Wired, path: tuple[MessageType, ...]) -> Node:
        made = made_by(wired.marked.function)
        for cls in event_types(wired.plan.returns) if "listener" in kind else ():
            made.setdefault(cls, None)
        then = [
            {**self.message(cls, path), "made_at": place and relative(place)}
            for cls, place in made.items()
            if cls in self._known
        ]
        return {**_function(kind, wired), "then": then}


def _slice_rows(one: Node) -> Iterator[tuple[str, str]]:
    yield one["name"], one["at"]
    for command in [*one["commands"], *one["queries"]]:
        guards = ", ".join(guard["name"] for guard in command["guards"])
        at = command["handler"]["at"] + (f"  guarded by {guards}" if guards else "")
        yield f"  {command['kind']} {command['name']}: {command['handler']['name']}", at
    for event in one["events"]:
        yield f"  event {event['name']}", event["at"]
        yield from ((f"    {one['kind']} {one['name']}", one["at"]) for one in event["listeners"])


def _listener_rows(one: Node) -> Iterator[tuple[str, str]]:
    for listener in one["listeners"]:
        heard = ", ".join(event["name"] for event in listener["takes"])
        yield f"  {listener['kind']} {listener['name']}: {heard}", listener["at"]


def _tree_rows(node: Node, depth: int = 0) -> Iterator[tuple[str, str]]:
    for one in node.get("takes", ()):
        yield from _tree_rows(one, depth)
    depth += "takes" in node
    for one in node.get("guards", ()):
        yield from _tree_rows(one, depth)
    cut = f" ({node['cut']})" if "cut" in node else ""
    yield f"{'  ' * depth}{node['kind']} {node['name']}{cut}", node.get("made_at") or node["at"]
    for one in node.get("made_by", ()):
        yield f"{'  ' * (depth + 1)}made by {one['kind']} {one['name']}", one["at"]
    for one in node.get("then", ()):
        yield from _tree_rows(one, depth + 1)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"{left:{width}}  {right}" for left, right in rows)
