"""Each fault on its own, put upon real processes; what was promised holds after each."""

import json
import resource
import signal
import sqlite3
from functools import partial
from urllib.request import Request, urlopen

from sqlalchemy import make_url

from .checker import query
from .service import Process, Server, Service, wait_for

NAP = """
    CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_sleep(2); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER nap AFTER INSERT ON trouble DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.listener = 'commit_takes_long' AND NEW.number = 4)
        EXECUTE FUNCTION nap()
"""


def test_listeners_that_fail_do_so_alone(service: Service) -> None:
    if service.url.startswith("postgresql"):
        # Its listener's time is over before the commit is: that is no failure.
        for statement in NAP.split(";\n"):
            query(service.url, statement)
    service.worker()
    ways = ["well", "hangs", "fails", "commit_fails", "commit_takes_long", "well"]
    service.sell(*enumerate(ways))
    service.settle()
    assert service.check() == {
        ("trouble.hangs", 1): "TimeoutError",
        ("trouble.fails", 2): "LookupError",
        ("trouble.commit_fails", 3): "IntegrityError",
    }
    assert service.count("bus_attempt", "true") == 6


def test_event_that_kills_its_process_ends_as_a_dead_letter(service: Service) -> None:
    service.sell((1, "well"), (2, "kills"), (3, "well"))
    workers = [service.worker() for _ in range(4)]
    service.settle()
    assert service.check() == {("trouble.kills", 2): "ProcessDied"}
    assert sorted(worker.ended for worker in workers) == [False, True, True, True]


def test_lease_that_runs_out_while_its_listener_works(service: Service) -> None:
    frozen = service.worker()
    service.sell((1, "works"))
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


def test_clocks_that_jump_take_no_lease(service: Service) -> None:
    worker = service.worker()
    service.sell((1, "works"))
    _wait_until_it_works(service, worker)
    other = service.worker()
    for hours in (2, -2):
        for process in (worker, other):
            (service.folder / f"clock-{process.pid}").write_text(str(hours))
        # Each looks for leases that have run out right after it says that it lives.
        for _ in range(2):
            _wait_until_seen(service, hours)
    (service.folder / "go").touch()
    service.settle()
    assert service.check() == {}
    assert service.count("bus_delivery", "losses > 0") == 0
    assert not (service.folder / f"works-{other.pid}").exists()


def test_stopped_in_the_middle_of_its_work(service: Service) -> None:
    process, url = service.http()
    wait_for("the service", lambda: _answers(url))
    for number, how in [(0, "well"), (1, "works")]:
        body = json.dumps({"account": "0", "number": number, "how": how}).encode()
        urlopen(Request(f"{url}/sales", body, {"Content-Type": "application/json"})).close()
        service.note(number)
    _wait_until_it_works(service, process)
    process.signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert service.count("trouble", "listener = 'works'") == 1
    assert service.count("bus_delivery", "state = 'pending' AND attempts = 0 AND losses = 0") == 1
    (service.folder / "go").touch()
    service.worker()
    service.settle()
    assert service.check() == {}


def test_two_deployments_with_different_listeners(service: Service) -> None:
    stock, others = service.worker(SLICES="stock"), service.worker(SLICES="sales,trouble")
    publisher = service.publisher(0, 40)
    assert publisher.wait() == 0, publisher.printed()
    service.settle()
    assert service.check() == {}
    slices = {row[0]: json.loads(row[1]) for row in query(service.url, WORKERS)}
    assert slices == {stock.pid: ["stock"], others.pid: ["sales", "trouble"]}


WORKERS = "SELECT pid, slices FROM bus_worker"


def test_server_that_cuts_and_crashes(on_postgresql: Service, crashing_server: Server) -> None:
    service = on_postgresql
    service.worker()
    publisher = service.publisher(0, 400, relay=True)
    name = str(make_url(service.url).database)
    faults = {40: lambda: crashing_server.cut(name), 80: crashing_server.restart}
    for after, strike in faults.items():
        wait_for("load", partial(_acknowledged, service, after))
        strike()
    assert publisher.wait() == 0, publisher.printed()
    service.settle()
    service.check()
    assert service.acknowledged() > 300


def test_disk_that_is_full(on_sqlite: Service) -> None:
    service = on_sqlite
    worker = service.worker()
    publisher = service.publisher(0, 200)
    wait_for("load", lambda: service.acknowledged() >= 40)
    # No file of the worker's can grow from here on.
    before = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    wait_for("the worker to notice", lambda: "OperationalError" in worker.printed())
    assert publisher.wait() == 0, publisher.printed()
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, before)
    service.settle()
    service.check()


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


def _wait_until_seen(service: Service, hours: int) -> None:
    """Until all workers have said once more that they live, by clocks that are wrong so much."""
    before = dict(query(service.url, SEEN))

    def seen() -> bool:
        now = dict(query(service.url, SEEN))
        moved = all(now[one] != before.get(one) for one in now)
        return len(now) == 2 and moved and service.count("bus_worker", _is_off(service, hours)) == 2

    wait_for("all workers to be seen", seen)


SEEN = "SELECT pid, seen_at FROM bus_worker"


def _is_off(service: Service, hours: int) -> str:
    if service.url.startswith("postgresql"):
        difference = "extract(epoch FROM seen_at - now())"
    else:
        difference = "(julianday(seen_at) - julianday('now')) * 86400"
    return f"abs({difference} - {hours} * 3600) < 600"


def _answers(url: str) -> bool:
    try:
        urlopen(f"{url}/readyz").close()
    except OSError:
        return False
    return True
