"""Delivers stored events: each listener in a transaction of its own, with the mark that it ran."""

import asyncio
import datetime as dt
import random
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
import structlog

from . import tables
from .bus import Bus, Route
from .context import Context
from .engines import Database
from .errors import BusError
from .messages import Event
from .subscriptions import Wanted
from .unit import Resources, run_unit

log = structlog.get_logger()

_MOST_ATTEMPTS = 10
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 300.0
_POLL_SECONDS = 1.0
_BATCH = 50
# SQLite has one writer: the relay leaves every other turn to the requests.
_AT_ONCE = {"sqlite": 1, "postgresql": 8}

Delivery = sa.Row[Any]


class Relay:
    """Runs the listeners of one process until it is stopped."""

    def __init__(
        self,
        resources: Resources,
        listeners: Mapping[str, Route],
        events: Mapping[str, type[Event]],
    ) -> None:
        """listeners and events are by stored name; listeners are filled when the bus opens."""
        self._resources = resources
        self._listeners = listeners
        self._events = events
        self._names: dict[int, str] = {}
        self._readable: list[tuple[int, str, int]] = []
        self._package = __package__.rpartition(".")[0]
        self._awake = asyncio.Event()
        self._stopping = False
        self.alive = False

    def use(self, wanted: Iterable[Wanted], subscriptions: Mapping[str, int]) -> None:
        """Work for these subscriptions (id by listener) as far as their listeners run here."""
        here = [one for one in wanted if one.listener in self._listeners]
        self._names = {subscriptions[one.listener]: one.listener for one in here}
        # What only newer code can read is left to processes that have it.
        self._readable = [
            (subscriptions[one.listener], name, version)
            for one in here
            for name in one.events
            for version in range(1, self._events[name].event_version + 1)
        ]

    def wake(self) -> None:
        """Something was committed: look at once."""
        self._awake.set()

    def stop(self) -> None:
        """Take nothing new; `run` returns when what is running has finished."""
        self._stopping = True
        self._awake.set()

    async def run(self) -> None:
        """Deliver until `stop`; survives a database that is away for a while."""
        self.alive = True
        try:
            while not self._stopping:
                self._awake.clear()
                try:
                    await self.work_off()
                except Exception:
                    log.exception("relay could not reach the database, trying again")
                await self._pause()
        finally:
            self.alive = False

    async def work_off(self) -> None:
        """Deliver what is due, until nothing is."""
        at_once = asyncio.Semaphore(_AT_ONCE[self._database.dialect])
        while not self._stopping and (due := await self._due()):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._deliver(one, at_once)) for one in due]
            # What others are working on still looks pending: leave it to them.
            if not any(task.result() for task in tasks):
                return

    async def unfinished(self) -> Sequence[Delivery]:
        """The deliveries of this process's listeners that are not done, dead ones included."""
        query = self._deliveries().where(tables.delivery.c.state.in_(["pending", "dead"]))
        async with self._database.reader.connect() as connection:
            return list(await connection.execute(query))

    @property
    def _database(self) -> Database:
        if self._resources.database is None:
            raise BusError("This bus was built without a database: there is nothing to deliver.")
        return self._resources.database

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._awake.wait(), _POLL_SECONDS)
        except TimeoutError:
            return

    async def _due(self) -> Sequence[Delivery]:
        if not self._readable:
            return []
        query = (
            self._deliveries()
            .where(
                tables.delivery.c.state == "pending",
                tables.delivery.c.due <= dt.datetime.now(dt.UTC),
            )
            .limit(_BATCH)
        )
        async with self._database.reader.connect() as connection:
            return list(await connection.execute(query))

    def _deliveries(self) -> sa.Select[Any]:
        delivery, event = tables.delivery, tables.event
        what = sa.tuple_(delivery.c.subscription_id, event.c.name, delivery.c.event_version)
        return _deliveries().where(
            # For the index; what says the same, and more.
            delivery.c.subscription_id.in_(self._names),
            what.in_(self._readable),
        )

    async def _deliver(self, delivery: Delivery, at_once: asyncio.Semaphore) -> bool:
        """Whether it was this process that ran the listener."""
        async with at_once:
            if self._stopping:
                return False
            with structlog.contextvars.bound_contextvars(
                correlation_id=delivery.correlation_id,
                listener=self._names[delivery.subscription_id],
                event_name=delivery.name,
                event_id=str(delivery.event_id),
            ):
                try:
                    return await self._run(delivery)
                except (Exception, asyncio.CancelledError) as error:
                    # Of a listener that cancels itself, only the listener has failed.
                    if (task := asyncio.current_task()) and task.cancelling():
                        raise
                    await self._record_failure(delivery, error)
                    return True

    async def _run(self, delivery: Delivery) -> bool:
        listener = self._names[delivery.subscription_id]
        call = self._listeners[listener]
        event = self._events[delivery.name].model_validate(delivery.payload)
        context = Context.of_event(delivery.event_id, delivery.correlation_id, delivery.headers)

        async def listen(event: Any, bus: Bus) -> bool:
            # First of all: whoever else has taken or finished it meanwhile keeps it.
            if not await self._mark_done(bus, delivery):
                return False
            await call(event, bus)
            return True

        mine: bool = await run_unit(self._resources, context, listen, event, where=listener)
        if mine:
            log.info("event delivered", attempt=delivery.attempts + 1)
        return mine

    async def _mark_done(self, bus: Bus, delivery: Delivery) -> bool:
        session = bus.session
        if session is None:
            raise BusError("A delivery is part of a transaction.")
        free = (
            sa.select(tables.delivery.c.id)
            .where(*_as_it_was(delivery))
            .with_for_update(skip_locked=True)
        )
        done = (
            sa.update(tables.delivery)
            .where(tables.delivery.c.id.in_(free))
            .values(state="done", finished_at=dt.datetime.now(dt.UTC))
            .returning(tables.delivery.c.id)
        )
        return (await session.execute(done)).first() is not None

    async def _record_failure(self, delivery: Delivery, error: BaseException) -> None:
        attempts = delivery.attempts + 1
        dead = attempts >= _MOST_ATTEMPTS
        now = dt.datetime.now(dt.UTC)
        # The same fence as success has: a delivery that had committed after all is left alone.
        failed = (
            sa.update(tables.delivery)
            .where(*_as_it_was(delivery))
            .values(
                attempts=attempts,
                state="dead" if dead else "pending",
                due=now + dt.timedelta(seconds=retry_delay(attempts)),
                error_type=_storable(type(error).__qualname__)[:200],
                error_frame=own_frame(error, self._package)[:400],
                error_message=_storable("".join(traceback.format_exception(error))),
            )
        )
        async with self._database.writer.begin() as connection:
            await connection.execute(failed)
        if dead:
            log.exception("event given up, kept as a dead letter", attempt=attempts)
        else:
            log.warning("listener failed, will be tried again", attempt=attempts, error=repr(error))


