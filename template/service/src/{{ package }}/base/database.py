"""What tables are made of: the base of all entities, and column types that lose nothing."""

import datetime as dt
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar
from uuid import UUID

import sqlalchemy as sa
from annotated_types import GroupedMetadata
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from uuid_utils.compat import uuid7

from ..bus.clock import utc_now
from ..bus.exact import Exact
from ..bus.recording import Recorder
from ..bus.types import Utc
from .errors import expect_version

__all__ = ["Base", "BigInt", "Digits", "Entity", "Exact", "IsoDate", "Utc", "UtcDatetime"]

# In a message: a number that a column of type BigInteger can hold.
BigInt = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _iso_8601(value: Any) -> Any:
    """Refuse seconds since 1970, which pydantic would take, as text too."""
    if isinstance(value, dt.datetime) or (isinstance(value, str) and value[4:5] == "-"):
        return value
    raise ValueError("expected a date and a time with a zone, such as 2030-01-02T12:30:00Z")


def _in_utc(value: dt.datetime) -> dt.datetime:
    try:
        return value.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError("in UTC, the year would not be one of 1 to 9999") from None


# In a message: a point in time, which is turned into UTC, as it is when it is read again.
UtcDatetime = Annotated[AwareDatetime, BeforeValidator(_iso_8601), AfterValidator(_in_utc)]


def _is_date(value: Any) -> Any:
    """Refuse seconds since 1970 and times, which pydantic would take, as text too."""
    if type(value) is dt.date or (isinstance(value, str) and _DATE.fullmatch(value)):
        return value
    raise ValueError("expected a date, such as 2030-01-02")


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

# In a message: a day of the calendar, as the API's document says that it is written.
IsoDate = Annotated[dt.date, BeforeValidator(_is_date)]

_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables of all slices; each slice's begin with the slice's name."""

    metadata = sa.MetaData(naming_convention=_NAMES)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dt.datetime: Utc(),
        # As texts: a type of PostgreSQL's own would belong to the whole database, not to a slice,
        # and would have to be changed for each new member.
        enum.Enum: sa.Enum(enum.Enum, native_enum=False, length=50),
    }


class Entity(MappedAsDataclass, Recorder, Base, kw_only=True, eq=False):
    """A row with an identity. It knows its id and time as soon as it is made, before any flush.

    version counts its changes: of two that change the same version, the second fails with
    StaleDataError, which HTTP answers with 409.
    """

    __abstract__ = True

    id: Mapped[UUID] = mapped_column(primary_key=True, default_factory=uuid7, init=False)
    version: Mapped[int] = mapped_column(default=1, init=False)
    created_at: Mapped[dt.datetime] = mapped_column(default_factory=utc_now, init=False)

    @sa.orm.declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:  # noqa: N805
        return {"version_id_col": cls.__table__.c.version}

    def expect_version(self, version: int) -> None:
        """Raises Conflict if this is no longer the version that the caller has seen."""
        expect_version(self.version, version)


# So many digits of what was written as a float are sure to be there still.
_DIGITS_OF_FLOAT = 15


@dataclass(frozen=True)
class Digits(GroupedMetadata):
    """`Annotated[Decimal, Digits(12, 2)]` in a message refuses what `Exact(12, 2)` would.

    The number gets all its digits behind the point, as it will have when it is read again.
    """

    precision: int
    scale: int

    def __iter__(self) -> Iterator[Any]:
        yield Field(
            max_digits=self.precision, decimal_places=self.scale, json_schema_extra=self.document
        )
        yield BeforeValidator(self.exact)
        yield AfterValidator(self._with_all_places)

    def document(self, schema: dict[str, Any]) -> None:
        """Put into the JSON schema of what is taken what pydantic leaves out: how much fits."""
        whole = self.precision - self.scale
        most = 10 ** min(whole, _DIGITS_OF_FLOAT - self.scale)
        digits = rf"\d{{1,{whole}}}" if whole else "0"
        places = rf"\.\d{{1,{self.scale}}}" if self.scale else ""
        pattern = f"^-?{digits}{f'({places})?' if whole and places else places}$"
        for one in schema.get("anyOf", ()):
            if one.get("type") == "string":
                one["pattern"] = pattern
            elif one.get("type") == "number":
                one.setdefault("exclusiveMinimum", -most)
                one.setdefault("exclusiveMaximum", most)

    def exact(self, value: Any) -> Any:
        """Refuse numbers that would fit, but may have lost digits when they became floats."""
        sure, whole = _DIGITS_OF_FLOAT - self.scale, self.precision - self.scale
        if isinstance(value, float) and 10**sure <= abs(value) < 10**whole:
            raise ValueError(
                "a number with so many digits may have lost some on its way:"
                ' send it as a text, such as "9.50"'
            )
        return value

    def _with_all_places(self, value: Decimal) -> Decimal:
        return value.quantize(Decimal(1).scaleb(-self.scale)) + 0  # Without the sign of -0.
