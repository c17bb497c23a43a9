"""How start-up and generation grow with the number of slices, in times of whole processes.

Goals: start-up grows by no more than 15 ms a slice; a service is copied in under 2 s, a slice in
under 1.5 s.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

from .report import Report, Row, options
from .shop import PAYMENTS, copy, migrate, serve, snapshot

SIZES = (1, 10, 50)


def generate(folder: Path) -> tuple[dict[int, Path], list[Row]]:
    """A shop of each size, and what making it took."""
    template = snapshot(folder)
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
    """From the start of the process to the first answer of /readyz, and to that of the schema."""
    times: dict[int, list[float]] = {size: [] for size in shops}
    for shop in shops.values():
        migrate(shop, _url(shop))
    for _ in range(rounds):
        for size, shop in shops.items():
            with serve(shop, _url(shop)) as server:
                times[size].append(server.startup)
    smallest = median(times[SIZES[0]])
    return [
        {
            "slices": size,
            "start-up s": median(measured),
            "ms a slice more": (
                (median(measured) - smallest) / (size - SIZES[0]) * 1000
                if size > SIZES[0]
                else None
            ),
        }
        for size, measured in times.items()
    ]


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
