"""Events and aggregates as they are stored: JSON values by the names of the fields.

Aliases are for those outside: one that changes must not make what is stored unreadable.
"""

from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

M = TypeVar("M", bound=BaseModel)

_SECRETS = (Secret, SecretBytes, SecretStr)


def payload_of(model: BaseModel) -> dict[str, Any]:
    """What is stored of it."""
    return model.model_dump(mode="json", by_alias=False)


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
