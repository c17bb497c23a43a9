"""What a user does to a service in its life, and that it is all still there after an update."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import Template, commit_all, git

ANSWERS = ".copier-answers.yml"
SLICES = Path("src/shop/slices")
PAYMENTS, ORDERS = SLICES / "payments", SLICES / "orders"

Row = dict[str, Any]

# Migrates, compares the models with the database, makes a payment over HTTP, and waits for the
# order that follows; writes what can be read of both to a file. One process, for the sake of time.
_USE = """
import asyncio, json, sys
from httpx import ASGITransport, AsyncClient
from shop.app import create_app
from shop.base import auth
from shop.cli import cli

async def use():
    app = create_app()
    transport, headers = ASGITransport(app), auth.auth_headers("alice")
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=transport, base_url="http://test", headers=headers) as client,
    ):
        async def all_of(name):
            return (await client.get(f"/{name}", params={"limit": 200})).json()["items"]

        made = await client.post("/payments", json={"amount": "9.50", "currency": "EUR"})
        assert made.status_code == 201, made.text
        async with asyncio.timeout(60):
            while made.json()["id"] not in [one["payment_id"] for one in await all_of("orders")]:
                await asyncio.sleep(0.01)
        return {name: await all_of(name) for name in ("payments", "orders")}

for command in ("upgrade", "check"):
    cli(["db", command], standalone_mode=False)
with open(sys.argv[1], "w") as file:
    json.dump(asyncio.run(use()), file)
"""


@dataclass
class Conflict:
    """Lines of both sides, as Copier left them in a file."""

    file: str
    ours: str
    theirs: str


@dataclass
class Life:
    """A service that is worked on and updated, with a database that is in use all the time.

    conflicts: those of each update, by the version that it went to.
    """

    shop: Path
    conflicts: dict[str, list[Conflict]] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.shop.parent / "life.db"

    def run(self, *command: str) -> str:
        """Run a Python module, or code, in the service; what it prints."""
        done = subprocess.run(
            [sys.executable, *(("-m", *command) if command[0] != "-c" else command)],
            cwd=self.shop,
            env={
                **os.environ,
                "PYTHONPATH": "src",
                "DATABASE_URL": f"sqlite:///{self.database}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(sql).fetchall()

    def use(self) -> None:
        """Migrate, check, make one more payment; then see what is answered of all of them."""
        self.run("-c", _USE, str(self._answers))

    @property
    def answers(self) -> dict[str, list[Row]]:
        """All payments and orders, as the service has last answered them."""
        found: dict[str, list[Row]] = json.loads(self._answers.read_text())
        return found

    @property
    def _answers(self) -> Path:
        return self.shop.parent / "answers.json"

    def update(self, template: Template) -> None:
        """The service, then each slice; a person solves the conflicts of one before the next."""
        found = self.conflicts[template.ref] = []
        for answers in [self.shop / ANSWERS, *sorted(self.shop.glob(f"{SLICES}/*/{ANSWERS}"))]:
            template.update(answers.parent)
            assert not list(self.shop.rglob("*.rej"))
            found += self._solve_all()
            git(self.shop, "add", "--all")
        mend_test(self.shop)
        # What conflicts leave to do: imports that are in order, and lines of both sides.
        self.run("ruff", "check", "--quiet", "--fix")
        self.run("ruff", "format", "--quiet")
        commit_all(self.shop)

    def _solve_all(self) -> list[Conflict]:
        done = subprocess.run(
            ["git", "grep", "--untracked", "-lE", "^<{7} "],
            cwd=self.shop,
            capture_output=True,
            text=True,
            check=False,
        )
        return [one for file in done.stdout.split() for one in self._solve(file)]

    def _solve(self, file: str) -> list[Conflict]:
        conflicts = []

        def choose(found: re.Match[str]) -> str:
            conflicts.append(Conflict(file, found["ours"], found["theirs"]))
            return solved(conflicts[-1])

        path = self.shop / file
        path.write_text(_CONFLICT.sub(choose, path.read_text()))
        return conflicts


_CONFLICT = re.compile(
    r"^<{7} .*\n(?P<ours>(?s:.*?))^={7}\n(?P<theirs>(?s:.*?))^>{7} .*\n", re.MULTILINE
)


def change(file: Path, old: str, new: str) -> None:
    """Replace what is there once."""
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} in {file}:\n{text}"
    file.write_text(text.replace(old, new))


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def new_endpoint(shop: Path) -> None:
    """What was paid in a currency: query, handler, route and test."""
    payments = shop / PAYMENTS
    append(
        payments / "messages.py",
        """

class TotalView(View):
    currency: str
    amount: Decimal


class GetTotal(Query[TotalView]):
    currency: str
""",
    )
    handlers = payments / "handlers.py"
    change(
        handlers,
        "async def _payment(",
        """@handle
async def get_total(query: GetTotal, session: AsyncSession) -> TotalView:
    wanted = select(func.sum(Payment.amount)).where(Payment.currency == query.currency)
    return TotalView(currency=query.currency, amount=await session.scalar(wanted) or Decimal())


