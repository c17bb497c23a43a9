"""How long an update takes, and how much of it is left to a person.

`shop template update` of a service with its slices, next to `copier update` of each part in turn:
whole processes, from one version of the template to another in which every file has changed. The
processor's time is given too, because that does not depend on what else the machine does.

Conflicts are those of tests/test_lives.py: a service that was made at the oldest version that
works, with edits of many kinds, is updated step by step, and in one jump.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

from .report import Report, Row, options
from .shop import ENVIRONMENT, PAYMENTS, ROOT, copy, snapshot

sys.path.insert(0, str(ROOT / "tests"))

from conftest import commit_all, git, tree
from versions import Versions

SIZES = (1, 10, 30)
OLD, NEW = "1.0.0", "1.1.0"
ANSWERS = ".copier-answers.yml"
COPIER = (sys.executable, "-m", "copier", "update", "--quiet", "--defaults", "--skip-answered")


def generate(folder: Path) -> dict[int, Path]:
    """A shop of each size at the old version, committed; the template has the new one, too."""
    template = Versions(snapshot(folder))
    git(template.path, "tag", OLD)
    shops = {}
    for size in SIZES:
        shops[size] = shop = folder / f"shop{size}" / "shop"
        copy(template.path, shop)
        for number in range(size):
            copy(template.path, shop / f"src/shop/slices/payments_{number}", *PAYMENTS)
        commit_all(shop)
    template.change_everything(1)
    template.release(NEW)
    return shops


def by_command(shop: Path) -> None:
    run(shop, sys.executable, "-m", "shop", "template", "update", "--defaults")


def by_hand(shop: Path) -> None:
    """What the docs say to do without the command."""
    for answers in [shop / ANSWERS, *sorted(shop.glob(f"src/shop/slices/*/{ANSWERS}"))]:
        run(shop, *COPIER, str(answers.parent))
        run(shop, "git", "add", "--all")


def run(shop: Path, *command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**ENVIRONMENT, "PYTHONPATH": str(shop / "src"), "PATH": path}
    subprocess.run(command, cwd=shop, env=environment, check=True, capture_output=True)


@dataclass
class Times:
    """Seconds that an update took, and that the processor worked for it; one of each a round."""

    took: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)

    def measure(self, update: Callable[[Path], None], shop: Path) -> dict[str, bytes]:
        """Update a copy of the shop; what it has become."""
        with tempfile.TemporaryDirectory(dir=shop.parent) as folder:
            target = shutil.copytree(shop, Path(folder) / "shop")
            start, worked = time.perf_counter(), _worked()
            update(target)
            self.took.append(time.perf_counter() - start)
            self.worked.append(_worked() - worked)
            return {name: text for name, text in tree(target).items() if "__pycache__" not in name}


def _worked() -> float:
    """The processor's time of all processes that were run and are done."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def times(shops: dict[int, Path], rounds: int) -> list[Row]:
    """Both ways of each size, in turn. Raises RuntimeError unless both end in the new version."""
    rows: list[Row] = []
    for size, shop in shops.items():
        command, hand = Times(), Times()
        for _ in range(rounds):
            results = command.measure(by_command, shop), hand.measure(by_hand, shop)
            prove(size, *results)
        rows.append(
            {
                "slices": size,
                "template update s": median(command.took),
                "copier update, each s": median(hand.took),
                "a part s": median(command.took) / (size + 1),
                "ratio": median(map(float.__truediv__, command.took, hand.took)),
                "ratio, processor": median(map(float.__truediv__, command.worked, hand.worked)),
            }
        )
    return rows


def prove(size: int, by_command: dict[str, bytes], by_hand: dict[str, bytes]) -> None:
    answers = [text for name, text in by_command.items() if name.endswith(ANSWERS)]
    if sum(f"_commit: {NEW}\n".encode() in text for text in answers) != size + 1:
        raise RuntimeError(f"expected {size + 1} parts at {NEW}")
    if by_command != by_hand:
        differ = {name for name, text in by_command.items() if by_hand.get(name) != text}
        raise RuntimeError(f"the two ways of updating differ in {sorted(differ)}")


def conflicts(folder: Path) -> list[Row]:
    """Play the scripted lives; the conflicts of each of their updates."""
    report = folder / "lives.xml"
    lives = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "tests/test_lives.py"]
    subprocess.run(lives, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows: list[Row] = []
    for update in ElementTree.parse(report).iter("property"):
        life, _, to = update.attrib["name"].partition(": ")
        rows.append({"life": life, "update to": to, "conflicts": int(update.attrib["value"])})
    return rows


def main() -> None:
    arguments = options(__doc__).parse_args()
    report = Report("updates")
    for who in ("AUTHOR", "COMMITTER"):
        ENVIRONMENT[f"GIT_{who}_NAME"] = os.environ[f"GIT_{who}_NAME"] = "bench"
        ENVIRONMENT[f"GIT_{who}_EMAIL"] = os.environ[f"GIT_{who}_EMAIL"] = "bench@localhost"
    with tempfile.TemporaryDirectory(prefix="slicewise-updates-") as name:
        report.show("Update", times(generate(Path(name)), arguments.rounds or 3))
        report.show("Conflicts", conflicts(Path(name)))
    report.write(arguments.json)


if __name__ == "__main__":
    main()
