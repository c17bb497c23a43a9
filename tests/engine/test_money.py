"""Money as a value: what it refuses, and that reckoning with it loses nothing."""

import importlib
import re
from decimal import ROUND_UP, Decimal
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from .conftest import Shop

CURRENCIES = {"EUR": 2, "JPY": 0, "KWD": 3, "CLF": 4}
quick = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def money(shop: Shop) -> Any:
    return importlib.import_module("shop.base.money").Money


@st.composite
def amounts(draw: st.DrawFn) -> tuple[Decimal, str]:
    currency, places = draw(st.sampled_from(sorted(CURRENCIES.items())))
    return Decimal(draw(st.integers(-(10**12), 10**12))).scaleb(-places), currency


@quick
@given(amounts(), st.integers(1, 50))
def test_parts_are_the_whole_and_as_equal_as_can_be(
    money: Any, amount: tuple[Decimal, str], parts: int
) -> None:
    whole = money(*amount)
    shares = whole.split(parts)
    assert sum((one.amount for one in shares), Decimal()) == whole.amount
    assert shares == sorted(shares, reverse=True)
    assert shares[0].amount - shares[-1].amount <= Decimal(1).scaleb(-CURRENCIES[whole.currency])


@quick
@given(amounts(), st.integers(-(10**12), 10**12))
def test_sums_and_differences_undo_each_other(
    money: Any, amount: tuple[Decimal, str], units: int
) -> None:
    one = money(*amount)
    other = money(Decimal(units).scaleb(-CURRENCIES[one.currency]), one.currency)
    assert (one + other) - other == one
    assert -(one - other) == other - one
    assert (one < other) == (one.amount < other.amount)
    assert hash(one) == hash(money(one.amount, one.currency))


@pytest.mark.parametrize("text", ["0", "-0", "-0.00"])
def test_zero_has_no_sign(money: Any, text: str) -> None:
    digits = importlib.import_module("shop.base.database").Digits
    number = TypeAdapter(Annotated[Decimal, digits(8, 4)]).validate_python(text)
    assert (str(money(Decimal(text), "EUR")), str(number)) == ("0.00 EUR", "0.0000")


def test_there_is_at_least_one_part(money: Any) -> None:
    with pytest.raises(ValueError, match="at least one part, got 0"):
        money(Decimal(1), "EUR").split(0)


def test_it_is_rounded_as_is_asked_for(money: Any) -> None:
    one = money(Decimal("0.05"), "EUR")
    assert one.times(Decimal("0.5")) == money(Decimal("0.02"), "EUR")
    assert one.times(Decimal("0.5"), ROUND_UP) == money(Decimal("0.03"), "EUR")
    assert one.times(3) == money(Decimal("0.15"), "EUR")


@pytest.mark.parametrize("amount", ["9.5", 9.5, "9.50", "9.500"])
def test_json_has_all_places(money: Any, amount: object) -> None:
    json = TypeAdapter(money)
    read = json.validate_python({"amount": amount, "currency": "EUR"})
    assert json.dump_python(read, mode="json") == {"amount": "9.50", "currency": "EUR"}
    assert str(read) == "9.50 EUR"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"amount": "9.555", "currency": "EUR"}, "9.555 is no amount of EUR, 9.55 would be"),
        ({"amount": "1.5", "currency": "JPY"}, "1.5 is no amount of JPY, 1 would be"),
        ({"amount": "99999999999999.99", "currency": "JPY"}, "99999999999999 would be"),
        ({"amount": 99999999999999.99, "currency": "EUR"}, "send it as a text"),
        ({"amount": "1", "currency": "eur"}, "should match pattern"),
        ({"amount": "NaN", "currency": "EUR"}, "finite"),
        ({"amount": "123456789012345", "currency": "EUR"}, "more than 14 digits"),
        ({"amount": "1"}, "currency"),
        ({"amount": "1", "currency": "EUR", "vat": "1"}, "vat"),
        ("1 EUR", "dictionary"),
    ],
)
def test_what_is_no_money_is_refused(money: Any, given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(money).validate_python(given)


@pytest.mark.parametrize(
    "reckon", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a < b, lambda a, b: a >= b]
)
def test_two_currencies_do_not_mix(money: Any, reckon: Any) -> None:
    errors = importlib.import_module("shop.base.errors")
    one, other = money(Decimal(1), "EUR"), money(Decimal(1), "USD")
    assert one != other
    with pytest.raises(errors.Invalid, match="different currencies"):
        reckon(one, other)


