"""Processes are killed at random moments under load, again and again; nothing is lost."""

import itertools
import random
import signal
import time
from collections import Counter

from .report import Outcome
from .service import Process, Service, wait_for

# However little time there is.
_LEAST_STRIKES = 6
# A publisher sells so often, unless it is killed before.
_MOST_SALES = 30
# Nothing is sold while more than that is to be delivered: the load would only grow.
_MOST_DELIVERIES = 200


def test_processes_that_are_killed(
    service: Service, chance: random.Random, seconds: float, outcome: Outcome
) -> None:
    began = time.monotonic()
    service.lease = 2
    attack = Attack(service, chance, outcome.kills)
    for strike in itertools.count():
        if strike >= _LEAST_STRIKES and time.monotonic() > began + seconds:
            break
        attack.strike()
    attack.end()
    service.settle()
    outcome.minutes = (time.monotonic() - began) / 60
    outcome.commits = service.count("sales", "listener = 'sell'")
    outcome.deliveries = service.delivered()
    outcome.verdict = "promises broken"
    outcome.dead = len(service.check())
    if outcome.dead:
        service.retry()
        service.settle()
        assert service.check() == {}
    outcome.verdict = "nothing lost, nothing doubled"


class Attack:
    """A publisher and two workers, and what kills them and starts them again."""

    def __init__(self, service: Service, chance: random.Random, kills: Counter[str]) -> None:
        self._service = service
        self._chance = chance
        self._kills = kills
        self._numbers = itertools.count(0, 1000)
        self._workers: list[Process] = []
        self._publisher = self._publish()

    def strike(self) -> None:
        """Kill the publisher, a worker, or all of them, at a random moment."""
        self._replace_workers()
        wait_for("deliveries", lambda: self._service.unfinished() < _MOST_DELIVERIES)
        if self._publisher.ended:
            self._publisher = self._publish()
        self._wait()
        victims = self._chance.choice(
            [[self._publisher], [self._chance.choice(self._workers)], self._all()]
        )
        for one in victims:
            one.signal(signal.SIGKILL)
        for one in victims:
            if one.wait() == -signal.SIGKILL:
                self._kills["publisher" if one is self._publisher else "worker"] += 1

    def end(self) -> None:
        """Leave two workers to finish."""
        self._replace_workers()
        self._publisher.wait()

    def _wait(self) -> None:
        """Until a random number of sales was answered, and a moment more."""
        goal = self._chance.randrange(_MOST_SALES)
        wait_for("sales", lambda: self._service.acknowledged() >= goal or self._publisher.ended)
        time.sleep(self._chance.uniform(0, 0.2))

    def _replace_workers(self) -> None:
        alive = [one for one in self._workers if not one.ended]
        self._workers = [*alive, *(self._service.worker() for _ in range(2 - len(alive)))]

    def _publish(self) -> Process:
        return self._service.publisher(next(self._numbers), _MOST_SALES)

    def _all(self) -> list[Process]:
        return [self._publisher, *self._workers]
