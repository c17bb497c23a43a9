"""Updates end where a fresh copy would, what the user wrote stays, what is left to do is told."""

import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import copier
import pytest
import test_services
import versions
import yaml
from conftest import Template, commit_all, git, tree
from copier._main import Worker
from copier.errors import UserMessageError
from test_slices import run
from versions import Versions

ANSWERS = ".copier-answers.yml"
PAYMENTS = "src/shop/slices/payments"
SLICES: dict[str, dict[str, str]] = {
    "payments": {"fields": "amount:decimal(12,2) currency:str"},
    "orders": {"listens_to": "payments.PaymentCreated:start_order", "fields": "note:text?"},
    "marks": {},
}
SERVICES: dict[str, dict[str, Any]] = {
    "sqlite-jwt-github": {},
    "postgresql-none-none": {"database": "postgresql", "auth": "none", "ci": "none"},
}


def make(template: Template, shop: Path, slices: dict[str, Any] = SLICES, **answers: Any) -> Path:
    """A service with slices, committed."""
    template.copy(shop, **answers)
    for name, given in slices.items():
        template.copy(shop / "src/shop/slices" / name, **given)
    commit_all(shop)
    return shop


def update_all(template: Template, shop: Path) -> None:
    """The service, then each slice, with no commit in between."""
    for answers in [shop / ANSWERS, *sorted(shop.glob(f"src/*/slices/*/{ANSWERS}"))]:
        template.update(answers.parent)
        git(shop, "add", "--all")


def generated(folder: Path) -> dict[str, bytes]:
    """What the template owns: all but first migrations, which are written once."""
    return {path: text for path, text in tree(folder).items() if "_0001_create" not in path}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    """The template as it is now as 1.0.0, then 2.0.0 and 3.0.0; each changes every file."""
    found = versions.current(tmp_path_factory.mktemp("template"))
    found.release_next(2)
    found.release_next(3)
    return found


