"""Looks into .env for what reading the settings would not notice."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from dotenv import dotenv_values
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

_FILE = Path(".env")
# Of 1: DATABSE_URL and DATABASE_URL have 0.96, AUTH_ISSUER and AUTH_USER 0.8.
_SIMILAR = 0.85


class DotenvError(Exception):
    """The file .env cannot be read; says why."""


def check_dotenv() -> None:
    """Raises DotenvError if there is a file .env that is no text."""
    try:
        _values()
    except (OSError, UnicodeDecodeError) as error:
        raise DotenvError(
            f".env: expected lines NAME=VALUE in UTF-8, and it cannot be read: {error}"
        ) from None


def misspelt_names(settings: Iterable[type[BaseSettings]]) -> Mapping[str, str]:
    """The names in .env that no settings have but that are close to one which they have."""
    known = {name.upper() for kind in settings for name in _names(kind)}
    found: dict[str, str] = {}
    for name in _values():
        is_known = any(name.upper() == one or name.upper().startswith(f"{one}__") for one in known)
        close = get_close_matches(name.upper(), known, n=1, cutoff=_SIMILAR)
        if close and not is_known:
            found[name] = close[0]
    return found


def _values() -> Mapping[str, str | None]:
    return dotenv_values(_FILE, encoding="utf-8") if _FILE.is_file() else {}


def _names(kind: type[BaseSettings]) -> Iterable[str]:
    prefix = kind.model_config.get("env_prefix", "")
    for name, field in kind.model_fields.items():
        yield from _aliases(field) or [prefix + name]


def _aliases(field: FieldInfo) -> list[str]:
    match field.validation_alias:
        case str(alias):
            return [alias]
        case AliasChoices(choices=choices):
            return [one for one in choices if isinstance(one, str)]
        case _:
            return []
