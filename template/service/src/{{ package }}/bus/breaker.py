"""What becomes of a delivery that failed: it runs again, never, or all of its listener waits."""

import datetime as dt
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from .claims import Claims
from .clock import Clock
from .due import Delivery
from .errors import RefusedError
from .policy import Failure, GiveUp, Pause, Retry, retry_delay
from .texts import said
from .work import Listener

log = structlog.stdlib.get_logger(__name__)

# So many failures in a row pause a listener: what it calls is likely to be down.
_BREAK_AFTER = 10
# A delivery that fails again and again may be the cause itself: no more of one count.
_MOST_OF_ONE = 5
_SHORTEST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0


class Paused(NamedTuple):
    """How long a listener for which everything failed is left alone."""

    seconds: float
    until: dt.datetime


class Breaker:
    """Records failures, and keeps a listener from using up its retries while everything fails."""

    def __init__(
        self,
        claims: Claims,
        clock: Clock,
        on_pause: Callable[[int], Awaitable[None]],
        on_resume: Callable[[], None],
    ) -> None:
        """on_pause is called with the subscription of a listener that is to wait, on_resume when
        more of one may run again.
        """
        self._claims = claims
        self._clock = clock
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._package = __package__.rpartition(".")[0]
        # How often which deliveries failed since one went well, as far as that counts, by
        # subscription.
        self._streaks: dict[int, dict[int, int]] = defaultdict(dict)
        self._pauses: dict[int, Paused] = {}

    async def works(self, listener: Listener, delivery: Delivery) -> None:
        """Nothing tells against the listener: end its probation, and count its failures anew."""
        subscription = delivery.subscription_id
        self._streaks.pop(subscription, None)
        self._pauses.pop(subscription, None)
        if delivery.paused_reason is not None:
            await self._claims.end_probation(subscription)
            log.info("listener works again", listener=listener.name)
            self._on_resume()

    async def failed(self, listener: Listener, delivery: Delivery, error: BaseException) -> None:
        """Record the failure, and what follows of it by the listener's policy."""
        attempts = delivery.attempts + 1
        failure = Failure.of(error, self._package)
        told = {"listener": listener.name, "attempt": attempts, "error": said(error)}
        # The pause first: once the failure is stored, another one could begin its probation.
        match listener.mark.policy.decide(error):
            case Pause(seconds):
                await self._pause(listener, delivery, seconds, said(error))
                await self._claims.fail(delivery, failure, retry_in=seconds, counts=False)
            case Retry(retries, backoff) if attempts <= retries:
                await self._break(listener, delivery, error)
                delay = retry_delay(attempts, backoff)
                await self._claims.fail(delivery, failure, retry_in=delay)
                log.warning("listener failed, will be tried again", **told)
            case GiveUp() | Retry():
                await self._break(listener, delivery, error, is_last=True)
                await self._claims.fail(delivery, failure, retry_in=None)
                log.error("event given up, kept as a dead letter", exc_info=error, **told)

    async def _break(
        self,
        listener: Listener,
        delivery: Delivery,
        error: BaseException,
        *,
        is_last: bool = False,
    ) -> None:
        """Pause a listener for which everything fails, before all retries are used up.

        is_last: this delivery is given up.
        """
        if isinstance(error, RefusedError):
            await self.works(listener, delivery)
            return
        subscription, now = delivery.subscription_id, self._clock.now()
        last = self._pauses.get(subscription)
        if delivery.paused_reason is None:
            if last and now < last.until:
                if await self._claims.paused([subscription]):
                    return  # It was claimed before the pause.
                # Somebody has resumed it: to be paused again, it has to fail as often as ever.
                self._pauses.pop(subscription, None)
                last = None
            streak = self._streaks[subscription]
            # One that is dead counts once: nobody is kept from using up its retries any more.
            streak[delivery.id] = (
                1 if is_last else min(streak.get(delivery.id, 0) + 1, _MOST_OF_ONE)
            )
            if sum(streak.values()) < _BREAK_AFTER:
                return
            streak.clear()
        seconds = min(last.seconds * 2, _LONGEST_PAUSE) if last else _SHORTEST_PAUSE
        how = "everything failed, last" if delivery.paused_reason is None else "it failed again,"
        reason = f"{how} with {said(error)}"
        await self._pause(listener, delivery, seconds, reason)
        self._pauses[subscription] = Paused(seconds, now + dt.timedelta(seconds=seconds))
        # What failed while the pause was stored does not count for the next one.
        self._streaks.pop(subscription, None)

    async def _pause(
        self, listener: Listener, delivery: Delivery, seconds: float, reason: str
    ) -> None:
        await self._claims.pause(delivery.subscription_id, seconds, reason)
        log.warning("listener paused", listener=listener.name, seconds=seconds, reason=reason)
        await self._on_pause(delivery.subscription_id)
