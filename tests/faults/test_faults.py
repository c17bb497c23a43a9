"""Each fault on its own, put upon real processes; what was promised holds after each."""

import json
import resource
import signal
import sqlite3
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from sqlalchemy import make_url

from .checker import query
from .service import Process, Server, Service, wait_for

NAP = """
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(3); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON trouble DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.listener = 'commit_takes_long' AND NEW.number = 4)
        EXECUTE FUNCTION nap()
"""


def test_listeners_that_fail_do_so_alone(service: Service) -> None:
    if service.url.startswith("postgresql"):
        # Its listener's time is over before the commit is: that is no failure.
        for statement in NAP.split(";\n"):
            query(service.url, statement)
    ways = ["well", "hangs", "fails", "commit_fails", "commit_takes_long", "well"]
    service.sell(*enumerate(ways))
    service.worker()
    service.settle()
    dead = {("trouble.hangs", 1): "TimeoutError", ("trouble.commit_fails", 3): "IntegrityError"}
    assert service.check() == dead | {("trouble.fails", 2): "LookupError"}
    assert service.count("bus_attempt", "true") == 6
    (service.folder / "mended").touch()
    service.retry("listener=trouble.fails")
    service.settle()
    assert service.check() == dead


def test_event_that_kills_its_process_ends_as_a_dead_letter(service: Service) -> None:
    service.lease = 1
    service.sell((1, "well"), (2, "kills"), (3, "well"))
    workers = [service.worker() for _ in range(4)]
    service.settle()
    assert service.check() == {("trouble.kills", 2): "ProcessDied"}
    assert sorted(worker.ended for worker in workers) == [False, True, True, True]


def test_lease_that_runs_out_while_its_listener_works(service: Service) -> None:
    service.lease = 1
    service.sell((1, "works"))
    frozen = service.worker()
    _wait_until_it_works(service, frozen)
    _freeze(service, frozen)
    heir = service.worker()
    wait_for("another worker to take over", (service.folder / f"works-{heir.pid}").exists)
    (service.folder / "go").touch()
    service.settle()
    assert service.check() == {}
    frozen.signal(signal.SIGCONT)
    wait_for("the lease to be missed", lambda: "rolled back: another worker" in frozen.printed())
    assert service.check() == {}
    assert not frozen.ended


def test_clocks_that_jump_change_no_lease(service: Service) -> None:
    service.lease = 2
    service.sell((1, "works"))
    worker = service.worker()
    _wait_until_it_works(service, worker)
    other = service.worker()
    _jump(service, {worker: -2, other: 2})
    # Each looks for leases that have run out right after it says that it lives.
    for _ in range(2):
        _wait_until_seen(service, {worker: -2, other: 2})
    assert service.count("bus_delivery", "losses > 0") == 0
    assert not (service.folder / f"works-{other.pid}").exists()
    # Nor does a lease last longer that was taken, or renewed, by a clock that is ahead.
    _jump(service, {worker: 2, other: 0})
    _wait_until_seen(service, {worker: 2, other: 0})
    worker.kill()
    wait_for("the other to take over", (service.folder / f"works-{other.pid}").exists)
    (service.folder / "go").touch()
    service.settle()
    assert service.check() == {}


def test_stopped_in_the_middle_of_its_work(service: Service) -> None:
    process, url = service.http()
    for number, how in [(0, "well"), (1, "works")]:
        assert _post(service, url, number, how)
    _wait_until_it_works(service, process)
    process.stop()
    assert service.count("trouble", "listener = 'works'") == 1
    assert service.count("bus_delivery", "state = 'pending' AND attempts = 0 AND losses = 0") == 1
    (service.folder / "go").touch()
    service.worker()
    service.settle()
    assert service.check() == {}


def test_deployments_with_different_listeners(service: Service) -> None:
    stock, trouble = service.worker(SLICES="stock"), service.worker(SLICES="trouble")
    sales = service.publisher(0, SLICES="sales")
    wait_for("load", partial(_acknowledged, service, 20))
    slices = {stock.pid: ["stock"], trouble.pid: ["trouble"], sales.pid: ["sales"]}
    wait_for("all to be seen", lambda: _slices(service) == slices)
    sales.stop()
    service.worker(SLICES="sales")
    service.settle()
    assert service.check() == {}


def _slices(service: Service) -> dict[int, list[str]]:
    workers = query(service.url, "SELECT pid, slices FROM bus_worker")
    return {pid: json.loads(slices) for pid, slices in workers}


