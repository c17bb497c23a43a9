"""Events and aggregates as they are stored: JSON values by the names of the fields.

Aliases are for those outside: one that changes must not make what is stored unreadable.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


def payload_of(model: BaseModel) -> dict[str, Any]:
    """What is stored of it."""
    return model.model_dump(mode="json", by_alias=False)


def from_payload(cls: type[M], payload: Any) -> M:
    """The object that was stored so. Raises pydantic's ValidationError if it does not fit."""
    return cls.model_validate(payload, by_alias=False, by_name=True)