def retry_delay(attempts: int) -> float:
    """Seconds until the next attempt: exponential, with jitter so that failures spread out."""
    longest = min(_FIRST_RETRY_SECONDS * 2 ** (attempts - 1), _LONGEST_RETRY_SECONDS)
    return random.uniform(longest / 2, longest)


def own_frame(error: BaseException, package: str) -> str:
    """Where in the service's own slices it failed, as 'module:function:line'; '' if nowhere."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(f"{package}.slices."):
            return f"{module}:{frame.f_code.co_name}:{line}"
    return ""


def _as_it_was(delivery: Delivery) -> tuple[sa.ColumnElement[bool], ...]:
    """Nobody has run it since it was read, with or without success."""
    return (
        tables.delivery.c.id == delivery.id,
        tables.delivery.c.state == "pending",
        tables.delivery.c.attempts == delivery.attempts,
    )


def _storable(text: str) -> str:
    """Text without what a database refuses: NUL characters and lone surrogates."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _deliveries() -> sa.Select[Any]:
    delivery, event = tables.delivery, tables.event
    return (
        sa.select(
            delivery.c.id,
            delivery.c.subscription_id,
            delivery.c.event_version,
            delivery.c.state,
            delivery.c.due,
            delivery.c.attempts,
            delivery.c.error_message,
            event.c.id.label("event_id"),
            event.c.name,
            event.c.payload,
            event.c.headers,
            event.c.correlation_id,
        )
        .join(event, event.c.position == delivery.c.event_position)
        .order_by(delivery.c.id)
    )
