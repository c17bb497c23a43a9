"""Decimal numbers in SQL: on SQLite what is kept is not the number, and never taken for it."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from .conftest import Shop

Build = Callable[[Any], Any]


@pytest.fixture
def prices(shop: Shop) -> Iterator[tuple[sa.Table, sa.Connection]]:
    exact = shop.module("bus.exact").Exact
    table = sa.Table(
        "prices",
        sa.MetaData(),
        sa.Column("amount", exact(12, 2)),
        sa.Column("fine", exact(12, 4)),
        sa.Column("missing", exact(12, 2)),
        sa.Column("count", sa.Integer),
    )
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(
            table.insert().values(amount=Decimal("12.50"), fine=Decimal("12.50"), count=3)
        )
        yield table, connection
    engine.dispose()


RIGHT: dict[str, tuple[Build, str]] = {
    "sum": (lambda c: sa.func.sum(c.amount), "12.50"),
    "highest": (lambda c: sa.func.max(c.amount), "12.50"),
    "or nothing": (lambda c: sa.func.coalesce(c.amount, 0), "12.50"),
    "plus": (lambda c: c.amount + Decimal("0.5"), "13.00"),
    "minus itself": (lambda c: c.amount - c.amount, "0.00"),
    "negative": (lambda c: -c.amount, "-12.50"),
    "twice": (lambda c: c.amount * 2, "25.00"),
    "from the left": (lambda c: 2 * c.amount, "25.00"),
    "times a column": (lambda c: c.amount * c.count, "37.50"),
    "a column times it": (lambda c: c.count * c.amount, "37.50"),
    "sum of products": (lambda c: sa.func.sum(c.amount * c.count), "37.50"),
    "twice the sum": (lambda c: sa.func.sum(c.amount) * 2, "25.00"),
    "in a case": (lambda c: sa.case((c.amount > 12, c.amount), else_=Decimal(0)), "12.50"),
    "or a plain number": (lambda c: sa.func.coalesce(c.missing, 5), "5"),
    "or a number that is none": (lambda c: sa.func.coalesce(c.missing, c.amount), "12.50"),
    "more than a literal": (lambda c: c.amount > sa.literal(100), "0"),
    "less than a literal": (lambda c: c.amount < sa.literal(Decimal(100)), "1"),
    "in a list": (lambda c: c.amount.in_([Decimal("12.5"), 3]), "1"),
    "between": (lambda c: c.amount.between(12, 13), "1"),
    "from a literal": (lambda c: 100 - c.amount, "87.50"),
    "a subquery": (lambda c: c.amount == sa.select(sa.func.max(c.amount)).scalar_subquery(), "1"),
    "unlike nothing": (lambda c: c.amount.is_distinct_from(sa.null()), "1"),
    "as it was told": (lambda c: sa.func.abs(c.amount, type_=c.amount.type), "12.50"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_sqlite_can_do_is_right(prices: Any, name: str) -> None:
    table, connection = prices
    build, expected = RIGHT[name]
    assert connection.scalar(sa.select(build(table.c))) == Decimal(expected)


WRONG: dict[str, Build] = {
    "times a decimal": lambda c: c.amount * Decimal("1.19"),
    "times a decimal from the left": lambda c: Decimal("1.19") * c.amount,
    "times itself": lambda c: c.amount * c.amount,
    "times a float": lambda c: c.amount * sa.literal(1.5),
    "divided": lambda c: c.amount / 2,
    "divided by": lambda c: c.count / c.amount,
    "modulo": lambda c: c.amount % 2,
    "average": lambda c: sa.func.avg(c.amount),
    "rounded": lambda c: sa.func.round(c.amount, 1),
    "absolute": lambda c: sa.func.abs(c.amount) > 20,
    "more than a column": lambda c: c.amount > c.count,
    "more than what is computed": lambda c: c.amount > c.count + 100,
    "plus a column": lambda c: c.amount + c.count,
    "a column minus it": lambda c: c.count - c.amount,
    "of another scale": lambda c: c.amount == c.fine,
    "plus one of another scale": lambda c: c.amount + c.fine,
    "between columns": lambda c: c.amount.between(c.count, c.amount),
    "or a column": lambda c: sa.func.coalesce(c.missing, c.count),
    "or one of another scale": lambda c: sa.func.coalesce(c.missing, c.fine),
    "in a case with another scale": lambda c: sa.case((c.count == 3, c.fine), else_=c.amount),
    "in a subquery": lambda c: c.amount > sa.select(sa.func.count()).scalar_subquery(),
    "a text": lambda c: sa.cast(c.amount, sa.String),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_sqlite_cannot_do_is_refused(prices: Any, name: str) -> None:
    table, connection = prices
    statement = sa.select(WRONG[name](table.c))
    with pytest.raises(sa.exc.CompileError, match=r"select it, or its sum\(\), and do that"):
        connection.scalar(statement)
    statement.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]


def test_update_computes_right_or_not_at_all(prices: Any) -> None:
    table, connection = prices
    connection.execute(table.update().values(amount=table.c.amount * 2))
    assert connection.scalar(sa.select(table.c.amount)) == 25
    with pytest.raises(sa.exc.CompileError):
        connection.execute(table.update().values(amount=table.c.amount * Decimal("1.1")))


@pytest.mark.parametrize("name", ["amount", "count"])
@pytest.mark.parametrize("source", ["fine", "count", "amount"])
def test_what_is_set_is_of_one_unit(prices: Any, name: str, source: str) -> None:
    table, connection = prices
    given, column = {name: table.c[source]}, table.c[name]
    inserted = table.insert().from_select([name], sa.select(table.c[source]))
    for statement in (table.update().values(given), inserted, table.insert().values(given)):
        if name == source:
            statement.compile(dialect=connection.dialect)
            continue
        with pytest.raises(sa.exc.CompileError, match="set with a number of another"):
            connection.execute(statement)
    assert connection.scalar(sa.select(column)) in (Decimal("12.50"), 3)


def test_plain_number_is_the_one_that_was_given(prices: Any) -> None:
    """The second statement is the first one again, as far as what was compiled is kept."""
    table, connection = prices
    for number in (0, 5, Decimal("1.25")):
        statement = sa.select(sa.func.coalesce(table.c.missing, number))
        assert connection.scalar(statement) == number
