"""What Copier asks: which kind, what is refused and how it is told, and what updates never lose."""

import builtins
import keyword
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Template, commit_all, git, macros, template_repository, tree
from copier.errors import UserMessageError

PAYMENTS = "src/shop/slices/payments"
COPIER = Path(sys.executable).parent / "copier"
FIELDS = "amount:decimal(12,2) currency:str"


def answers(folder: Path) -> dict[str, Any]:
    stored: dict[str, Any] = yaml.safe_load((folder / ".copier-answers.yml").read_text())
    return stored


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """The questions alone: what a project gets by them does not matter here."""
    return template_repository(tmp_path_factory.mktemp("questions"), contents=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return template_repository(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def shop(template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty service, committed, as the working directory."""
    shop = template.copy(tmp_path / "shop")
    monkeypatch.chdir(shop)
    commit_all(shop)
    return shop


class TestKind:
    def test_a_service_is_the_default(self, template: Template, tmp_path: Path) -> None:
        service = template.copy(tmp_path / "Book Shop")
        assert (
            answers(service).items()
            >= {
                "kind": "service",
                "project_name": "Book Shop",
                "package": "book_shop",
                "database": "sqlite",
                "auth": "jwt",
                "ci": "github",
                "born": "book_shop",
            }.items()
        )

    @pytest.mark.parametrize(
        ("folder", "package"),
        [
            ("json", "json_service"),
            ("3d-print", "service_3d_print"),
            ("Été", "t"),
            ("...", "service"),
        ],
    )
    def test_any_folder_gives_a_valid_service(
        self, template: Template, tmp_path: Path, folder: str, package: str
    ) -> None:
        assert answers(template.copy(tmp_path / folder))["package"] == package

    def test_a_slice_is_known_by_its_place(self, template: Template, shop: Path) -> None:
        assert answers(template.copy(PAYMENTS, fields=FIELDS)) == {
            "_commit": answers(shop)["_commit"],
            "_src_path": str(template.path),
            "kind": "slice",
            "package": "shop",
            "slice": "payments",
            "style": "state",
            "entity": "Payment",
            "fields": FIELDS,
            "listens_to": "",
            "born_as": "state",
            "born": "payments",
        }

    def test_absolute_paths_are_places_too(self, template: Template, shop: Path) -> None:
        assert answers(template.copy(shop / PAYMENTS))["package"] == "shop"
        assert answers(template.copy(shop / "src/other/slices/things"))["package"] == "other"

    def test_from_inside_the_package(
        self, template: Template, shop: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("src/shop/slices").mkdir(parents=True)
        monkeypatch.chdir("src/shop")
        assert answers(template.copy("slices/payments", package="shop"))["kind"] == "slice"
        monkeypatch.chdir("slices")
        orders = template.copy("orders", kind="slice", package="shop")
        assert answers(orders)["slice"] == "orders"

    def test_adding_a_slice_touches_no_existing_file(self, template: Template, shop: Path) -> None:
        before = tree(shop)
        template.copy(PAYMENTS)
        after = tree(shop)
        assert {path: after[path] for path in before} == before
        assert all(path.startswith(PAYMENTS) for path in after.keys() - before.keys())


def refused(template: Template, target: Path | str, **given: Any) -> str:
    """Copy with answers that are refused: gives the message, nothing may have been written."""
    before = tree(Path())
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        template.copy(target, **given)
    assert tree(Path()) == before
    return str(caught.value)


class TestPlaces:
    @pytest.mark.parametrize(
        "place",
        [
            "src/payments",
            "src/shop/payments",
            "src/shop/slices/payments/more",
            "slices/payments/more",
            "shop/slices/payments/more",
        ],
    )
    def test_no_place_for_anything(self, template: Template, shop: Path, place: str) -> None:
        message = refused(template, place)
        assert f"{place} is no place for a service, and none for a slice" in message
        assert "src/<package>/slices/<slice>" in message

    @pytest.mark.parametrize(
        "place",
        [
            "src/shop/slices/../payments",
            "src/../payments",
            "slices/more/../payments",
            "src/shop/slices/..",
        ],
    )
    @pytest.mark.parametrize("kind", ["service", "slice"])
    def test_up_again_behind_what_shows_the_place(
        self, template: Template, shop: Path, place: str, kind: str
    ) -> None:
        Path("src/shop/slices/more").mkdir(parents=True)
        Path("slices/more").mkdir(parents=True)
        message = refused(template, place, kind=kind)
        assert f"{place} leads up again by '..' behind src/ or slices/" in message

    @pytest.mark.parametrize(
        "place", ["elsewhere/payments", "src/payments", "src/3d/slices/payments", "a/b/slices/c"]
    )
    def test_no_place_for_a_slice(self, template: Template, shop: Path, place: str) -> None:
        message = refused(template, place, kind="slice")
        assert f"{place} is no place for a slice. A slice lies in src/<package>/slices/<" in message

    def test_absolute_place_outside_src(self, template: Template, shop: Path) -> None:
        assert "is no place for a slice" in refused(template, shop / "slices/payments")

    def test_folder_that_python_cannot_import(self, template: Template, shop: Path) -> None:
        message = refused(template, "src/shop/slices/line-items", slice="line_items")
        assert "Python cannot import a folder called line-items" in message

    def test_package_that_the_path_does_not_show(self, template: Template, shop: Path) -> None:
        message = refused(template, "slices/payments")
        assert "The path does not show which package" in message
        assert "-d package=<package>" in message

    def test_a_service_under_a_folder_called_src(self, template: Template, tmp_path: Path) -> None:
        assert answers(template.copy(tmp_path / "src" / "shop"))["kind"] == "service"


class TestServiceRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"package": "json"}, "json would shadow the standard library's module json"),
            ({"package": "fastapi"}, "fastapi would shadow fastapi, which every service uses"),
            ({"package": "pytest"}, "such as pytest_service"),
            ({"package": "class"}, "class is a keyword of Python"),
            ({"package": "match"}, "match is a keyword of Python"),
            ({"package": "tests"}, "tests is a folder of every service"),
            ({"package": "my-shop"}, "Expected snake_case, starting with a letter"),
            ({"package": "Shop"}, "Got Shop."),
            ({"package": "a_"}, "Got a_."),
            ({"package": "a" * 41}, "at most 40 characters"),
            ({"package": ""}, "Got nothing."),
            ({"project_name": "5 shops"}, "Expected a letter, then letters"),
            ({"project_name": "x" * 41}, "at most 40"),
            ({"description": 'The "best"'}, "without double quotes"),
            ({"description": "one\ntwo"}, "Expected one line"),
            ({"author": "a\\b"}, "without double quotes and backslashes"),
            ({"author": " "}, "Expected one line"),
            ({"database": "oracle"}, "Invalid choice for 'database': 'oracle'"),
            ({"auth": "basic"}, "Invalid choice for 'auth'"),
            ({"ci": "jenkins"}, "Invalid choice for 'ci'"),
            ({"kind": "thing"}, "Invalid choice for 'kind'"),
        ],
    )
    def test_refusal(
        self,
        template: Template,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        given: dict[str, str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert message in refused(template, tmp_path / "shop", **given)


class TestSliceRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"slice": "Payments"}, "Expected plural snake_case"),
            ({"slice": "line-items"}, "Got line-items."),
            ({"slice": "_items"}, "Got _items."),
            ({"slice": "a__b"}, "Got a__b."),
            ({"slice": "a" * 28}, "has 28 characters: at most 27 fit"),
            ({"slice": "import"}, "import is a keyword of Python"),
            ({"slice": "match"}, "match is a keyword of Python"),
            ({"slice": "head"}, "head means something else in Alembic's commands"),
            ({"slice": "heads"}, "heads means something else"),
            ({"slice": "base"}, "base means something else"),
            ({"slice": "current"}, "current means something else"),
            ({"slice": "bus"}, "belong to the bus's own tables"),
            ({"slice": "bus_lines"}, "start with bus_ belong to the bus's own tables"),
            ({"slice": "alembic_versions"}, "tables that start with alembic belong to others"),
            ({"slice": "sqlite_things"}, "tables that start with sqlite belong to others"),
            ({"slice": "returning"}, "returning is a keyword of SQLite"),
            ({"slice": "tests"}, "tests is what a folder in every slice is called"),
            ({"entity": "payment"}, "Expected singular PascalCase"),
            ({"entity": "Line_Item"}, "Got Line_Item."),
            ({"entity": "P" * 31}, "has 31 characters, expected at most 30"),
            ({"entity": "None"}, "None is a keyword of Python"),
            ({"entity": "Class"}, "variables called class, a keyword of Python"),
            ({"entity": "Filter"}, "variables called filter, which is a function of Python"),
            ({"entity": "TimeoutError"}, "TimeoutError is a class of Python"),
            ({"entity": "Command"}, "Command is a class of the bus"),
            ({"entity": "Page"}, "-d entity=ShopPage"),
            ({"entity": "Entity"}, "or of what every slice imports"),
            ({"entity": "Session"}, "variables called session, which every slice uses"),
            ({"slice": "events"}, "Event is a class of the bus"),
            ({"slice": "sessions"}, "variables called session"),
            ({"style": "rows"}, "Invalid choice for 'style'"),
            ({"style": "event_sourced", "entity": "Created"}, "a name that event-sourced slices"),
            ({"style": "event_sourced", "slice": "streams"}, "a name that event-sourced slices"),
            ({"style": "event_sourced", "entity": "Append"}, "Append, or append, is a name that"),
            ({"style": "event_sourced", "fields": "change:str"}, "such as change_value"),
            ({"style": "event_sourced", "fields": "uuid4:str"}, "such as uuid4_value"),
            ({"style": "process", "fields": "list:str"}, "such as the_list"),
            ({"style": "process", "entity": "Step"}, "a name that processes use themselves"),
            ({"style": "process", "entity": "Begin"}, "Begin, or begin, is a name that processes"),
            ({"style": "process", "fields": "done:bool"}, "such as the_done"),
            ({"style": "process", "fields": "ask_work:bool"}, "such as the_ask_work"),
            (
                {"style": "process", "listens_to": "others.RefundFinished", "slice": "refunds"},
                "refunds has a RefundFinished of its own",
            ),
            (
                {"style": "process", "listens_to": "others.OtherCreated:time_out"},
                "a function cannot be called time_out",
            ),
        ],
    )
    def test_names(
        self, template: Template, shop: Path, given: dict[str, str], message: str
    ) -> None:
        assert message in refused(template, PAYMENTS, **given)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ("amount", "amount has no type. Write amount:str"),
            ("amount:int,note:str", "unknown type int,note:str"),
            ("amount:euros", "amount has the unknown type euros. Types are str, text, int"),
            ("amount:", "amount has the unknown type of nothing"),
            (":int", "Got the name of nothing"),
            ("Amount:int", "Got the name Amount"),
            ("a-b:int", "the name in snake_case"),
            ("a" * 41 + ":int", "has 41 characters, expected at most 40"),
            ("class:str", "class is a keyword of Python"),
            ("a:int a:str", "a is there twice"),
            ("id:uuid", "id is there already"),
            ("version:int", "version is there already"),
            ("created_at:datetime", "created_at is there already"),
            ("record:str", "record is there already"),
            ("model_dump:str", "model_dump is a name that pydantic uses itself"),
            ("model_year:int", "model_year is a name that pydantic uses itself"),
            ("copy:str", "copy is a name that pydantic uses itself"),
            ("keys:str", "keys is a name that pydantic uses itself"),
            ("nothing:str", "nothing is a keyword of SQLite"),
            ("l:int", "l looks like 1"),
            ("metadata:str", "metadata is a name that SQLAlchemy uses itself"),
            ("registry:str", "registry is a name that SQLAlchemy uses itself"),
            ("event_key:str", "event_key is a name that the bus uses itself"),
            ("xmin:int", "xmin is a column that PostgreSQL gives every table"),
            ("str:str", "str is what the generated code calls a type"),
            ("dt:date", "dt is what the generated code calls a type"),
            ("amount:decimal", "write amount:decimal(12,2)"),
            ("amount:decimal(12)", "does not say how many digits"),
            ("amount:decimal(19,2)", "amount has 19 digits, expected 1 to 18"),
            ("amount:decimal(0,0)", "amount has 0 digits"),
            ("amount:decimal(2,3)", "amount has 3 digits behind the point, of 2 in all"),
            ("a:euros b:decimal", "b:decimal does not say"),
            ("a:money a_amount:int", "a_amount is there twice: name each field once (price:money"),
            ("a_currency:str a:money?", "a_currency is there twice: a:money? is stored"),
            ("composite:str", "composite is what the generated code calls a type"),
        ],
    )
    def test_fields(self, template: Template, shop: Path, fields: str, message: str) -> None:
        assert message in refused(template, PAYMENTS, fields=fields)

    @pytest.mark.parametrize(
        ("listens_to", "message"),
        [
            ("PaymentCreated", "Expected slice.Event or slice.Event:reaction"),
            ("payments.payment_created", "Got payments.payment_created"),
            ("a.PaymentCreated,b.TripPaid", "with spaces between several"),
            ("orders.OrderPlaced", "orders would listen to itself"),
            ("payments.Paid", "expected an event's name of two words or more"),
            ("payments.QueryBus", "QueryBus is a class of the bus"),
            ("import.PaymentCreated", "import is a keyword of Python, and no slice"),
            ("payments.OrderCreated", "orders has a OrderCreated of its own"),
            ("payments.PaymentCreated:", "Got nothing"),
            ("payments.PaymentCreated:Start", "expected the reaction in snake_case"),
            ("payments.PaymentCreated:return", "a function cannot be called return"),
            ("payments.PaymentCreated:listen", "a function cannot be called listen"),
            ("payments.PaymentCreated:print", "a function cannot be called print"),
            ("a.PaymentCreated b.PaymentCreated:x", "PaymentCreated is there twice"),
            ("a.PaymentCreated:x a.TripPaid:x", "two reactions are called x"),
            ("a.PaymentCreated:" + "x" * 41, "40 for a reaction"),
        ],
    )
    def test_listens_to(
        self, template: Template, shop: Path, listens_to: str, message: str
    ) -> None:
        assert message in refused(template, "src/shop/slices/orders", listens_to=listens_to)

    def test_a_slice_that_listens_has_no_required_fields(
        self, template: Template, shop: Path
    ) -> None:
        message = refused(
            template,
            "src/shop/slices/orders",
            fields="note:str? total:int",
            listens_to="payments.PaymentCreated",
        )
        assert (
            "total is required, but a slice that listens makes its Order from an event" in message
        )
        assert "Make it optional: total:int?." in message
        assert "note" not in message.replace("note:str", "")

    def test_a_field_called_as_an_id_that_is_listened_for(
        self, template: Template, shop: Path
    ) -> None:
        message = refused(
            template,
            "src/shop/slices/orders",
            fields="payment_id:uuid?",
            listens_to="payments.PaymentCreated",
        )
        assert "payment_id is there already: it comes from listens_to" in message


class TestNamesInUse:
    def test_keywords(self) -> None:
        assert set(keyword.kwlist) == set(macros("names").keywords)
        assert set(keyword.softkwlist) <= set(macros("names").soft_keywords)

    def test_builtins(self) -> None:
        names = macros("names")
        known = {*names.builtins, *names.builtin_classes, *names.keywords}
        assert {name for name in dir(builtins) if name[0] != "_"} <= known

    def test_standard_library(self) -> None:
        public = {name for name in sys.stdlib_module_names if name[0] != "_"}
        assert public <= set(macros("names").stdlib)

    def test_what_a_service_depends_on(self, whole: Template, tmp_path: Path) -> None:
        pyproject = tomllib.loads((whole.copy(tmp_path / "shop") / "pyproject.toml").read_text())
        requirements = [
            *pyproject["project"]["dependencies"],
            *pyproject["dependency-groups"]["dev"],
        ]
        # Only what is installed here can be looked up; a service's venv is not needed for that.
        wanted = {requirement.split(">")[0].split("[")[0] for requirement in requirements}
        modules = {
            module
            for module, distributions in packages_distributions().items()
            if wanted & set(distributions) and module.isidentifier() and module[0] != "_"
        }
        assert modules <= set(macros("names").dependencies)

    @pytest.mark.parametrize(
        ("style", "classes"),
        [
            ("state", "Entity, Command, Event, View"),
            ("event_sourced", "Aggregate, StreamEvent"),
            ("process", "Process"),
        ],
    )
    def test_attributes_of_what_fields_become_part_of(
        self, whole: Template, tmp_path: Path, style: str, classes: str
    ) -> None:
        service = whole.copy(tmp_path / "shop")
        program = (
            "from shop.base.database import Entity\n"
            "from shop.base.processes import Process\n"
            "from shop.base.streams import Aggregate, StreamEvent\n"
            "from shop.bus import Command, Event, View\n"
            f"names = {{name for cls in [{classes}] for name in dir(cls)}}\n"
            "print(*(name for name in names if not name.startswith('_')))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=service / "src",
            check=True,
            capture_output=True,
            text=True,
        )
        questions = macros("questions")
        for name in done.stdout.split():
            assert questions.fields_error(f"{name}:str", [], "Thing", style).strip(), name

    @pytest.mark.parametrize("name", ["type", "match", "date", "user", "text", "decimal", "uuid"])
    def test_common_words_are_free_for_fields(self, name: str) -> None:
        assert not macros("questions").fields_error(f"{name}:str?", [], "Thing").strip()

    @pytest.mark.parametrize("entity", ["User", "Item", "Client", "Order", "Setting"])
    def test_common_words_are_free_for_entities(self, entity: str) -> None:
        assert not macros("questions").entity_error(entity, "shop").strip()


class TestCommandLine:
    """As a user runs it; the rest drives Copier's Python API, which is faster."""

    def copier(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COPIER, *arguments],
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            stdin=subprocess.DEVNULL,
            env={**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        )

    def test_no_trust_no_flags(
        self, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop = tmp_path / "shop"
        done = self.copier("copy", "--defaults", "--vcs-ref=HEAD", template.path, shop)
        assert done.returncode == 0, done.stderr
        message = done.stderr
        steps = [f"1. cd {shop}", "2. uv sync", "3. git init && git add -A", "4. uv run shop dev"]
        assert [step for step in steps if step in message] == steps
        monkeypatch.chdir(shop)
        done = self.copier(
            *("copy", "--defaults", "--vcs-ref=HEAD", template.path, "src/shop/slices/orders"),
            *("-d", "listens_to=payments.PaymentCreated:start_order"),
        )
        assert done.returncode == 0, done.stderr
        assert "one of them is called Order" in done.stderr
        assert f"1. copier copy {template.path} src/shop/slices/payments" in done.stderr
        assert "2. uv run shop db upgrade" in done.stderr
        assert "3. uv run pytest src/shop/slices/orders" in done.stderr

    @pytest.mark.parametrize(
        ("further", "told"),
        [
            ("invoices.InvoiceCreated:bill", "3. give InvoiceCreated in {} the field order_id"),
            ("invoices.InvoiceCreated:bill", "\n  create_invoice in invoices/handlers.py\n"),
            (
                "invoices.InvoicePaid:bill",
                "3. write InvoicePaid in {}, with invoice_id and order_id",
            ),
            (
                "invoices.OrderBilled:bill",
                "3. write OrderBilled in {}, with order_id, and publish it",
            ),
            ("", "2. uv run shop db upgrade"),
        ],
    )
    def test_further_events_of_a_process_bring_its_id(
        self,
        template: Template,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        further: str,
        told: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = self.copier(
            *("copy", "--defaults", "--vcs-ref=HEAD", template.path, "src/shop/slices/checkouts"),
            *("-d", "style=process", "-d", f"listens_to=orders.OrderCreated:start {further}"),
        )
        assert done.returncode == 0, done.stderr
        assert told.format("src/shop/slices/invoices/contracts.py") in done.stderr

    @pytest.mark.parametrize("relative", [True, False])
    def test_a_relative_path_of_the_template_is_warned_of(
        self, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
    ) -> None:
        monkeypatch.chdir(template.path.parent)
        source = template.path.name if relative else template.path
        done = self.copier("copy", "--defaults", "--vcs-ref=HEAD", source, tmp_path / "shop")
        assert done.returncode == 0, done.stderr
        assert ("The template's path is relative" in done.stderr) == relative

    def test_the_last_line_says_what_is_wrong(self, template: Template, shop: Path) -> None:
        before = tree(shop)
        done = self.copier(
            *("copy", "--defaults", "--vcs-ref=HEAD", template.path, PAYMENTS),
            *("-d", "fields=amount:euros"),
        )
        assert done.returncode != 0
        last = done.stderr.rstrip().splitlines()[-1]
        assert "question 'fields': amount has the unknown type euros. Types are str, text" in last
        assert tree(shop) == before

    def test_update_with_skip_answered_asks_nothing(
        self, shop_with_slices: Path, changing: Template
    ) -> None:
        change_template(changing)
        for target in (".", PAYMENTS, "src/shop/slices/orders"):
            done = self.copier("update", "--skip-answered", "--vcs-ref=HEAD", target)
            assert done.returncode == 0, done.stderr
            assert (Path(target) / "new.txt").read_text() == "new\n"
        assert "follows the template again" in done.stderr
        revise = "3. uv run shop db revision orders -m 'Update orders'"
        assert f"{revise}   # writes one only if its models have changed" in done.stderr


@pytest.fixture
def changing(tmp_path: Path) -> Template:
    """A template that a test may change: the questions alone."""
    folder = tmp_path / "template"
    folder.mkdir()
    return template_repository(folder, contents=False)


@pytest.fixture
def shop_with_slices(changing: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shop = changing.copy(tmp_path / "shop", author="Ann")
    monkeypatch.chdir(shop)
    changing.copy(PAYMENTS, fields=FIELDS)
    changing.copy("src/shop/slices/orders", listens_to="payments.PaymentCreated:start_order")
    commit_all(shop)
    return shop


def change_template(template: Template) -> None:
    """A new version, with one file more in each kind of project."""
    for kind in ("service", "slice"):
        (template.path / "template" / kind / "new.txt").write_text("new\n")
    commit_all(template.path)


class TestUpdates:
    """An update brings what is new in the template, and changes no answer."""

    @pytest.mark.parametrize(
        ("inside", "target"),
        [
            (".", "."),
            (".", PAYMENTS),
            (PAYMENTS, "."),
            ("src/shop/slices", "payments"),
        ],
    )
    def test_from_anywhere(
        self,
        changing: Template,
        shop_with_slices: Path,
        monkeypatch: pytest.MonkeyPatch,
        inside: str,
        target: str,
    ) -> None:
        before = tree(shop_with_slices)
        change_template(changing)
        monkeypatch.chdir(inside)
        folder = Path(target).resolve()
        stored = answers(folder)
        changing.update(target)
        after = tree(shop_with_slices)
        where = folder.relative_to(shop_with_slices)
        assert after.keys() - before.keys() == {(where / "new.txt").as_posix()}
        assert before.keys() <= after.keys()
        changed = {path for path in before if before[path] != after[path]}
        assert changed == {(where / ".copier-answers.yml").as_posix()}
        assert answers(folder) == stored | {"_commit": answers(folder)["_commit"]}

    def test_service_then_slices_without_a_commit_between(
        self, changing: Template, shop_with_slices: Path
    ) -> None:
        change_template(changing)
        for target in (".", PAYMENTS, "src/shop/slices/orders"):
            changing.update(target)
        assert len(list(shop_with_slices.rglob("new.txt"))) == 3

    def test_a_renamed_slice(self, changing: Template, shop_with_slices: Path) -> None:
        git(shop_with_slices, "mv", PAYMENTS, "src/shop/slices/billing")
        commit_all(shop_with_slices)
        change_template(changing)
        changing.update("src/shop/slices/billing")
        assert answers(Path("src/shop/slices/billing"))["slice"] == "payments"
        assert Path("src/shop/slices/billing/new.txt").exists()

    def test_a_slice_in_another_service(self, changing: Template, shop_with_slices: Path) -> None:
        Path("src/other/slices").mkdir(parents=True)
        git(shop_with_slices, "mv", PAYMENTS, "src/other/slices/payments")
        commit_all(shop_with_slices)
        change_template(changing)
        changing.update("src/other/slices/payments", package="other")
        assert answers(Path("src/other/slices/payments"))["package"] == "other"

    @pytest.mark.parametrize(
        "question", ["slice", "entity", "fields", "listens_to", "package", "kind"]
    )
    def test_a_stored_answer_of_a_slice_that_no_longer_validates(
        self, changing: Template, shop_with_slices: Path, question: str
    ) -> None:
        self.stops(changing, PAYMENTS, question)

    @pytest.mark.parametrize(
        "question",
        ["project_name", "package", "description", "author", "database", "auth", "ci", "kind"],
    )
    def test_a_stored_answer_of_a_service_that_no_longer_validates(
        self, changing: Template, shop_with_slices: Path, question: str
    ) -> None:
        self.stops(changing, ".", question)

    def stops(self, template: Template, folder: str, question: str) -> None:
        """A later version of the template refuses every answer to a question."""
        config = yaml.safe_load((template.path / "copier.yml").read_text())
        config[question]["validator"] = "refused"
        (template.path / "copier.yml").write_text(yaml.safe_dump(config, sort_keys=False))
        change_template(template)
        before = tree(Path())
        expected = "kind" if question == "kind" else f'^Question "{question}" is required$'
        with pytest.raises((ValueError, UserMessageError), match=expected):
            template.update(folder)
        assert tree(Path()) == before
        assert git(Path(), "status", "--porcelain") == ""

    def test_a_slice_keeps_its_name_at_birth(
        self, changing: Template, shop_with_slices: Path
    ) -> None:
        with pytest.raises(ValueError, match="This slice was born as payments"):
            changing.update(PAYMENTS, slice="billings")

    def test_a_slice_keeps_its_style(self, changing: Template, shop_with_slices: Path) -> None:
        with pytest.raises(ValueError, match="This slice was made as state"):
            changing.update(PAYMENTS, style="event_sourced")

    def test_a_slice_from_before_there_were_styles(
        self, changing: Template, shop_with_slices: Path
    ) -> None:
        stored = Path(PAYMENTS, ".copier-answers.yml")
        lines = [line for line in stored.read_text().splitlines() if ": state" not in line]
        stored.write_text("\n".join(lines))
        commit_all(shop_with_slices)
        changing.update(PAYMENTS)
        assert answers(Path(PAYMENTS))["style"] == "state"

    def test_a_lost_style_is_the_one_that_the_slice_was_made_as(
        self, changing: Template, shop_with_slices: Path
    ) -> None:
        invoices = Path("src/shop/slices/invoices")
        changing.copy(invoices, style="event_sourced")
        stored = invoices / ".copier-answers.yml"
        stored.write_text(stored.read_text().replace("style: event_sourced\n", ""))
        commit_all(shop_with_slices)
        changing.update(invoices)
        assert answers(invoices)["style"] == "event_sourced"

    @pytest.mark.parametrize(
        ("folder", "other", "kind"), [(PAYMENTS, "service", "slice"), (".", "slice", "service")]
    )
    def test_a_project_keeps_its_kind(
        self, changing: Template, shop_with_slices: Path, folder: str, other: str, kind: str
    ) -> None:
        with pytest.raises(ValueError, match=f"This was made as a {kind} and stays one"):
            changing.update(folder, kind=other)

    def test_a_second_copy_changes_nothing(
        self, changing: Template, shop_with_slices: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = tree(shop_with_slices)
        changing.copy(PAYMENTS)
        monkeypatch.chdir(PAYMENTS)
        changing.copy(".")
        assert tree(shop_with_slices) == before

    def test_new_fields_by_an_update(self, changing: Template, shop_with_slices: Path) -> None:
        changing.update(PAYMENTS, fields=f"{FIELDS} note:text?")
        assert answers(Path(PAYMENTS))["fields"].endswith("note:text?")
