"""Idempotency keys: a command sent again under its key gets the first result, and runs no more."""

import datetime as dt
import json
import re
from collections.abc import Coroutine, Iterable, Mapping, Set
from hashlib import sha256
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import to_jsonable_python
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from .bus import Bus, Listeners, Route, RouteTable
from .clock import utc_now
from .context import Context
from .errors import BusError, IdempotencyKeyError
from .messages import Command
from .tables import idempotency as keys
from .unit import UnitOfWork

R = TypeVar("R")

# For how long a key is known, unless a setting says otherwise.
LIFETIME = dt.timedelta(hours=24)

_KEY = re.compile(r"[ -~]{1,200}")
_LONGEST_USER = 200

log = structlog.get_logger()


class KeyedBus(Bus):
    """A bus for a request that may have come with a key: what is sent on it is sent under that."""

    __slots__ = ("_key",)

    def __init__(self, routes: RouteTable, context: Context, key: str | None) -> None:
        super().__init__(routes, context)
        self._key = key

    def send(
        self,
        command: Command[R],
        *,
        idempotency_key: str | None = None,
        after: str | None = None,
        seen_by: Listeners = (),
    ) -> Coroutine[Any, Any, R]:
        """Send under the request's key, if no other is given; see Bus.send."""
        key = self._key if idempotency_key is None else idempotency_key
        return super().send(command, idempotency_key=key, after=after, seen_by=seen_by)


class Once:
    """Runs the handler of one command once for each user and key.

    name is what the command is stored as, result the type that it answers with.
    """

    def __init__(self, name: str, result: Any, lifetime: dt.timedelta) -> None:
        self._name = name
        self._result = result
        self._lifetime = lifetime
        self._adapter = _adapter(result)

    async def run(self, call: Route, key: str, command: Command[Any], bus: Bus) -> Any:
        """The stored result; without one, what call(command, bus) returns, stored before it is.

        Part of a unit of work: what is written here is committed, or not, with what call writes.
        Raises IdempotencyKeyError for a key that came before with other data, BusError for a result
        that could not be given back.
        """
        assert bus._unit is not None
        session, body_hash = bus._unit.session, fingerprint(command)
        row = {"user_id": _user_id(bus.context), "command": self._name, "key": key}
        if not await self._claim(session, {**row, "body_hash": body_hash}):
            first = await _stored(session, row)
            if first.body_hash != body_hash:
                raise IdempotencyKeyError(
                    "The idempotency key was used before, with different data: repeat a request"
                    " unchanged, or give a new one a new key."
                )
            # One without a result is this unit's own: a guard that awaits Proceed a second time.
            if first.is_done:
                log.info("first result given again", command=self._name)
                bus._unit.first_token = first.event_token
                return self._decoded(json.dumps(first.result))
        result = await call(command, bus)
        await session.execute(_of(sa.update(keys), row).values(result=self._encoded(result)))
        bus._unit.complete_with(_Token(bus._unit, row))
        return result

    async def _claim(self, session: AsyncSession, row: dict[str, Any]) -> bool:
        """Whether the key is new or has expired, and is this unit's now.

        Waits for the unit that has inserted it, if that one has not committed yet.
        """
        now = utc_now()
        values = {**row, "created_at": now, "expires_at": now + self._lifetime}
        dialect = session.get_bind().dialect.name
        insert = (postgresql if dialect == "postgresql" else sqlite).insert(keys).values(values)
        claim = insert.on_conflict_do_update(
            index_elements=list(keys.primary_key),
            set_={**values, "result": sa.null(), "event_token": ""},
            where=keys.c.expires_at <= now,
        ).returning(sa.literal(1))
        return await session.scalar(claim) is not None

    def _encoded(self, result: Any) -> Any:
        adapter = self.storable()
        try:
            text = adapter.dump_json(result, round_trip=True, by_alias=False, warnings=False)
            # What cannot be read again is refused now, not when somebody needs it.
            self._decoded(text)
        except ValueError as error:
            raise self._not_storable() from error
        return json.loads(text)

    def _decoded(self, text: str | bytes) -> Any:
        return self.storable().validate_json(text, by_alias=False, by_name=True)

    def storable(self) -> TypeAdapter[Any]:
        """Reads and writes results; raises BusError if those of this type have no form in JSON."""
        if self._adapter is None:
            raise self._not_storable()
        return self._adapter

    def _not_storable(self) -> BusError:
        return BusError(
            f"{self._name} was sent with an idempotency key, but its result ({self._result}) cannot"
            " be written as JSON and read again, so that no retry could get it: answer with a View"
            " or plain values, or send it without a key."
        )


