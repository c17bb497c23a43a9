"""Every kind of service: it renders clean, and those that differ in kind pass their own checks."""

import itertools
import json
import os
import py_compile
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest
from conftest import Template, tree

DATABASES = ("sqlite", "postgresql")
AUTHS = ("jwt", "none")
CIS = ("github", "none")
TOOLS = Path(sys.executable).parent


def make(template: Template, folder: Path, **answers: str) -> Path:
    """A service with the example's two slices, and one that is as small as can be."""
    template.copy(folder, **answers)
    slices = folder / "src" / folder.name / "slices"
    template.copy(slices / "payments", fields="amount:decimal(12,2) currency:str")
    template.copy(slices / "orders", listens_to="payments.PaymentCreated:start_order")
    template.copy(slices / "notes")
    return folder


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """Run one of the tools in a service; what it prints."""
    inherited = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": "src", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert bool(done.returncode) == fails, printed
    return printed


@pytest.fixture
def small(template: Template, tmp_path: Path) -> Path:
    """A service with one slice, to break."""
    shop = template.copy(tmp_path / "shop")
    template.copy(shop / "src/shop/slices/notes")
    return shop


@pytest.mark.parametrize("answers", list(itertools.product(DATABASES, AUTHS, CIS)), ids="-".join)
def test_every_service_renders_clean(
    template: Template, tmp_path: Path, answers: tuple[str, str, str]
) -> None:
    database, auth, ci = answers
    shop = make(template, tmp_path / "shop", database=database, auth=auth, ci=ci)
    assert scars(shop) == []
    for path in shop.rglob("*.py"):
        py_compile.compile(str(path), doraise=True)
    run(shop, "ruff", "format", "--check")
    run(shop, "ruff", "check")
    assert (shop / ".github").exists() == (ci == "github")
    assert (shop / "tests/test_auth.py").exists() == (auth == "jwt")
    assert f"{database}://" in (shop / ".env.example").read_text()


def scars(folder: Path) -> list[str]:
    """What only a template leaves behind: its own words, blank lines in excess, none at the end."""
    return [
        name
        for name, content in tree(folder).items()
        if not name.endswith((".pyc", ".db"))
        and re.search(rb"\{%|\bjinja\b|\n\n\n\n|[^\n]\Z|\n\n\Z|\A\n|[ \t]\n", content)
    ]


@pytest.mark.parametrize(
    "answers",
    [
        {"database": "sqlite", "auth": "jwt"},
        {"database": "postgresql", "auth": "none", "ci": "none"},
    ],
    ids=["sqlite-jwt", "postgresql-none"],
)
def test_service_passes_its_own_checks(
    template: Template, tmp_path: Path, answers: dict[str, str]
) -> None:
    shop = make(template, tmp_path / "shop", **answers)
    run(shop, "mypy")
    database = [] if answers["database"] == "sqlite" else ["--postgresql"]
    run(shop, "pytest", "-q", "-p", "no:cacheprovider", *database)


LISTENERS = """
from shop.bus import Event, listen


class Told(Event, key="what"):
    what: str


@listen(ordered=True)
async def dies(event: Told) -> None:
    raise LookupError("no luck")


@listen(retries=3)
async def recovers(event: Told) -> None:
    failed.append(event)
    if len(failed) <= 3:
        raise LookupError("not yet")


failed: list[Told] = []
"""

DEAD_LETTERS = """
import datetime as dt

import pytest
from shop.scenario import Scenario
from shop.testing import Service

from ..listeners import Told, dies, failed, recovers


@pytest.fixture(autouse=True)
def start_anew() -> None:
    failed.clear()


async def test_what_is_asked_for_is_part_of_the_story(scenario: Scenario) -> None:
    clock = scenario.service.runtime.clock
    before = clock.now()
    await scenario.when(Told(what="a"), dead=[dies])
    assert clock.now() - before > dt.timedelta(minutes=5)
    await scenario.later(dt.timedelta(days=1))
    await scenario.when(Told(what="b"), dead=[dies])
    # It waits behind the first.
    await scenario.when(Told(what="a"))
    assert len(failed) == 6


@pytest.mark.parametrize("dead", [[], [recovers], [dies, recovers], [dies, dies]])
async def test_anything_else_is_not(service: Service, dead: list[object]) -> None:
    await service.runtime.publish(Told(what="a"))
    with pytest.raises(AssertionError, match=r"(?s)expected dead letters: .*: no luck") as told:
        await service.settled(dead=dead)
    assert "; got: notes.dies" in str(told.value)
"""


