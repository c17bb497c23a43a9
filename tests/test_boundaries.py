"""The checks of a generated service find what they are there for: each is broken here once."""

from pathlib import Path

import pytest
from conftest import Template
from test_services import make, run

PAYMENTS = "src/shop/slices/payments"
ORDERS = "src/shop/slices/orders"


@pytest.fixture
def shop(template: Template, tmp_path: Path) -> Path:
    return make(template, tmp_path / "shop")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def boundary_report(shop: Path) -> str:
    return run(shop, "pytest", "-q", "tests/test_boundaries.py", fails=True)


def test_import_across_slices(shop: Path) -> None:
    append(shop / ORDERS / "handlers.py", "\nfrom shop.slices.payments.models import Payment\n")
    report = boundary_report(shop)
    assert "shop.slices.orders.handlers -> shop.slices.payments.models" in report
    assert "A slice may import the contracts.py of another one, and nothing else" in report


def test_contract_that_imports_its_models(shop: Path) -> None:
    append(shop / PAYMENTS / "contracts.py", "\nfrom .models import Payment\n")
    report = boundary_report(shop)
    assert "shop.slices.payments.contracts -> shop.slices.payments.models" in report
    assert "Give the event the values that others need, not the objects." in report


def test_foreign_key_across_slices(shop: Path) -> None:
    models = shop / ORDERS / "models.py"
    text = models.read_text(encoding="utf-8")
    column = "payment_id: Mapped[UUID | None] = mapped_column("
    assert column in text
    with_key = text.replace(column, f'{column}ForeignKey("payments.id"), ')
    models.write_text(f"from sqlalchemy import ForeignKey\n{with_key}", encoding="utf-8")
    report = boundary_report(shop)
    assert "orders.payment_id refers to payments.id of another slice" in report
    assert "keep the id in a plain column" in report


def test_missing_handler(shop: Path) -> None:
    append(
        shop / PAYMENTS / "messages.py",
        "\n\nclass RefundPayment(Command[None]):\n    id: UUID\n",
    )
    report = run(shop, "shop.cli", "describe", fails=True)
    assert "messages.py:" in report
    assert "RefundPayment has no handler. Write one in" in report
    assert "Traceback" not in report
