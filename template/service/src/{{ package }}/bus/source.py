"""What the source of a function tells: which attributes it reads, which objects it may make."""

import ast
import inspect
import linecache
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

_ENGINE = __name__.rpartition(".")[0]


def attributes_read(function: FunctionType, variable: str) -> set[str]:
    """The attributes that a function reads from one of its variables."""
    return {
        node.attr
        for node in _nodes_of(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == variable
    }


def made_by(function: FunctionType) -> dict[Any, str | None]:
    """The classes that a function may make instances of, and where.

    It is read together with the functions of the service that it calls or passes on, and with the
    methods that they may mean: those with a name that they use, in classes that they mention.
    Functions that such a class keeps in an attribute with such a name count too, be it in a
    collection or a dataclass (`steps = [Step("pay", request_payment)]`). What is called in another
    way, such as by a computed name, is not seen.
    """
    reading = _Reading(function.__module__.partition(".")[0])
    seen: set[FunctionType] = set()
    waiting = [function]
    while waiting:
        if (one := waiting.pop(0)) not in seen:
            seen.add(one)
            reading.read(one)
            waiting += [*reading.called, *reading.methods()]
    return reading.made


@dataclass(slots=True)
class _Reading:
    """What was read in functions. Ordered sets are dicts, so that no two runs differ."""

    service: str
    made: dict[Any, str | None] = field(default_factory=dict)
    called: list[FunctionType] = field(default_factory=list)
    classes: dict[type, None] = field(default_factory=dict)
    attributes: dict[str, None] = field(default_factory=dict)

    def read(self, function: FunctionType) -> None:
        function = inspect.unwrap(function)
        file = function.__code__.co_filename
        for node in _nodes_of(function):
            if isinstance(node, ast.Attribute) and not self._is_foreign(node.value, function):
                self.attributes[node.attr] = None
            if isinstance(node, ast.Name | ast.Attribute):
                self._mention(_resolve(node, function.__globals__))
            if isinstance(node, ast.Call):
                self._call(node.func, function.__globals__, f"{file}:{node.lineno}")

    def methods(self) -> Iterator[FunctionType]:
        """The methods that the attributes may mean."""
        for cls in self.classes:
            yield from self._methods(cls, self.attributes)

    def _methods(self, cls: type, names: Collection[str]) -> Iterator[FunctionType]:
        for base in filter(self._is_own, cls.__mro__):
            found = (vars(base).get(name) for name in names)
            plain = (getattr(one, "fget", getattr(one, "__func__", one)) for one in found)
            yield from (one for value in plain for one in _kept_in(value, names))

    def _mention(self, thing: Any) -> None:
        if isinstance(thing, type) and self._is_own(thing):
            self.classes[thing] = None
        if isinstance(thing, FunctionType) and self._is_own(thing):
            self.called.append(thing)

    def _call(self, callee: ast.expr, names: dict[str, Any], place: str) -> None:
        thing = _resolve(callee, names)
        if thing is None and isinstance(callee, ast.Attribute):
            # An alternative constructor, such as PaymentCreated.of(payment).
            thing = _resolve(callee.value, names)
        if isinstance(thing, type):
            self.made.setdefault(thing, place)
            self.called += self._methods(thing, ("__init__", "__post_init__"))

    def _is_foreign(self, node: ast.expr, function: FunctionType) -> bool:
        """Whether it is a parameter that is nothing of the slices', such as the bus."""
        kind = function.__annotations__.get(node.id) if isinstance(node, ast.Name) else None
        return isinstance(kind, type) and not self._is_own(kind)

    def _is_own(self, thing: Any) -> bool:
        module = f"{thing.__module__}."
        return module.startswith(f"{self.service}.") and not module.startswith(f"{_ENGINE}.")


def _kept_in(value: Any, names: Collection[str]) -> Iterator[FunctionType]:
    """The function that a value is, or those in it: in dataclasses the fields with these names."""
    for one in _items(value):
        fields = getattr(type(one), "__dataclass_fields__", ())
        inside = [getattr(one, name, None) for name in fields if name in names]
        yield from (found for found in [one, *inside] if isinstance(found, FunctionType))


def _items(value: Any) -> Iterable[Any]:
    match value:
        case list() | tuple():
            return value
        case dict():
            return value.values()
    return [value]


def _nodes_of(function: FunctionType) -> list[ast.AST]:
    code = function.__code__
    return _definitions(code.co_filename).get(code.co_firstlineno, [])


@cache
def _definitions(file: str) -> dict[int, list[ast.AST]]:
    """What is in the functions of a file, in order, by the line on which each function begins."""
    found = {}
    for node in ast.walk(ast.parse("".join(linecache.getlines(file)))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(one.lineno for one in (node, *node.decorator_list))
            found[first] = sorted(ast.walk(node), key=lambda one: getattr(one, "lineno", 0))
    return found


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a global name, or a name in an imported module, stands for."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, names)
        return getattr(owner, node.attr, None) if isinstance(owner, ModuleType) else None
    return None
