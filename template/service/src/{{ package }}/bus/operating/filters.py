"""Which deliveries are meant: `state=dead listener=orders.start_order error~Timeout since=1h`."""

import datetime as dt
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from .. import tables
from ..errors import OperationError

# What a replay can choose by: it makes deliveries, so that there is nothing else to look at.
OF_EVENTS = ("event", "key", "correlation", "id", "since", "until")
# What is scheduled is not recorded yet.
OF_SCHEDULED = ("event", "key", "correlation", "id")

_TERM = re.compile(r'(?P<field>[^\s=~"]*)(?P<operator>[=~]?)(?P<value>"(?:[^"\\]|\\.)*"|\S*)')
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EVENT_TEXTS = {"event": "name", "key": "key", "correlation": "correlation_id"}
_TEXTS: dict[str, tuple[sa.Column[Any], ...]] = {
    "error": (tables.delivery.c.error_type, tables.delivery.c.error_message),
    "frame": (tables.delivery.c.error_frame,),
}

Condition = sa.ColumnElement[bool]


@dataclass(frozen=True, slots=True)
class Term:
    """One condition of a filter: any of the values will do.

    at is where it stands in the text, written how its values do.
    """

    field: str
    operator: str
    values: tuple[Any, ...]
    at: int
    written: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that all have to hold; none: everything is meant."""

    text: str
    terms: tuple[Term, ...]

    def conditions(
        self, listeners: Mapping[str, int], event: sa.FromClause = tables.event
    ) -> list[Condition]:
        """The filter as SQL about bus_delivery, joined to bus_event, or to another table of events.

        listeners gives the subscription's id by each name of a listener, old ones too. Raises
        OperationError if one is named that is not there.
        """
        return [self._condition(term, listeners, event) for term in self.terms]

    def only(self, fields: Collection[str]) -> "Filter":
        """The same filter. Raises OperationError if it has another field than these."""
        for term in self.terms:
            if term.field not in fields:
                problem = f"{term.field} cannot be used here, only {', '.join(fields)}."
                raise _refusal(self.text, term.at, problem)
        return self

    def value(self, field: str) -> Any:
        """The last value given for a field; None if there is none."""
        return next((one.values[-1] for one in reversed(self.terms) if one.field == field), None)

    def exact(self, field: str) -> list[str]:
        """All values given for a text, but parts of it."""
        terms = (one for one in self.terms if (one.field, one.operator) == (field, "="))
        return [value for one in terms for value in one.values]

    def _condition(
        self, term: Term, listeners: Mapping[str, int], event: sa.FromClause
    ) -> Condition:
        delivery = tables.delivery
        match term.field:
            case "state":
                return tables.is_in(*term.values)
            case "listener":
                return delivery.c.subscription_id.in_(self._subscriptions(term, listeners))
            case "delivery":
                return delivery.c.id.in_(term.values)
            case "run":
                return delivery.c.run.in_(term.values)
            case "id":
                return sa.and_(event.c.id.in_(term.values))
            case "since":
                return sa.and_(event.c.recorded_at >= term.values[0])
            case "until":
                return sa.and_(event.c.recorded_at < term.values[0])
        columns = _TEXTS.get(term.field) or (event.c[_EVENT_TEXTS[term.field]],)
        if term.operator == "=":
            return sa.and_(columns[0].in_(term.values))
        [part] = term.values
        return sa.or_(*(sa.func.lower(c).contains(part.lower(), autoescape=True) for c in columns))

    def _subscriptions(self, term: Term, listeners: Mapping[str, int]) -> list[int]:
        if term.operator == "~":
            [part] = term.values
            return sorted({n for name, n in listeners.items() if part.lower() in name.lower()})
        if unknown := [one for one in term.values if one not in listeners]:
            raise _refusal(self.text, term.at, unknown_listener(unknown[0], listeners))
        return [listeners[one] for one in term.values]


def parse(text: str, now: dt.datetime) -> Filter:
    """Read a filter: terms with spaces in between, such as `state=dead since=1h`.

    `field=value` is exact, `field=a,b` either of them, `field~part` a part of a text in any case;
    what has spaces or commas stands in double quotes. since and until take a duration back from now
    (`90s`, `10m`, `1h`, `7d`) or a time (`2026-01-31T08:00`, in UTC if it does not say).
    Raises OperationError with the place of the mistake and what is known there; conditions of which
    one excludes the other are a mistake.
    """
    terms = tuple(_terms(text, now))
    for one, other in combinations(terms, 2):
        if problem := _exclusion(one, other):
            raise _refusal(text, other.at, problem)
    return Filter(text, terms)


def duration(text: str) -> dt.timedelta:
    """A time span such as 90s, 10m, 1.5h, 7d or 2w. Raises OperationError."""
    try:
        if found := _DURATION.fullmatch(text):
            return dt.timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        pass
    raise OperationError(f"expected a time span such as 90s, 10m, 1h, 7d or 2w, got {text!r}")


def quoted(text: str) -> str:
    """A text as one value of a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def unknown_listener(name: str, known: Collection[str]) -> str:
    """Says that there is no such listener, and which ones there are."""
    close = get_close_matches(name, known)
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known: {', '.join(sorted(known))}."
    return f"no listener {name!r} has a subscription in this database. {hint}"


