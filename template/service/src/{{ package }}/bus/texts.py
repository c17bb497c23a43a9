"""Texts: which every database can keep, and those of values and errors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings

# PostgreSQL stores neither NUL nor half of a surrogate pair, SQLite the first but not the second.
_NOT_STORED = re.compile("[\0\ud800-\udfff]")
_COLLECTIONS = (list, tuple, set, frozenset)
_NO_OBJECT = {"model_type", "model_attributes_type", "dataclass_type", "dict_type"}


def is_storable(text: str) -> bool:
    """Whether every database can store the text."""
    return _NOT_STORED.search(text) is None


def said(value: object) -> str:
    """The repr of a value, or of what type it is if that raises."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def told(error: ValidationError, kind: type[BaseSettings] | None = None) -> str:
    """What does not fit, such as settings, in one line, without what was found: a secret, maybe.

    kind: the settings' class, if it is known.
    """
    named = [one for one in BaseSettings.__subclasses__() if one.__name__ == error.title]
    kinds = [kind] if kind else named
    found = []
    for one in error.errors():
        place = ".".join([error.title, *map(str, one["loc"])])
        found.append(f"{place}{_variable(kinds, one['loc'])}: {message_of(one)}")
    return "; ".join(found)


def _variable(kinds: Sequence[type[BaseSettings]], location: Sequence[int | str]) -> str:
    """What a setting is called in the environment; nothing for anything else."""
    # Two slices may call theirs the same.
    if len(kinds) != 1 or not location or location[0] not in kinds[0].model_fields:
        return ""
    return f" ({kinds[0].model_config.get('env_prefix', '')}{location[0]})".upper()


def message_of(error: Mapping[str, Any]) -> str:
    """What pydantic says is wrong with a value, without the words of Python."""
    if error["type"] in _NO_OBJECT:
        return "Input should be an object"
    message: str = error["msg"]
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def check_texts(value: Any) -> None:
    """Raises ValueError if the value is, or holds, a text that not every database can store."""
    if isinstance(value, str):
        if not is_storable(value):
            raise ValueError("a text cannot have a NUL character or half of a surrogate pair")
    elif isinstance(value, _COLLECTIONS):
        for one in value:
            check_texts(one)
    elif isinstance(value, dict):
        check_texts([*value, *value.values()])
    elif isinstance(value, BaseModel):
        check_texts(vars(value))
    elif is_dataclass(value) and not isinstance(value, type):
        check_texts([getattr(value, one.name) for one in fields(value)])
