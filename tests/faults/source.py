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


def row(listener: str, event: Sold, **more: int) -> Row:
    return Row(listener=listener, number=event.number, account=event.account, **more)


@listen(retries=1, backoff=0.1, timeout=1)
async def hangs(event: Sold, session: AsyncSession) -> None:
    session.add(row("hangs", event))
    if event.how == "hangs":
        await session.flush()
        await asyncio.Event().wait()


@listen(retries=1, backoff=0.1)
async def fails(event: Sold, session: AsyncSession) -> None:
    session.add(row("fails", event))
    if event.how == "fails":
        await session.flush()
        raise LookupError("always")


@listen(retries=1, backoff=0.1)
async def commit_fails(event: Sold, session: AsyncSession) -> None:
    more = {"follows": -1} if event.how == "commit_fails" else {}
    session.add(row("commit_fails", event, **more))


@listen(retries=1, backoff=0.1, timeout=1)
async def commit_takes_long(event: Sold, session: AsyncSession) -> None:
    session.add(row("commit_takes_long", event))


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
import sys

from shop.app import build_runtime, opened
from shop.base import logs
from shop.settings import Settings
from shop.slices.sales.messages import Sell

ACCOUNTS = 4


async def sell(bus, log, account, numbers):
    for number in numbers:
        how = "refused" if number % 7 == 3 else "well"
        os.write(log, f"try {number} {account}\\n".encode())
        try:
            await bus().send(Sell(account=str(account), number=number, how=how))
        except LookupError:
            os.write(log, f"no {number} {account}\\n".encode())
        except Exception:
            # The database is away: whether this was committed, nobody told.
            await asyncio.sleep(0.1)
        else:
            os.write(log, f"ok {number} {account}\\n".encode())


async def main(log, first, count, relay):
    settings = Settings()
    logs.configure(settings.log_level, json=True)
    runtime = build_runtime(settings)
    async with opened(runtime, relay=relay), asyncio.TaskGroup() as group:
        for account in range(ACCOUNTS):
            numbers = range(first + account, first + count, ACCOUNTS)
            group.create_task(sell(runtime.bus, log, account, numbers))


path, first, count, relay = sys.argv[1:]
log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
asyncio.run(main(log, int(first), int(count), relay == "relay"))
"""

SELLER = """
import asyncio
import sys

from shop.app import build_runtime, opened
from shop.settings import Settings
from shop.slices.sales.messages import Sell


async def main():
    async with opened(build_runtime(Settings()), relay=False) as runtime:
        for sale in sys.argv[1:]:
            number, how = sale.split("=")
            await runtime.bus().send(Sell(account="0", number=int(number), how=how))


asyncio.run(main())
"""


def modules() -> dict[str, str]:
    """The files of all slices, by their paths below `slices/`."""
    files = {}
    for name, sources in {"sales": SALES, "stock": STOCK, "trouble": TROUBLE}.items():
        files[f"{name}/__init__.py"] = f'NAME = "{name}"\n'
        files[f"{name}/models.py"] = MODELS.format(slice=name)
        files[f"{name}/migrations/{name}_0001_create.py"] = MIGRATION.format(slice=name)
        files |= {f"{name}/{module}.py": source for module, source in sources.items()}
    return files