def test_dead_letters_are_asked_for(small: Path) -> None:
    notes = small / "src/shop/slices/notes"
    (notes / "listeners.py").write_text(LISTENERS)
    (notes / "tests/test_dead_letters.py").write_text(DEAD_LETTERS)
    run(small, "pytest", "-q", "-p", "no:cacheprovider", f"{notes}/tests/test_dead_letters.py")


KILLED = """
import os, signal

def test_that_is_killed(server):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_server_of_tests_that_are_killed_does_not_outlive_them(small: Path) -> None:
    (small / "tests/test_killed.py").write_text(KILLED)
    # Not below pytest's own folder, which the server's user may not enter.
    with TemporaryDirectory() as folder:
        killed = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--postgresql", "tests/test_killed.py"],
            cwd=small,
            env={**os.environ, "PYTHONPATH": "src", "DATABASE_URL": "", "TMPDIR": folder},
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while list(Path(folder).glob("postgresql-*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_service_without_slices_passes_its_own_checks(template: Template, tmp_path: Path) -> None:
    shop = template.copy(tmp_path / "shop")
    run(shop, "mypy")
    run(shop, "pytest", "-q", "-p", "no:cacheprovider")


def test_removing_a_slice_edits_no_other_file(template: Template, tmp_path: Path) -> None:
    before = tree(template.copy(tmp_path / "one/shop"))
    template.copy(tmp_path / "one/shop/src/shop/slices/notes")
    after = tree(tmp_path / "one/shop")
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("src/shop/slices/notes/") for name in after.keys() - before.keys())


WAITS = "\nimport threading\nprint('waiting', flush=True)\nthreading.Event().wait()\n"


@pytest.mark.parametrize(
    ("module", "command", "place", "sent", "status"),
    [
        ("shop", "run", "src/shop/settings.py", signal.SIGTERM, 0),
        ("shop", "run", "src/shop/settings.py", signal.SIGINT, 130),
        ("shop", "worker", "src/shop/settings.py", signal.SIGTERM, 0),
        ("shop.cli", "run", "src/shop/slices/notes/models.py", signal.SIGTERM, 0),
        ("shop.cli", "worker", "src/shop/slices/notes/models.py", signal.SIGTERM, 0),
    ],
)
def test_service_that_is_told_to_stop_while_it_is_loaded(
    small: Path, module: str, command: str, place: str, sent: signal.Signals, status: int
) -> None:
    """As it is loaded it comes to a line that waits, and it is sent a signal there."""
    with (small / place).open("a") as file:
        file.write(WAITS)
    process = subprocess.Popen(
        [sys.executable, "-m", module, command],
        cwd=small,
        env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(sent)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (status, "")


@contextmanager
def running(folder: Path, *command: str, module: str = "shop") -> Iterator[IO[str]]:
    """Run a command of the service, and stop it by SIGTERM; gives what it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        # If what is waited for never comes, the output ends.
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            yield process.stdout
            process.terminate()
            assert process.wait(60) == 0
        finally:
            watchdog.cancel()
            process.kill()


def read_until(printed: IO[str], text: str) -> str:
    seen = []
    for line in printed:
        seen.append(line)
        if text in line:
            return "".join(seen)
    raise AssertionError(f"{text!r} is not in\n{''.join(seen)}")


