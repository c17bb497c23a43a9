"""How start-up and generation grow with the number of slices, in times of whole processes.

Start-up lasts until the first answer of /readyz; that the schema of all routes was answered proves
afterwards that all slices are there. Goals: it grows by no more than 15 ms a slice; a service is
copied in under 2 s, a slice in under 1.5 s. The time that the processor worked for it is given too,
because that does not depend on what else the machine does.
"""

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from .report import Report, Row, options
from .shop import PAYMENTS, Server, copy, migrate, serve, snapshot

SIZES = (1, 10, 50)


def generate(folder: Path) -> tuple[dict[int, Path], list[Row]]:
    """A shop of each size, and what making it took."""
    template = snapshot(folder)
    copy(template, folder / "warm-up")
    shops: dict[int, Path] = {}
    rows: list[Row] = []
    for size in SIZES:
        shops[size] = shop = folder / f"shop{size}" / "shop"
        start = time.perf_counter()
        service = copy(template, shop, "-d", "auth=none")
        slices = [
            copy(template, shop / f"src/shop/slices/payments_{number}", *PAYMENTS)
            for number in range(size)
        ]
        rows.append(
            {
                "slices": size,
                "service s": service,
                "slice s, median": median(slices),
                "slice s, longest": max(slices),
                "all s": time.perf_counter() - start,
            }
        )
    return shops, rows


def start_up(shops: dict[int, Path], rounds: int) -> list[Row]:
    """Seconds to the first answer; and what a slice adds, from pairs that started in one round."""
    times: dict[int, list[float]] = {size: [] for size in shops}
    worked: dict[int, list[float]] = {size: [] for size in shops}
    for size, shop in shops.items():
        migrate(shop, _url(shop))
        with serve(shop, _url(shop)) as server:
            prove(server, size)
    for _ in range(rounds):
        for size, shop in shops.items():
            with serve(shop, _url(shop)) as server:
                times[size].append(server.startup)
                worked[size].append(server.cpu)
    return [
        {
            "slices": size,
            "start-up s": median(times[size]),
            "ms a slice more": _slope(size, times),
            "processor s": median(worked[size]),
            "processor ms a slice more": _slope(size, worked),
        }
        for size in shops
    ]


def _slope(size: int, times: dict[int, list[float]]) -> float | None:
    if size == SIZES[0]:
        return None
    pairs = zip(times[size], times[SIZES[0]], strict=True)
    return median(more - less for more, less in pairs) / (size - SIZES[0]) * 1000


def prove(server: Server, size: int) -> None:
    """Raises RuntimeError unless the routes of this many slices are there."""
    with urlopen(f"http://127.0.0.1:{server.port}/openapi.json", timeout=60) as answer:
        tags = {path.split("/")[1] for path in json.load(answer)["paths"] if "payments" in path}
    if len(tags) != size:
        raise RuntimeError(f"expected {size} slices, found {sorted(tags)}")


def _url(shop: Path) -> str:
    return f"sqlite:///{shop / 'shop.db'}"


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("scale")
    with tempfile.TemporaryDirectory(prefix="slicewise-scale-") as name:
        shops, rows = generate(Path(name))
        report.show("copier copy", rows)
        report.show("Start-up", start_up(shops, arguments.rounds or 7))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