class _Token:
    """Keeps the token of what a unit has published beside the first result."""

    lanes = ()

    def __init__(self, unit: UnitOfWork, row: Mapping[str, Any]) -> None:
        self._unit = unit
        self._row = row

    async def __call__(self, connection: AsyncConnection) -> None:
        if token := self._unit.token:
            await connection.execute(_of(sa.update(keys), self._row).values(event_token=token))


def check_key(key: str) -> None:
    """Raises IdempotencyKeyError if this is no key: 1 to 200 printable ASCII characters."""
    if not _KEY.fullmatch(key):
        raise IdempotencyKeyError(
            "An idempotency key is 1 to 200 printable ASCII characters, such as a UUID; this one"
            f" has {len(key)} characters"
            + (", some of which are no such ones." if 0 < len(key) <= 200 else ".")
        )


def fingerprint(command: Command[Any]) -> str:
    """A SHA-256 in hex of what the command says.

    The same whatever the order of keys and sets, and when a later version of the code has more
    optional fields.
    """
    return sha256(json.dumps(_plain(dict(_given(command)))).encode()).hexdigest()


async def remove_expired(connection: AsyncConnection, now: dt.datetime, limit: int) -> int:
    """Remove up to `limit` keys that have expired by `now`, the oldest first; returns how many.

    The caller commits. Keys that a command is about to use again are left alone.
    """
    oldest = (
        sa.select(*keys.primary_key)
        .where(keys.c.expires_at <= now)
        .order_by(keys.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    removed = sa.delete(keys).where(sa.tuple_(*keys.primary_key).in_(oldest))
    return (await connection.execute(removed)).rowcount


async def _stored(session: AsyncSession, row: Mapping[str, Any]) -> Any:
    # SQL's NULL is no result yet; a result of None is stored as JSON's null.
    is_done = keys.c.result.is_not(sa.null()).label("is_done")
    query = _of(sa.select(keys.c.body_hash, keys.c.result, keys.c.event_token, is_done), row)
    return (await session.execute(query)).one()


def _of(statement: Any, row: Mapping[str, Any]) -> Any:
    return statement.where(*(keys.c[name] == value for name, value in row.items()))


def _user_id(context: Context) -> str:
    name = context.user.id if context.user else ""
    return name if len(name) <= _LONGEST_USER else sha256(name.encode()).hexdigest()


def _adapter(result: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(result)
    except PydanticUserError:
        return None


def _plain(value: Any) -> Any:
    """The value as what JSON knows, with one form for what is equal."""
    match value:
        case BaseModel():
            return _plain({name: one for name, one in value if name in value.model_fields_set})
        case Mapping():
            return _sorted([_plain(key), _plain(item)] for key, item in value.items())
        case Set():
            return _sorted(map(_plain, value))
        case list() | tuple():
            return [_plain(item) for item in value]
        case SecretStr() | SecretBytes() | Secret():
            return _plain(value.get_secret_value())
        case _:
            return _jsonable(value)


def _jsonable(value: Any) -> Any:
    try:
        return to_jsonable_python(value)
    except UnicodeDecodeError:
        # Bytes that are no text; wrapped, so that they are not taken for one.
        return {"base64": to_jsonable_python(value, bytes_mode="base64")}


def _sorted(values: Iterable[Any]) -> list[Any]:
    return sorted(values, key=json.dumps)


def _given(model: BaseModel) -> Iterable[tuple[str, Any]]:
    """The fields that somebody has set to something else than their defaults.

    Within them a default counts: it may be what tells one kind of thing from another.
    """
    fields = type(model).model_fields
    for name, value in model:
        if name in model.model_fields_set and not (
            name in fields and value == fields[name].default
        ):
            yield name, value
