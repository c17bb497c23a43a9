"""Runs the documentation: each page of docs/, and README.md, in a service made for it.

A page begins in a shop with payments and orders, migrated, or in an empty folder if it makes a
service itself; if it is about `shop template`, one version behind. Its blocks run from top to
bottom, as a reader would type them. What one is, is said behind its opening fence:

- `python title="src/shop/…"`: joins that file. Its imports join the file's, its classes and
  functions replace those of the same name, what is new goes to the end.
- any other `title="…"`: written to that file.
- `bash`: runs in a shell that keeps its variables and its folder for the page, and must succeed.
  `shop dev`, `run` and `worker` stay in the background until the page ends.
- `console`: what follows a line with `$ ` must come out of that command, in order; … is anything.
- `log`: the same for what the service has logged.
- `sql`: runs on the service's database.
- `text` and `mermaid`: for the reader only.
"""

import ast
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import ROOT, Template, commit_all, git
from versions import Versions, current

import demo

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
TIMEOUT = 20
# They run all tests of a service; one updates it three times besides.
LONG = ("leave", "update")

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"\n]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SERVER = re.compile(r"uv run shop (dev|run|worker)$")
_NOX = re.compile(r"nox -s (\w+)")
_READY = "Application startup complete."
_ADDRESS = "127.0.0.1:8000"

# What stands in for the programs that a reader has installed.
_PROGRAMS = {
    "uv": 'case "$1" in run) shift; exec "$@";; sync) ;; *) exit 64;; esac',
    **{name: f'exec {{python}} -m {name} "$@"' for name in ("shop", "store", "bazaar")},
    "pytest": 'exec {python} -m pytest -q -p no:cacheprovider "$@"',
    "copier": 'case $1 in copy|update) asks=-l;; esac; exec {python} -m copier "$@" $asks',
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, *match.groups(default=""))
        for match in _FENCE.finditer(text)
    ]


