"""Deliveries as rows: claimed under a lease, completed, failed, given back."""

import datetime as dt
import os
import socket
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from uuid_utils.compat import uuid7

from . import tables
from .clock import Clock
from .engines import Database
from .errors import BusError
from .lanes import promote_next
from .policy import Failure

Delivery = sa.Row[Any]
"""A delivery with what its listener needs to know of the event."""

# What that is, but for what the subscription has to say.
_TOLD = (
    tables.delivery.c.id,
    tables.delivery.c.subscription_id,
    tables.delivery.c.event_version,
    tables.delivery.c.run,
    tables.delivery.c.lane,
    tables.delivery.c.state,
    tables.delivery.c.due,
    tables.delivery.c.attempts,
    tables.delivery.c.losses,
    tables.delivery.c.error_message,
    tables.event.c.id.label("event_id"),
    tables.event.c.name,
    tables.event.c.payload,
    tables.event.c.headers,
    tables.event.c.correlation_id,
)

# A delivery that was lost with its process so often runs with nothing beside it: until then it may
# well have been a neighbour of the cause, or not have begun.
ALONE_AFTER = 2
# Written out: else no plan that is made once can use the index of these.
_ALONE = sa.literal_column(str(ALONE_AFTER), sa.Integer())
# So often, and it is taken to be the cause.
_MOST_LOSSES = 3


class LeaseLostError(BusError):
    """Another worker has the delivery by now; nothing of what was done for it is committed."""


