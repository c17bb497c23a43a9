"""Decimal numbers that are exact on every database."""

import operator
from decimal import Decimal
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.functions import Function

_SCALING = (operator.mul, operator.truediv, operator.floordiv, operator.mod)
# What takes its sides for numbers of one unit.
_ALIKE = {
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.add, operator.sub, operators.is_distinct_from, operators.is_not_distinct_from),
    *(operators.between_op, operators.not_between_op, operators.in_op, operators.not_in_op),
}


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
    if element.operator in _ALIKE:
        is_between = element.operator in (operators.between_op, operators.not_between_op)
        right = cast(Any, element.right).clauses if is_between else [element.right]
        _check_alike("compared or added", element.left, *right)
    return compiler.visit_binary(element, **options)


@compiles(Function, "sqlite")
def _call(element: Function[Any], compiler: Any, **options: Any) -> Any:
    arguments: list[sa.ColumnElement[Any]] = list(element.clauses)
    if any(isinstance(one.type, Exact) for one in arguments) and not isinstance(
        element.type, Exact
    ):
        raise _refusal(f"passed to {element.name}()")
    _check_alike(f"passed to {element.name}()", *arguments)
    return compiler.visit_function(element, **options)


@compiles(sa.Cast, "sqlite")
def _cast(element: sa.Cast[Any], compiler: Any, **options: Any) -> Any:
    if isinstance(element.clause.type, Exact) and not isinstance(element.type, Exact):
        raise _refusal("cast")
    return compiler.visit_cast(element, **options)


@compiles(sa.Case, "sqlite")
def _case(element: sa.Case[Any], compiler: Any, **options: Any) -> Any:
    results = [result for _, result in element.whens]
    if element.else_ is not None:
        results.append(element.else_)
    _check_alike("a result of case() together", *results)
    return compiler.visit_case(element, **options)


@compiles(sa.Update, "sqlite")
def _update(element: sa.Update, compiler: Any, **options: Any) -> Any:
    _check_values(element)
    return compiler.visit_update(element, **options)


@compiles(sa.Insert, "sqlite")
def _insert(element: sa.Insert, compiler: Any, **options: Any) -> Any:
    _check_values(element)
    if element.select is not None and element._select_names:
        columns = (element.table.c[name] for name in element._select_names)
        for column, value in zip(columns, element.select.selected_columns, strict=False):
            _check_alike("set", column, value)
    return compiler.visit_insert(element, **options)


def _check_values(element: sa.Insert | sa.Update) -> None:
    for name, value in (element._values or {}).items():
        column = cast(Any, element.table).c.get(name) if isinstance(name, str) else name
        if column is not None and isinstance(value, sa.ColumnElement):
            _check_alike("set", column, value)


def _check_alike(what: str, *elements: Any) -> None:
    """Raises CompileError if one is a decimal number, and another of another unit.

    A plain number, which has none, gets that of the other.
    """
    exact = [one.type for one in elements if isinstance(one.type, Exact)]
    for one in elements if exact else ():
        if isinstance(one, sa.BindParameter) and isinstance(one.value, (int, Decimal)):
            one.type = exact[0]
        is_alike = isinstance(one.type, Exact) and one.type.scale == exact[0].scale
        if not is_alike and not isinstance(one.type, sa.types.NullType):
            raise _refusal(f"{what} with a number of another type or scale")


def _refusal(what: str) -> sa.exc.CompileError:
    return sa.exc.CompileError(
        f"A decimal number cannot be {what} by SQLite, which keeps 12.50 as the integer 1250:"
        " select it, or its sum(), and do that in Python."
    )
