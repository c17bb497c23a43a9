"""What events promise is written down, and whoever breaks it is told who relies on it."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from .conftest import Shop


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files below the working directory are told by their relative paths."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


PAID = """
from uuid import UUID
from shop.bus import Event

class Paid(Event, key="number"):
    number: int
    amount: str
    note: str | None = None
"""
LISTENERS = """
from shop.bus import listen
from shop.slices.payments import contracts
from shop.slices.payments.contracts import Paid as Payment

ALL = []

@listen
def start(event: Payment) -> None:
    print(event.number, event.amount)

@listen
async def total(events: list[contracts.Paid]) -> None:
    for event in events:
        first = events[0]
        print(event.amount, first.amount)

@listen(aliases=("old",))
async def match(event: Payment | contracts.Paid) -> None:
    match event:
        case Payment(amount=amount):
            ALL.append(amount)

def other(order: "Order") -> None:
    print(order.amount)
"""
TESTS = """
from shop.bus import Event
from ...payments.contracts import Paid

GIVEN = Paid(number=1, amount="1")

async def test_it(service) -> None:
    (event,) = await service.published(Paid)
    assert event.amount == Paid(**VALUES).amount
    assert GIVEN.amount
    (other,) = await service.published(Event)
    assert other.amount
"""


@pytest.fixture
def paid(shop: Shop) -> Shop:
    """Payments publishes an event, which was accepted, and orders listens to it."""
    for name in ("payments", "orders"):
        shop.write(f"slices/{name}/__init__.py", f'NAME = "{name}"\n')
    change(shop, PAID)
    shop.write("slices/orders/listeners.py", LISTENERS)
    shop.write("slices/orders/tests/__init__.py", "")
    shop.write("slices/orders/tests/test_it.py", TESTS)
    contracts(shop).accept()
    return shop


def change(shop: Shop, source: str) -> None:
    shop.forget()
    shop.write("slices/payments/contracts.py", source)


def contracts(shop: Shop) -> Any:
    return shop.module("bus.contracts").Contracts("shop")


def changes(shop: Shop) -> list[tuple[str, bool]]:
    return [(one.text, one.breaks) for one in contracts(shop).changes]


def line(shop: Shop, path: str, text: str) -> str:
    """File and line of the only line that has the text."""
    lines = (shop.slices / path).read_text().splitlines()
    [number] = [number for number, one in enumerate(lines, 1) if text in one]
    return f"{shop.slices / path}:{number}"


def test_event_that_was_never_accepted_is_new_and_passes(shop: Shop) -> None:
    shop.write("slices/payments/__init__.py", 'NAME = "payments"\n')
    shop.write("slices/payments/contracts.py", PAID)
    found = contracts(shop)
    found.check()
    assert [(one.event, one.text) for one in found.changes] == [
        ("payments.Paid", "is not accepted yet")
    ]
    assert found.changes[0].at == line(shop, "payments/contracts.py", "class Paid")


def test_what_is_accepted_is_a_file_in_the_slice(paid: Shop) -> None:
    file = paid.slices / "payments/contracts.json"
    text = file.read_text()
    assert json.loads(text) == {
        "Paid": {
            "key": "number",
            "version": 1,
            "required": {"number": "int", "amount": "str"},
            "optional": {"note": "str | None"},
        }
    }
    assert changes(paid) == []
    assert contracts(paid).accept() == []
    assert not (paid.slices / "orders/contracts.json").exists()
    change(paid, PAID.replace("number: int\n    amount: str", "amount: str\n    number: int"))
    assert contracts(paid).accept() == []
    change(paid, "")
    paid.write("slices/orders/listeners.py", "")
    assert contracts(paid).accept() == [file]
    assert not file.exists()


@pytest.mark.parametrize(
    ("old", "new", "text", "breaks"),
    [
        ("amount: str", "amount: str\n    by: str = ''", "by: str is new", False),
        ("amount: str", "amount: str = ''", "amount: str has a default now", False),
        ("note: str | None = None\n", "", "note: str | None was removed", True),
        ("amount: str", "amount: int", "amount: str became int", True),
        ("note: str | None = None", "note: str = ''", "note: str | None became str", True),
        (
            "note: str | None = None",
            "note: str | None",
            "note: str | None had a default, so that what is stored may lack it, and has none",
            True,
        ),
        (
            "amount: str",
            "amount: str\n    by: str",
            "by: str is required, and missing in what is stored: give it a default",
            True,
        ),
        ('key="number"', 'key="amount"', "had the key number, has amount", True),
    ],
)
def test_change_of_one_field(paid: Shop, old: str, new: str, text: str, breaks: bool) -> None:
    change(paid, PAID.replace(old, new))
    assert changes(paid) == [(text, breaks)]
    contracts(paid).accept()
    assert changes(paid) == []


def test_those_who_read_or_give_a_field_are_named(paid: Shop) -> None:
    change(paid, PAID.replace("amount: str", "amount: int"))
    [found] = contracts(paid).changes
    listeners, test = "orders/listeners.py", "orders/tests/test_it.py"
    assert set(found.uses) == {
        ("orders.start", line(paid, listeners, "event.number"), "reads amount"),
        ("orders.total", line(paid, listeners, "first.amount"), "reads amount"),
        ("orders.match", line(paid, listeners, "case Payment"), "reads amount"),
        ("orders.the module", line(paid, test, "GIVEN ="), "makes it of amount, number"),
        ("orders.test_it", line(paid, test, "event.amount"), "reads amount"),
        ("orders.test_it", line(paid, test, "GIVEN.amount"), "reads amount"),
    }


def test_those_who_make_it_without_a_new_field_are_named(paid: Shop) -> None:
    change(paid, f"{PAID}    by: str\n")
    [found] = contracts(paid).changes
    assert [(one[0], one[2]) for one in found.uses] == [
        ("orders.the module", "makes it of amount, number")
    ]


def test_event_that_was_removed_is_told_with_its_listeners(paid: Shop) -> None:
    change(paid, PAID.replace("Paid", "Settled").replace("amount: str", "amount: int"))
    found = contracts(paid)
    told = [(one.event, one.text) for one in found.breaking]
    assert told == [("payments.Paid", "was removed")]
    takes = {function for function, _, how in found.breaking[0].uses if how == "takes it"}
    assert takes == {"orders.start", "orders.total", "orders.match"}
    with pytest.raises(paid.module("bus.contracts").ContractError) as error:
        found.check()
    assert "orders.start takes it  " in str(error.value)
    assert "`shop contracts accept`, if nobody relies on it" in str(error.value)
    with pytest.raises(paid.bus.WiringError, match="has no such name"):
        found.accept()


def test_event_that_was_renamed_says_its_old_name(paid: Shop) -> None:
    renamed = PAID.replace("class Paid", "class Settled")
    change(paid, renamed)
    assert ('was removed; if it is Settled now, say so: aliases=("Paid",)', True) in changes(paid)
    change(paid, renamed.replace('key="number"', 'key="number", aliases=("Paid",)'))
    paid.write("slices/orders/listeners.py", "")
    assert changes(paid) == []


UPCAST = """
@upcast(Paid, from_version=1)
def to_cents(payload: dict[str, object]) -> dict[str, object]:
    return payload