class Claims:
    """The deliveries of one worker."""

    def __init__(self, database: Database, clock: Clock, *, lease: float) -> None:
        """lease is how many seconds a worker that is not heard of keeps what it has claimed."""
        self.worker_id = uuid7()
        self.lease = lease
        self._database = database
        self._clock = clock
        self.read([])

    def read(self, readable: Sequence[tuple[int, str, int]]) -> None:
        """Claim only these: subscription, name and version of the event."""
        what = (tables.delivery.c.subscription_id, tables.event.c.name)
        whole = sa.tuple_(*what, tables.delivery.c.event_version)
        self._readable = whole.in_(readable) if readable else sa.false()
        made = _claim if self._database.dialect == "postgresql" else _pick
        self._claims = {suspects: made(self._readable, suspects) for suspects in (False, True)}

    async def claim(
        self, subscriptions: Collection[int], each: int, *, suspects: bool = False
    ) -> list[Delivery]:
        """Lease what is due, up to `each` for every subscription, in order.

        suspects: instead, one delivery that may be what its processes died of.
        """
        if self._database.dialect == "postgresql":
            return await self._claim_at_once(subscriptions, each, suspects=suspects)
        busy = await self.busy(subscriptions, suspects=suspects)
        if not busy:
            return []
        async with self._database.worker.begin() as connection:
            token = uuid7()
            found = await self._pick(connection, busy, each, suspects=suspects, token=token)
            if found:
                lease = {"ids": [one.id for one in found], "held": token, "by": self.worker_id}
                await connection.execute(_LEASE, {**lease, "seconds": self.lease})
        return sorted(found, key=lambda one: one.id)

    async def _claim_at_once(
        self, subscriptions: Collection[int], each: int, *, suspects: bool
    ) -> list[Delivery]:
        """One statement, a transaction of its own: a listener starts that much sooner."""
        given = {
            "most": 1 if suspects else each,
            "held": uuid7(),
            "by": self.worker_id,
            "seconds": self.lease,
            "now": self._clock.now(),
        }
        # One suspect is all that may run.
        turns = [[one] for one in subscriptions] if suspects else [list(subscriptions)]
        async with self._database.autocommit.connect() as connection:
            for turn in turns:
                which = {**given, "subscriptions": turn}
                found = list(await connection.execute(self._claims[suspects], which))
                if found:
                    return sorted(found, key=lambda one: one.id)
        return []

    async def busy(
        self, subscriptions: Collection[int], *, suspects: bool = False
    ) -> dict[int, bool]:
        """Those that have something due, and whether they are on probation after a pause.

        Only read, so that on SQLite one that has nothing to do keeps no writer waiting.
        """
        given = {"subscriptions": list(subscriptions), "now": self._clock.now()}
        async with self._database.worker_reader.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(_BUSY[suspects], given)}

    async def _pick(
        self,
        connection: AsyncConnection,
        busy: dict[int, bool],
        each: int,
        *,
        suspects: bool,
        token: UUID,
    ) -> list[Delivery]:
        found = list[Delivery]()
        for subscription, on_probation in busy.items():
            most = 1 if suspects or on_probation else each
            given = {"subscription": subscription, "most": most, "held": token}
            found += await connection.execute(
                self._claims[suspects], {**given, "now": self._clock.now()}
            )
            if suspects and found:
                break
        return found

    async def fail(
        self, delivery: Delivery, failure: Failure, *, retry_in: float | None, counts: bool = True
    ) -> None:
        """Record a failure: again in so many seconds, or never (None: a dead letter).

        counts: whether it uses up an attempt. Has the same fence as success: a delivery that had
        committed after all, or is another's by now, is left alone.
        """
        number, now = delivery.attempts + int(counts), self._clock.now()
        dead = retry_in is None
        alone, which = _which([delivery])
        failed = _MINE[alone].values(
            state="dead" if dead else "pending",
            attempts=number,
            due=now + dt.timedelta(seconds=retry_in or 0),
            token=None,
            error_type=failure.type,
            error_frame=failure.frame,
            error_message=failure.message,
        )
        async with self._database.worker.begin() as connection:
            if (await connection.execute(failed, which)).rowcount:
                await connection.execute(
                    sa.insert(tables.attempt).values(
                        delivery_id=delivery.id,
                        number=number,
                        worker_id=self.worker_id,
                        failed_at=now,
                        error_type=failure.type,
                        error_frame=failure.frame,
                        error_message=failure.message,
                    )
                )

    async def give_back(self, claimed: Sequence[Delivery]) -> None:
        """Let others have these; they were not run."""
        alone, which = _which(claimed)
        async with self._database.worker.begin() as connection:
            await connection.execute(_MINE[alone].values(state="pending", token=None), which)

    async def renew(self, claimed: Sequence[int]) -> None:
        """Keep these for another while, by their ids, as far as they are still this worker's.

        Not all that it once claimed: what could not be recorded is to be freed in the end.
        """
        if not claimed:
            return
        mine = tables.delivery.c.id.in_(claimed)
        async with self._database.worker.begin() as connection:
            # One that is being completed and stands still would hold up all others.
            held = tables.unlocked(*self._held(), mine)
            await connection.execute(held.values(lease_until=from_now(self.lease)))

    def _held(self) -> tuple[sa.ColumnElement[bool], ...]:
        return tables.delivery.c.worker_id == self.worker_id, tables.is_in("working")

    async def expire(self) -> list[sa.Row[Any]]:
        """Free what workers held that are not heard of any more; returns id and state of each.

        What was lost too often is dead: the process may well have died of it.
        """
        delivery = tables.delivery
        expired = (tables.is_in("working"), delivery.c.lease_until < from_now(0))
        async with self._database.worker_reader.connect() as connection:
            if not await connection.scalar(sa.select(sa.exists().where(*expired))):
                return []
        losses = delivery.c.losses + 1
        dead = losses >= _MOST_LOSSES
        message = f"The process that ran it died, or lost its lease, {_MOST_LOSSES} times."
        freed = (
            tables.unlocked(*expired)
            .values(
                state=sa.case((dead, "dead"), else_="pending"),
                losses=losses,
                token=None,
                error_type=sa.case((dead, "ProcessDied"), else_=delivery.c.error_type),
                error_frame=sa.case((dead, ""), else_=delivery.c.error_frame),
                error_message=sa.case((dead, message), else_=delivery.c.error_message),
            )
            .returning(delivery.c.id, delivery.c.state)
        )
        async with self._database.worker.begin() as connection:
            return list(await connection.execute(freed))

    async def tell_alive(self, listeners: Sequence[str]) -> None:
        """Let operators see that this worker lives, and what it runs."""
        worker, now = tables.worker, self._clock.now()
        seen = sa.update(worker).where(worker.c.id == self.worker_id).values(seen_at=now)
        async with self._database.worker.begin() as connection:
            if not (await connection.execute(seen)).rowcount:
                await connection.execute(
                    sa.insert(worker).values(
                        id=self.worker_id,
                        host=socket.gethostname()[:200],
                        pid=os.getpid(),
                        version=_version(),
                        slices=sorted({one.partition(".")[0] for one in listeners}),
                        listeners=list(listeners),
                        started_at=now,
                        seen_at=now,
                    )
                )

    async def leave(self) -> None:
        """Give everything back, and be no worker any more."""
        async with self._database.worker.begin() as connection:
            held = sa.update(tables.delivery).where(*self._held())
            await connection.execute(held.values(state="pending", token=None))
            worker = tables.worker
            await connection.execute(sa.delete(worker).where(worker.c.id == self.worker_id))

    async def pause(self, subscription: int, seconds: float, reason: str) -> None:
        """Claim nothing more of a listener for a while, in any process; then one, on probation."""
        until = self._clock.now() + dt.timedelta(seconds=seconds)
        await self._set_pause(subscription, until, reason)

    async def end_probation(self, subscription: int) -> None:
        """A delivery of a paused listener went well: go on as ever."""
        await self._set_pause(subscription, None, None)

    async def _set_pause(
        self, subscription: int, until: dt.datetime | None, reason: str | None
    ) -> None:
        row = tables.subscription
        async with self._database.worker.begin() as connection:
            await connection.execute(
                sa.update(row)
                # A pause that a person has set meanwhile stays.
                .where(row.c.id == subscription, _no_later_pause(until or self._clock.now()))
                .values(paused_until=until, paused_reason=reason)
            )

    async def paused(self, subscriptions: Collection[int]) -> Collection[int]:
        """Those of which nothing is to start for now."""
        given = {"subscriptions": list(subscriptions), "now": self._clock.now()}
        async with self._database.worker_reader.connect() as connection:
            return [row[0] for row in await connection.execute(_PAUSED, given)]

    async def next_due(
        self, subscriptions: Collection[int], after: dt.datetime
    ) -> dt.datetime | None:
        """When the next delivery, pause or scheduled event is due, of those due after `after`."""
        given = {"subscriptions": list(subscriptions), "after": after}
        async with self._database.worker_reader.connect() as connection:
            row = (await connection.execute(_NEXT_DUE, given)).one()
        return min((due for due in row if due is not None), default=None)

    async def unfinished(self) -> Sequence[Delivery]:
        """The deliveries that are not done, dead ones included, as far as this worker runs them."""
        query = deliveries().where(
            tables.delivery.c.state.not_in(["done", "dropped"]), self._readable
        )
        async with self._database.worker_reader.connect() as connection:
            return list(await connection.execute(query.order_by(tables.delivery.c.id)))


