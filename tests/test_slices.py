"""Slices of every kind, all in one service: how they read, and that they run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Template, commit_all, jinja, macros

NUMBERS = ["int", "float", "decimal(12,2)", "money"]
TYPES = ["str", "text", *NUMBERS, "bool", "date", "datetime", "uuid"]
SOME_OF_EACH = " ".join(f"a_{kind[:5]}:{kind}" for kind in TYPES)
OPTIONAL_OF_EACH = " ".join(f"a_{kind[:5]}:{kind}?" for kind in TYPES)
LISTENS_TWICE = "payments.PaymentCreated payments.PaymentRefunded"

# Folder and answers. Between them: names that are the same in plural, words that are not English,
# names of the longest lengths, and names that generated code could take for its own variables.
SLICES: dict[str, dict[str, str]] = {
    "payments": {"fields": "amount:decimal(12,2) currency:str"},
    "orders": {"listens_to": "payments.PaymentCreated:start_order"},
    "marks": {},
    "samples": {"fields": SOME_OF_EACH},
    "drafts": {"fields": OPTIONAL_OF_EACH},
    "mixtures": {"fields": "note:text? amount:int day:date? at:datetime text:str uuid:uuid?"},
    "ratios": {"fields": "part:decimal(2,2) whole:decimal(18,0)? tiny:decimal(18,18)"},
    "flags": {"fields": "date:date on:bool select:str one:int found:str name:str"},
    "parcels": {
        "listens_to": f"orders.OrderCreated:pack {LISTENS_TWICE} sheep.SheepCreated:on_wool",
        "fields": "weight:float? label:str?",
    },
    "sheep": {"fields": "name:str"},
    "people": {"fields": "born:date?"},
    "clients": {"fields": "service:str client:str"},
    "services": {"fields": "created:datetime change:str path:str"},
    "ones": {},
    "session": {"entity": "UserSession", "fields": "until:datetime"},
    "skus": {"entity": "SKU", "fields": "code:str"},
    "x": {"entity": "X", "fields": "y:int"},
    "customer_agreement_archives": {
        "entity": "CustomerAgreementArchiveRecord",
        "fields": f"{'preferred_first_contact_telephone_number'}:decimal(18,18) "
        f"{'preferred_other_contact_telephone_number'}:datetime?",
    },
    "archives_of_archived_papers": {
        "listens_to": "customer_agreement_archives.CustomerAgreementArchiveRecordCreated:"
        "test_it payments.PaymentCreated:file_the_payment_that_was_created_before",
    },
    # The same of slices that store events.
    "invoices": {"style": "event_sourced", "fields": "amount:decimal(12,2) currency:str"},
    "reminders": {"style": "event_sourced", "listens_to": "invoices.InvoiceCreated:remind"},
    "stamps": {"style": "event_sourced"},
    "soils": {"style": "event_sourced", "fields": SOME_OF_EACH},
    "trips": {
        "style": "event_sourced",
        "listens_to": f"{LISTENS_TWICE} sheep.SheepCreated:on_wool",
        "fields": OPTIONAL_OF_EACH,
    },
    "units": {
        "style": "event_sourced",
        "entity": "EAN",
        "fields": "type:str event:str command:int cls:str",
    },
    "records_of_old_agreements": {
        "style": "event_sourced",
        "entity": "CustomerAgreementArchiveLedger",
        "fields": f"{'preferred_first_contact_telephone_number'}:decimal(18,18) "
        f"{'preferred_other_contact_telephone_number'}:datetime?",
    },
    # The same of slices that see a flow through.
    "approvals": {"style": "process"},
    "dunnings": {"style": "process", "listens_to": "invoices.InvoiceCreated:start_dunning"},
    "checkouts": {
        "style": "process",
        "listens_to": "payments.PaymentCreated:begin_checkout sheep.SheepShorn:shear"
        " payments.PaymentRefunded:refund",
        "fields": OPTIONAL_OF_EACH,
    },
    "surveys": {"style": "process", "fields": SOME_OF_EACH},
    "moves": {"style": "process", "entity": "RMA", "fields": "type:str event:str command:int"},
    "workflows_of_old_agreements": {
        "style": "process",
        "entity": "CustomerAgreementArchiveReview",
        "fields": f"{'preferred_first_contact_telephone_number'}:decimal(18,18) "
        f"{'preferred_other_contact_telephone_number'}:datetime?",
    },
}

# Those that differ in kind; the others are checked, typed and migrated.
RUN_IN_FULL = ["parcels", "samples", "drafts", "flags", "soils", "trips", "units", "checkouts"]

CONTRACTS = {
    "payments": """