@pytest.fixture(scope="module")
def first(made_up: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(made_up.at("1.0.0"), tmp_path_factory.mktemp("first") / "shop")


@pytest.fixture
def shop(first: Path, tmp_path: Path) -> Path:
    """A service with slices at 1.0.0, committed, to change."""
    return shutil.copytree(first, tmp_path / "shop")


class TestWithoutEdits:
    """To the byte what a fresh copy gives."""

    @pytest.mark.long
    def test_from_what_was_released(self, tmp_path: Path) -> None:
        (tmp_path / "template").mkdir()
        found, earlier = versions.history(tmp_path / "template")
        now = found.at("HEAD")
        slices = {name: SLICES[name] for name in ("payments", "orders")}
        fresh = generated(make(now, tmp_path / "fresh/shop", slices))
        for ref in earlier:
            shop = make(found.at(ref), tmp_path / ref / "shop", slices)
            update_all(now, shop)
            assert generated(shop) == fresh, ref

    @pytest.mark.parametrize(
        ("service", "tags"),
        [
            pytest.param("sqlite-jwt-github", ("3.0.0",), id="jump"),
            pytest.param(
                *("postgresql-none-none", ("2.0.0", "3.0.0")), id="steps", marks=pytest.mark.long
            ),
        ],
    )
    def test_of_everything(
        self, made_up: Versions, tmp_path: Path, service: str, tags: tuple[str, ...]
    ) -> None:
        slices = SLICES if len(tags) == 1 else {"marks": {}}
        shop = make(made_up.at("1.0.0"), tmp_path / "shop", slices, **SERVICES[service])
        for tag in tags:
            update_all(made_up.at(tag), shop)
            commit_all(shop)
        fresh = make(made_up.at("3.0.0"), tmp_path / "fresh/shop", slices, **SERVICES[service])
        assert generated(shop) == generated(fresh)

    def test_a_second_time_changes_nothing(self, made_up: Versions, shop: Path) -> None:
        update_all(made_up.at("1.0.0"), shop)
        assert git(shop, "status", "--porcelain") == ""

    @pytest.mark.parametrize(
        ("inside", "target"), [("src/shop/slices", "payments"), (PAYMENTS, ".")]
    )
    def test_from_inside(
        self,
        made_up: Versions,
        shop: Path,
        monkeypatch: pytest.MonkeyPatch,
        inside: str,
        target: str,
    ) -> None:
        monkeypatch.chdir(shop / inside)
        made_up.at("2.0.0").update(target)
        from_inside = tree(shop)
        git(shop, "reset", "--hard", "--quiet")
        git(shop, "clean", "-dfq")
        made_up.at("2.0.0").update(shop / PAYMENTS)
        assert tree(shop) == from_inside


class TestAnswers:
    """Changed by -d: again what a fresh copy with these answers gives."""

    @pytest.mark.parametrize(
        "answers",
        [
            {"database": "postgresql", "ci": "none"},
            {"auth": "none"},
            {"project_name": "Store", "description": "Sells.", "author": "Ann"},
            {"database": "postgresql", "auth": "none", "ci": "none", "project_name": "Store"},
        ],
        ids="-".join,
    )
    def test_of_a_service(
        self, made_up: Versions, shop: Path, tmp_path: Path, answers: dict[str, Any]
    ) -> None:
        """Together with a new version."""
        shutil.rmtree(shop / "src/shop/slices")
        commit_all(shop)
        stored = yaml.safe_load((shop / ANSWERS).read_text())
        given = {name: text for name, text in stored.items() if name[0] != "_"} | answers
        made_up.at("2.0.0").update(shop, **answers)
        fresh = made_up.at("2.0.0").copy(tmp_path / "fresh/shop", **given)
        # That folder was deleted, and stays so.
        shutil.rmtree(fresh / "src/shop/slices")
        assert tree(shop) == tree(fresh)

    def test_of_a_service_there_and_back(self, made_up: Versions, shop: Path) -> None:
        before = tree(shop)
        made_up.at("1.0.0").update(shop, database="postgresql", auth="none", ci="none")
        commit_all(shop)
        made_up.at("1.0.0").update(shop, database="sqlite", auth="jwt", ci="github")
        assert tree(shop) == before

    @pytest.mark.parametrize(
        ("slice_", "answers"),
        [
            ("payments", {"fields": "amount:decimal(12,2) currency:str note:text?"}),
            ("payments", {"fields": "currency:text"}),
            ("payments", {"entity": "Deposit"}),
            ("orders", {"listens_to": "", "fields": "note:text"}),
            ("orders", {"listens_to": "payments.PaymentCreated:begin refunds.RefundMade"}),
            ("marks", {"fields": "at:datetime", "entity": "Stamp"}),
        ],
    )
    def test_of_a_slice(
        self, made_up: Versions, shop: Path, tmp_path: Path, slice_: str, answers: dict[str, Any]
    ) -> None:
        place = f"src/shop/slices/{slice_}"
        made_up.at("2.0.0").update(shop / place, **answers)
        fresh = made_up.at("2.0.0").copy(tmp_path / "fresh" / place, **SLICES[slice_] | answers)
        assert generated(shop / place) == generated(fresh)

    def test_new_questions_take_their_default(
        self, made_up: Versions, shop: Path, tmp_path: Path
    ) -> None:
        template = Template(shutil.copytree(made_up.path, tmp_path / "template"))
        with (template.path / "copier.yml").open("a") as questions:
            questions.write("\ncolour:\n  type: str\n  help: Which?\n  default: blue\n")
        (template.path / "template/slice/colour.txt.jinja").write_text("{{ colour }}\n")
        commit_all(template.path)
        point_to(template.path, shop)
        template.update(shop / PAYMENTS)
        assert (shop / PAYMENTS / "colour.txt").read_text() == "blue\n"
        stored = yaml.safe_load((shop / PAYMENTS / ANSWERS).read_text())
        assert stored["colour"] == "blue"
        assert stored["fields"] == SLICES["payments"]["fields"]


def point_to(template: Path, shop: Path) -> None:
    """All parts of a service follow another repository from now on."""
    for file in [shop / ANSWERS, *shop.glob(f"src/*/slices/*/{ANSWERS}")]:
        answers = re.sub(r"(?m)^_src_path: .*$", f"_src_path: {template}", file.read_text())
        file.write_text(answers)
    commit_all(shop)


class TestEdits:
    def test_stay_and_what_is_untouched_follows(self, made_up: Versions, shop: Path) -> None:
        """Added, changed, moved about and deleted: none of it is in conflict with the template."""
        edited = {
            "README.md": ("## Work", "## Our rules\n\nBe kind.\n\n## Work"),
            "pyproject.toml": ('    "alembic>=1.20",', '    "alembic>=1.20",\n    "ours>=1",'),
            "src/shop/settings.py": ("    @property\n", "    ours: int = 1\n\n    @property\n"),
            f"{PAYMENTS}/models.py": ("currency: Mapped[str]", "currency: Mapped[str]  # ISO 4217"),
            f"{PAYMENTS}/handlers.py": ("async def create_payment", "async def take_payment"),
            f"{PAYMENTS}/router.py": ('prefix="/payments"', 'prefix="/money"'),
        }
        for path, (old, new) in edited.items():
            text = (shop / path).read_text()
            assert old in text
            (shop / path).write_text(text.replace(old, new, 1))
        (shop / PAYMENTS / "rules.py").write_text('"""Ours."""\n')
        deleted = ["tests/test_describe.py", f"{PAYMENTS}/tests/test_http.py"]
        for path in deleted:
            (shop / path).unlink()
        commit_all(shop)
        before = tree(shop)
        update_all(made_up.at("2.0.0"), shop)
        after = tree(shop)
        for path, (_, new) in edited.items():
            assert new in after[path].decode(), path
        assert after[f"{PAYMENTS}/rules.py"] == b'"""Ours."""\n'
        assert not after.keys() & set(deleted)
        assert markers(shop) == ""
        left = {path for path in before if after.get(path) == before[path]}
        assert {path for path in left if not re.search(r"_\d{4}_", path)} == {
            f"{PAYMENTS}/rules.py"
        }

    def test_both_versions_of_a_line_that_both_changed_are_there(
        self, made_up: Versions, shop: Path
    ) -> None:
        models = shop / PAYMENTS / "models.py"
        models.write_text("# Ours.\n" + models.read_text())
        commit_all(shop)
        made_up.at("2.0.0").update(shop / PAYMENTS)
        text = models.read_text()
        assert text.startswith(
            "<<<<<<< before updating\n# Ours.\n=======\n# Template version 2.\n>>>>>>> after"
        )
        assert markers(shop) == f"{PAYMENTS}/models.py"

    def test_files_that_the_template_renames_or_removes(
        self, made_up: Versions, shop: Path, tmp_path: Path
    ) -> None:
        found = Versions(shutil.copytree(made_up.path, tmp_path / "template"))
        point_to(found.path, shop)
        slice_ = found.path / versions.SLICE
        only = "{{% if not process %}}{}{{% endif %}}.jinja".format
        (slice_ / only("router.py")).rename(slice_ / only("routes.py"))
        (slice_ / "tests" / only("test_bus.py")).unlink()
        found.release("4.0.0")
        # Edited or not: Git still has it.
        edited = shop / PAYMENTS / "tests/test_bus.py"
        edited.write_text("# Ours.\n" + edited.read_text())
        commit_all(shop)
        found.at("4.0.0").update(shop / PAYMENTS)
        assert (shop / PAYMENTS / "routes.py").exists()
        assert not (shop / PAYMENTS / "router.py").exists()
        assert not edited.exists()
        assert not list(shop.rglob("*.rej"))


# Copier leaves its list of a folder open where it breaks off.
@pytest.mark.filterwarnings("ignore:.*ScandirIterator:pytest.PytestUnraisableExceptionWarning")
class TestAdding:
    """A slice is a folder of its own: nothing else comes of adding it, whenever that is."""

    def test_in_any_order(self, made_up: Versions, shop: Path, tmp_path: Path) -> None:
        backwards = dict(reversed(SLICES.items()))
        assert tree(make(made_up.at("1.0.0"), tmp_path / "back/shop", backwards)) == tree(shop)

    def test_after_an_update_of_the_service(self, made_up: Versions, tmp_path: Path) -> None:
        """Before it, too: what an update gives is what a fresh copy does (TestWithoutEdits)."""
        orders = {"orders": SLICES["orders"]}
        fresh = make(made_up.at("2.0.0"), tmp_path / "fresh/shop", orders)
        late = make(made_up.at("1.0.0"), tmp_path / "late/shop", slices={})
        made_up.at("2.0.0").update(late)
        made_up.at("2.0.0").copy(late / "src/shop/slices/orders", **SLICES["orders"])
        assert tree(late) == tree(fresh)

    def test_that_fails_leaves_nothing(self, made_up: Versions, shop: Path, tmp_path: Path) -> None:
        """As with a disk that is full: some files are written by then."""
        template = Template(shutil.copytree(made_up.path, tmp_path / "template"))
        (template.path / versions.SLICE / "zzz.py.jinja").write_text("{{ 1 / 0 }}")
        commit_all(template.path)
        before = tree(shop)
        with pytest.raises(ZeroDivisionError):
            template.copy(shop / "src/shop/slices/refunds", fields="amount:int")
        assert tree(shop) == before
        assert not (shop / "src/shop/slices/refunds").exists()

    @pytest.mark.parametrize("files", [1, 10])
    def test_that_is_interrupted_touches_nothing_else_and_is_made_whole_by_another(
        self,
        made_up: Versions,
        shop: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        files: int,
    ) -> None:
        before = tree(shop)
        whole = made_up.at("1.0.0").copy(tmp_path / "src/shop/slices/refunds", fields="amount:int")
        target = shop / "src/shop/slices/refunds"
        render, left = Worker._render_file, iter(range(files))

        def interrupted(*arguments: Any, **options: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            render(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Worker, "_render_file", interrupted)
            with pytest.raises(KeyboardInterrupt):
                made_up.at("1.0.0").copy(target, fields="amount:int")
        assert 0 < len(tree(target)) < len(tree(whole))
        made_up.at("1.0.0").copy(target, fields="amount:int")
        assert tree(target) == tree(whole)
        shutil.rmtree(target)
        assert tree(shop) == before


# All that Copier says where it finds no answers.
NO_ANSWERS = "Template not found"


class TestRefusals:
    """By Copier alone; `shop template` has its own tests."""

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (".", "Destination repository is dirty"),
            ("src", NO_ANSWERS),
            ("src/shop/slices", NO_ANSWERS),
            ("src/shop/slices/nope", NO_ANSWERS),
            ("src/shop/slices/marks", NO_ANSWERS),
        ],
    )
    def test_what_copier_refuses(
        self, made_up: Versions, shop: Path, target: str, message: str
    ) -> None:
        (shop / "src/shop/slices/marks" / ANSWERS).unlink()
        if target != ".":
            commit_all(shop)
        before = tree(shop)
        with pytest.raises((UserMessageError, TypeError), match=message):
            made_up.at("2.0.0").update(shop / target)
        assert tree(shop) == before


