"""Where the source of a service has to do with an event: who takes it, makes it, reads it."""

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Named:
    """An event by its class's name, as the class may be gone, and the package of its slice."""

    package: str
    name: str


@dataclass(frozen=True, slots=True)
class Use:
    """A place that has to do with an event.

    how: a function 'takes' it, 'makes' one and gives these fields, or 'reads' a field. any_fields:
    it gives others, too, which cannot be told (`**values`).
    """

    event: Named
    function: str
    at: str
    how: Literal["takes", "makes", "reads"]
    fields: frozenset[str] = frozenset()
    any_fields: bool = False


def find_uses(events: Collection[Named], source: Path, folders: Iterable[Path]) -> list[Use]:
    """The uses of these events in the modules of some folders, file by file.

    source is the folder at which imports begin, such as src/. Nothing is imported, since the code
    may be broken by just what is asked about.
    """
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    texts = ((file, file.read_text(encoding="utf-8")) for file in files)
    names = {one.name for one in events}
    # Most files name none of them, and need not be parsed.
    likely = ((file, text) for file, text in texts if any(name in text for name in names))
    return [use for file, text in likely for use in _Module(file, text, source, events).uses()]


class _Module:
    def __init__(self, file: Path, text: str, source: Path, events: Collection[Named]) -> None:
        self._file = file
        self._events = events
        parts = file.relative_to(source).with_suffix("").parts if source in file.parents else ()
        self._package = list(parts[:-1])
        self._owner = parts[2] if parts[1:2] == ("slices",) else file.stem
        self._tree = _parsed(text)
        self._names = dict(self._imported())
        for node in self._tree.body:
            if isinstance(node, ast.ClassDef):
                self._names[node.name] = ".".join([*parts, node.name])

    def uses(self) -> Iterator[Use]:
        """All uses, function by function."""
        everywhere = self._variables(self._tree, {})
        yield from self._uses_in(self._tree, "the module", everywhere)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = self._parameters(node)
                for event in sorted({e for found in taken.values() for e in found}, key=str):
                    yield self._use(event, node.name, node, "takes")
                yield from self._uses_in(node, node.name, self._variables(node, everywhere | taken))

    def _uses_in(
        self, scope: _Scope, function: str, variables: dict[str, set[Named]]
    ) -> Iterator[Use]:
        for node in _nodes_of(scope):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=field) if name in variables:
                    for one in variables[name]:
                        yield self._use(one, function, node, "reads", [field])
                case ast.MatchClass(cls=cls, kwd_attrs=fields) if event := self._event(cls):
                    yield self._use(event, function, node, "reads", fields)
                case ast.Call(func=callee, keywords=given) if event := self._event(callee):
                    fields = [one.arg for one in given if one.arg]
                    whatever = len(fields) < len(given)
                    yield self._use(event, function, node, "makes", fields, whatever)

    def _parameters(
        self, function: ast.FunctionDef | ast.AsyncFunctionDef
    ) -> dict[str, set[Named]]:
        """The parameters whose types name an event."""
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        found = {one.arg: self._mentioned(one.annotation) for one in given}
        return {name: events for name, events in found.items() if events}

    def _variables(self, scope: _Scope, known: dict[str, set[Named]]) -> dict[str, set[Named]]:
        """Variables that may hold an event: they come from an expression that names its class."""
        found = dict(known)
        for node in _nodes_of(scope):
            match node:
                case ast.Assign(targets=targets, value=value):
                    pass
                case ast.AnnAssign(target=target, annotation=value):
                    targets = [target]
                case ast.For() | ast.comprehension():
                    targets, value = [node.target], node.iter
                case _:
                    continue
            named = self._mentioned(value)
            if isinstance(root := _root(value), ast.Name):
                named |= found.get(root.id, set())
            for one in (one for target in targets for one in ast.walk(target)):
                if named and isinstance(one, ast.Name):
                    found[one.id] = named
        return found

    def _mentioned(self, node: ast.AST | None) -> set[Named]:
        inside = ast.walk(node) if node else ()
        return {event for one in inside if (event := self._event(one))}

    def _event(self, node: ast.AST) -> Named | None:
        """The event that a name, or a name in a module, stands for."""
        path = self._resolved(node)
        module, _, name = path.rpartition(".")
        return next(
            (
                one
                for one in self._events
                if one.name == name and f"{module}.".startswith(f"{one.package}.")
            ),
            None,
        )

    def _resolved(self, node: ast.AST) -> str:
        match node:
            case ast.Name(id=name):
                return self._names.get(name, "")
            case ast.Attribute(value=value, attr=name) if owner := self._resolved(value):
                return f"{owner}.{name}"
        return ""

    def _imported(self) -> Iterator[tuple[str, str]]:
        """What each imported name stands for."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom):
                above = self._package[: len(self._package) + 1 - node.level] if node.level else []
                for one in node.names:
                    path = [*above, *([node.module] if node.module else []), one.name]
                    yield one.asname or one.name, ".".join(path)
            elif isinstance(node, ast.Import):
                for one in node.names:
                    first = one.name.partition(".")[0]
                    yield (one.asname, one.name) if one.asname else (first, first)

    def _use(
        self,
        event: Named,
        function: str,
        node: ast.AST,
        how: Literal["takes", "makes", "reads"],
        fields: Iterable[str] = (),
        any_fields: bool = False,
    ) -> Use:
        at = f"{self._file}:{getattr(node, 'lineno', 1)}"
        return Use(event, f"{self._owner}.{function}", at, how, frozenset(fields), any_fields)


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError:  # It is told by whoever imports it.
        return ast.Module([], [])


def _root(node: ast.expr) -> ast.expr:
    """What `await`, an index or a star stands before or behind."""
    while isinstance(node, ast.Await | ast.Subscript | ast.Starred):
        node = node.value
    return node


def _nodes_of(scope: _Scope) -> Iterator[ast.AST]:
    """What is in a function, or in a module, but not in functions within it; in order."""
    for child in ast.iter_child_nodes(scope):
        yield from _walked(child)


def _walked(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walked(child)