class PaymentRefunded(Event, key="payment_id"):
    payment_id: UUID
""",
    "sheep": """

class SheepShorn(Event, key="sheep_id"):
    sheep_id: UUID
    payment_id: UUID
""",
}


def run(service: Path, *command: str, **environment: str) -> str:
    """Run a Python module in a service; its output, and a failure if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=service,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": "src", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def shop(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service with all the slices."""
    shop = template.copy(tmp_path_factory.mktemp("slices") / "shop")
    for name, answers in SLICES.items():
        template.copy(shop / "src/shop/slices" / name, **answers)
    for name, more in CONTRACTS.items():
        with (shop / "src/shop/slices" / name / "contracts.py").open("a") as contracts:
            contracts.write(more)
    commit_all(shop)
    return shop


class TestAllSlices:
    def test_are_formatted_and_linted(self, shop: Path) -> None:
        run(shop, "ruff", "format", "--check", "--diff", ".")
        run(shop, "ruff", "check", ".")

    def test_are_typed(self, shop: Path) -> None:
        run(shop, "mypy")

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param((), id="sqlite"),
            pytest.param(("--postgresql",), id="postgresql", marks=pytest.mark.long),
        ],
    )
    def test_pass_their_tests(self, shop: Path, options: tuple[str, ...]) -> None:
        """Boundaries and migrations are among them: up, check, down and up again."""
        folders = [f"src/shop/slices/{name}" for name in RUN_IN_FULL]
        options = ("-q", "-p", "no:cacheprovider", *options)
        run(shop, "pytest", *options, "tests", *folders, DATABASE_URL="")

    def test_migrate_up_and_down(self, shop: Path) -> None:
        database = f"sqlite:///{shop / 'migrated.db'}"
        for command in ("upgrade", "check", "downgrade base", "upgrade"):
            run(shop, "shop.cli", "db", *command.split(), DATABASE_URL=database)


def test_slice_without_columns_cannot_be_changed(shop: Path) -> None:
    for module in (shop / "src/shop/slices/marks").rglob("*.py"):
        assert "Change" not in module.read_text()


def test_events_with_one_key_share_a_column(shop: Path) -> None:
    models = (shop / "src/shop/slices/parcels/models.py").read_text()
    assert models.count("payment_id: Mapped[UUID | None]") == 1
    listeners = (shop / "src/shop/slices/parcels/listeners.py").read_text()
    assert listeners.count("@listen") == 4


def test_further_event_of_a_process_brings_the_id_that_it_began_with(shop: Path) -> None:
    checkouts = shop / "src/shop/slices/checkouts"
    listeners = (checkouts / "listeners.py").read_text()
    assert 'ReportCheckout(id=event.payment_id, step="shear", outcome="done")' in listeners
    # Of two ids a test sees which one is taken.
    tests = (checkouts / "tests/test_listeners.py").read_text()
    assert "SheepShorn(sheep_id=OTHER_ID, payment_id=SOME_ID)" in tests
    assert "PaymentRefunded(payment_id=SOME_ID)" in tests


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ("payments.PaymentRefunded", "order_id"),
        ("payments.OrderPaid", "order_id"),
        ("payments.CheckoutPaid", "checkout_id"),
    ],
)
def test_field_with_the_id_of_a_process(event: str, field: str) -> None:
    listens = json.loads(macros("grammar").parse_listens(f"orders.OrderCreated:start {event}:pay"))
    assert macros("macros").process_id(listens[1], listens, "checkout") == field


def test_process_that_does_not_listen_needs_no_ids_of_others() -> None:
    assert not macros("macros").bringing_process_id([], "checkout")


def test_closing_message_of_a_process_names_what_publishes_its_events(shop: Path) -> None:
    events = "orders.OrderCreated:start payments.PaymentCreated:pay payments.PaymentRefunded:refund"
    told = macros("macros").with_process_id(
        json.loads(macros("grammar").parse_listens(events)), "checkout"
    )
    places = re.findall(r"^  (\w+) in (\S+)$", told, re.MULTILINE)
    assert len(places) == 2
    for name, file in places:
        assert f"async def {name}(" in (shop / "src/shop/slices" / file).read_text()


