"""Deliveries as rows: claimed under a lease, failed, given back, taken over from the dead."""

import datetime as dt
import os
import socket
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from . import tables
from .clock import Clock
from .due import BUSY, NEXT_DUE, PAUSED, Delivery, deliveries, pick
from .engines import Database, is_away
from .leases import LEASE, MINE, claim_at_once, fence_of, from_now
from .policy import Failure
from .version import service_version

# A delivery that was lost with its process so often is taken to be the cause.
_MOST_LOSSES = 3


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
        made = claim_at_once if self._database.dialect == "postgresql" else pick
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
                await connection.execute(LEASE, {**lease, "seconds": self.lease})
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
            return {row[0]: row[1] for row in await connection.execute(BUSY[suspects], given)}

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
        alone, fence = fence_of([delivery])
        failed = MINE[alone].values(
            state="dead" if dead else "pending",
            attempts=number,
            due=now + dt.timedelta(seconds=retry_in or 0),
            token=None,
            error_type=failure.type,
            error_frame=failure.frame,
            error_message=failure.message,
        )
        async with self._database.worker.begin() as connection:
            if (await connection.execute(failed, fence)).rowcount:
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
        alone, fence = fence_of(claimed)
        async with self._database.worker.begin() as connection:
            await connection.execute(MINE[alone].values(state="pending", token=None), fence)

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
        """Free what workers held that are not heard of any more; returns the rows of these.

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
            .returning(delivery.c.id, delivery.c.subscription_id, delivery.c.state)
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
                        version=service_version(),
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
            return [row[0] for row in await connection.execute(PAUSED, given)]

    async def next_due(
        self, subscriptions: Collection[int], after: dt.datetime
    ) -> dt.datetime | None:
        """When the next delivery, pause or scheduled event is due, of those due after `after`."""
        given = {"subscriptions": list(subscriptions), "after": after}
        async with self._database.worker_reader.connect() as connection:
            row = (await connection.execute(NEXT_DUE, given)).one()
        return min((due for due in row if due is not None), default=None)

    async def is_away(self) -> bool:
        """Whether the database cannot be reached."""
        try:
            async with self._database.worker_reader.connect() as connection:
                await connection.execute(sa.select(1))
        except Exception as error:
            return is_away(error)
        return False

    async def unfinished(self) -> Sequence[Delivery]:
        """The deliveries that are not done, dead ones included, as far as this worker runs them."""
        query = deliveries(tables.subscription.c.listener).where(
            tables.delivery.c.state.not_in(["done", "dropped"]), self._readable
        )
        async with self._database.worker_reader.connect() as connection:
            return list(await connection.execute(query.order_by(tables.delivery.c.id)))


def _no_later_pause(until: dt.datetime) -> sa.ColumnElement[bool]:
    row = tables.subscription
    return sa.or_(row.c.paused_until.is_(None), row.c.paused_until <= until)
