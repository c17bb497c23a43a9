"""Events and aggregates as they are stored: JSON values by the names of the fields.

Aliases are for those outside: one that changes must not make what is stored unreadable.
"""

from math import isfinite
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from .errors import BusError
from .texts import is_storable

M = TypeVar("M", bound=BaseModel)

_SECRETS = (Secret, SecretBytes, SecretStr)


def payload_of(model: BaseModel) -> dict[str, Any]:
    """What is stored of it. Raises BusError for what some database cannot keep."""
    payload = model.model_dump(mode="json", by_alias=False)
    check_storable(payload, type(model).__name__)
    return payload


def check_storable(value: Any, place: str) -> None:
    """Raises BusError if a JSON value at that place has something that no JSON can have, or that a
    database cannot keep: it would take it now, and fail when it is to be delivered.
    """
    if isinstance(value, str):
        if not is_storable(value):
            raise BusError(
                f"{place} has a NUL character or half of a surrogate pair, which cannot be stored."
            )
    elif isinstance(value, float):
        if not isfinite(value):
            raise BusError(f"{place} is {value}, and JSON has finite numbers only.")
    elif isinstance(value, dict):
        for name, one in value.items():
            check_storable(name, f"a name in {place}")
            check_storable(one, f"{place}.{name}")
    elif isinstance(value, list):
        for one in value:
            check_storable(one, place)


def from_payload(cls: type[M], payload: Any) -> M:
    """The object that was stored so. Raises pydantic's ValidationError if it does not fit."""
    return cls.model_validate(payload, by_alias=False, by_name=True)


def secret_in(cls: type[BaseModel]) -> str | None:
    """The name of a field that would be stored as asterisks; None if there is none."""
    fields = cls.model_fields.items()
    return next((name for name, one in fields if _is_secret(one.annotation)), None)


def _is_secret(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if isinstance(kind, type) and issubclass(kind, _SECRETS):
        return True
    return any(map(_is_secret, get_args(annotation)))
