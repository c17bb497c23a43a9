"""The kinds of messages: commands, queries, events, and the views that are answered."""

from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

from .texts import check_texts

R_co = TypeVar("R_co", covariant=True)


def names_of(aliases: str | tuple[str, ...]) -> tuple[str, ...]:
    """The aliases; a single one is easily written without the comma that makes a tuple of it."""
    return (aliases,) if isinstance(aliases, str) else tuple(aliases)


class Message(BaseModel):
    """An immutable data object that carries what the application must respond to.

    Its texts are such as every database can store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        """Raises ValueError for a NUL character and half of a surrogate pair."""
        check_texts(value)
        return value


class Command(Message, Generic[R_co]):
    """An intent to change state. Exactly one handler, which answers with an R: `Command[R]`."""


class Query(Command[R_co], Generic[R_co]):
    """A command that only reads: its handler gets a session that cannot write."""


class Event(BaseModel):
    """A record of something that happened: `class PaymentCreated(Event, key="payment_id")`.

    key names the field with the id of what the event is about. version counts the incompatible
    changes of its fields. aliases are names that the class had before: stored events keep the name
    that they were published under.

    Fields that are not known are ignored, so that a publisher may add one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    event_key: ClassVar[str] = ""
    event_version: ClassVar[int] = 1
    event_aliases: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(
        cls, *, key: str = "", version: int = 1, aliases: tuple[str, ...] = (), **config: Any
    ) -> None:
        super().__init_subclass__(**config)
        cls.event_key = key or cls.event_key
        cls.event_version = version
        cls.event_aliases = names_of(aliases)


class View(BaseModel):
    """What a command or a query answers with; `View.model_validate(entity)` reads attributes."""

    model_config = ConfigDict(frozen=True, from_attributes=True)
