"""The generated shop that is measured: made from this checkout, and run, as a user would do it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil

ROOT = Path(__file__).parents[1]
Command = tuple[str, ...]
# What a user runs.
GENERATED: Command = ("shop", "run")
# A user's Python keeps the bytecode that it has compiled.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
PAYMENTS = ("-d", "fields=amount:decimal(12,2) currency:str")
ORDERS = ("-d", "listens_to=payments.PaymentCreated:start_order")


def snapshot(folder: Path) -> Path:
    """This checkout with its uncommitted state, as a clean Git repository.

    From a checkout with changes Copier makes such a copy at every run, which no user waits for.
    """
    template = folder / "template"
    listed = subprocess.check_output(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    )
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, template / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    commit(template)
    return template


def commit(folder: Path) -> None:
    """Make a Git repository of a folder, with all that is in it."""
    git = ["git", "-C", str(folder), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "bench"]):
        subprocess.run([*git, *command], check=True)


def by_hand(app: str) -> Command:
    """Runs an app's factory as its users would."""
    return ("uvicorn", "--factory", app)


def copy(template: Path, target: Path, *answers: str) -> float:
    """`copier copy`, in a process of its own; the seconds that it took."""
    start = time.perf_counter()
    copier = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--vcs-ref=HEAD"]
    subprocess.run([*copier, *answers, str(template), str(target)], check=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def migrate(shop: Path, url: str) -> None:
    """Bring the database at this URL to what the shop needs."""
    code = "from shop.cli import cli; cli()"
    command = [sys.executable, "-c", code, "db", "upgrade"]
    subprocess.run(command, cwd=shop, env=_environment(shop, url), check=True, capture_output=True)


@dataclass
class Server:
    """A running server; the seconds until it was ready, and those that the processor worked."""

    process: "subprocess.Popen[bytes]"
    port: int
    startup: float
    cpu: float


@contextmanager
def serve(shop: Path, url: str, command: Command = GENERATED, slices: str = "") -> Iterator[Server]:
    """Run this command of Python's `-m` until the block is left; what it logs is shown if it fails.

    Each app logs one line a request.
    """
    port = _free_port()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}"],
            env={**_environment(shop, url), "SLICES": slices},
            cwd=shop,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(process, port)
            startup, cpu = time.perf_counter() - start, psutil.Process(process.pid).cpu_times()
            yield Server(process, port, startup, cpu.user + cpu.system)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode()[-4000:])
            raise
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(timeout=30)


def _environment(shop: Path, url: str) -> dict[str, str]:
    return {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(shop / "src"), str(ROOT)]),
        "ENVIRONMENT": "production",
        "DATABASE_URL": url,
    }


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("the server was not ready within 60 seconds")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
