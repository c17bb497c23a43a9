"""Delivers stored events: claims what is due and runs each listener in a transaction of its own.

Words: what is claimed and does not run yet is ready. A subscription is hungry if it could do with
more, and dry if nothing more of it was due when it was looked at last. A suspect is a delivery
that was lost with its process twice: it runs alone. A listener on probation was paused, and gets a
single delivery, to find out whether it works again.

It claims for what is hungry and not dry. When there is nothing to claim for, it looks up once when
something is due next, and sleeps until then, until somebody wakes it, or until it is to look again
anyway. Whatever may bring work (a commit, here or elsewhere, a resumed listener) makes nothing dry
any more; what may change the time of the next makes it unknown. What is committed during a claim
may have come too late for that: a subscription is dry only if nobody has woken the relay meanwhile.
"""

import asyncio
import datetime as dt
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from .backfill import backfill, promote_stuck
from .breaker import Breaker
from .claims import Claims
from .due import Delivery
from .engines import Database, is_away
from .errors import BusError
from .leases import LeaseLostError
from .retention import Retention, keep_house
from .subscriptions import Wanted
from .texts import said
from .unit import Resources
from .upcasting import Readers
from .waking import Waker
from .work import Listener, Work

log = structlog.stdlib.get_logger(__name__)

# How often what is left of a batch runs again together, before each runs alone.
_MOST_BATCH_RERUNS = 2
# So often are leases renewed before they end.
_RENEWALS = 3
_SECONDS_BETWEEN_CLEANINGS = 60.0
# What is scheduled and cannot be stored is tried again after so long.
_PUT_OFF = dt.timedelta(minutes=1)
# In a batch: what one has added is flushed before a query of the next, and all have one time.
_MAY_BE_ANOTHERS = (SQLAlchemyError, TimeoutError)


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """How a worker works. All times are in seconds.

    at_once: listeners that run at the same time; on SQLite only one of them is in a transaction.
    lease: how long after its death a worker's deliveries are taken over. poll: how often it looks
    without being woken. grace: how long running listeners may take when the worker is to stop.
    retention: how long finished deliveries, and events, are kept.
    """

    at_once: int = 8
    lease: float = 15.0
    poll: float = 10.0
    grace: float = 20.0
    retention: Retention = field(default_factory=Retention)


