"""Decimal numbers that are exact on every database."""

import operator
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import Function

_SCALING = (operator.mul, operator.truediv, operator.floordiv, operator.mod)


class _Unscaled(sa.types.UserDefinedType[int]):
    """An integer in a column that is declared as a decimal number."""

    cache_ok = True

    def __init__(self, precision: int, scale: int) -> None:
        self.precision = precision
        self.scale = scale

    def get_col_spec(self, **_: Any) -> str:
        return f"NUMERIC({self.precision}, {self.scale})"


class Exact(sa.TypeDecorator[Decimal]):
    """A decimal number of `precision` digits, `scale` of them behind the point; never a float.

    SQLite would go through a float, so that the number is kept there as an integer of its
    smallest unit (12.50 as 1250): sums and orders are exact too. What would take that unit for the
    number is refused there, such as avg(). The column says NUMERIC(12, 2) all the same, so that
    migrations see when the unit changes.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self, precision: int, scale: int) -> None:
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

    def coerce_compared_value(self, op: Any, value: Any) -> sa.types.TypeEngine[Any]:
        """The type of a Python value beside the column: a factor is no number of this type."""
        if op in _SCALING:
            return sa.Integer() if isinstance(value, int) else sa.Numeric()
        return self

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[Any]:
        """The type that the column has in this database."""
        if dialect.name == "sqlite":
            return _Unscaled(self.precision, self.scale)
        return dialect.type_descriptor(sa.Numeric(self.precision, self.scale))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        """Raises ValueError for a number that the column could only store cut off."""
        if value is None:
            return None
        unscaled = Decimal(value).scaleb(self.scale)
        if (
            unscaled != unscaled.to_integral_value()
            or len(str(abs(int(unscaled)))) > self.precision
        ):
            raise ValueError(
                f"{value} does not fit into {self.precision} digits, {self.scale} of them behind"
                " the point"
            )
        return int(unscaled) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """The stored number, with all digits behind the point."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return Decimal(value).scaleb(-self.scale)
        return Decimal(value)


# SQLite's forms of all operations, calls and casts: SQLAlchemy's own, but for those that would be
# wrong of a decimal. Each statement is looked at once, when it is compiled.


@compiles(sa.BinaryExpression, "sqlite")
def _operation(element: sa.BinaryExpression[Any], compiler: Any, **options: Any) -> Any:
    exact = [isinstance(side.type, Exact) for side in (element.left, element.right)]
    if element.operator in _SCALING and any(exact):
        other = element.left if exact[1] else element.right
        if element.operator is not operator.mul or not isinstance(other.type, sa.Integer):
            raise _refusal("multiplied by anything but whole numbers, or divided,")
    return compiler.visit_binary(element, **options)


@compiles(Function, "sqlite")
def _call(element: Function[Any], compiler: Any, **options: Any) -> Any:
    arguments: list[sa.ColumnElement[Any]] = list(element.clauses)
    if any(isinstance(one.type, Exact) for one in arguments) and not isinstance(
        element.type, Exact
    ):
        raise _refusal(f"passed to {element.name}()")
    return compiler.visit_function(element, **options)


@compiles(sa.Cast, "sqlite")
def _cast(element: sa.Cast[Any], compiler: Any, **options: Any) -> Any:
    if isinstance(element.clause.type, Exact) and not isinstance(element.type, Exact):
        raise _refusal("cast")
    return compiler.visit_cast(element, **options)


def _refusal(what: str) -> sa.exc.CompileError:
    return sa.exc.CompileError(
        f"A decimal number cannot be {what} by SQLite, which keeps 12.50 as the integer 1250:"
        " select it, or its sum(), and do that in Python."
    )
