"""One generated service for all tests here; each test has a database of its own."""

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import Template
from postgresql import server_folder

from .report import Outcome, write
from .service import Server, Service, generate, preload, upgrade


@pytest.fixture(scope="session")
def code(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated service, with a migrated SQLite database in `empty.db`."""
    code = generate(template, tmp_path_factory.mktemp("faults"))
    preload(code)
    upgrade(code, f"sqlite:///{code / 'empty.db'}")
    return code


@pytest.fixture(scope="session")
def crashing_server(code: Path) -> Iterator[Server]:
    """A PostgreSQL server with an empty, migrated database `empty`."""
    with server_folder("slicewise-faults-") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It grumbles about a runtime folder that is not set.
            server = Server(folder)
        server.administer("CREATE DATABASE empty")
        upgrade(code, server.url("empty"))
        yield server
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest) -> Service:
    """The service on a database of its own, one of each kind in turn; nothing runs yet."""
    made: Service = request.getfixturevalue(f"on_{request.param}")
    return made


@pytest.fixture
def on_sqlite(code: Path, tmp_path: Path) -> Iterator[Service]:
    """The service on SQLite."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    shutil.copy(code / "empty.db", tmp_path / "shop.db")
    service = Service(code, url, tmp_path)
    yield service
    service.stop()


@pytest.fixture
def on_postgresql(code: Path, crashing_server: Server, tmp_path: Path) -> Iterator[Service]:
    """The service on PostgreSQL."""
    name = f"faults_{uuid4().hex}"
    crashing_server.administer(f"CREATE DATABASE {name} TEMPLATE empty")
    service = Service(code, crashing_server.url(name), tmp_path)
    yield service
    service.stop()
    crashing_server.administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def chance(pytestconfig: pytest.Config) -> random.Random:
    """What is random about a test: `--seed` repeats it, and a failure shows it."""
    print(f"repeat with --seed {pytestconfig.option.seed}")
    return random.Random(pytestconfig.option.seed)


@pytest.fixture
def seconds(pytestconfig: pytest.Config) -> float:
    """How long processes are killed on one database: both together have `--minutes`."""
    minutes: float = pytestconfig.option.minutes
    return minutes * 60 / 2


@pytest.fixture(scope="session")
def outcomes(pytestconfig: pytest.Config) -> Iterator[list[Outcome]]:
    """For `--report`."""
    found: list[Outcome] = []
    yield found
    if pytestconfig.option.report is not None:
        write(pytestconfig.option.report, pytestconfig.option.seed, found)


@pytest.fixture
def outcome(service: Service, outcomes: list[Outcome]) -> Outcome:
    """What becomes of a test that kills."""
    outcomes.append(Outcome(service.url.partition(":")[0]))
    return outcomes[-1]
