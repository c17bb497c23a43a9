"""Money as a value: an amount and its currency, compared, added and stored together."""

import functools
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from sqlalchemy import String
from sqlalchemy.orm import MappedColumn, mapped_column

from .database import Digits, Exact
from .errors import Invalid

# ISO 4217, list one: which currencies have other than two places behind the point.
_NO_PLACES = (
    *("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"),
    *("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"),
)
_THREE_PLACES = ("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND")
_FOUR_PLACES = ("CLF", "UYW")
_PLACES = {
    **dict.fromkeys(_NO_PLACES, 0),
    **dict.fromkeys(_THREE_PLACES, 3),
    **dict.fromkeys(_FOUR_PLACES, 4),
}


_DIGITS = Digits(18, 4)


@functools.total_ordering
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Money:
    """An amount of one currency, with as many places as that has."""

    amount: Annotated[
        Decimal,
        Field(
            max_digits=18,
            decimal_places=4,
            examples=["9.50"],
            json_schema_extra=_DIGITS.document,
        ),
        BeforeValidator(_DIGITS.exact),
    ]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$", examples=["EUR"])]

    def __post_init__(self) -> None:
        """Raises ValueError for more places than the currency has."""
        exact = self.amount.quantize(_unit(self.currency), ROUND_DOWN)
        if exact != self.amount:
            raise ValueError(f"{self.amount} is no amount of {self.currency}, {exact} would be")
        # All of its places, however it was written: 9.5 is stored and answered as 9.50, -0 as 0.00.
        object.__setattr__(self, "amount", exact + 0)

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"

    def __add__(self, other: Self) -> Self:
        return self._with(self.amount + self._amount_of(other))

    def __sub__(self, other: Self) -> Self:
        return self._with(self.amount - self._amount_of(other))

    def __neg__(self) -> Self:
        return self._with(-self.amount)

    def __lt__(self, other: "Money") -> bool:
        return self.amount < self._amount_of(other)

    def times(self, factor: Decimal | int, rounding: str = ROUND_HALF_EVEN) -> Self:
        """So many times the amount, such as a quantity or a rate, rounded to the currency.

        Raises Invalid, as sums and differences do, for more than an amount can be.
        """
        return self._with(self.amount, factor, rounding)

    def split(self, parts: int) -> list[Self]:
        """Parts that are as equal as they can be, the larger ones first; their sum is the whole.

        Raises ValueError for less than one part.
        """
        if parts < 1:
            raise ValueError(f"expected at least one part, got {parts}")
        unit = _unit(self.currency)
        share, rest = divmod(int(self.amount / unit), parts)
        return [self._with(unit * (share + (n < rest))) for n in range(parts)]

    def _with(
        self, amount: Decimal, factor: Decimal | int = 1, rounding: str = ROUND_HALF_EVEN
    ) -> Self:
        """Raises Invalid for what has more digits than an amount can have."""
        try:
            exact = (amount * factor).quantize(_unit(self.currency), rounding)
            return type(self)(exact, self.currency)
        except (ArithmeticError, ValidationError) as error:
            times = f" times {factor}" if factor != 1 else ""
            raise Invalid(
                f"{amount} {self.currency}{times} does not fit: an amount has at most 14 digits"
                " before the point."
            ) from error

    def _amount_of(self, other: "Money") -> Decimal:
        """Raises Invalid for two currencies: neither their sum nor their order means anything."""
        if other.currency != self.currency:
            raise Invalid(f"{self} and {other} are of different currencies.")
        return other.amount


def money_columns(
    name: str, *, nullable: bool = False
) -> tuple[MappedColumn[Any], MappedColumn[Any]]:
    """The columns of `price: Mapped[Money] = composite(*money_columns("price"))`."""
    return (
        mapped_column(f"{name}_amount", Exact(18, 4), nullable=nullable),
        mapped_column(f"{name}_currency", String(3), nullable=nullable),
    )


def _unit(currency: str) -> Decimal:
    """The smallest amount that there is of a currency."""
    return Decimal(1).scaleb(-_PLACES.get(currency, 2))
