"""What an event promises: its fields and their types, in words that outlast a version of Python."""

import dataclasses
import types
from collections.abc import Collection, Mapping
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel

from .messages import Event

_UNIONS = (Union, types.UnionType)


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What an event promises to those who read it: fields with their types, the key, the version.

    optional are the fields that what is stored need not have, as they have a default.
    """

    version: int
    key: str
    required: Mapping[str, str]
    optional: Mapping[str, str]

    @classmethod
    def of(cls, event: type[Event]) -> Self:
        """The shape that the class has now."""
        required, optional = dict[str, str](), dict[str, str]()
        for name, one in event.model_fields.items():
            (required if one.is_required() else optional)[name] = told(one.annotation)
        return cls(event.event_version, event.event_key, required, optional)

    @property
    def fields(self) -> dict[str, str]:
        """All fields with their types."""
        return {**self.required, **self.optional}


def told(annotation: Any, within: tuple[Any, ...] = ()) -> str:
    """A type as it is stored: `str | None`, `list[{sku: str, count: int}]`.

    What is renamed but stored alike stays the same: enums are told by their values, classes with
    fields by those, and what is one of several in no order. Limits of values are left out. within
    are the classes that are being told.
    """
    args, origin = get_args(annotation), get_origin(annotation)
    if annotation in (None, types.NoneType):
        return "None"
    if isinstance(annotation, NewType):
        return told(annotation.__supertype__, within)
    if hasattr(annotation, "__value__"):  # type X = ..., as of Python 3.12
        return told(annotation.__value__, within)
    if origin is Annotated:
        return told(args[0], within)
    if origin in _UNIONS:
        # In any order: None last, as people write it.
        return " | ".join(sorted((told(one, within) for one in args), key=_none_last))
    if origin is Literal:
        return f"Literal[{', '.join(sorted(map(repr, args)))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(told(one, within) for one in args)}]"
    if isinstance(annotation, type):
        return _told_class(annotation, within)
    return "..." if annotation is Ellipsis else str(annotation).removeprefix("typing.")


def _none_last(text: str) -> tuple[bool, str]:
    return text == "None", text


def _told_class(cls: type, within: tuple[Any, ...]) -> str:
    if issubclass(cls, Enum):
        return f"Literal[{', '.join(sorted(repr(one.value) for one in cls))}]"
    if cls in within or not (fields := _fields_of(cls, (*within, cls))):
        return cls.__name__
    if issubclass(cls, tuple):  # as a list: its names are not stored
        return f"tuple[{', '.join(f'{text}{mark}' for _, text, mark in fields)}]"
    return f"{{{', '.join(f'{name}{mark}: {text}' for name, text, mark in fields)}}}"


def _fields_of(cls: type, within: tuple[Any, ...]) -> list[tuple[str, str, str]]:
    """Name, type, and `?` if it may be missing, of the fields of a class; none of a plain one."""
    types_, optional = _types_of(cls)
    return [
        (name, told(kind, within), "?" if name in optional else "") for name, kind in types_.items()
    ]


def _types_of(cls: Any) -> tuple[Mapping[str, Any], Collection[str]]:
    """The fields of a class that has some, with their types; and those that may be missing."""
    optional: Collection[str]
    if issubclass(cls, BaseModel):
        fields = cls.model_fields
        optional = [name for name, one in fields.items() if not one.is_required()]
        return {name: one.annotation for name, one in fields.items()}, optional
    if dataclasses.is_dataclass(cls):
        optional = [one.name for one in dataclasses.fields(cls) if _has_default(one)]
    elif hasattr(cls, "__optional_keys__"):  # a typed dictionary
        optional = cls.__optional_keys__
    elif hasattr(cls, "_fields"):  # a named tuple
        optional = cls._field_defaults
    else:
        return {}, ()
    return get_type_hints(cls), optional


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    none = dataclasses.MISSING
    return field.default is not none or field.default_factory is not none