def unknown_event(name: str, known: Collection[str]) -> str:
    """Says that there is no such event, and which one may be meant."""
    close = get_close_matches(name, known)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    return f"neither this code nor a subscription knows an event {name!r}.{hint}"


def _exclusion(one: Term, other: Term) -> str:
    """Why no delivery fulfils both conditions, and what to write instead; '' if one may."""
    fields = {one.field, other.field}
    if fields == {"since", "until"}:
        since, until = (one, other) if one.field == "since" else (other, one)
        if since.values[0] < until.values[0]:
            return ""
        told = "since has to be before until."
        if since.values == until.values:
            return told
        return f"{told} To turn them around, write since={until.written} until={since.written}."
    is_exact = one.operator == other.operator == "="
    # A listener may have two names.
    if len(fields) > 1 or not is_exact or fields & {"since", "until", "listener"}:
        return ""
    if not set(one.values).isdisjoint(other.values):
        return ""
    told = f"nothing has two values as {one.field}."
    # In quotes a comma is one.
    if '"' in one.written + other.written:
        return told
    return f"{told} For either of them, write {one.field}={one.written},{other.written}."


def _terms(text: str, now: dt.datetime) -> Iterator[Term]:
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _TERM.match(text, at)
        if found is None or found.end() == at:
            raise _refusal(text, at, "expected a field.")
        yield _term(text, at, found, now)
        at = found.end()
        if at < len(text) and not text[at].isspace():
            raise _refusal(text, at, "expected a space between two conditions.")


def _term(text: str, at: int, found: re.Match[str], now: dt.datetime) -> Term:
    field, operator, value = found["field"], found["operator"], found["value"]
    if field.endswith("!") and operator:
        problem = f"there is no !{operator}. Write what is meant, such as state=pending,dead."
        raise _refusal(text, found.end("field") - 1, problem)
    hint = ""
    if not operator and at:
        hint = ' (A value with spaces stands in double quotes: error~"no luck".)'
    if field not in _FIELDS:
        known = ", ".join(_FIELDS)
        raise _refusal(text, at, f"no field {field!r}. Fields: {known}.{hint}")
    if not operator:
        raise _refusal(text, found.end("field"), f"expected {field}=…{hint}")
    if operator == "~" and field not in _WITH_PARTS:
        known = ", ".join(_WITH_PARTS)
        raise _refusal(text, at, f"{field} is exact, {field}=…; ~ is for {known}.")
    if value in ("", '""') or (value.startswith('"') and len(value) == 1):
        raise _refusal(text, found.start("value"), f"expected a value for {field}.")
    if value.startswith('"') and not (len(value) > 1 and value.endswith('"')):
        raise _refusal(text, found.start("value"), "the quote is not closed.")
    if field in ("since", "until") and "," in value:
        raise _refusal(text, found.start("value"), f"{field} takes one time.")
    if value.startswith('"'):
        parts = [re.sub(r"\\(.)", r"\1", value[1:-1])]
    else:
        parts = [value] if operator == "~" else value.split(",")
    try:
        return Term(field, operator, tuple(_FIELDS[field](one, now) for one in parts), at, value)
    except (ValueError, OverflowError, OperationError) as error:
        raise _refusal(text, found.start("value"), f"{field}: {error}") from None


def _refusal(text: str, at: int, problem: str) -> OperationError:
    return OperationError(f"filter, position {at + 1}: {problem}\n  {text}\n  {' ' * at}^")


def _text(value: str, _: dt.datetime) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"expected a text in UTF-8, got {value!r}") from None
    return value


def _state(value: str, _: dt.datetime) -> str:
    if value not in tables.STATES:
        raise ValueError(f"no state {value!r}. States: {', '.join(tables.STATES)}.")
    return value


def _number(bits: int) -> "Callable[[str, dt.datetime], int]":
    def read(value: str, _: dt.datetime) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", value) or int(value) >= 2 ** (bits - 1):
            raise ValueError(f"expected a number, got {value!r}")
        return int(value)

    return read


def _id(value: str, _: dt.datetime) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise ValueError(f"expected the id of an event, a UUID, got {value!r}") from None


def _time(value: str, now: dt.datetime) -> dt.datetime:
    if _DURATION.fullmatch(value):
        return now - duration(value)
    try:
        time = dt.datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"expected 10m, 1h, 7d or a time such as {now:%Y-%m-%dT%H:%M}") from None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)


_FIELDS: dict[str, Callable[[str, dt.datetime], Any]] = {
    "state": _state,
    "listener": _text,
    "event": _text,
    "key": _text,
    "error": _text,
    "frame": _text,
    "correlation": _text,
    "id": _id,
    "delivery": _number(64),
    "run": _number(32),
    "since": _time,
    "until": _time,
}
_WITH_PARTS = ("listener", *_EVENT_TEXTS, *_TEXTS)