class Relay:
    """Runs the listeners of one process until it is stopped."""

    def __init__(
        self,
        resources: Resources,
        listeners: Mapping[str, Listener],
        readers: Readers,
        options: RelayOptions,
    ) -> None:
        """listeners are by stored name, and filled when the bus opens."""
        self.alive = False
        # What runs deliveries; tests put something around it.
        self.work: Callable[[Resources, Listener, Readers, Sequence[Delivery]], Work] = Work
        self._random: Random | None = None
        self._resources = resources
        self._listeners = listeners
        self._readers = readers
        self._options = options
        self._here: dict[int, Listener] = {}
        self._ready: dict[int, deque[Delivery]] = defaultdict(deque)
        self._running: dict[asyncio.Task[None], list[Delivery]] = {}
        # Subscriptions of which nothing more was due when they were looked at last, and that time.
        self._dry: dict[int, dt.datetime] = {}
        self._wakes = 0
        self._suspects = False
        # When something is due next, as far as it was looked up since the last change.
        self._due: dt.datetime | None = None
        self._due_known = False
        self._awake = asyncio.Event()
        self._stopping = False
        if resources.database is not None:
            self._waker = Waker(resources.database, self.wake)
            self._claims = Claims(resources.database, resources.clock, lease=options.lease)
            self._breaker = Breaker(self._claims, resources.clock, self._give_back, self._resume)

    def use(self, wanted: Iterable[Wanted], subscriptions: Mapping[str, int]) -> None:
        """Work for these subscriptions (id by listener) as far as their listeners run here."""
        here = [one for one in wanted if one.listener in self._listeners]
        self._here = {subscriptions[one.listener]: self._listeners[one.listener] for one in here}
        # What this code cannot read is left to processes that can.
        self._claims.read(
            [
                (subscriptions[one.listener], name, version)
                for one in here
                for name in one.events
                for version in self._readers[name]
            ]
        )

    def wake(self) -> None:
        """Something may be due: look at once."""
        self._due_known = False
        self._look()

    def committed(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """Events were committed here: look at once, and let others look."""
        # What is due at once changes nothing of what is due next, which takes a query to find out.
        if any(row["due"] is not None for row in stored):
            self._due_known = False
        self._look()
        self._waker.tell()

    def _look(self) -> None:
        self._wakes += 1
        self._dry.clear()
        self._awake.set()

    def shuffle(self, seed: str) -> None:
        """From now on run one delivery at a time, any of those that are ready; for tests."""
        self._random = Random(seed)

    def stop(self) -> None:
        """Take nothing new; `run` returns when what is running has finished or was given back."""
        self._stopping = True
        self._awake.set()

    async def run(self) -> None:
        """Deliver until `stop`; survives a database that is away for a while."""
        self.alive = True
        beside = (self._waker.run(), self._keep(), self._look_after(), self._keep_house())
        helpers = [asyncio.create_task(one) for one in beside]
        try:
            while not self._stopping:
                self._awake.clear()
                try:
                    if not await self._advance():
                        await self._wait()
                except Exception as error:
                    await self._rest(error)
            await self._finish()
        finally:
            self.alive = False
            for task in [*helpers, *self._running]:
                task.cancel()
            await asyncio.gather(*helpers, *self._running, return_exceptions=True)
            with suppress(Exception):
                await self._claims.leave()
            self._waker.tell()

    async def close(self) -> None:
        """Wait until others know of all that was committed here, whether this one runs or not."""
        await self._waker.close()

    async def work_off(self) -> None:
        """Deliver what is due, until nothing is; for tests, and where no relay runs."""
        await self._fill()
        self.wake()
        self._suspects = True
        while await self._advance() or await self._move_due():
            while self._running:
                await asyncio.wait([*self._running])

    async def unfinished(self) -> Sequence[Delivery]:
        """The deliveries of this process's listeners that are not done, dead ones included."""
        return await self._claims.unfinished()

    @property
    def _database(self) -> Database:
        if self._resources.database is None:
            raise BusError("This bus was built without a database: there is nothing to deliver.")
        return self._resources.database

    async def _rest(self, error: Exception) -> None:
        """Tell what went wrong, and wait before the next try, or until the database is there again.

        However often it is woken meanwhile: others may still be able to commit.
        """
        pause, away = min(1.0, self._options.poll), is_away(error)
        if away:
            log.error("relay cannot reach the database, trying again", error=said(error))
        else:
            log.error("relay failed, trying again", exc_info=error)
        since = perf_counter()
        await asyncio.sleep(pause)
        while away and not self._stopping:
            if not await self._claims.is_away():
                log.info("relay reached the database again", after=round(perf_counter() - since, 1))
                self.wake()
                return
            await asyncio.sleep(pause)

    async def _advance(self) -> bool:
        """Take the next step; whether there may be another one to take at once."""
        if self._suspects:
            return await self._run_suspect()
        hungry, claimed = self._hungry(), 0
        for each in {self._claim_size(one) for one in hungry}:
            same = [one for one in hungry if self._claim_size(one) == each]
            wakes, now = self._wakes, self._resources.clock.now()
            found = await self._claims.claim(same, each)
            claimed += len(found)
            for delivery in found:
                self._ready[delivery.subscription_id].append(delivery)
            # What was committed during the claim may have come too late for it.
            if wakes == self._wakes:
                self._dry |= {one: now for one in same if len(self._ready[one]) < each}
        self._start()
        return bool(claimed)

    def _hungry(self) -> list[int]:
        """The subscriptions that could do with more deliveries."""
        return [
            one
            for one in self._here
            if one not in self._dry and len(self._ready[one]) * 2 <= self._claim_size(one)
        ]

    def _claim_size(self, subscription: int) -> int:
        # On SQLite, too: a claim of few would take every other turn of the only writer.
        return 4 * max(self._options.at_once, self._here[subscription].mark.batch)

    async def _wait(self) -> None:
        """Until somebody wakes it, a delivery is done, or the next is due."""
        if not self._due_known:
            self._due_known = True
            await asyncio.sleep(0)  # What was begun just now goes first.
            # What has become due since then was not seen yet.
            after = min(self._dry.values(), default=self._resources.clock.now())
            self._due = await self._claims.next_due(self._here, after)
        seconds = self._options.poll
        if self._due is not None:
            seconds = min(seconds, (self._due - self._resources.clock.now()).total_seconds())
        if seconds > 0:
            await self._sleep(seconds)
        elif not await self._move_due():
            self.wake()

    async def _move_due(self) -> bool:
        """Put scheduled events that are due into the log."""
        try:
            async with self._database.worker.begin() as connection:
                moved = await self._resources.outbox.move_due(connection)
        except Exception as error:
            if is_away(error):
                raise
            moved = await self._move_one_by_one()
        if moved:
            self._due_known = False
            self._resources.on_commit(moved)
        return bool(moved)

    async def _move_one_by_one(self) -> Sequence[Mapping[str, Any]]:
        """The same; what cannot be published is put off, so that it holds up no other."""
        outbox, moved = self._resources.outbox, list[Mapping[str, Any]]()
        async with self._database.worker_reader.connect() as connection:
            due = await outbox.due(connection)
        for one in due:
            try:
                async with self._database.worker.begin() as connection:
                    moved += await outbox.move_due(connection, only=one.position)
            except Exception as error:
                if is_away(error):
                    raise
                told = {"event_id": str(one.id), "seconds": _PUT_OFF.total_seconds()}
                log.error("scheduled event put off, it cannot be stored", exc_info=error, **told)
                async with self._database.worker.begin() as connection:
                    await outbox.put_off(connection, one.position, _PUT_OFF)
        return moved

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._awake.wait()
                return
        self._dry.clear()
        self._due_known = False

    def _start(self) -> None:
        """Run what is claimed, as far as there is room, each listener in turn."""
        at_once = 1 if self._random else self._options.at_once
        most = at_once if len(self._here) == 1 else max(1, at_once * 3 // 4)
        progress = not self._stopping
        while progress and len(self._running) < at_once:
            progress = False
            for subscription, ready in self._in_turn():
                busy = sum(one[0].subscription_id == subscription for one in self._running.values())
                if ready and busy < most and len(self._running) < at_once:
                    self._begin(_take(ready, self._here[subscription].mark.batch))
                    progress = True

    def _in_turn(self) -> Iterable[tuple[int, deque[Delivery]]]:
        """What is ready, by its subscription."""
        if self._random is None:
            return self._ready.items()
        turns = sorted(self._ready.items())
        self._random.shuffle(turns)
        for _, ready in turns:
            self._random.shuffle(ready)
        return turns

    def _begin(self, claimed: list[Delivery]) -> None:
        listener = self._here[claimed[0].subscription_id]
        task = asyncio.create_task(self._deliver(listener, claimed))
        self._running[task] = claimed
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        claimed = self._running.pop(task)
        if not task.cancelled() and (error := task.exception()):
            # Its lease runs out, and it is delivered again.
            told = {"delivery": claimed[0].id, "count": len(claimed)}
            listener = self._here[claimed[0].subscription_id].name
            cause = {"error": said(error)} if is_away(error) else {"exc_info": error}
            log.error("a delivery could not be recorded", listener=listener, **told, **cause)
        self._start()
        if self._suspects or self._hungry() or not self._running:
            self._awake.set()

    async def _run_suspect(self) -> bool:
        """Run one delivery that may be what its processes died of, with nothing beside it."""
        if self._running or any(self._ready.values()):
            return False
        found = await self._claims.claim(self._here, 1, suspects=True)
        self._suspects = bool(found)
        for one in found:
            self._begin([one])
        return True

    async def _deliver(self, listener: Listener, claimed: list[Delivery]) -> None:
        """Run the listener: for all in one transaction if it allows that, else for one by one."""
        for _ in range(1 + _MOST_BATCH_RERUNS):
            if len(claimed) == 1 or _is_stopped():
                break
            listener.log_for_all()
            work = self.work(self._resources, listener, self._readers, claimed)
            try:
                await work.run()
            except (Exception, asyncio.CancelledError) as error:
                culprit = work.current
                if _is_stopped():
                    raise
                if culprit is None or isinstance(error, _MAY_BE_ANOTHERS):
                    break
                listener.log_for(culprit)
                await self._failed(listener, culprit, error)
                claimed = [one for one in claimed if one is not culprit]
            else:
                log.info("events delivered", count=len(claimed))
                await self._succeeded(listener, claimed)
                return
        for one in claimed:
            # A commit does not let itself be cut off, but then it is enough.
            if _is_stopped():
                return
            await self._deliver_alone(listener, one)

    async def _deliver_alone(self, listener: Listener, delivery: Delivery) -> None:
        listener.log_for(delivery)
        try:
            await self.work(self._resources, listener, self._readers, [delivery]).run()
        except LeaseLostError:
            log.warning("listener rolled back: another worker has the delivery by now")
        except (Exception, asyncio.CancelledError) as error:
            if _is_stopped():
                raise
            await self._failed(listener, delivery, error)
        else:
            await self._succeeded(listener, [delivery])
            log.info("event delivered", attempt=delivery.attempts + 1)

    async def _succeeded(self, listener: Listener, claimed: Sequence[Delivery]) -> None:
        await self._breaker.works(listener, claimed[0])
        if any(one.lane for one in claimed):
            # The next of its lane may run now.
            self.wake()

    async def _failed(self, listener: Listener, delivery: Delivery, error: BaseException) -> None:
        await self._breaker.failed(listener, delivery, error)
        self._due_known = False

    async def _give_back(self, subscription: int) -> None:
        """Keep nothing of a listener that is to wait."""
        self._due_known = False
        if ready := self._ready.pop(subscription, None):
            await self._claims.give_back(ready)

    def _resume(self) -> None:
        """More of a listener may run now, here or elsewhere."""
        self.wake()
        self._waker.tell()

    async def _keep(self) -> None:
        """Keep the leases of what is claimed, whatever else takes long."""
        while True:
            try:
                held = [*self._ready.values(), *self._running.values()]
                # A connection that died without a word must not keep it longer than the lease.
                async with asyncio.timeout(self._options.lease):
                    await self._claims.renew([one.id for claimed in held for one in claimed])
                    await self._heed_pauses()
            except Exception as error:
                log.warning("leases could not be renewed, trying again", error=repr(error))
            await asyncio.sleep(self._options.lease / _RENEWALS)

    async def _heed_pauses(self) -> None:
        """Give back what was claimed of listeners that were paused since, here or elsewhere."""
        ready = [one for one, claimed in self._ready.items() if claimed]
        for one in await self._claims.paused(ready) if ready else ():
            await self._give_back(one)

    async def _look_after(self) -> None:
        """Tell that this one lives, take over what dead workers held, fill new listeners."""
        while True:
            try:
                await self._check_others()
            except Exception as error:
                log.warning("other workers could not be looked after", error=repr(error))
            try:
                await self._fill()
            except Exception as error:
                log.warning("new listeners could not be filled, trying again", error=repr(error))
            await asyncio.sleep(self._options.lease)

    async def _keep_house(self) -> None:
        while True:
            try:
                await keep_house(self._database, self._options.retention)
            except Exception as error:
                log.warning("what is old could not be removed, trying again", error=repr(error))
            await asyncio.sleep(_SECONDS_BETWEEN_CLEANINGS)

    async def _check_others(self) -> None:
        await self._claims.tell_alive([one.name for one in self._here.values()])
        freed = await self._claims.expire()
        for one in freed:
            here = self._here.get(one.subscription_id)
            log.warning(
                "a worker died during a delivery",
                delivery=one.id,
                listener=here.name if here else f"subscription {one.subscription_id}",
                now=one.state,
            )
        if freed:
            self._resume()
        if await self._claims.busy(self._here, suspects=True):
            self._suspects = True
            self._awake.set()

    async def _fill(self) -> None:
        """Bring stored events to new listeners that want them, and free lanes that are stuck."""
        now = self._resources.clock.now()
        while not self._stopping and await backfill(self._database, now):
            self.wake()
        ordered = any(one.mark.ordered for one in self._here.values())
        if ordered and await promote_stuck(self._database):
            self.wake()

    async def _finish(self) -> None:
        """Let what runs finish within the grace, and give the rest back."""
        # Beside what runs, which on SQLite may have the only writer.
        giving = asyncio.create_task(self._give_back_all())
        _, late = await asyncio.wait([*self._running, giving], timeout=self._options.grace)
        for task in late:
            task.cancel()
        if cut_off := late - {giving}:
            log.warning("listeners were cut off and given back", count=len(cut_off))
        if late:
            await asyncio.wait(late)

    async def _give_back_all(self) -> None:
        ready = [one for claimed in self._ready.values() for one in claimed]
        self._ready.clear()
        # What fails here is given back when the relay leaves, or when its leases run out.
        with suppress(Exception):
            await self._claims.give_back(ready)
        self._waker.tell()


def _is_stopped() -> bool:
    """Whether this task was cut off: a CancelledError that its listener raises is a failure."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _take(ready: deque[Delivery], batch: int) -> list[Delivery]:
    """The next delivery, with those that may share its transaction: none that ever failed."""
    taken = [ready.popleft()]
    while ready and len(taken) < batch and not (taken[-1].attempts or ready[0].attempts):
        taken.append(ready.popleft())
    return taken