async def _payment(""",
    )
    change(handlers, "import select\n", "import func, select\n")
    change(
        handlers, "from uuid import UUID\n", "from decimal import Decimal\nfrom uuid import UUID\n"
    )
    router = payments / "router.py"
    append(
        router,
        """

@router.get("/totals/{currency}")
async def get_total(currency: str, bus: BusDep) -> TotalView:
    return await bus.send(GetTotal(currency=currency))
""",
    )
    for file in (handlers, router):
        change(file, "from .messages import (", "from .messages import (GetTotal, TotalView, ")
    (payments / "tests/test_total.py").write_text('''"""What was paid in a currency."""

from httpx import AsyncClient


async def test_total(client: AsyncClient) -> None:
    for amount, currency in [("1.50", "EUR"), ("2.25", "EUR"), ("9.00", "USD")]:
        await client.post("/payments", json={"amount": amount, "currency": currency})
    total = await client.get("/payments/totals/EUR")
    assert total.json() == {"currency": "EUR", "amount": "3.75"}
''')


def new_column(shop: Path) -> None:
    """How urgent an order is: in the model, with a method that changes it, in the view, tested.

    Its migration is written by the service's own command, once this is done.
    """
    orders = shop / ORDERS
    append(
        orders / "models.py",
        """    priority: Mapped[int | None] = mapped_column(default=None)

    def rush(self) -> None:
        self.priority = 1
""",
    )
    change(orders / "messages.py", "    version: int\n    created_at", _PRIORITY)
    (orders / "tests/test_priority.py").write_text('''"""What is urgent comes first."""

from ..models import Order


def test_rush() -> None:
    order = Order()
    order.rush()
    assert order.priority == 1
''')


_PRIORITY = "    priority: int | None\n    version: int\n    created_at"


def new_field_of_an_event(shop: Path) -> None:
    """Others are told the currency of a payment, too."""
    payments = shop / PAYMENTS
    append(payments / "contracts.py", "    currency: str | None = None\n")
    event = "PaymentCreated(payment_id=payment.id"
    change(payments / "handlers.py", f"{event})", f"{event}, currency=payment.currency)")


def mend_test(shop: Path) -> None:
    """A later test of the template's compares the event as a whole, and knows no added field."""
    test = shop / PAYMENTS / "tests/test_bus.py"
    event = "PaymentCreated(payment_id=made.id"
    test.write_text(test.read_text().replace(f"{event})", f'{event}, currency=FIELDS["currency"])'))


def renamed_function(shop: Path) -> None:
    change(shop / PAYMENTS / "handlers.py", "async def create_payment(", "async def take_payment(")


def moved_class(shop: Path) -> None:
    """The view of a payment has a module of its own, which all import it from."""
    payments = shop / PAYMENTS
    messages = payments / "messages.py"
    view = re.search(r"(?s)class PaymentView\(View\):\n.*?\n\n\n", messages.read_text())
    assert view
    change(messages, view[0], "")
    (payments / "views.py").write_text(
        f'"""What payments look like."""\n\nimport datetime as dt\nfrom decimal import Decimal\n'
        f"from uuid import UUID\n\nfrom shop.bus import View\n\n\n{view[0].rstrip()}\n"
    )
    for name in ("handlers.py", "router.py"):
        text = (payments / name).read_text()
        moved = re.sub(r"(from \.messages import \([^)]*)\bPaymentView,?", r"\1", text)
        moved = moved.replace("from .messages", "from .views import PaymentView\nfrom .messages", 1)
        assert moved != text
        (payments / name).write_text(moved)
    change(messages, "from shop.bus import", "from .views import PaymentView\nfrom shop.bus import")


def reformatted_file(shop: Path) -> None:
    """An item a line, as far as the formatter lets them stay."""
    path = shop / ORDERS / "handlers.py"
    text = re.sub(r"(?m)^(async def \w+\()(.*)(\) -> .*:)$", r"\1\2,\3", path.read_text())
    assert text != path.read_text()
    path.write_text(text)


def deleted_tests(shop: Path) -> None:
    for name in DELETED:
        (shop / name).unlink()


DELETED = (ORDERS / "tests/test_http.py", Path("tests/test_describe.py"))


def changed_reaction(shop: Path) -> None:
    """What an order begins with is decided here, and its test knows it."""
    orders = shop / ORDERS
    change(
        orders / "listeners.py",
        "CreateOrder(payment_id=event.payment_id)",
        _NOTED.format("event.payment_id"),
    )
    change(
        orders / "tests/test_listeners.py",
        "== CreateOrder(payment_id=SOME_ID)",
        f"== {_NOTED.format('SOME_ID')}",
    )


_NOTED = 'CreateOrder(payment_id={}, note="From a payment")'


def new_setting(shop: Path) -> None:
    change(
        shop / "src/shop/settings.py",
        '    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"\n',
        '    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"\n'
        "    gzip_bytes: int = 500\n",
    )
    append(shop / ".env.example", "\n# Larger answers are compressed.\n# GZIP_BYTES=500\n")


def middleware(shop: Path) -> None:
    """In the template's own file, by the new setting."""
    app = shop / "src/shop/app.py"
    change(app, "    return app\n", f"    {_GZIP}\n    return app\n")
    change(
        app,
        "from fastapi import",
        "from fastapi.middleware.gzip import GZipMiddleware\nfrom fastapi import",
    )
    (shop / "tests/test_gzip.py").write_text('''"""Large answers are compressed."""

from httpx import AsyncClient


async def test_large_answer_is_compressed(client: AsyncClient) -> None:
    answer = await client.get("/openapi.json")
    assert answer.headers["content-encoding"] == "gzip"
''')


_GZIP = "app.add_middleware(GZipMiddleware, minimum_size=settings.gzip_bytes)"


def shared_files(shop: Path) -> None:
    """A dependency, a tool's settings, a word to readers, something to ignore."""
    pyproject = shop / "pyproject.toml"
    change(pyproject, '    "alembic>=1.20",\n', '    "alembic>=1.20",\n    "anyio>=4",\n')
    append(pyproject, "\n[tool.coverage.run]\nbranch = true\n")
    change(shop / "README.md", "## Work\n", "## Our rules\n\nBe kind.\n\n## Work\n")
    append(shop / ".gitignore", "\n# Ours\n*.csv\n")


EDITS = (
    new_endpoint,
    new_column,
    new_field_of_an_event,
    renamed_function,
    moved_class,
    reformatted_file,
    deleted_tests,
    changed_reaction,
    new_setting,
    middleware,
    shared_files,
)

# What only the user has written, and is there as long as an edit is.
WRITTEN: dict[str, tuple[str, ...]] = {
    f"{PAYMENTS}/messages.py": ("class GetTotal(Query[TotalView])", "import PaymentView\n"),
    f"{PAYMENTS}/handlers.py": ("def get_total(", "def take_payment(", "currency=payment.currency"),
    f"{PAYMENTS}/router.py": ('"/totals/{currency}"', "from .views import PaymentView"),
    f"{PAYMENTS}/contracts.py": ("    currency: str | None = None",),
    f"{PAYMENTS}/views.py": ("class PaymentView(View)",),
    f"{PAYMENTS}/tests/test_total.py": ("def test_total(",),
    f"{ORDERS}/models.py": ("    priority: Mapped[int | None]", "def rush("),
    f"{ORDERS}/messages.py": ("    priority: int | None",),
    f"{ORDERS}/handlers.py": ("\n    session: AsyncSession,\n    bus: Bus,\n)",),
    f"{ORDERS}/listeners.py": (_NOTED.format("event.payment_id"),),
    f"{ORDERS}/tests/test_listeners.py": (_NOTED.format("SOME_ID"),),
    f"{ORDERS}/tests/test_priority.py": ("def test_rush(",),
    "src/shop/settings.py": ("    gzip_bytes: int = 500",),
    ".env.example": ("# GZIP_BYTES=500",),
    "src/shop/app.py": (_GZIP, "import GZipMiddleware"),
    "tests/test_gzip.py": ("def test_large_answer_is_compressed(",),
    "pyproject.toml": ('"anyio>=4"', "[tool.coverage.run]"),
    "README.md": ("## Our rules\n\nBe kind.",),
    ".gitignore": ("*.csv",),
}

# What the user has taken away.
REMOVED: dict[str, str] = {
    f"{PAYMENTS}/messages.py": "class PaymentView",
    f"{PAYMENTS}/handlers.py": "create_payment",
}


def assert_edits_are_there(shop: Path) -> None:
    for name, texts in WRITTEN.items():
        content = (shop / name).read_text()
        for text in texts:
            assert text in content, f"{text!r} in {name}"
    for name, text in REMOVED.items():
        assert text not in (shop / name).read_text(), f"{text!r} in {name}"
    for deleted in DELETED:
        assert not (shop / deleted).exists()


def solved(one: Conflict) -> str:
    """As a person would: with what the template has, and what was written here."""
    if one.file == f"{ORDERS}/tests/test_listeners.py":
        return one.theirs.replace("CreateOrder(payment_id=SOME_ID)", _NOTED.format("SOME_ID"))
    if one.file in _SOLUTIONS:
        return _SOLUTIONS[one.file].format(theirs=one.theirs, ours=one.ours)
    lines = one.ours.splitlines(keepends=True)
    return one.theirs + "".join(
        line for line in lines if any(text.strip() in line for text in WRITTEN[one.file])
    )


# Where both have added something at one place, and where only its form was another.
_SOLUTIONS = {
    f"{PAYMENTS}/messages.py": "{theirs}\n\n{ours}",
    f"{PAYMENTS}/router.py": "{theirs}\n\n{ours}",
    f"{PAYMENTS}/handlers.py": "{theirs}\n\n@handle\n{ours}",
    f"{ORDERS}/handlers.py": "{theirs}",
}