@dataclass
class Reader:
    """Does in a folder what a page says."""

    folder: Path
    template: Template
    state: Path
    path: str
    port: int = 0
    log: Path = field(init=False)
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = self.state.with_name("log")
        self.log.touch()
        self.state.write_text(f"cd {shlex.quote(str(self.folder))}\n", encoding="utf-8")

    @property
    def here(self) -> Path:
        return Path(self.run("pwd").strip())

    def follow(self, block: Block) -> None:
        self.wait_for_deliveries()
        match block.kind, block.title:
            case "python", "":
                raise AssertionError(f"{block}: which file is it for?")
            case "python", title:
                ready = self.told.count(_READY)
                join(block, self.here / title)
                self.wait_for_reload(ready)
            case (("text" | "mermaid"), ""):
                pass
            case _, title if title:
                (self.here / title).write_text(block.text, encoding="utf-8")
            case (("bash" | ""), _):
                self.follow_commands(block)
            case "console", _:
                for command, expected in dialogue(block):
                    assert_told(self.run(command, check=not expected), expected, block)
            case "log", _:
                self.follow_log(block)
            case "sql", _:
                with closing(sqlite3.connect(self.here / "shop.db")) as connection:
                    connection.executescript(block.text)
            case _:
                raise AssertionError(f"{block}: unknown kind {block.kind!r}")

    def follow_commands(self, block: Block) -> None:
        commands = block.text.strip()
        if found := _NOX.findall(commands):
            # They run all of this repository, these tests too.
            sessions = (ROOT / "noxfile.py").read_text(encoding="utf-8")
            assert all(f"def {name}(" in sessions for name in found), f"{block}: no such session"
        elif server := _SERVER.match(commands):
            self.start(commands, server[1], block)
        else:
            self.run(commands)

    def run(self, commands: str, *, check: bool = True) -> str:
        """What the commands print, in a shell that goes on where the last one ended."""
        keep = f'export -p >{self.state}; echo "cd \\"$PWD\\"" >>{self.state}'
        script = f"set -ea; . {self.state}; trap '{keep}' EXIT\n"
        done = subprocess.run(
            ["bash", "-c", script + self.localized(commands)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"$ {commands}\n{done.stdout}\n{self.told}"
        return done.stdout

    def start(self, command: str, kind: str, block: Block) -> None:
        """Leave a service running, on a free port."""
        if kind != "worker":
            self.port = free_port()
            command += f" --port {self.port}"
        with self.log.open("ab") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"set -a; . {self.state}; exec {command}"],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.servers.append(server)
        deadline = time.monotonic() + TIMEOUT
        while kind != "worker" and not answers(f"http://127.0.0.1:{self.port}/readyz"):
            assert server.poll() is None, f"{block}: ended\n{self.told}"
            assert time.monotonic() < deadline, f"{block}: not ready\n{self.told}"
            time.sleep(0.1)

    def stop(self) -> None:
        for server in self.servers:
            server.send_signal(signal.SIGINT)
        for server in self.servers:
            assert server.wait(TIMEOUT) == 0, self.told

    def follow_log(self, block: Block) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return assert_told(self.told, block.text.splitlines(), block)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait_for_reload(self, ready: int) -> None:
        """A service that runs takes the change over: all that pages leave running is `shop dev`."""
        deadline = time.monotonic() + TIMEOUT
        while self.servers and self.told.count(_READY) == ready:
            assert time.monotonic() < deadline, self.told
            time.sleep(0.1)

    def wait_for_deliveries(self) -> None:
        """A reader is slower than the relay."""
        if not self.servers:
            return
        deadline = time.monotonic() + TIMEOUT
        query = "SELECT count(*) FROM bus_delivery WHERE state = 'pending' AND attempts = 0"
        with closing(sqlite3.connect(self.here / "shop.db")) as connection:
            while connection.execute(query).fetchone()[0]:
                assert time.monotonic() < deadline, self.told
                time.sleep(0.05)

    def localized(self, commands: str) -> str:
        return commands.replace("<template>", shlex.quote(str(self.template.path))).replace(
            _ADDRESS, f"127.0.0.1:{self.port or 8000}"
        )

    @property
    def told(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        # As a reader's Python, these keep what they have compiled.
        keeping = {"PYTHONDONTWRITEBYTECODE": ""}
        return {**os.environ, **keeping, "PATH": self.path, "PYTHONPATH": "src", "COLUMNS": "200"}


def dialogue(block: Block) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it should print."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *expected = part.replace("\\\n", "\\\0").splitlines()
        yield command.replace("\0", "\n"), expected


def assert_told(text: str, expected: list[str], block: Block) -> None:
    """Each expected line is a line of the text, behind the one before."""
    lines = iter(text.splitlines())
    for line in filter(None, map(squeezed, expected)):
        pattern = re.compile(".*".join(map(re.escape, re.split(" ?… ?", line))))
        found = any(pattern.fullmatch(squeezed(one)) for one in lines)
        assert found, f"{block}: expected the line\n  {line}\nin\n{text}"


def squeezed(line: str) -> str:
    return " ".join(line.split())


def join(block: Block, file: Path) -> None:
    """Put a Python block into a file, as its reader would."""
    formatted = ruff("format", file, block.text)
    assert formatted == block.text, f"{block}: ruff format makes of it\n{formatted}"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        return
    parts = statements(file.read_text(encoding="utf-8"))
    for name, text in statements(block.text).items():
        if name.startswith("import "):
            parts = {"__doc__": parts.pop("__doc__"), name: text} | parts
        else:
            parts[name] = text
    joined = "\n\n\n".join(parts.values()) + "\n"
    sorted_ = ruff("check --select=I --fix", file, joined)
    file.write_text(ruff("format", file, sorted_), encoding="utf-8")


def statements(source: str) -> dict[str, str]:
    """The statements of a module with the comments before them, by the names that they define."""
    lines = source.splitlines()
    parts: dict[str, str] = {}
    end = 0
    for node in ast.parse(source).body:
        text = "\n".join(lines[end : node.end_lineno]).strip("\n")
        end = node.end_lineno or 0
        match node:
            case ast.Expr(ast.Constant(str())):
                parts["__doc__"] = text
            case ast.Import() | ast.ImportFrom():
                parts[f"import {text}"] = text
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                parts[name] = text
            case ast.ClassDef(name=name):
                parts[name] = text
            case _:
                parts[text.partition(" = ")[0]] = text
    return parts


def ruff(command: str, file: Path, text: str) -> str:
    """What ruff makes of a text that is to be in a file."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--quiet", "--stdin-filename", file, "-"],
        cwd=file.parent if file.parent.exists() else None,
        input=text,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return done.stdout


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=TIMEOUT):
            return True
    except URLError:
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which the programs of the pages are found."""
    folder = tmp_path_factory.mktemp("programs")
    for name, body in _PROGRAMS.items():
        file = folder / name
        body = body.replace("{python}", shlex.quote(sys.executable))
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="session")
def shop(template: Template, programs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service that pages begin with, as start.md makes it."""
    return make_shop(template, programs, tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """The template as it is now as 1.0.0, and a 1.1.0, for pages about updates."""
    found = current(tmp_path_factory.mktemp("released"))
    found.change_everything(2)
    found.release("1.1.0")
    return found


@pytest.fixture(scope="session")
def shop_behind(
    released: Versions, programs: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same service, at 1.0.0 of that template."""
    return make_shop(released.at("1.0.0"), programs, tmp_path_factory.mktemp("behind"))


def make_shop(template: Template, programs: str, folder: Path) -> Path:
    shop = template.copy(folder / "shop")
    slices = shop / "src/shop/slices"
    template.copy(slices / "payments", fields="amount:decimal(12,2) currency:str")
    template.copy(slices / "orders", listens_to="payments.PaymentCreated:start_order")
    commit_all(shop)
    Reader(shop, template, folder / "state", programs).run("uv run shop db upgrade")
    return shop


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.long] if page.stem in LONG else [])
        for page in PAGES
    ],
)
def test_page(
    page: Path,
    template: Template,
    programs: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    found = blocks(page)
    if any("curl " in block.text for block in found) and not shutil.which("curl"):
        pytest.skip("needs curl")
    folder = tmp_path / "page"
    behind = any("shop template" in block.text for block in found)
    if not found or any("copier copy <template> shop" in block.text for block in found):
        folder.mkdir()
    else:
        shutil.copytree(request.getfixturevalue("shop_behind" if behind else "shop"), folder)
    if behind:
        template = request.getfixturevalue("released").at("1.1.0")
    reader = Reader(folder, template, tmp_path / "state", programs)
    try:
        for block in found:
            reader.follow(block)
    finally:
        reader.stop()
    written = {block.title for block in found if block.kind == "python"}
    if files := " ".join(title for title in written if (reader.here / title).exists()):
        reader.run(f"ruff check {files}; ruff format --check {files}")
        reader.run("mypy; lint-imports")


def test_every_fence_is_understood() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(blocks(page)), f"{page}: a fence that _FENCE does not match"


def test_readme_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = [block.text.strip() for block in blocks(PAGES[0]) if "nox -s" in block.text]
    assert [one for one in commands if one in ci] == commands[1:]
    assert commands[0] == commands[1].replace("nox -s tests", "nox -s demo")


def test_demo_shows_what_the_api_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = {"items": [{"payment_id": "1"}], "next": None}
    answers = {"/payments": ({"id": "1"}, {"x-correlation-id": "a"}), "/orders": (orders, {})}
    monkeypatch.setattr(demo, "call", lambda url, path, *_: answers[path])
    (tmp_path / "log").touch()
    demo.pay("", "", tmp_path / "log")
    assert f"GET /orders\n{json.dumps(orders, indent=2)}\n" in capsys.readouterr().out


def test_demo_ends_with_what_readme_goes_on_with() -> None:
    (command,) = re.findall(r"To try it: (.+?)\. To", demo.NEXT)
    (section,) = re.findall(r'README.md, "(.+)"', demo.NEXT)
    readme = PAGES[0].read_text(encoding="utf-8")
    assert f"(`{command}` leaves it running.)" in readme
    sections = re.findall(r"(?m)^## (.+)$", readme)
    assert sections[sections.index("See it run") + 1] == section


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.name for page in ROOT.glob("docs/*.md")}
    assert set(re.findall(r"\b[\w-]+\.md\b", menu)) == pages


