"""A service's contracts on its command line and in its tests; and stories that its tests tell."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Template, commit_all, git

PAYMENTS = "src/shop/slices/payments"
CONTRACTS = f"{PAYMENTS}/contracts.py"

STORIES = """
import datetime as dt
from decimal import Decimal
from uuid import uuid4

import pytest

from shop.base.errors import NotFound
from shop.bus import User
from shop.scenario import Scenario
from shop.slices.orders.contracts import OrderCreated
from shop.slices.payments.contracts import PaymentCreated
from shop.slices.payments.messages import CreatePayment, GetPayment

PAY = CreatePayment(amount=Decimal("1.00"), currency="EUR")


async def test_then_wants_just_these(scenario: Scenario) -> None:
    payment = await scenario.when(PAY, User("bob"))
    created = PaymentCreated(payment_id=payment.id)
    await scenario.then(OrderCreated, created)
    await scenario.then(PaymentCreated, OrderCreated)
    await scenario.then_also(created)
    await scenario.then_not()
    for wrong in [(), (created,), (created, OrderCreated, OrderCreated), (created, created)]:
        with pytest.raises(AssertionError, match="expected just"):
            await scenario.then(*wrong)
    with pytest.raises(AssertionError, match="at least\\n  PaymentC.*\\n  PaymentC.*\\ngot"):
        await scenario.then_also(PaymentCreated, PaymentCreated)
    with pytest.raises(AssertionError, match="none of\\n  OrderC.*\\ngot\\n  PaymentC"):
        await scenario.then_not(OrderCreated)


async def test_what_was_before_does_not_count(scenario: Scenario) -> None:
    await scenario.given(PAY, PaymentCreated(payment_id=uuid4()), PAY)
    await scenario.then()
    await scenario.when(PaymentCreated(payment_id=uuid4()))
    await scenario.then(OrderCreated)
    with pytest.raises(NotFound):
        await scenario.when(GetPayment(id=uuid4()))
    await scenario.then()
    await scenario.when(PAY)
    await scenario.later(dt.timedelta(hours=1))
    await scenario.then()
    assert len(await scenario.service.published(OrderCreated)) == 5
"""
FAILS = """
from uuid import uuid4

from shop.slices.payments.contracts import PaymentCreated
from shop.testing import Service


async def test_many(service: Service) -> None:
    await service.publish(*(PaymentCreated(payment_id=uuid4()) for _ in range(8)))
    raise LookupError
"""


@pytest.fixture(scope="module")
def generated(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = template.copy(tmp_path_factory.mktemp("contracts") / "shop")
    slices = shop / "src/shop/slices"
    template.copy(slices / "payments", fields="amount:decimal(12,2) currency:str")
    template.copy(slices / "orders", listens_to="payments.PaymentCreated:start_order")
    (shop / "tests/test_stories.py").write_text(STORIES)
    (shop / "tests/test_fails.py").write_text(FAILS)
    commit_all(shop)
    return shop


@pytest.fixture
def shop(generated: Path) -> Iterator[Path]:
    """The service as it was generated."""
    yield generated
    git(generated, "checkout", "--quiet", ".")
    git(generated, "clean", "--quiet", "--force")


def run(shop: Path, *command: str, code: int = 0) -> str:
    """Run a Python module in a service; what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=shop,
        env={**os.environ, "PYTHONPATH": "src", "DATABASE_URL": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def contracts(shop: Path, *command: str, code: int = 0) -> str:
    return run(shop, "shop", "contracts", *command, code=code)


def change(shop: Path, old: str, new: str, file: str = CONTRACTS) -> None:
    text = (shop / file).read_text()
    assert old in text
    (shop / file).write_text(text.replace(old, new))


def test_what_is_accepted_is_kept(shop: Path) -> None:
    told = contracts(shop, "check", "--strict", code=1)
    assert f"payments.PaymentCreated: is not accepted yet  {CONTRACTS}:8" in told
    assert contracts(shop, "check") == told
    told = contracts(shop, "accept")
    assert "Accepted payments.PaymentCreated\n" in told
    assert f"Wrote {PAYMENTS}/contracts.json.\n" in told
    assert "not accepted" not in told
    assert contracts(shop, "check", "--strict") == "Events promise what was accepted.\n"

    change(shop, "    payment_id: UUID\n", "    payment_id: str\n")
    reader = "    orders.start_order reads payment_id  src/shop/slices/orders/listeners.py:14"
    told = contracts(shop, "check", code=1)
    assert f"payments.PaymentCreated: payment_id: UUID became str  {CONTRACTS}:8" in told
    assert reader in told
    [found] = json.loads(contracts(shop, "check", "--json", code=1))
    assert found["breaks"]
    assert {"orders.start_order", "payments.create_payment"} <= {
        one["function"] for one in found["uses"]
    }
    failed = run(shop, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contracts.py", code=1)
    assert reader in failed
    assert "Accept 1 change that others may rely on?" in contracts(shop, "accept", code=1)
    told = contracts(shop, "accept", "--yes")
    assert "Accepted payments.PaymentCreated: payment_id: UUID became str\n" in told
    assert f"Wrote {PAYMENTS}/contracts.json." in told
    assert "Accepted" not in contracts(shop, "accept")


def test_update_leaves_what_was_accepted_alone(shop: Path, template: Template) -> None:
    accepted = shop / PAYMENTS / "contracts.json"
    accepted.write_text("{}\n")
    commit_all(shop)
    template.update(shop / PAYMENTS)
    assert accepted.read_text() == "{}\n"
    git(shop, "reset", "--quiet", "--hard", "HEAD~1")


def test_stories_are_compared_with_what_happened(shop: Path) -> None:
    run(
        shop, "pytest", "-q", "-p", "no:cacheprovider", "--listeners=twice", "tests/test_stories.py"
    )


def test_shuffled_order_comes_again_with_its_seed(shop: Path) -> None:
    def order(how: str) -> tuple[str, list[int]]:
        command = ("-q", "-p", "no:cacheprovider", f"--listeners={how}", "tests/test_fails.py")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *command],
            cwd=shop,
            env={**os.environ, "PYTHONPATH": "src", "DATABASE_URL": ""},
            capture_output=True,
            text=True,
        )
        _, _, told = done.stdout.partition("What happened (--listeners=")
        events = [
            line.split("{")[1] for line in told.splitlines() if line.startswith("event     p")
        ]
        delivered = [line for line in told.splitlines() if line.startswith("delivery")]
        assert len(events) == len(delivered) == 8, done.stdout
        return told.partition(")")[0], [events.index(one.split("{")[1]) for one in delivered]

    used, first = order("shuffled")
    assert used.startswith("shuffled:")
    assert order(used) == (used, first)


def test_way_to_run_listeners_that_there_is_not(shop: Path) -> None:
    told = run(shop, "pytest", "-q", "--listeners=often", code=4)
    assert "--listeners: expected twice or shuffled, got 'often'" in told
