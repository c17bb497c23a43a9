"""Texts: which every database can keep, and those of values and errors."""

import re
from typing import Any

from pydantic import BaseModel, ValidationError

# PostgreSQL stores neither NUL nor half of a surrogate pair, SQLite the first but not the second.
_NOT_STORED = re.compile("[\0\ud800-\udfff]")
_COLLECTIONS = (list, tuple, set, frozenset)


def is_storable(text: str) -> bool:
    """Whether every database can store the text."""
    return _NOT_STORED.search(text) is None


def said(value: object) -> str:
    """The repr of a value, or of what type it is if that raises."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def told(error: ValidationError) -> str:
    """What does not fit, such as settings, in one line, without what was found: a secret, maybe."""
    return "; ".join(
        f"{'.'.join([error.title, *map(str, one['loc'])])}: {one['msg']}" for one in error.errors()
    )


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