def test_dev_comes_back_when_what_stopped_it_is_mended(small: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    handlers = small / "src/shop/slices/notes/handlers.py"
    code = handlers.read_text()
    with running(small, "dev", "--port", str(port)) as printed:
        read_until(printed, "Application startup complete.")
        handlers.write_text("def x(:")
        told = read_until(printed, "Waiting for the next change.")
        assert f"{handlers}:1: SyntaxError" in told
        assert "Traceback" not in told
        assert f"{handlers}:1: SyntaxError" in refusal_of(port)
        handlers.write_text(code)
        told = read_until(printed, "Application startup complete.")
        assert "detected changes in 'src/shop/slices/notes/handlers.py'" in told
        assert "watchfiles" not in told
        run(small, "shop", "db", "revision", "notes", "-m", "x", "--empty")
        read_until(
            printed, "is behind the code (it lacks notes_0002). Run `shop db upgrade` first."
        )
        assert "Run `shop db upgrade` first." in refusal_of(port)
        run(small, "shop", "db", "upgrade")
        read_until(printed, "Application startup complete.")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as answer:
            assert answer.status == 200


def refusal_of(port: int) -> str:
    """What a service that has not started says of itself."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/notes", timeout=60)
    with refused.value as answer:
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
        detail: str = json.load(answer)["detail"]
    return detail


# The database is checked, and found to be up to date; then a revision comes.
RACE = """
import socket, subprocess, sys, uvicorn
from shop import cli

def run(server, sockets):
    revision = ["db", "revision", "notes", "-m", "x", "--empty"]
    subprocess.run([sys.executable, "-m", "shop", *revision], check=True)
    cli._end_when_told()
    serve(server, sockets)

serve, uvicorn.Server.run = uvicorn.Server.run, run
with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    cli._start_again("127.0.0.1", 0, [one])
"""


def test_dev_starts_what_was_right_when_it_looked(small: Path) -> None:
    """The reloader sees the new file, and tells of it: the server would, in its traceback."""
    run(small, "shop", "db", "upgrade")
    (small / "race.py").write_text(RACE)
    with running(small, module="race") as printed:
        assert "Traceback" not in read_until(printed, "Application startup complete.")


def test_worker_says_what_it_works_for(small: Path) -> None:
    run(small, "shop", "db", "upgrade")
    with running(small, "worker") as printed:
        told = read_until(printed, "worker started")
        assert "database=sqlite:///shop.db" in told
        assert "slices=notes" in told


# The command, up to where it serves or works.
LASTS = """
import gc, sys, shop.cli
def look(*_, **__):
    print("looks for garbage:", gc.isenabled(), "lasting:", gc.get_freeze_count() > 0)
async def work(runtime): look()
shop.cli.uvicorn.run, shop.cli._work = look, work
shop.cli.main()
"""


@pytest.mark.parametrize("command", ["run", "worker"])
def test_what_is_made_at_the_start_is_not_searched_for_garbage(small: Path, command: str) -> None:
    run(small, "shop", "db", "upgrade")
    (small / "lasts.py").write_text(LASTS)
    assert "looks for garbage: True lasting: True" in run(small, "lasts", command)


@pytest.mark.parametrize("command", [["run"], ["worker"], ["describe"], ["db", "upgrade"]])
@pytest.mark.parametrize("broken", ["def x(:", "<<<<<<< before updating"])
def test_broken_slice_is_told_in_one_line(small: Path, command: list[str], broken: str) -> None:
    """And nothing is migrated: who calls would take it for the new version."""
    handlers = small / "src/shop/slices/notes/handlers.py"
    at = f"{handlers}:{len(handlers.read_text().splitlines()) + 1}: "
    with handlers.open("a") as file:
        file.write(broken)
    printed = run(small, "shop.cli", *command, fails=True)
    assert at in printed
    assert len(printed.splitlines()) == 1
    assert not (small / "shop.db").exists()


def test_broken_slice_is_told_once_in_tests(small: Path) -> None:
    """Those that do without the service run all the same."""
    handlers = small / "src/shop/slices/notes/handlers.py"
    handlers.write_text("def x(:")
    printed = run(small, "pytest", "-q", "-p", "no:cacheprovider", fails=True)
    assert printed.count(f"ERROR: {handlers}:1: SyntaxError") == 1
    assert "failed" not in printed
    run(small, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_describe.py", "-k", "round")


def test_describe_wants_the_slices_that_are_to_run(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLICES", "nope")
    assert "SLICES: no slice nope; here are: notes" in run(small, "shop", "describe", fails=True)
    monkeypatch.setenv("SLICES", "notes")
    assert "command notes.CreateNote" in run(small, "shop", "describe")
