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
        sa.Column("count", sa.Integer),
    )
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert().values(amount=Decimal("12.50"), count=3))
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