"""


def test_higher_version_with_an_upcaster_passes(paid: Shop) -> None:
    second = PAID.replace("amount: str", "cents: int").replace('"number"', '"number", version=2')
    change(paid, second)
    told = "was version 1, from which no upcaster leads to version 2"
    assert changes(paid) == [(told, True)]
    assert contracts(paid).changes[0].uses
    change(paid, second.replace("import Event", "import Event, upcast") + UPCAST)
    told = "was version 1, is version 2, with upcasters in between"
    assert changes(paid) == [(told, False)]
    contracts(paid).accept()
    assert changes(paid) == []
    change(paid, PAID)
    assert changes(paid) == [("was version 2, is version 1", True)]


def test_private_events_are_kept_too(paid: Shop) -> None:
    paid.write("slices/payments/messages.py", PAID.replace("Paid", "Noted"))
    contracts(paid).accept()
    paid.write("slices/payments/messages.py", "")
    paid.forget()
    assert changes(paid) == [("was removed", True)]


def test_slice_that_is_broken_is_told_as_at_the_start(paid: Shop) -> None:
    paid.write("slices/payments/messages.py", "from .contracts import Refunded")
    with pytest.raises(paid.bus.WiringError, match="Refunded"):
        contracts(paid)


WRONG_VERSION = '{"Paid": {"version": "two", "key": "", "required": {}, "optional": {}}}'


@pytest.mark.parametrize("text", [*("{", "[]", '{"Paid": {}}', "<<<<<<< HEAD\n{}"), WRONG_VERSION])
def test_file_that_cannot_be_read(paid: Shop, text: str) -> None:
    file = paid.slices / "payments/contracts.json"
    file.write_text(text)
    with pytest.raises(paid.module("bus.errors").OperationError) as error:
        contracts(paid)
    assert str(error.value).startswith(f"{file}: expected what `contracts accept` writes")


TYPES = {
    "UUID": "UUID",
    "Optional[dt.datetime]": "datetime | None",
    "int | None": "int | None",
    "Annotated[Decimal, 1]": "Decimal",
    "None | str | int": "int | str | None",
    "Literal['b', 'a', 1]": "Literal['a', 'b', 1]",
    "Colour": "Literal['blue', 'red']",
    "list[Colour]": "list[Literal['blue', 'red']]",
    "dict[str, tuple[int, ...]]": "dict[str, tuple[int, ...]]",
    "Sequence[Line]": "Sequence[{sku: str, count?: int, notes?: list[str], mine?: str}]",
    "Money": "{amount: Decimal, currency: str}",
    "Tree": "{children?: list[Tree]}",
    "Point": "tuple[int, int?]",
    "Options": "{depth: int, wide?: bool}",
    "Number": "int",
    "Any": "Any",
}


@pytest.mark.parametrize(("written", "told"), TYPES.items())
def test_types_are_told_as_they_are_stored(shop: Shop, written: str, told: str) -> None:
    source = f"""
        import datetime as dt
        from collections.abc import Sequence
        from dataclasses import dataclass, field
        from decimal import Decimal
        from enum import Enum
        from typing import (
            Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict
        )
        from uuid import UUID
        from shop.bus import Event, Message

        Number = NewType("Number", int)
        class Colour(Enum):
            RED = "red"
            BLUE = "blue"
        @dataclass(frozen=True)
        class Line:
            sku: str
            count: int = 1
            notes: list[str] = field(default_factory=list)
            mine: str = field(default="", init=False)
        class Money(Message):
            amount: Decimal
            currency: str
        class Tree(Message):
            children: "list[Tree]" = []
        class Point(NamedTuple):
            x: int
            y: int = 0
        class Thing(Event, key="thing"):
            thing: {written}
    """.replace("class Thing", "{}class Thing")
    options = (
        "import typing_extensions\nclass Options(typing_extensions.TypedDict):\n    depth: int\n"
        "    wide: typing_extensions.NotRequired[bool]\n"
    )
    shop.write("shapes_here.py", textwrap.dedent(source).format(options))
    shape = shop.module("bus.shapes").Shape.of(shop.module("shapes_here").Thing)
    assert shape.fields == {"thing": told}
