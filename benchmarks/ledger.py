"""The service that delivery.py measures: the template's bus, one command, and its listeners.

Each variant is a package of its own, so that several can be built in one process.
"""

import importlib
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[1] / "template/service/src/{{ package }}"

MODULES = {
    "__init__": 'NAME = "ledger"\n',
    "contracts": """
from uuid import UUID
from {package}.bus import Event

class Posted(Event, key="entry_id"):
    entry_id: UUID
    amount: int
""",
    "messages": """
from {package}.bus import Command

class Post(Command[None]):
    amount: int
""",
    "models": """
from uuid import UUID
from sqlalchemy.orm import Mapped
from sqlalchemy.orm import mapped_column
from {package}.base.database import Base, Entity

class Entry(Entity):
    __tablename__ = "ledger_entries"
    amount: Mapped[int]

class Copy(Entity):
    __tablename__ = "ledger_copies"
    entry_id: Mapped[UUID]
    amount: Mapped[int]

class Total(Base):
    __tablename__ = "ledger_totals"
    amount: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    count: Mapped[int]
""",
    "handlers": """
from sqlalchemy.ext.asyncio import AsyncSession
from {package}.bus import Bus, handle
from .contracts import Posted
from .messages import Post
from .models import Entry

@handle
async def post(command: Post, session: AsyncSession, bus: Bus) -> None:
    entry = Entry(amount=command.amount)
    session.add(entry)
    bus.publish(Posted(entry_id=entry.id, amount=entry.amount))
""",
    "listeners": """
from sqlalchemy.ext.asyncio import AsyncSession
from {package}.bus import listen
from .contracts import Posted
from .models import Copy, Total

started = dict[int, float]()
""",
}
ONE_ROW = """
@listen({mark})
async def copy_{n}(event: Posted, session: AsyncSession) -> None:
    session.add(Copy(entry_id=event.entry_id, amount=event.amount))
"""
NOTHING = """
@listen({mark})
async def ignore_{n}(event: Posted) -> None: ...
"""
NOTES_TIME = """
import time

@listen({mark})
async def note_{n}(event: Posted) -> None:
    started[event.amount] = time.perf_counter()
"""


@cache
def load(package: str, listener: str, mark: str = "", count: int = 1) -> Any:
    """A package with `count` listeners of this source; `mark` is what @listen is given."""
    folder = Path(tempfile.mkdtemp(prefix="slicewise-ledger-"))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TEMPLATE / "bus", folder / package / "bus", ignore=ignore)
    (folder / package / "base").mkdir()
    for name in ("__init__.py", "database.py", "errors.py", "logs.py"):
        shutil.copy(TEMPLATE / "base" / name, folder / package / "base")
    slices = folder / package / "slices"
    (slices / "ledger").mkdir(parents=True)
    (slices / "__init__.py").touch()
    listeners = "".join(listener.format(mark=mark, n=n) for n in range(count))
    for name, source in MODULES.items():
        text = source.format(package=package) + (listeners if name == "listeners" else "")
        (slices / "ledger" / f"{name}.py").write_text(text)
    (folder / package / "__init__.py").touch()
    sys.path.insert(0, str(folder))
    return importlib.import_module(package)


def module(package: str, name: str) -> Any:
    """A module of a loaded package, such as 'bus.tables'."""
    return importlib.import_module(f"{package}.{name}")


def models(package: str) -> Any:
    """The tables of the slice."""
    return module(package, "slices.ledger.models")