class Completed:
    """Marks deliveries done in the transaction of what was done for them."""

    def __init__(self, claimed: Sequence[Delivery], clock: Clock) -> None:
        self._claimed = claimed
        self._clock = clock

    @property
    def lanes(self) -> set[str]:
        """The keys of ordered deliveries among them."""
        return {one.lane for one in self._claimed if one.lane is not None}

    async def __call__(self, connection: AsyncConnection) -> None:
        """Raises LeaseLostError if another worker may have one of them by now."""
        alone, which = _which(self._claimed)
        given = {**which, "now": self._clock.now()}
        if (await connection.execute(_DONE[alone], given)).rowcount != len(self._claimed):
            raise LeaseLostError("The lease ran out before the listener had finished.")
        for one in self._claimed:
            if one.lane is not None:
                await promote_next(connection, one.subscription_id, one.lane)


def deliveries(*more: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Deliveries with their events and subscriptions."""
    delivery, event, subscription = tables.delivery, tables.event, tables.subscription
    return (
        sa.select(*_TOLD, subscription.c.paused_reason, *more)
        .join(event, event.c.position == delivery.c.event_position)
        .join(subscription, subscription.c.id == delivery.c.subscription_id)
    )


def _is_due(suspects: bool) -> sa.ColumnElement[bool]:
    delivery = tables.delivery
    return sa.and_(
        delivery.c.subscription_id == tables.subscription.c.id,
        tables.is_in("pending"),
        delivery.c.due <= _NOW,
        delivery.c.losses >= _ALONE if suspects else delivery.c.losses < _ALONE,
    )


def _is_open() -> tuple[sa.ColumnElement[bool], ...]:
    """Subscriptions that are asked for, and neither retired nor paused.

    One on probation has a single delivery at a time: until that is done it is not open.
    """
    subscription, delivery = tables.subscription, tables.delivery.alias("on_probation")
    paused_until, reason = subscription.c.paused_until, subscription.c.paused_reason
    works = sa.exists().where(
        delivery.c.subscription_id == subscription.c.id, tables.is_in("working", of=delivery)
    )
    return (
        subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)),
        subscription.c.retired_at.is_(None),
        sa.or_(
            sa.and_(paused_until.is_(None), reason.is_(None)),
            sa.and_(paused_until <= _NOW, ~works.correlate(subscription)),
        ),
    )


def _paused() -> sa.Select[Any]:
    subscription = tables.subscription
    paused_until, reason = subscription.c.paused_until, subscription.c.paused_reason
    return sa.select(subscription.c.id).where(
        subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)),
        sa.or_(paused_until > _NOW, sa.and_(paused_until.is_(None), reason.is_not(None))),
    )


def _busy(suspects: bool) -> sa.Select[Any]:
    subscription = tables.subscription
    return sa.select(subscription.c.id, subscription.c.paused_reason.is_not(None)).where(
        *_is_open(), sa.exists().where(_is_due(suspects)).correlate(subscription)
    )


def _pick(readable: sa.ColumnElement[bool], suspects: bool) -> sa.Select[Any]:
    """What is due of one subscription (SQLite, where nobody else writes meanwhile)."""
    delivery = tables.delivery
    return (
        deliveries(sa.bindparam("held", type_=sa.Uuid()).label("token"))
        .where(
            _is_due(suspects),
            tables.subscription.c.id == sa.bindparam("subscription"),
            readable,
        )
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.bindparam("most", type_=sa.Integer()))
    )


def _next_due() -> sa.Select[Any]:
    subscription, delivery, scheduled = tables.subscription, tables.delivery, tables.scheduled
    after = sa.bindparam("after", type_=delivery.c.due.type)
    later = (
        sa.select(sa.func.min(delivery.c.due))
        .where(
            delivery.c.subscription_id == subscription.c.id,
            tables.is_in("pending"),
            delivery.c.due > after,
        )
        .correlate(subscription)
        .scalar_subquery()
    )
    pauses = sa.case((subscription.c.paused_until > after, subscription.c.paused_until))
    return sa.select(
        sa.func.min(later),
        sa.func.min(pauses),
        sa.select(sa.func.min(scheduled.c.due)).scalar_subquery(),
    ).where(subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)))


def _claim(readable: sa.ColumnElement[bool], suspects: bool) -> sa.Select[Any]:
    """Lease what is due of every subscription, a single one of those on probation (PostgreSQL)."""
    subscription, delivery, event = tables.subscription, tables.delivery, tables.event
    on_probation = subscription.c.paused_reason.is_not(None)
    due = (
        sa.select(*_TOLD)
        .join(event, event.c.position == delivery.c.event_position)
        .where(_is_due(suspects), readable)
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.case((on_probation, 1), else_=sa.bindparam("most", type_=sa.Integer())))
        .with_for_update(skip_locked=True, of=delivery)
        .correlate(subscription)
        .lateral("due")
    )
    picked = (
        sa.select(due, subscription.c.paused_reason)
        .select_from(subscription.join(due, sa.true()))
        .where(*_is_open())
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )
    # As an array they are looked up one by one, however many the planner expects.
    ids = sa.func.array(sa.select(picked.c.id).scalar_subquery(), type_=sa.ARRAY(sa.BigInteger))
    leased = _lease(delivery.c.id == sa.any_(ids)).cte("leased")
    # A lease that a crash of the server loses is as if it had never been claimed: no wait for the
    # disk.
    not_yet_on_disk = sa.func.set_config("synchronous_commit", "off", True)
    token = sa.bindparam("held", type_=sa.Uuid()).label("token")
    return sa.select(picked, token, not_yet_on_disk).add_cte(leased)


def _lease(*which: sa.ColumnElement[bool]) -> sa.Update:
    return (
        sa.update(tables.delivery)
        .where(*which)
        .values(
            state="working",
            token=sa.bindparam("held", type_=sa.Uuid()),
            worker_id=sa.bindparam("by", type_=sa.Uuid()),
            lease_until=from_now(sa.bindparam("seconds", type_=sa.Double())),
        )
    )


def _mine(alone: bool) -> sa.Update:
    delivery = tables.delivery
    if alone:
        fence = (delivery.c.id == sa.bindparam("one"), delivery.c.token == sa.bindparam("held"))
    else:
        fence = (
            delivery.c.id.in_(sa.bindparam("ids", expanding=True)),
            delivery.c.token.in_(sa.bindparam("tokens", expanding=True)),
        )
    return sa.update(delivery).where(*fence, tables.is_in("working"))


def _which(claimed: Sequence[Delivery]) -> tuple[bool, dict[str, Any]]:
    """For _MINE and _DONE: whether it is one alone, and what says which they are."""
    if len(claimed) == 1:
        return True, {"one": claimed[0].id, "held": claimed[0].token}
    ids, tokens = [one.id for one in claimed], list({one.token for one in claimed})
    return False, {"ids": ids, "tokens": tokens}


class from_now(sa.sql.functions.FunctionElement[dt.datetime]):  # noqa: N801
    """The database's time in so many seconds: leases do not hang on the clocks of workers."""

    type = tables.delivery.c.lease_until.type
    inherit_cache = True

    def __init__(self, seconds: float | sa.BindParameter[float]) -> None:
        if not isinstance(seconds, sa.BindParameter):
            seconds = sa.literal(float(seconds), sa.Double())
        super().__init__(seconds)


@compiles(from_now, "postgresql")
def _from_now_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f"clock_timestamp() + make_interval(secs => {compiler.process(element.clauses)})"


@compiles(from_now, "sqlite")
def _from_now_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


# Made once: they run for each delivery or claim, and to build one takes longer than to send it.
_NOW = sa.bindparam("now", type_=tables.delivery.c.due.type)
_BUSY = {suspects: _busy(suspects) for suspects in (False, True)}
_NEXT_DUE = _next_due()
_PAUSED = _paused()
# Those that still have the lease that they were claimed with; one alone is found more quickly.
_MINE = {alone: _mine(alone) for alone in (True, False)}
_DONE = {
    alone: mine.values(state="done", token=None, finished_at=_NOW) for alone, mine in _MINE.items()
}
_LEASE = _lease(tables.delivery.c.id.in_(sa.bindparam("ids", expanding=True)))


def _no_later_pause(until: dt.datetime) -> sa.ColumnElement[bool]:
    row = tables.subscription
    return sa.or_(row.c.paused_until.is_(None), row.c.paused_until <= until)


def _version() -> str:
    """The version of the service that is installed; '' if it runs from a bare folder."""
    try:
        return version(__package__.partition(".")[0].replace("_", "-"))
    except PackageNotFoundError:
        return ""
