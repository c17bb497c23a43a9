"""The slices that are broken: each listener writes a row of its own for each event that it gets.

sales publishes, stock listens in every way there is, trouble's listeners fail in every way. The
rows have no key that would refuse a second one: what is applied twice is to be seen.
"""

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "{slice}_0001"
down_revision = None
branch_labels = ("{slice}",)
depends_on = None


def upgrade():
    op.create_table(
        "{slice}",
        sa.Column("place", sa.Integer(), primary_key=True),
        sa.Column("listener", sa.String(20), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(20), nullable=False),
        sa.Column("follows", sa.Integer()),
        sa.ForeignKeyConstraint(
            ["follows"], ["{slice}.place"], deferrable=True, initially="DEFERRED"
        ),
    )
"""

MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shop.base.database import Base


class Row(Base):
    __tablename__ = "{slice}"

    place: Mapped[int] = mapped_column(primary_key=True)
    listener: Mapped[str]
    number: Mapped[int]
    account: Mapped[str]
    follows: Mapped[int | None] = mapped_column(
        ForeignKey("{slice}.place", deferrable=True, initially="DEFERRED")
    )
"""

SALES = {
    "contracts": """
from shop.bus import Event


class Sold(Event, key="account"):
    account: str
    number: int
    how: str
""",
    "messages": """
from shop.bus import Command


class Sell(Command[None]):
    account: str
    number: int
    how: str = "well"
""",
    "handlers": """
from sqlalchemy.ext.asyncio import AsyncSession

from shop.bus import Bus, handle

from .contracts import Sold
from .messages import Sell
from .models import Row


@handle
async def sell(command: Sell, session: AsyncSession, bus: Bus) -> None:
    session.add(Row(listener="sell", number=command.number, account=command.account))
    bus.publish(Sold(account=command.account, number=command.number, how=command.how))
    await session.flush()
    if command.how == "refused":
        raise LookupError("refused")
""",
    "router": """
from fastapi import APIRouter

from shop.base.http import BusDep

from .messages import Sell

router = APIRouter(prefix="/sales")


@router.post("", status_code=201)
async def post(command: Sell, bus: BusDep) -> None:
    await bus.send(command)
""",
    "listeners": """
from sqlalchemy.ext.asyncio import AsyncSession

from shop.bus import listen
from shop.slices.stock.contracts import Shipped

from .models import Row


@listen(backoff=0.1)
async def shipped(event: Shipped, session: AsyncSession) -> None:
    session.add(Row(listener="shipped", number=event.number, account="-"))
""",
}

STOCK = {
    "contracts": """
from shop.bus import Event


class Shipped(Event, key="number"):
    number: int
""",
    "messages": """
from shop.bus import Command, Query


class Ship(Command[None]):
    number: int
    account: str


class CountShipped(Query[int]):
    number: int
""",
    "handlers": """
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from shop.bus import Bus, handle

from .contracts import Shipped
from .messages import CountShipped, Ship
from .models import Row


@handle
async def ship(command: Ship, session: AsyncSession, bus: Bus) -> None:
    session.add(Row(listener="ship", number=command.number, account=command.account))
    bus.publish(Shipped(number=command.number))


@handle
async def count(query: CountShipped, session: AsyncSession) -> int:
    rows = sa.select(sa.func.count()).where(Row.number == query.number, Row.listener == "ship")
    return await session.scalar(rows) or 0
""",
    "listeners": """
from sqlalchemy.ext.asyncio import AsyncSession

from shop.bus import Bus, listen
from shop.slices.sales.contracts import Sold

from .messages import CountShipped, Ship
from .models import Row


def row(listener: str, event: Sold) -> Row:
    return Row(listener=listener, number=event.number, account=event.account)


@listen(backoff=0.1)
async def plain(event: Sold, session: AsyncSession) -> None:
    session.add(row("plain", event))


@listen(backoff=0.1, batch=20)
async def batch(event: Sold, session: AsyncSession) -> None:
    session.add(row("batch", event))


@listen(backoff=0.1, batch=20)
async def many(events: list[Sold], session: AsyncSession) -> None:
    session.add_all([row("many", event) for event in events])


@listen(backoff=0.1, ordered=True)
async def ordered(event: Sold, session: AsyncSession) -> None:
    session.add(row("ordered", event))


@listen(backoff=0.1)
async def ship(event: Sold, bus: Bus) -> None:
    await bus.send(Ship(number=event.number, account=event.account))
    assert await bus.send(CountShipped(number=event.number)) == 1
""",
}

