"""What events promise, as it was accepted in each slice's contracts.json, against the code."""

import dataclasses
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from .catalog import read, relative, where
from .discovery import Slice, find_slices
from .errors import OperationError, WiringError
from .outbox import EventType
from .shapes import Shape
from .upcasting import oldest_readable, steps_of
from .usages import Named, Use, find_uses

FILE = "contracts.json"

_NEW = "is not accepted yet"

Recorded = Mapping[str, Shape]
"""What was accepted of one slice, by the names of the classes."""


class ContractError(Exception):
    """Events do not keep what they promised; says which, who relies on it, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """How an event differs from what was accepted. breaks: somebody may rely on what it was.

    uses are the places that have to do with it: the function, the file and line, and how.
    """

    event: str
    at: str
    text: str
    breaks: bool
    uses: tuple[tuple[str, str, str], ...] = ()

    def __str__(self) -> str:
        uses = [f"    {function} {how}  {at}" for function, at, how in self.uses]
        return "\n".join([f"{self.event}: {self.text}  {self.at}", *uses])

    @property
    def accepted(self) -> str:
        """What to say when it is accepted, in a line."""
        return self.event if self.text == _NEW else f"{self.event}: {self.text}"

    @property
    def data(self) -> dict[str, Any]:
        """The same as plain JSON."""
        uses = [{"function": one[0], "at": one[1], "how": one[2]} for one in self.uses]
        return {**dataclasses.asdict(self), "uses": uses}


@dataclasses.dataclass(frozen=True, slots=True)
class _Difference:
    text: str
    breaks: bool
    field: str | None = None
    lacks: bool = False


class Contracts:
    """The events of all slices of a service, and what was accepted of them.

    Raises WiringError if a slice cannot be imported, unless that comes of a contract that changed,
    and OperationError for a contracts.json that cannot be read.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._slices = find_slices(package)
        self._broken = dict[str, WiringError]()
        self._catalog = read(self._slices, broken=self._broken)
        self._steps = steps_of(self._catalog)
        self._recorded = {one.name: _recorded(one) for one in self._slices}
        self.changes = [change for one in self._slices for change in self._changes(one)]
        if self._broken and not self.breaking:
            raise next(iter(self._broken.values()))

    def check(self) -> None:
        """Raises ContractError with all that would break, where, and what to do."""
        if self.breaking:
            command = self._package.replace("_", "-")
            raise ContractError(
                "\n".join(map(str, self.breaking))
                + "\nKeep what was promised; or raise the version of the event, and write @upcast"
                f" from the one before; or `{command} contracts accept`, if nobody relies on it."
            )

    @property
    def breaking(self) -> list[Change]:
        """The changes that somebody would notice."""
        return [one for one in self.changes if one.breaks]

    def accept(self) -> list[Path]:
        """Write down what the code promises now; the files that are other than before."""
        if self._broken:
            raise next(iter(self._broken.values()))
        return [one.path / FILE for one in self._slices if self._write(one)]

    def _write(self, one: Slice) -> bool:
        file, events = one.path / FILE, self._events(one)
        shapes = {cls.cls.__name__: dataclasses.asdict(Shape.of(cls.cls)) for cls in events}
        text = f"{json.dumps(shapes, indent=2, sort_keys=True)}\n"
        if (file.read_text(encoding="utf-8") if file.exists() else "{}\n") == text:
            return False
        if shapes:
            file.write_text(text, encoding="utf-8")
        else:
            file.unlink()
        return True

    def _events(self, one: Slice) -> list[EventType]:
        return [found for found in self._catalog.events.values() if found.slice == one.name]

    def _changes(self, one: Slice) -> Iterator[Change]:
        gone = dict(self._recorded[one.name])
        for found in self._events(one):
            cls, name = found.cls, found.cls.__name__
            old = next((gone.pop(n) for n in (name, *cls.event_aliases) if n in gone), None)
            differences = (
                _differences(old, Shape.of(cls), self._oldest(found))
                if old
                else [_Difference(_NEW, breaks=False)]
            )
            for each in differences:
                yield self._change(one, name, relative(where(cls)), each)
        for name in () if one.name in self._broken else gone:
            removed = _Difference(f"was removed{self._hint(one, name)}", breaks=True)
            yield self._change(one, name, relative(str(one.path / FILE)), removed)

    def _hint(self, one: Slice, gone: str) -> str:
        """What to do if it was renamed: something new has the same shape."""
        recorded = self._recorded[one.name]
        for found in self._events(one):
            name = found.cls.__name__
            if name not in recorded and Shape.of(found.cls) == recorded[gone]:
                return f'; if it is {name} now, say so: aliases=("{gone}",)'
        return ""

    def _oldest(self, found: EventType) -> int:
        return oldest_readable(found.cls, self._steps.get(found.cls, {}))

    def _change(self, one: Slice, name: str, at: str, difference: _Difference) -> Change:
        uses: list[Use] = []
        if difference.breaks:
            uses = self._uses(Named(one.package, name), difference)
        told = dict.fromkeys((use.function, relative(use.at), _how(use)) for use in uses)
        return Change(f"{one.name}.{name}", at, difference.text, difference.breaks, tuple(told))

    def _uses(self, event: Named, difference: _Difference) -> list[Use]:
        package = Path(importlib.import_module(f"{self._package}.slices").__path__[0]).parent
        folders = [package, package.parent.parent / "tests"]
        found = find_uses([event], package.parent, folders)
        if difference.lacks:
            return [
                one
                for one in found
                if one.how == "makes" and not one.any_fields and difference.field not in one.fields
            ]
        return [one for one in found if difference.field is None or difference.field in one.fields]


