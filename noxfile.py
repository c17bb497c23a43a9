"""Every task of this repository: `nox -l` lists them, `nox -s tests` runs one."""

import signal
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
TEMPLATE = ("--quiet", "--defaults", "--vcs-ref=HEAD", str(ROOT))


def install(session: nox.Session, *groups: str, options: tuple[str, ...] = ()) -> None:
    """Install dependency groups of pyproject.toml."""
    pyproject = ROOT / "pyproject.toml"
    session.install(*options, *(f"--group={pyproject}:{group}" for group in groups))


def install_service_needs(session: nox.Session, options: tuple[str, ...] = ()) -> None:
    """Install what a generated service needs, as its own pyproject.toml lists it."""
    service = Path(session.create_tmp()) / "shop"
    session.run("copier", "copy", "--overwrite", *TEMPLATE, str(service), silent=True)
    pyproject = service / "pyproject.toml"
    session.install(*options, "-r", str(pyproject), f"--group={pyproject}:dev")


def install_for_tests(session: nox.Session) -> None:
    """Install what the tests need, and what the services that they make do."""
    # Hundreds of processes are started: without it, each compiles all that it imports.
    compiled = ("--compile-bytecode",)
    install(session, "tests", options=compiled)
    install_service_needs(session, options=compiled)


@nox.session
def demo(session: nox.Session) -> None:
    """Generate a shop, run it, make a payment, show the order; `-- --serve` leaves it running."""
    install(session, "demo")
    # It stops its shop by itself, if it is given the time.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session.run("python", "demo.py", *session.posargs, terminate_timeout=30)


@nox.session
def tests(session: nox.Session) -> None:
    """Generate, run what was generated, update it, break it."""
    install_for_tests(session)
    # Three, as many tests wait for what they have started.
    session.run("pytest", *(session.posargs or ["-n3", "-m", "not long"]))
    if not session.posargs:
        session.notify("lint")
        session.notify("typecheck")


@nox.session
def faults(session: nox.Session) -> None:
    """Kill processes for ten minutes, and write faults.md; `-- --minutes N --seed S`."""
    install_for_tests(session)
    # By `python -m`: a script of that name would be imported again by each process.
    options = ("--minutes=10", "--report=faults.md", *session.posargs)
    session.run("python", "-m", "pytest", "tests/faults/test_kills.py", *options)


@nox.session
def release(session: nox.Session) -> None:
    """Check all that a release needs, and tag it here: `-- 1.2.0`. Pushes nothing."""
    if len(session.posargs) != 1:
        session.error("which version? nox -s release -- 1.2.0")
    check = ("python", "release.py", *session.posargs)
    session.run(*check)
    install_for_tests(session)
    session.run("pytest", "-n2", "-m", "long")
    session.run("pytest", "-n2", "tests/test_random_lives.py", "--lives=50")
    session.run(*check, "--tag")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format; `-- --fix` mends what can be mended."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if session.posargs else ["--check"]))


@nox.session
def typecheck(session: nox.Session) -> None:
    """Check the types of this repository's own code; generated code is checked by the tests."""
    install(session, "typecheck")
    install_service_needs(session)
    session.run("mypy", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: `-- bus` (or another of docs/benchmarks.md), and `--json FILE`."""
    if not session.posargs:
        which = "bus | http | scale | delivery | event_store | updates | rebuild"
        session.error(f"which one? nox -s bench -- {which} [--json FILE]")
    name, *options = session.posargs
    environment = Path(session.create_tmp()) / "venv"
    session.run("uv", "venv", "--quiet", "--clear", f"--python={newest_python()}", str(environment))
    into = (f"--python={environment}",)
    install(session, "template")
    install(session, "tests", "peers", options=into)
    install_service_needs(session, options=into)
    python = str(environment / "bin/python")
    session.run(python, "-m", f"benchmarks.{name}", *options, external=True)


def newest_python() -> str:
    """A Python of 3.12 or later, which one peer needs, or else the one that runs this."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python"), reverse=True)
    for candidate in [*(f"python3.{minor}" for minor in (14, 13, 12)), *map(str, pyenv)]:
        # Finding it is not enough: pyenv's stand-ins for versions that are not chosen fail.
        if subprocess.run(["sh", "-c", f"{candidate} -V"], capture_output=True).returncode == 0:
            return candidate
    return sys.executable


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; `-- serve` shows it while it is written."""
    install(session, "docs")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))