TROUBLE = {
    "listeners": """
import asyncio
import datetime as dt
import os
from pathlib import Path

import aiosqlite
from sqlalchemy.ext.asyncio import AsyncSession

from shop.bus import clock, listen
from shop.slices.sales.contracts import Sold

from .models import Row

FOLDER = Path(os.environ.get("FAULTS_FOLDER", "."))


def now(self: object) -> dt.datetime:
    jump = FOLDER / f"clock-{os.getpid()}"
    hours = float(jump.read_text()) if jump.exists() else 0
    return dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)


clock.Clock.now = now


# On PostgreSQL a trigger makes the commit slow; on SQLite, whose commits wait for nothing, the
# driver tells of it late.
commit, slow_commits = aiosqlite.Connection.commit, []


async def commit_slowly(self: aiosqlite.Connection) -> None:
    await commit(self)
    if slow_commits:
        await asyncio.sleep(slow_commits.pop())


aiosqlite.Connection.commit = commit_slowly


def row(listener: str, event: Sold, **more: int) -> Row:
    return Row(listener=listener, number=event.number, account=event.account, **more)


@listen(retries=1, backoff=0.1, timeout=2)
async def hangs(event: Sold, session: AsyncSession) -> None:
    session.add(row("hangs", event))
    if event.how == "hangs":
        await session.flush()
        await asyncio.Event().wait()


@listen(retries=1, backoff=0.1)
async def fails(event: Sold, session: AsyncSession) -> None:
    session.add(row("fails", event))
    if event.how == "fails" and not (FOLDER / "mended").exists():
        await session.flush()
        raise LookupError("not mended yet")


@listen(retries=1, backoff=0.1)
async def commit_fails(event: Sold, session: AsyncSession) -> None:
    more = {"follows": -1} if event.how == "commit_fails" else {}
    session.add(row("commit_fails", event, **more))


@listen(retries=1, backoff=0.1, timeout=2)
async def commit_takes_long(event: Sold, session: AsyncSession) -> None:
    session.add(row("commit_takes_long", event))
    await session.flush()
    if event.how == "commit_takes_long" and session.get_bind().dialect.name == "sqlite":
        slow_commits.append(3)


@listen(retries=1, backoff=0.1)
async def kills(event: Sold, session: AsyncSession) -> None:
    session.add(row("kills", event))
    if event.how == "kills":
        await session.flush()
        os._exit(9)


@listen(backoff=0.1)
async def works(event: Sold, session: AsyncSession) -> None:
    # SQLite has one writer: who waits must not hold what others wait for.
    early = session.get_bind().dialect.name == "postgresql"
    if early:
        session.add(row("works", event))
        await session.flush()
    if event.how == "works":
        (FOLDER / f"works-{os.getpid()}").touch()
        while not (FOLDER / "go").exists():
            await asyncio.sleep(0.01)
    if not early:
        session.add(row("works", event))
""",
}

# The publisher: logs what it tries and, once it is answered, whether that was committed.
PUBLISHER = """
import asyncio
import os
import signal
import sys

from shop.app import build_runtime, opened
from shop.base import logs
from shop.settings import Settings
from shop.slices.sales.messages import Sell

AT_ONCE = 4


class Publisher:
    def __init__(self, log, first, most):
        self.enough = False
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.first = first
        self.most = most

    def stop(self):
        self.enough = True

    async def sell(self, bus, nth):
        for number in range(self.first + nth, self.first + self.most, AT_ONCE):
            if self.enough:
                return
            # An account belongs to one publisher, who sells to it in rising numbers.
            account = f"{self.first}-{nth}"
            how = "refused" if number % 7 == 3 else "well"
            self.note("try", number)
            try:
                await bus().send(Sell(account=account, number=number, how=how))
            except LookupError:
                self.note("no", number)
            except Exception:
                # The database is away: whether this was committed, nobody told.
                await asyncio.sleep(0.1)
            else:
                self.note("ok", number)
            await asyncio.sleep(0.02)

    def note(self, word, number):
        os.write(self.log, f"{word} {number}\\n".encode())

    async def run(self):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        settings = Settings()
        logs.configure(settings.log_level, json=True)
        runtime = build_runtime(settings)
        async with opened(runtime), asyncio.TaskGroup() as group:
            for nth in range(AT_ONCE):
                group.create_task(self.sell(runtime.bus, nth))


def main():
    log, first, most = sys.argv[1:]
    asyncio.run(Publisher(log, int(first), int(most)).run())
"""

SELLER = """
import asyncio
import sys

from shop.app import build_runtime, opened
from shop.settings import Settings
from shop.slices.sales.messages import Sell


async def sell():
    async with opened(build_runtime(Settings()), relay=False) as runtime:
        for sale in sys.argv[1:]:
            number, how = sale.split("=")
            await runtime.bus().send(Sell(account="0", number=int(number), how=how))


def main():
    asyncio.run(sell())
"""


def modules() -> dict[str, str]:
    """The files of all slices and programs, by their paths below the package."""
    files = {"publisher.py": PUBLISHER, "seller.py": SELLER}
    for name, sources in {"sales": SALES, "stock": STOCK, "trouble": TROUBLE}.items():
        folder = f"slices/{name}"
        files[f"{folder}/__init__.py"] = f'NAME = "{name}"\n'
        files[f"{folder}/models.py"] = MODELS.format(slice=name)
        files[f"{folder}/migrations/{name}_0001_create.py"] = MIGRATION.format(slice=name)
        files |= {f"{folder}/{module}.py": source for module, source in sources.items()}
    return files
