"""How start-up and generation grow with the number of slices, in times of whole processes.

Copies are made in turn with those of a template of two files, which is what Copier itself takes.
Start-up lasts until the first answer of /readyz, and is measured in turn with that of an
application with as many slices as one would write by hand (`handwritten_slice.py`); that the schema
of all routes was answered proves that all slices are there. Goals: it grows by no more than 15 ms a
slice; a service is copied in under 2 s, a slice in under 1.5 s. The time that the processor worked
for it is given too, because that does not depend on what else the machine does.
"""

import json
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from .report import Report, Row, Taken, options
from .shop import (
    GENERATED,
    PAYMENTS,
    Command,
    Server,
    by_hand,
    commit,
    copy,
    migrate,
    serve,
    snapshot,
)

SIZES = (1, 10, 50)
BY_HAND = by_hand("benchmarks.handwritten:create_sliced_app")
# So many copies of the bare template are enough for a median.
MOST_BARE = 10


@dataclass
class Contender:
    """An application with so many slices, and what its starts took."""

    command: Command
    folder: Path
    taken: Taken = field(default_factory=Taken)

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'shop.db'}"

    def started(self) -> AbstractContextManager[Server]:
        """Run it until the block is left."""
        return serve(self.folder, self.url, self.command)

    def measure(self) -> None:
        with self.started() as server:
            self.taken.wall.append(server.startup)
            self.taken.cpu.append(server.cpu)


def generate(folder: Path) -> tuple[dict[int, Path], list[Row]]:
    """A shop of each size, and what making it took."""
    template, bare = snapshot(folder), bare_template(folder / "bare")
    copy(template, folder / "warm-up")
    shops: dict[int, Path] = {}
    rows: list[Row] = []
    for size in SIZES:
        shops[size] = shop = folder / f"shop{size}" / "shop"
        service = copy(template, shop, "-d", "auth=none")
        slices, bares = list[float](), list[float]()
        for number in range(size):
            name = f"payments_{number}"
            slices.append(copy(template, shop / "src/shop/slices" / name, *PAYMENTS))
            if number < MOST_BARE:
                bares.append(copy(bare, folder / f"bare{size}" / name))
        rows.append(
            {
                "slices": size,
                "service s": service,
                "slice s, median": median(slices),
                "slice s, longest": max(slices),
                "two files s, median": median(bares),
                "slice, times two files": median(slices) / median(bares),
            }
        )
    return shops, rows


def bare_template(folder: Path) -> Path:
    """A template of two files with one question."""
    (folder / "template").mkdir(parents=True)
    questions = {"_subdirectory": "template", "name": {"type": "str", "default": "one"}}
    (folder / "copier.yml").write_text(json.dumps(questions))
    (folder / "template/{{ _copier_conf.answers_file }}.jinja").write_text(
        "{{ _copier_answers|to_nice_yaml }}"
    )
    (folder / "template/name.txt.jinja").write_text("{{ name }}\n")
    commit(folder)
    return folder


def write_by_hand(folder: Path, size: int) -> Path:
    """A folder with as many slices by hand."""
    text = (Path(__file__).parent / "handwritten_slice.py").read_text()
    (folder / "src").mkdir(parents=True)
    for number in range(size):
        source = text.replace("Thing", f"Thing{number}").replace("things", f"things_{number}")
        (folder / f"src/things_{number}.py").write_text(source)
    return folder


def start_up(shops: dict[int, Path], rounds: int, folder: Path) -> list[Row]:
    """Seconds to the first answer; and what a slice adds, from pairs that started in one round."""
    contenders: dict[tuple[int, str], Contender] = {}
    for size, shop in shops.items():
        generated = contenders[size, "generated"] = Contender(GENERATED, shop)
        migrate(shop, generated.url)
        hand = write_by_hand(folder / f"hand{size}", size)
        # Its start reads the subscriptions, which are those of the generated one.
        (hand / "shop.db").write_bytes((shop / "shop.db").read_bytes())
        contenders[size, "by hand"] = Contender(BY_HAND, hand)
    for (size, _), one in contenders.items():
        with one.started() as server:
            prove(server, size)
    for _ in range(rounds):
        for one in contenders.values():
            one.measure()
    return [_row(size, kind, contenders) for size, kind in contenders]


def _row(size: int, kind: str, contenders: dict[tuple[int, str], Contender]) -> Row:
    taken, first = contenders[size, kind].taken, contenders[SIZES[0], kind].taken
    hand, hand_first = (contenders[one, "by hand"].taken for one in (size, SIZES[0]))
    row: Row = {"slices": size, "contender": kind, "start-up s": median(taken.wall)}
    row["ms a slice more"] = _slope(size, taken.wall, first.wall)
    row["processor s"] = median(taken.cpu)
    row["processor ms a slice more"] = slope = _slope(size, taken.cpu, first.cpu)
    theirs = _slope(size, hand.cpu, hand_first.cpu)
    row["times by hand"] = slope / theirs if slope and theirs else None
    return row


def _slope(size: int, times: list[float], first: list[float]) -> float | None:
    if size == SIZES[0]:
        return None
    pairs = zip(times, first, strict=True)
    return median(more - less for more, less in pairs) / (size - SIZES[0]) * 1000


def prove(server: Server, size: int) -> None:
    """Raises RuntimeError unless the routes of this many slices are there."""
    with urlopen(f"http://127.0.0.1:{server.port}/openapi.json", timeout=60) as answer:
        tags = {path.split("/")[1] for path in json.load(answer)["paths"]}
    if len(found := {tag for tag in tags if "_" in tag}) != size:
        raise RuntimeError(f"expected {size} slices, found {sorted(found)}")


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("scale")
    with tempfile.TemporaryDirectory(prefix="slicewise-scale-") as name:
        folder = Path(name)
        shops, rows = generate(folder)
        report.show("copier copy", rows)
        report.show("Start-up", start_up(shops, arguments.rounds or 7, folder))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
