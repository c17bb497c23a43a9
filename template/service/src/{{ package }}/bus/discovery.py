"""Finds the slices: a package under `slices/` is one; nothing is listed anywhere."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .errors import WiringError
from .loading import load

# Not part of what runs: migrations belong to Alembic, tests to pytest.
_NOT_WIRED = {"migrations", "tests"}


@dataclass(frozen=True, slots=True)
class Slice:
    """One folder under `slices/`. name is the one it was born with: what is stored hangs on it."""

    name: str
    package: str
    path: Path

    @property
    def contracts_only(self) -> bool:
        """Whether the slice runs elsewhere: only its contracts are here."""
        modules = {entry.stem for entry in self.path.glob("*.py")}
        return "contracts" in modules and modules <= {"__init__", "contracts"}

    @property
    def migrations(self) -> Path:
        """Where its Alembic revisions lie; may not exist."""
        return self.path / "migrations"

    def modules(self) -> Iterator[ModuleType]:
        """Import and give every module of the slice but its tests and migrations.

        Raises WiringError if one is broken.
        """
        root = load(self.package, self.path.parent)
        yield root
        yield from _modules_below(root, self.path.parent)


def find_slices(package: str) -> list[Slice]:
    """The slices of a service, sorted by name.

    package is the service's, such as 'shop'. Raises WiringError if a slice has no NAME, if two have
    the same, or if a folder has modules that nothing would find.
    """
    parent = importlib.import_module(f"{package}.slices")
    folder = Path(parent.__path__[0])
    _refuse_hidden_modules(folder)
    found: dict[str, Slice] = {}
    for info in pkgutil.iter_modules(parent.__path__):
        if not info.ispkg:
            continue
        one = _slice_of(f"{parent.__name__}.{info.name}", folder)
        if other := found.get(one.name):
            raise WiringError(
                f"Two slices were born as {one.name!r}: {other.path} and {one.path}. Their tables"
                " and events would mix: give the newer one another NAME in its __init__.py."
            )
        found[one.name] = one
    return sorted(found.values(), key=lambda one: one.name)


def _refuse_hidden_modules(slices: Path) -> None:
    for folder in sorted(slices.iterdir()):
        if any(folder.glob("*.py")) and not (folder / "__init__.py").exists():
            raise WiringError(
                f"{folder}: this folder has modules, but no __init__.py, which makes it a slice:"
                f' nothing in it would run. Add one with NAME = "{folder.name}", or remove the'
                " folder."
            )


def _slice_of(package: str, slices: Path) -> Slice:
    module = load(package, slices)
    path = Path(module.__path__[0])
    name = getattr(module, "NAME", None)
    if not isinstance(name, str):
        raise WiringError(
            f"{path / '__init__.py'}: a slice says the name that it was born with:"
            f' NAME = "{path.name}"'
        )
    return Slice(name, package, path)


def _modules_below(package: ModuleType, slices: Path) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in _NOT_WIRED:
            continue
        module = load(f"{package.__name__}.{info.name}", slices)
        yield module
        if info.ispkg:
            yield from _modules_below(module, slices)
