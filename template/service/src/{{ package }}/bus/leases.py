"""Leases: who has one may work on a delivery, until it runs out, and alone may complete it."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles

from . import tables
from .clock import Clock
from .due import NOW, TOLD, Delivery, is_due, is_open
from .errors import BusError
from .lanes import promote_next
from .postgresql import owner_of

_RAN_OUT = "The lease ran out before the listener had finished."


class LeaseLostError(BusError):
    """Another worker has the delivery by now; nothing of what was done for it is committed."""


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
        """This, or the commit, raises LeaseLostError if another worker may have one by now."""
        for one in self._claimed:
            if one.lane is not None:
                await promote_next(connection, one.subscription_id, one.lane)
        if self._left_to_commit(connection):
            return
        alone, fence = fence_of(self._claimed)
        given = {**fence, "now": self._clock.now()}
        if (await connection.execute(_DONE[alone], given)).rowcount != len(self._claimed):
            raise LeaseLostError(_RAN_OUT)

    def _left_to_commit(self, connection: AsyncConnection) -> bool:
        """Let it go with the commit, if that can be: PostgreSQL, and a single delivery."""
        one, owner = self._claimed[0], owner_of(connection)
        if owner is None or len(self._claimed) > 1:
            return False
        given = {"one": one.id, "held": one.token, "now": self._clock.now().isoformat()}
        owner.commit_with(_DONE_AS_TEXT.format(**given), LeaseLostError(_RAN_OUT))
        return True


def fence_of(claimed: Sequence[Delivery]) -> tuple[bool, dict[str, Any]]:
    """For MINE and _DONE: whether it is one alone, and what says which they are."""
    if len(claimed) == 1:
        return True, {"one": claimed[0].id, "held": claimed[0].token}
    ids, tokens = [one.id for one in claimed], list({one.token for one in claimed})
    return False, {"ids": ids, "tokens": tokens}


def claim_at_once(readable: sa.ColumnElement[bool], suspects: bool) -> sa.Select[Any]:
    """Lease what is due of every subscription, a single one of those on probation (PostgreSQL)."""
    subscription, delivery, event = tables.subscription, tables.delivery, tables.event
    on_probation = subscription.c.paused_reason.is_not(None)
    due = (
        sa.select(*TOLD)
        .join(event, event.c.position == delivery.c.event_position)
        .where(is_due(suspects), readable)
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.case((on_probation, 1), else_=sa.bindparam("most", type_=sa.Integer())))
        .with_for_update(skip_locked=True, of=delivery)
        .correlate(subscription)
        .lateral("due")
    )
    picked = (
        sa.select(due, subscription.c.paused_reason)
        .select_from(subscription.join(due, sa.true()))
        .where(*is_open())
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
LEASE = _lease(tables.delivery.c.id.in_(sa.bindparam("ids", expanding=True)))
# Those that still have the lease that they were claimed with; one alone is found more quickly.
MINE = {alone: _mine(alone) for alone in (True, False)}
_DONE = {
    alone: mine.values(state="done", token=None, finished_at=NOW) for alone, mine in MINE.items()
}
_DONE_AS_TEXT = (
    "UPDATE bus_delivery SET state = 'done', token = NULL, finished_at = '{now}'"
    " WHERE id = {one} AND token = '{held}' AND state = 'working'"
)
