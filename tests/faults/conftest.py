"""One generated service for all tests here; each test has a database of its own."""

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from conftest import Template

from .service import Server, Service, generate, upgrade


@pytest.fixture(scope="session")
def code(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated service."""
    return generate(template, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def crashing_server(code: Path) -> Iterator[Server]:
    """A PostgreSQL server with an empty, migrated database `empty`."""
    # Not below pytest's own folder: root's server runs as another user, whom pytest shuts out.
    with TemporaryDirectory(prefix="slicewise-faults-") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It grumbles about a runtime folder that is not set.
            server = Server(Path(folder))
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
def chance(request: pytest.FixtureRequest) -> random.Random:
    """What is random about a test: `--seed` repeats it, and a failure shows it."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.randrange(2**32)
    print(f"seed {seed}: repeat with --seed {seed}")
    return random.Random(seed)