def markers(folder: Path) -> str:
    """The files that are in conflict."""
    done = subprocess.run(
        ["git", "grep", "--untracked", "-lE", "^(<{7} |>{7} )"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("service", "slice_"), [("1.0.0", "2.0.0"), ("2.0.0", "1.0.0")])
def test_a_slice_of_another_version_works(
    made_up: Versions, tmp_path: Path, service: str, slice_: str
) -> None:
    """One that is newer than its service, and one that is older; of another major version, which
    these are, the service's own tests tell nevertheless.
    """
    shop = make(made_up.at(service), tmp_path / "shop", slices={"payments": SLICES["payments"]})
    run(shop, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_template.py")
    made_up.at(slice_).copy(shop / "src/shop/slices/orders", **SLICES["orders"])
    run(shop, "mypy")
    run(shop, "pytest", "-q", "-p", "no:cacheprovider", "src/shop/slices")
    told = test_services.run(shop, "pytest", "tests/test_template.py", fails=True)
    assert f"orders is at {slice_} and the service at {service}: only within one major" in told


@pytest.mark.parametrize("newer", ["slice", "service"])
def test_a_slice_works_with_what_was_released_of_its_major_version(
    tmp_path: Path, newer: str
) -> None:
    """From the first of that version to what there is now; nothing to do before it is released."""
    (tmp_path / "template").mkdir()
    found, earlier = versions.history(tmp_path / "template")
    released = [tag for tag in earlier if "." in tag]
    if not released:
        pytest.skip("nothing is released yet")
    major = released[-1].partition(".")[0]
    first = next(tag for tag in released if tag.partition(".")[0] == major)
    service, slice_ = (first, "HEAD") if newer == "slice" else ("HEAD", first)
    shop = make(found.at(service), tmp_path / "shop", slices={})
    for name in ("payments", "orders"):
        found.at(slice_).copy(shop / "src/shop/slices" / name, **SLICES[name])
    run(shop, "mypy")
    run(shop, "pytest", "-q", "-p", "no:cacheprovider", "src/shop/slices")


SEND = """
import asyncio
from shop.app import build_runtime, opened
from shop.bus import Context, User
from shop.settings import Settings
from shop.slices.cards.messages import *

async def main():
    async with opened(build_runtime(Settings()), relay=False) as runtime:
        for command in [{commands}]:
            await runtime.bus(Context(user=User("alice"))).send(command)

asyncio.run(main())
"""


@pytest.mark.long
class TestClosingMessage:
    """What is to be done by hand after answers have changed, and that it is right."""

    FIELDS = SLICES["payments"]["fields"]

    def db(self, shop: Path, *command: str) -> str:
        url = f"sqlite:///{shop / 'data.db'}"
        return run(shop, "shop.cli", "db", *command, DATABASE_URL=url)

    def update(self, template: Template, shop: Path, capfd: Any, **answers: str) -> str:
        capfd.readouterr()
        template.update(shop, quiet=False, **answers)
        return str(capfd.readouterr().err)

    def copy(self, template: Template, slice_: Path, capfd: Any, **answers: str) -> str:
        capfd.readouterr()
        source = str(template.path)
        copier.run_copy(source, slice_, data=answers, defaults=True, vcs_ref=template.ref)
        return str(capfd.readouterr().err)

    def follow(self, shop: Path, message: str) -> None:
        """Run the database's commands that the message lists."""
        commands = re.findall(r"(?m)^  \d\. uv run shop db (\w+)(?: (\w+) -m '([^']+)')?", message)
        assert [name for name, *_ in commands] == ["upgrade", "revision", "upgrade"]
        for name, slice_, text in commands:
            self.db(shop, name, *([slice_, "-m", text] if slice_ else []))
        self.db(shop, "check")
        commit_all(shop)

    def send(self, shop: Path, *commands: str) -> None:
        """Send commands to the slice of cards, each in a unit of its own."""
        program = shop / "send.py"
        program.write_text(SEND.format(commands=", ".join(commands)))
        run(shop, "send", DATABASE_URL=f"sqlite:///{shop / 'data.db'}")
        program.unlink()

    def rows(self, shop: Path, sql: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(shop / "data.db") as connection:
            return connection.execute(sql).fetchall()

    @pytest.fixture
    def used(self, shop: Path) -> Path:
        """A service whose database has a payment in it."""
        self.db(shop, "upgrade")
        self.rows(
            shop,
            "INSERT INTO payments (id, version, created_at, amount, currency)"
            " VALUES ('one', 1, '2030-01-01 00:00:00', 950, 'EUR')",
        )
        return shop

    def test_of_an_optional_field(self, made_up: Versions, used: Path, capfd: Any) -> None:
        template = made_up.at("1.0.0")
        message = self.update(template, used / PAYMENTS, capfd, fields=f"{self.FIELDS} note:text?")
        self.follow(used, message)
        assert self.rows(used, "SELECT id, amount, note FROM payments") == [("one", 950, None)]
        run(used, "pytest", "-q", "-p", "no:cacheprovider", PAYMENTS)

    def test_of_a_required_field(self, made_up: Versions, used: Path, capfd: Any) -> None:
        """In three steps, as the message says; in one, the upgrade fails on rows."""
        template = made_up.at("1.0.0")
        fields = f"{self.FIELDS} rank:int"
        message = self.update(template, used / PAYMENTS, capfd, fields=fields)
        assert "If one of amount, currency, rank is new, rows that are there have no" in message
        git(used, "checkout", "--quiet", ".")
        message = self.update(template, used / PAYMENTS, capfd, fields=f"{fields}?")
        self.follow(used, message)
        fill = re.search(r"fill +uv run shop db revision (\w+) -m '([^']+)' (--empty)", message)
        assert fill
        self.db(used, "revision", fill[1], "-m", fill[2], fill[3])
        revision = used / PAYMENTS / "migrations/payments_0003_fill_it.py"
        text = revision.read_text().replace("\n\n", "\n\nfrom alembic import op\n\n", 1)
        revision.write_text(
            text.replace("    pass", '    op.execute("UPDATE payments SET rank = 7")', 1)
        )
        commit_all(used)
        self.follow(used, self.update(template, used / PAYMENTS, capfd, fields=fields))
        assert self.rows(used, "SELECT id, amount, rank FROM payments") == [("one", 950, 7)]
        assert ("rank", 1) in self.rows(
            used, "SELECT name, \"notnull\" FROM pragma_table_info('payments')"
        )
        run(used, "pytest", "-q", "-p", "no:cacheprovider", PAYMENTS)

    def test_of_a_required_field_of_stored_events(
        self, made_up: Versions, shop: Path, capfd: Any
    ) -> None:
        """The same three steps, and an upcast: what was there before can be changed and deleted."""
        template, cards = made_up.at("1.0.0"), "src/shop/slices/cards"
        template.copy(shop / cards, style="event_sourced", fields="owner:str")
        commit_all(shop)
        self.db(shop, "upgrade")
        self.send(shop, "CreateCard(owner='Ann')", "CreateCard(owner='Bob')")
        [(one,), (two,)] = self.rows(shop, "SELECT id FROM cards ORDER BY owner")

        message = self.update(template, shop / cards, capfd, fields="owner:str branch:str?")
        self.follow(shop, message)
        self.send(shop, f"ChangeCard(id='{one}', version=1, owner='Eve')")
        self.db(shop, "revision", "cards", "-m", "Fill it", "--empty")
        revision = shop / cards / "migrations/cards_0003_fill_it.py"
        text = revision.read_text().replace("\n\n", "\n\nfrom alembic import op\n\n", 1)
        fill = """op.execute("UPDATE cards SET branch = 'main'")"""
        revision.write_text(text.replace("    pass", f"    {fill}", 1))
        commit_all(shop)

        message = self.update(template, shop / cards, capfd, fields="owner:str branch:str")
        assert "could be neither changed nor deleted, as its events lack it." in message
        models = shop / cards / "models.py"
        text = models.read_text().replace("import Self", "import Any, ClassVar, Self")
        for line in re.findall(r"(?m)^ +(class \w+\(StreamEvent, upcast=.+?\))   #", message):
            text = text.replace(f"{line.partition(',')[0]}):\n", f"{line}:\n")
        (schema,) = re.findall(r"(?m)^ +(snapshot_schema: .+?)   #", message)
        head = "class Card(Aggregate[CardEvent]):\n"
        text = text.replace(head, f"{head}    {schema}\n\n")
        (upcast,) = re.findall(r"(?m)^(def with_it\(.+?\]) takes", message)
        upcast += """:\n    return payload | {"branch": payload.get("branch") or "main"}\n\n\n"""
        models.write_text(text.replace("class Created", f"{upcast}class Created", 1))
        self.follow(shop, message)
        self.send(
            shop,
            f"ChangeCard(id='{one}', version=2, owner='Eve', branch='north')",
            f"DeleteCard(id='{two}')",
        )
        assert self.rows(shop, "SELECT owner, branch FROM cards") == [("Eve", "north")]
        run(shop, "mypy")
        run(shop, "pytest", "-q", "-p", "no:cacheprovider", cards)

    def test_of_a_field_that_is_gone(self, made_up: Versions, used: Path, capfd: Any) -> None:
        message = self.update(
            made_up.at("1.0.0"), used / PAYMENTS, capfd, fields="amount:decimal(12,2)"
        )
        assert "a field that is gone takes what its column holds with it" in message
        self.follow(used, message)
        assert self.rows(used, "SELECT id, amount FROM payments") == [("one", 950)]

    def test_of_an_update_alone(self, made_up: Versions, shop: Path, capfd: Any) -> None:
        template = made_up.at("2.0.0")
        message = self.update(template, shop, capfd)
        assert "5. git add -A " in message
        assert message.rstrip().endswith("7. git commit -m 'Update from the template'")
        message = self.update(template, shop / PAYMENTS, capfd)
        assert message.rstrip().endswith("git commit -m 'Update from the template'")

    @pytest.mark.parametrize(
        ("folder", "answers", "expected"),
        [
            (".", {"database": "postgresql"}, "What is in the old\ndatabase stays there."),
            (".", {"auth": "none"}, "Tests of yours that expect 401 or 403 have to go."),
            (PAYMENTS, {"entity": "Deposit"}, "give each renamed event the\nold one"),
            ("src/shop/slices/orders", {"listens_to": ""}, "events retire orders.<reaction>"),
        ],
        ids=["database", "auth", "entity", "listens_to"],
    )
    def test_of_another_answer(
        self,
        made_up: Versions,
        shop: Path,
        capfd: Any,
        folder: str,
        answers: dict[str, str],
        expected: str,
    ) -> None:
        assert expected in self.update(made_up.at("1.0.0"), shop / folder, capfd, **answers)

    def test_of_another_reaction_of_a_process(
        self, made_up: Versions, shop: Path, capfd: Any
    ) -> None:
        """It is a step as well; and what the event has to bring is told as after a copy."""
        template, flows = made_up.at("1.0.0"), shop / "src/shop/slices/flows"
        start = "payments.PaymentCreated:start_flow"
        wanted = "give OrderCreated the field payment_id"
        answers = {"style": "process", "listens_to": f"{start} orders.OrderCreated:settle"}
        told = self.copy(template, flows, capfd, **answers)
        own = "let the slice publish an event of its own"
        assert (wanted in told, own in told) == (True, True)
        commit_all(shop)
        told = self.update(template, flows, capfd, listens_to=f"{start} orders.OrderCreated:pay")
        assert (wanted in told, own in told) == (True, True)
        assert "let those that are at it go on first: GET /flows?step=<old name>" in told
        commit_all(shop)
        told = self.update(template, flows, capfd, listens_to=start)
        assert "GET /flows?stuck=true" in told
        assert own not in told

    def test_of_another_package(self, made_up: Versions, shop: Path, capfd: Any) -> None:
        template = made_up.at("1.0.0")
        message = self.update(template, shop, capfd, package="store")
        assert "copier update --skip-answered -d package=store src/store/slices/<slice>" in message
        commit_all(shop)
        for name in SLICES:
            git(shop, "mv", f"src/shop/slices/{name}", f"src/store/slices/{name}")
            commit_all(shop)
            template.update(shop / "src/store/slices" / name, package="store")
        assert not [path for path in shop.glob("src/shop/**/*") if path.is_file()]
        run(shop, "store.cli", "describe")
        run(shop, "pytest", "-q", "-p", "no:cacheprovider", "src/store/slices/orders")