@pytest.mark.parametrize(
    "reckon",
    [
        lambda most: most + most,
        lambda most: -most - most,
        lambda most: most.times(2),
        lambda most: most.times(Decimal("1.0000000000000001"), ROUND_UP),
        lambda most: most.times(Decimal("1e40")),
        lambda most: most.times(Decimal("1e999999")),
    ],
)
def test_more_than_an_amount_can_be_is_refused(money: Any, reckon: Any) -> None:
    errors = importlib.import_module("shop.base.errors")
    with pytest.raises(errors.Invalid, match=r"EUR.* does not fit: .* at most 14 digits"):
        reckon(money(Decimal("99999999999999.99"), "EUR"))


TEXTS = [
    *("0", "9", "-9", "99", "100", "999", "1000", "9.9", "-9.9", "99.9", "100.1", "9.99", "0.9"),
    *("0.99", "0.999", "-0.99", "", "-", "x"),
]


@pytest.mark.parametrize("size", [(3, 1), (3, 0), (2, 2), (4, 2)])
def test_json_schema_of_digits_says_what_fits(shop: Shop, size: tuple[int, int]) -> None:
    digits = importlib.import_module("shop.base.database").Digits
    number = TypeAdapter(Annotated[Decimal, digits(*size)] | None)
    as_number, as_text, _ = number.json_schema()["anyOf"]
    end = 10 ** (size[0] - size[1])
    assert as_number == {"type": "number", "exclusiveMinimum": -end, "exclusiveMaximum": end}
    documented = [text for text in TEXTS if re.search(as_text["pattern"], text)]
    assert documented == [text for text in TEXTS if is_valid(number, text)]


@quick
@given(st.integers(0, 10**18 - 1), st.sampled_from([0, 2, 4, 16, 18]))
def test_json_number_is_what_was_written_or_refused(shop: Shop, units: int, places: int) -> None:
    digits = importlib.import_module("shop.base.database").Digits
    number = TypeAdapter(Annotated[Decimal, digits(18, places)])
    written = Decimal(units).scaleb(-places)
    as_number, _ = number.json_schema()["anyOf"]
    assert is_valid(number, float(written)) == (float(written) < as_number["exclusiveMaximum"])
    if is_valid(number, float(written)):
        assert number.validate_python(float(written)) == written
    assert number.validate_python(str(written)) == written


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (9999999999999.99, None),
        (-9999999999999.99, None),
        (99999999999999, None),
        (99999999999999.99, "send it as a text"),
        (-99999999999999.99, "send it as a text"),
        (1e17, "no more than 16 digits before the decimal point"),
        (float("inf"), "finite"),
        (float("nan"), "finite"),
    ],
)
def test_json_number_says_what_is_wrong(shop: Shop, written: float, message: str | None) -> None:
    digits = importlib.import_module("shop.base.database").Digits
    number = TypeAdapter(Annotated[Decimal, digits(18, 2)])
    if message is None:
        assert number.validate_python(written) == Decimal(str(written))
    else:
        with pytest.raises(ValidationError, match=message):
            number.validate_python(written)


def is_valid(type_: TypeAdapter[Any], value: object) -> bool:
    try:
        type_.validate_python(value)
    except ValidationError:
        return False
    return True


def test_json_schema_of_money_says_what_fits(money: Any) -> None:
    as_number, as_text = TypeAdapter(money).json_schema()["properties"]["amount"]["anyOf"]
    assert as_number["exclusiveMaximum"] == 10**11
    assert re.search(as_text["pattern"], "99999999999999.99")
    assert not re.search(as_text["pattern"], "100000000000000")
