"""Random lives: a user and the template edit any lines of any files, then comes an update.

Repeat one with --seed, live more with --lives.
"""

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
from conftest import ROOT, commit_all, git
from versions import BUS, Versions

ANSWERS = ".copier-answers.yml"
FILES = "files"

Texts = dict[str, str]

# Lines that are all different, so that it is certain which of them an edit is about; and lines that
# are alike: code, and steps of which each is as the one before.
NUMBERED = {f"notes_{number}.txt": 40 * number for number in range(1, 5)}
CODE = ("describe.py", "engines.py", "outbox.py", "relay.py", "tables.py", "unit.py")
STEPS = "steps.txt"


@dataclass(frozen=True)
class Edit:
    """Lines from start to before stop, as they were, are these instead."""

    start: int
    stop: int
    lines: tuple[str, ...]

    def touches(self, other: "Edit") -> bool:
        """No line that stays as it was is in between."""
        return self.start <= other.stop and other.start <= self.stop


@dataclass
class Side:
    """What the user, or the template, does to files; each line that they write is theirs alone."""

    name: str
    chance: random.Random
    edits: dict[str, list[Edit]] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    written: dict[str, list[str]] = field(default_factory=dict)

    def change(self, folder: Path, may_rename: bool) -> None:
        """Edit, remove, rename and add files in a folder that is at the first version."""
        names = [*NUMBERED, *CODE, STEPS]
        for name in self.chance.sample(names, self.chance.randint(4, 10)):
            self._edit(folder / name)
        for name in self.chance.sample(names, self.chance.randint(0, 2)):
            self.removed.add(name)
            if may_rename and self.chance.random() < 0.5:
                (folder / name).rename(folder / f"renamed_{name}")
                self.written[f"renamed_{name}"] = self.written.pop(name, [])
            else:
                (folder / name).unlink()
                self.written.pop(name, None)
            self.edits.pop(name, None)
        # Of few names: both may come to the same.
        name = f"new_{self.chance.randint(1, 3)}.txt"
        (folder / name).write_text("".join(self._lines(name, 5)))

    def _edit(self, file: Path) -> None:
        lines = file.read_text().splitlines(keepends=True)
        edits = self.edits[file.name] = []
        for _ in range(self.chance.randint(1, 4)):
            start = self.chance.randint(0, len(lines))
            stop = min(start + self.chance.choice([0, 0, 1, 3, 8]), len(lines))
            count = self.chance.choice([0, 1, 3] if stop > start else [1, 3])
            edit = Edit(start, stop, ())
            if not any(edit.touches(one) for one in edits):
                edits.append(Edit(start, stop, self._lines(file.name, count)))
        file.write_text("".join(edited(lines, edits)))

    def _lines(self, name: str, count: int) -> tuple[str, ...]:
        lines = tuple(f"{self.name} {self.chance.getrandbits(64):x}\n" for _ in range(count))
        self.written.setdefault(name, []).extend(lines)
        return lines


def edited(lines: Sequence[str], edits: Iterable[Edit]) -> list[str]:
    """The lines with edits that do not touch each other."""
    result, done = [], 0
    for edit in sorted(edits, key=lambda one: (one.start, one.stop)):
        result += [*lines[done : edit.start], *edit.lines]
        done = edit.stop
    return [*result, *lines[done:]]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """A template of a few files and no questions, at 1.0.0."""
    found = Versions(tmp_path_factory.mktemp("template"))
    (found.path / "copier.yml").write_text("_subdirectory: files\n")
    files = found.path / FILES
    files.mkdir()
    (files / "{{ _copier_conf.answers_file }}.jinja").write_text(
        "{{ _copier_answers | to_nice_yaml -}}\n"
    )
    for name in CODE:
        shutil.copy(ROOT / BUS / name, files)
    (files / STEPS).write_text("- run:\n    make\n    make check\n    make clean\n" * 20)
    for name, count in NUMBERED.items():
        (files / name).write_text("".join(f"line {number}\n" for number in range(count)))
    found.release("1.0.0")
    return found