def test_files_that_are_named_exist(shop: Path) -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:bus|base|slices|tests)/[\w/]+\.py)", page.read_text("utf-8")):
            assert (shop / "src/shop" / name).exists() or (shop / name).exists(), f"{page}: {name}"


def test_diagrams_of_states_are_what_the_code_draws() -> None:
    """A page lets the command run whose output it shows as a diagram."""
    found = [block for page in PAGES for block in blocks(page) if "stateDiagram" in block.text]
    drawn = [block for block in found if block.kind == "console"]
    assert drawn
    for one in drawn:
        shown = [block.text for block in found if (block.kind, block.page) == ("mermaid", one.page)]
        assert any(one.text.endswith(text) for text in shown), one


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


_OWNERS = re.compile(r"yours|shared|the template's|Copier's")


def owners(shop: Path) -> dict[str, str]:
    """Whose the files and folders are that the README of a service names."""
    found: dict[str, str] = {}
    for line in (shop / "README.md").read_text(encoding="utf-8").splitlines():
        files, owner, *_ = [*line.strip("| ").split(" | "), ""]
        if match := _OWNERS.match(owner):
            names = re.findall(r"`([^`]+)`(?! that you add)", files)
            found |= dict.fromkeys(names, match[0])
    return found


def owner_of(file: str, shop: Path) -> str | None:
    """Whose a file is: the longest name that fits says it; one that was not generated is yours."""
    if not (shop / file).exists():
        return "yours"
    known = owners(shop)
    for name in sorted(known, key=len, reverse=True):
        if file == name or Path(file).name == name or (name[-1] == "/" and file.startswith(name)):
            return known[name]
    return None


def test_every_file_has_an_owner(shop: Path) -> None:
    files = git(shop, "ls-files").splitlines()
    found = {file: owner_of(file, shop) for file in files}
    assert [file for file, owner in found.items() if owner is None] == []
    assert set(found.values()) == {"yours", "shared", "the template's", "Copier's"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_readers_are_told_to_write_is_theirs(page: Path, shop: Path) -> None:
    """So that what they write and what the template changes meet in no file."""
    for block in blocks(page):
        if block.title:
            assert owner_of(block.title, shop) in ("yours", "shared"), block