def test_names_in_tests_have_no_article(shop: Path) -> None:
    for module in (shop / "src/shop/slices").rglob("test_*.py"):
        assert not re.findall(r"def an?_\w+", module.read_text()), module


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("a_int", 2**63),
        ("a_float", "NaN"),
        ("a_decim", "12345678901.00"),
        ("a_decim", "1.005"),
        ("a_date", "86400"),
        ("a_datet", "2030-01-02T12:30:00"),
        ("a_datet", "0001-01-01T00:00:00+23:59"),
        ("a_str", "NUL \0"),
        ("a_text", "half a surrogate pair \ud800"),
    ],
)
def test_what_a_column_cannot_hold_is_refused(shop: Path, field: str, value: object) -> None:
    """By the message, so that it is 422 over HTTP and not an error of the database."""
    check = (
        "from pydantic import ValidationError\n"
        "from shop.slices.drafts.messages import CreateDraft\n"
        f"try: CreateDraft({field}={value!r})\n"
        "except ValidationError: pass\n"
        "else: raise AssertionError\n"
    )
    (shop / "check.py").write_text(check)
    run(shop, "check", PYTHONPATH=os.pathsep.join(["src", "."]))


def test_slice_that_does_not_listen_has_no_listeners(shop: Path) -> None:
    payments = shop / "src/shop/slices/payments"
    assert not [path.name for path in payments.rglob("*") if "listener" in path.name]


# ------------------------------------------------------------------------ names of every length


def word(length: int) -> str:
    """A snake_case name of this length."""
    return ("abcdefg_" * 9)[:length].rstrip("_").ljust(length, "h")


def camel(length: int, size: int = 7) -> str:
    """A PascalCase name of this length, with words of this size."""
    return ("Abcdefg"[:size] * 40)[:length]


def context(
    package: str, slice_: str, style: str, entity: str, fields: str, listens_to: str
) -> dict[str, Any]:
    """What copier.yml works out for a slice."""
    grammar, names = macros("grammar"), macros("names")
    listens = json.loads(grammar.parse_listens(listens_to))
    return {
        "package": package,
        "slice": slice_,
        **{one: style == one for one in ("state", "event_sourced", "process")},
        "steps": [one["reaction"] for one in listens[1:]] or ["work"],
        "entity": entity,
        "noun": names.snake(entity),
        "plural": names.pascal(slice_),
        "columns": json.loads(grammar.columns_of(fields, [] if style == "process" else listens)),
        "listens": listens,
    }


@pytest.mark.parametrize("package", ["shop", pytest.param("p" * 40, marks=pytest.mark.long)])
def test_names_of_every_length_are_formatted(package: str, shop: Path, tmp_path: Path) -> None:
    """Rendered without Copier, which would take minutes."""
    (tmp_path / "pyproject.toml").write_bytes((shop / "pyproject.toml").read_bytes())
    (tmp_path / "src" / package).mkdir(parents=True)
    (tmp_path / "src" / package / "__init__.py").touch()
    # Odd ones with the one package, even ones with the other.
    for length in range(1 + (package == "shop"), 41, 2):
        slice_, short = word(min(length, 27)), min(length, 30)
        fields = " ".join(f"{word(length)}{n}:{kind}?" for n, kind in enumerate(TYPES))
        for place, answers in {
            "wordy": (camel(short), fields.replace("?", ""), ""),
            "many_words": (camel(short, 3), fields, ""),
            "reacting": (
                camel(short),
                "",
                f"{word(min(length, 27))}.Thing{camel(min(length, 35))}:{word(length)} "
                f"{word(min(length, 27))}.Other{camel(min(length, 35))}:{word(length - 1)}z",
            ),
        }.items():
            for style in ("state", "event_sourced", "process"):
                target = tmp_path / "src" / package / f"{place}{length}_{style}"
                render_slice(context(package, slice_, style, *answers), target)
    run(tmp_path, "ruff", "format", "--diff", ".")
    run(tmp_path, "ruff", "check", ".")


def render_slice(context: dict[str, Any], target: Path) -> None:
    environment = jinja()
    folder = ROOT / "template" / "slice"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.jinja"))
    for source in folder.rglob("*.py*.jinja"):
        name = environment.from_string(str(source.relative_to(folder).with_suffix("")))
        path = target / name.render(context)
        if path.suffix == ".py":
            template = environment.get_template(source.relative_to(ROOT).as_posix())
            path.write_text(template.render(context))