@pytest.fixture(scope="module")
def first(released: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = released.at("1.0.0").copy(tmp_path_factory.mktemp("first") / "shop")
    commit_all(shop)
    return shop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("number", range(metafunc.config.option.lives))


def test_life(
    pytestconfig: pytest.Config, released: Versions, first: Path, tmp_path: Path, number: int
) -> None:
    shop = shutil.copytree(first, tmp_path / str(number))
    Life(released, shop, random.Random(f"{pytestconfig.option.seed} {number}")).live()


class Life:
    """One user, one new version of the template, one update."""

    def __init__(self, released: Versions, shop: Path, chance: random.Random) -> None:
        self.released, self.shop, self.chance = released, shop, chance
        self.ours, self.theirs = Side("ours", chance), Side("theirs", chance)

    def live(self) -> None:
        git(self.released.path, "checkout", "--quiet", "1.0.0")
        files = self.released.path / FILES
        base = texts(files)
        self.ours.change(self.shop, may_rename=True)
        commit_all(self.shop)
        mine = texts(self.shop)
        self.theirs.change(files, may_rename=False)
        template = self.released.release(f"2.{self.shop.name}.0")
        template.update(self.shop)
        result = texts(self.shop)
        self.check_files(base, mine, texts(files), result)
        self.check_status(base, texts(files))
        commit_all(self.shop)
        if self.chance.random() < 0.25:
            template.update(self.shop)
            assert texts(self.shop) == result
            assert git(self.shop, "status", "--porcelain") == ""

    def check_files(self, base: Texts, mine: Texts, theirs: Texts, result: Texts) -> None:
        """Each is what it should be, and nothing else is there."""
        expected = {
            name: self.expected(name, base.get(name), mine.get(name), theirs.get(name))
            for name in {*base, *mine, *theirs}
        }
        assert result == {name: text for name, text in expected.items() if text is not None}
        for name, lines in self.ours.written.items():
            # What the template has removed goes as a whole: Git still has it.
            if name not in self.theirs.removed:
                assert all(result[name].count(line) == 1 for line in lines), name
        for name, lines in self.theirs.written.items():
            if name not in self.ours.removed:
                assert all(result[name].count(line) == 1 for line in lines), name

    def expected(
        self, name: str, base: str | None, mine: str | None, theirs: str | None
    ) -> str | None:
        if base is None:
            return three_way("", mine, theirs) if mine and theirs else mine or theirs
        if mine is None or theirs is None:
            return None
        edits = [*self.ours.edits.get(name, []), *self.theirs.edits.get(name, [])]
        if name in NUMBERED and not any(a.touches(b) for a, b in combinations(edits, 2)):
            return "".join(edited(base.splitlines(keepends=True), edits))
        return three_way(base, mine, theirs)

    def check_status(self, base: Texts, theirs: Texts) -> None:
        """Git shows what the template has changed, and not what the user has removed."""
        lines = git(self.shop, "status", "--porcelain", "--untracked-files=all").splitlines()
        changed = {name for name in {*base, *theirs} if base.get(name) != theirs.get(name)}
        assert {line.split()[-1] for line in lines} <= (changed - self.ours.removed) | {ANSWERS}


def texts(folder: Path) -> Texts:
    """The files of a folder but for those that are Git's or Copier's."""
    return {file.name: file.read_text() for file in folder.iterdir() if file.name[0] not in ".{"}


def three_way(base: str, mine: str, theirs: str) -> str:
    """What Git makes of three versions of a file."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"mine": mine, "base": base, "theirs": theirs}.items():
            (Path(folder) / name).write_text(text)
        labels = ("-L", "before updating", "-L", "last update", "-L", "after updating")
        command = ["git", "merge-file", "--stdout", *labels, "mine", "base", "theirs"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode >= 0
        return done.stdout
