"""What a worker does for deliveries that it has claimed: run the listener in a unit of work."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

from structlog.contextvars import bind_contextvars, clear_contextvars

from .bus import Bus, Route
from .context import Context
from .due import Delivery
from .leases import Completed
from .marks import Listens
from .messages import Event
from .unit import Completion, Resources, run_unit
from .upcasting import Readers


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener that runs here: its stored name, what it calls, and what its mark says."""

    name: str
    call: Route
    mark: Listens
    takes_list: bool = False

    def log_for(self, delivery: Delivery) -> None:
        """Whatever this task logs from now on says that it is about this delivery, and no other."""
        clear_contextvars()  # A listener may have bound something of its own.
        bind_contextvars(
            listener=self.name,
            correlation_id=delivery.correlation_id,
            event_name=delivery.name,
            event_id=str(delivery.event_id),
        )

    def log_for_all(self) -> None:
        """What it logs from now on is about the listener only."""
        clear_contextvars()
        bind_contextvars(listener=self.name)


class Work:
    """What is done for one delivery, or for a batch of them, in one unit of work.

    current is the delivery that its listener runs for; None before and after that.
    """

    def __init__(
        self,
        resources: Resources,
        listener: Listener,
        readers: Readers,
        claimed: Sequence[Delivery],
    ) -> None:
        self.current: Delivery | None = None
        self._resources = resources
        self._listener = listener
        self._readers = readers
        self._claimed = claimed

    async def run(self) -> None:
        """Run it and commit. Raises what the listener raises, TimeoutError, LeaseLostError."""
        await self.run_until(Completed(self._claimed, self._resources.clock))

    async def run_until(self, completion: Completion) -> None:
        """The same, with another end than that the deliveries are done."""
        seconds = self._listener.mark.policy.timeout
        try:
            async with asyncio.timeout(seconds) as limit:
                await run_unit(
                    self._resources,
                    self._context(self._claimed[-1]),
                    self._listen,
                    self._claimed,
                    where=self._listener.name,
                    completion=completion,
                    turn=self._turn(limit),
                )
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"{self._listener.name} took longer than {seconds} s.") from error

    def _turn(self, limit: asyncio.Timeout) -> "_Turn | None":
        database = self._resources.database
        if database is None or database.dialect != "sqlite":
            return None
        return _Turn(database.turn, limit)

    async def _listen(self, claimed: Sequence[Delivery], bus: Bus) -> None:
        self.current = None
        if self._listener.takes_list:
            await self._listener.call([self._event(one) for one in claimed], bus)
            return
        if len(claimed) == 1:
            # The whole unit is in its context.
            await self._listener.call(self._event(claimed[0]), bus)
            return
        for one in claimed:
            self.current = one
            self._listener.log_for(one)
            await bus.within(self._context(one), self._listener.call, self._event(one))
        self.current = None
        self._listener.log_for_all()

    def _event(self, delivery: Delivery) -> Event:
        return self._readers[delivery.name][delivery.event_version](json.loads(delivery.payload))

    def _context(self, delivery: Delivery) -> Context:
        return Context.of_delivery(
            delivery.event_id,
            delivery.correlation_id,
            json.loads(delivery.headers),
            delivery=delivery.id,
            replayed=delivery.run > 0,
        )


class _Turn:
    """A delivery's turn at the only writer of SQLite: to wait for others takes none of its time."""

    def __init__(self, lock: asyncio.Lock, limit: asyncio.Timeout) -> None:
        self._lock = lock
        self._limit = limit

    async def acquire(self) -> None:
        loop, until = asyncio.get_running_loop(), self._limit.when()
        if until is None or self._limit.expired():
            await self._lock.acquire()
            return
        left = until - loop.time()
        self._limit.reschedule(None)
        await self._lock.acquire()
        self._limit.reschedule(loop.time() + left)

    def release(self) -> None:
        self._lock.release()
