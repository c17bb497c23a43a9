"""Column types that mean the same on every database."""

import datetime as dt
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect


class Utc(sa.TypeDecorator[dt.datetime]):
    """A point in time: takes aware datetimes, gives them back in UTC.

    SQLite has no time zones, so that the plain type would give back naive ones there.
    """

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        """Raises ValueError for a datetime without a time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"expected a datetime with a time zone, got {value!r}")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        """The stored time, aware and in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


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
    smallest unit (12.50 as 1250): sums and orders are exact too. The column says NUMERIC(12, 2)
    all the same, so that migrations see when the unit changes.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self, precision: int, scale: int) -> None:
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

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