def test_server_that_cuts_and_crashes(on_postgresql: Service, crashing_server: Server) -> None:
    service = on_postgresql
    service.lease = 2
    worker = service.worker()
    wait_for("the worker", lambda: worker.pid in _slices(service))
    publisher = service.publisher(0)
    _wait_for_load(service)
    crashing_server.cut(str(make_url(service.url).database))
    _wait_for_load(service)
    crashing_server.restart()
    _wait_for_load(service)
    publisher.stop()
    service.settle()
    service.check()


def test_disk_that_is_full(on_sqlite: Service) -> None:
    service = on_sqlite
    service.lease = 2
    process, url = service.http()
    for number in range(10):
        assert _post(service, url, number, "works" if number == 9 else "well")
    wait_for("work", (service.folder / f"works-{process.pid}").exists)
    # No file of its own can grow from here on.
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    (service.folder / "go").touch()
    assert not _post(service, url, 10)
    wait_for("the relay to notice", lambda: "OperationalError" in process.printed())
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    assert _post(service, url, 11)
    service.settle()
    service.check()


def test_file_that_is_read_only(on_sqlite: Service) -> None:
    service = on_sqlite
    service.sell(*((number, "well") for number in range(5)))
    file = Path(str(make_url(service.url).database))
    file.chmod(0o444)
    refused, _ = service.http()
    assert refused.wait() == 1
    assert refused.printed().endswith(f"cannot be reached: {file} is read-only\n")
    file.chmod(0o644)
    service.worker()
    service.settle()
    assert service.check() == {}


def _wait_until_it_works(service: Service, process: Process) -> None:
    """Until all is delivered but one, whose listener waits."""
    wait_for("work", (service.folder / f"works-{process.pid}").exists)
    open_ones = "state IN ('pending', 'working')"
    wait_for("the rest", lambda: service.count("bus_delivery", open_ones) == 1)


def _freeze(service: Service, process: Process) -> None:
    """Stop a process at a moment at which it keeps no other from the deliveries."""

    def frozen() -> bool:
        process.signal(signal.SIGSTOP)
        if _is_free(service):
            return True
        process.signal(signal.SIGCONT)
        return False

    wait_for("a moment between two transactions", frozen)


def _is_free(service: Service) -> bool:
    if service.url.startswith("postgresql"):
        free = "SELECT id FROM bus_delivery WHERE state = 'working' FOR UPDATE SKIP LOCKED"
        return len(query(service.url, free)) == 1
    connection = sqlite3.connect(str(make_url(service.url).database), timeout=0)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def _acknowledged(service: Service, count: int) -> bool:
    return service.acknowledged() >= count


def _wait_for_load(service: Service) -> None:
    """Until more is published than was, and a batch is in work."""
    wait_for("load", partial(_acknowledged, service, service.acknowledged() + 10))
    deliveries = "bus_delivery d JOIN bus_subscription s ON s.id = d.subscription_id"
    batch = "d.state = 'working' AND s.listener IN ('stock.batch', 'stock.many')"
    wait_for("a batch", lambda: service.count(deliveries, batch) > 1)


def _jump(service: Service, hours: dict[Process, int]) -> None:
    for process, jump in hours.items():
        (service.folder / f"clock-{process.pid}").write_text(str(jump))


def _wait_until_seen(service: Service, hours: dict[Process, int]) -> None:
    """Until each has said once more that it lives, by a clock that is wrong by so many hours."""
    before = dict(query(service.url, SEEN))

    def seen() -> bool:
        now = dict(query(service.url, SEEN))
        return all(
            now.get(one.pid) != before.get(one.pid)
            and service.count("bus_worker", f"pid = {one.pid} AND {_is_off(service, jump)}")
            for one, jump in hours.items()
        )

    wait_for("all workers to be seen", seen)


SEEN = "SELECT pid, seen_at FROM bus_worker"


def _is_off(service: Service, hours: int) -> str:
    if service.url.startswith("postgresql"):
        difference = "extract(epoch FROM seen_at - now())"
    else:
        difference = "(julianday(seen_at) - julianday('now')) * 86400"
    return f"abs({difference} - {hours} * 3600) < 600"


def _post(service: Service, url: str, number: int, how: str = "well") -> bool:
    """Sell over HTTP, as soon as the service listens; whether it says that this is done."""
    body = json.dumps({"account": "0", "number": number, "how": how}).encode()
    done = False

    def answered() -> bool:
        nonlocal done
        try:
            urlopen(Request(f"{url}/sales", body, {"Content-Type": "application/json"})).close()
            done = True
        except HTTPError as error:
            error.close()
        except URLError:
            return False
        return True

    wait_for("an answer", answered)
    service.note(number, done=done)
    return done