def _how(use: Use) -> str:
    match use.how:
        case "takes":
            return "takes it"
        case "reads":
            return f"reads {', '.join(sorted(use.fields))}"
    return f"makes it of {', '.join(sorted(use.fields))}" if use.fields else "makes it"


def _differences(old: Shape, new: Shape, oldest: int) -> Iterator[_Difference]:
    """What the event promises now and did not, or did and does not."""
    if new.version < old.version:
        yield _Difference(f"was version {old.version}, is version {new.version}", breaks=True)
    elif new.version > old.version and oldest <= old.version:
        text = f"was version {old.version}, is version {new.version}, with upcasters in between"
        yield _Difference(text, breaks=False)
    elif new.version > old.version:
        text = f"was version {old.version}, from which no upcaster leads to version {new.version}"
        yield _Difference(text, breaks=True)
    else:
        if old.key != new.key:
            yield _Difference(f"had the key {old.key}, has {new.key}", True, old.key)
        for name in sorted({*old.fields, *new.fields}):
            yield from _field_differences(old, new, name)


def _field_differences(old: Shape, new: Shape, name: str) -> Iterator[_Difference]:
    before, after = old.fields.get(name), new.fields.get(name)
    if after is None:
        yield _Difference(f"{name}: {before} was removed", True, name)
    elif before is None and name in new.required:
        text = f"{name}: {after} is required, and missing in what is stored: give it a default"
        yield _Difference(text, True, name, lacks=True)
    elif before is None:
        yield _Difference(f"{name}: {after} is new", breaks=False)
    elif before != after:
        yield _Difference(f"{name}: {before} became {after}", True, name)
    elif name in old.optional and name in new.required:
        text = f"{name}: {after} had a default, so that what is stored may lack it, and has none"
        yield _Difference(text, True, name, lacks=True)
    elif name in old.required and name in new.optional:
        yield _Difference(f"{name}: {after} has a default now", breaks=False)


_RECORDED = TypeAdapter(dict[str, Shape])


def _recorded(one: Slice) -> Recorded:
    file = one.path / FILE
    if not file.exists():
        return {}
    try:
        return _RECORDED.validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ": ".join([".".join(map(str, first["loc"])), first["msg"]]).removeprefix(": ")
        raise OperationError(
            f"{relative(str(file))}: expected what `contracts accept` writes, got {place}. Take it"
            " from the last commit; after a merge, from one side, and accept again."
        ) from error
