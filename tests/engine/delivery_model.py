"""What becomes of deliveries, said as plainly as it can be: what the engine is compared with."""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

# What the test's listeners ask for, and how long the engine pauses one that fails on probation;
# times are in hours, and all of the engine's own are over within one.
BACKOFF, DOWN, BREAK = 0.05, 0.2, 0.1
ALONE_AFTER, MOST_LOSSES, MOST_BATCHES = 2, 3, 3
FOR_EVER = float("inf")
UNFINISHED = ("waiting", "pending", "working", "dead")
Told = tuple[tuple[int, str], str, int, str, bool, tuple[int, int, int], str | None, object]
"""What there is to say of a delivery, in the order of Delivery.told."""

FITTING = {"retry": ("dead", "pending"), "drop": ("dead", "pending", "waiting")}


@dataclass(frozen=True, slots=True)
class Listener:
    """How a listener is marked."""

    name: str
    retries: int
    ordered: bool = False
    batch: int = 1


@dataclass(eq=False)
class Delivery:
    """One delivery; owner and token are those of the worker that has it, row is what is stored."""

    number: int
    key: str
    listener: Listener
    run: int
    due: float
    state: str = "pending"
    attempts: int = 0
    losses: int = 0
    failures: int = 0
    error: str | None = None
    owner: Any = None
    token: object = None
    is_late: bool = False
    row: Any = None

    def free(self, state: str) -> None:
        """Nobody works it any more."""
        self.state, self.token = state, None

    def told(self, now: float) -> Told:
        """All that is to be the same in the database."""
        return (
            (self.number, self.key),
            self.listener.name,
            self.run,
            self.state,
            self.due <= now,
            (self.attempts, self.losses, self.failures),
            self.error,
            (self.owner, self.is_late) if self.state == "working" else None,
        )

    def __repr__(self) -> str:
        return f"{self.key}{self.number}/{self.listener.name}/{self.run}: {self.state}"


@dataclass(eq=False)
class Lease:
    """A delivery as a worker has claimed it; row is what the engine gave for it."""

    delivery: Delivery
    token: object
    attempts: int
    on_probation: bool
    row: Any = None

    @property
    def holds(self) -> bool:
        """Whether it is still this worker's."""
        return self.delivery.state == "working" and self.delivery.token is self.token


@dataclass
class Model:
    """All deliveries in the order of their ids, and until when listeners are paused.

    now is in hours. A listener whose pause is over is on probation.
    """

    listeners: Sequence[Listener]
    now: float = 0
    deliveries: list[Delivery] = field(default_factory=list)
    pauses: dict[Listener, float] = field(default_factory=dict)
    audit: list[tuple[str, int]] = field(default_factory=list)

    @property
    def events(self) -> list[tuple[int, str]]:
        """Number and key of what was published, in order."""
        return list(dict.fromkeys((one.number, one.key) for one in self.deliveries))

    def of(self, *states: str) -> list[Delivery]:
        """The deliveries in one of these states."""
        return [one for one in self.deliveries if one.state in states]

    def told(self) -> list[Told]:
        """What there is to say of all deliveries."""
        return [one.told(self.now) for one in self.deliveries]

    def paused(self) -> dict[str, bool]:
        """Listeners that are paused; False: on probation."""
        return {one.name: until > self.now for one, until in self.pauses.items()}

    def publish(self, keys: Sequence[str]) -> None:
        """One event for each key, in one transaction."""
        first = len(self.events) + 1
        for number, key in enumerate(keys, first):
            for listener in self.listeners:
                self._add(number, key, listener, 0)

    def replay(self, listener: Listener, keys: Collection[str]) -> int:
        """All events with these keys once more, for one listener."""
        again = [(number, key) for number, key in self.events if key in keys]
        if again:
            runs = [one.run for one in self.deliveries if one.listener is listener]
            for number, key in again:
                self._add(number, key, listener, max(runs) + 1)
            self.audit.append(("replay", len(again)))
        return len(again)

    def claim(
        self, owner: Any, listeners: Sequence[Listener], each: int, *, suspects: bool
    ) -> list[Lease]:
        """Take what is due: for one that is on probation, or after two losses, one at a time."""
        token, leases = object(), []
        for listener in listeners:
            pause = self.pauses.get(listener)
            working = any(one.listener is listener for one in self.of("working"))
            if pause is not None and (pause > self.now or working):
                continue
            due = [
                one
                for one in self.of("pending")
                if one.listener is listener
                and one.due <= self.now
                and (one.losses >= ALONE_AFTER) == suspects
            ]
            most = 1 if suspects or pause is not None else each
            for one in sorted(due, key=lambda one: (one.row.due, one.row.id))[:most]:
                one.state, one.owner, one.token, one.is_late = "working", owner, token, False
                leases.append(Lease(one, token, one.attempts, pause is not None))
        return leases

    def work(self, leases: list[Lease]) -> Generator[Lease, str, None]:
        """Yield each lease for whose delivery the listener runs; it is sent how that ends.

        All in one transaction, without the culprit if there is one, then one by one.
        """
        for _ in range(MOST_BATCHES):
            if len(leases) == 1:
                break
            for lease in leases:
                how = yield lease
                if how != "works":
                    self._fail(lease, how)
                    leases = [one for one in leases if one is not lease]
                    break
            else:
                if self._complete(leases):
                    return
                break
        for lease in leases:
            how = yield lease
            if how == "works":
                self._complete([lease])
            else:
                self._fail(lease, how)

    def give_back(self, leases: Sequence[Lease]) -> None:
        """What was not begun can be claimed by others."""
        for one in leases:
            if one.holds:
                one.delivery.free("pending")

    def leave(self, owner: Any) -> None:
        """A worker stops, and gives everything back."""
        for one in self.of("working"):
            if one.owner == owner:
                one.free("pending")

    def run_out(self, owner: Any) -> None:
        """A worker is not heard of until its leases are over."""
        for one in self.of("working"):
            one.is_late |= one.owner == owner

    def renew(self, owner: Any, leases: Sequence[Lease]) -> None:
        """A worker is heard of."""
        for one in leases:
            if one.delivery.state == "working" and one.delivery.owner == owner:
                one.delivery.is_late = False

    def expire(self) -> list[Delivery]:
        """Free what is late; what was lost too often is dead."""
        late = [one for one in self.of("working") if one.is_late]
        for one in late:
            one.losses += 1
            one.free("pending")
            if one.losses >= MOST_LOSSES:
                one.state, one.error = "dead", "ProcessDied"
        return late

    def fitting(self, action: str) -> list[Delivery]:
        """What an operator can retry or drop."""
        return [
            one
            for one in self.of(*FITTING[action])
            if action == "drop" or one.state == "dead" or one.due > self.now
        ]

    def change(self, action: str, chosen: Sequence[Delivery]) -> int:
        """Retry or drop what was chosen, as far as that is still possible; how many."""
        changed = [one for one in chosen if one.state in FITTING[action]]
        for one in changed:
            one.free("dropped")
            if action == "retry":
                one.state = "waiting" if self._is_occupied(one) else "pending"
                one.due, one.attempts = self.now, 0
                one.losses = min(one.losses, ALONE_AFTER)
        for one in changed:
            self._promote(one)
        if chosen:
            self.audit.append((action, len(changed)))
        return len(changed)

    def pause(self, listener: Listener, hours: float) -> None:
        """An operator's pause."""
        self.pauses[listener] = self.now + hours
        self.audit.append(("pause", 1))

    def resume(self, listener: Listener) -> None:
        """The end of any pause, and no probation."""
        self.pauses.pop(listener, None)
        self.audit.append(("resume", 1))

    def _add(self, number: int, key: str, listener: Listener, run: int) -> None:
        made = Delivery(number, key, listener, run, self.now)
        if listener.ordered and any(one.state in UNFINISHED for one in self._lane(made)):
            made.state = "waiting"
        self.deliveries.append(made)

    def _complete(self, leases: Sequence[Lease]) -> bool:
        if not all(one.holds for one in leases):
            return False
        for lease in leases:
            lease.delivery.free("done")
            self._promote(lease.delivery)
        listener = leases[0].delivery.listener
        if leases[0].on_probation and self.pauses.get(listener, FOR_EVER) <= self.now:
            del self.pauses[listener]
        return True

    def _fail(self, lease: Lease, how: str) -> None:
        one, is_down = lease.delivery, how == "is down"
        attempts = lease.attempts + (not is_down)
        if lease.holds:
            one.attempts, one.error = attempts, "Down" if is_down else "LookupError"
            one.failures += 1
            is_dead = not is_down and attempts > one.listener.retries
            one.free("dead" if is_dead else "pending")
            one.due = self.now + (DOWN if is_down else 0 if is_dead else BACKOFF)
        if is_down or lease.on_probation:
            # A longer pause that a person has set stays.
            until = self.now + (DOWN if is_down else BREAK)
            self.pauses[one.listener] = max(until, self.pauses.get(one.listener, 0))

    def _lane(self, of: Delivery) -> list[Delivery]:
        same = (of.listener, of.key)
        return [one for one in self.deliveries if (one.listener, one.key) == same]

    def _is_occupied(self, of: Delivery) -> bool:
        """Whether another one of its lane has to be finished first."""
        ahead = [
            one for one in self._lane(of) if one.state in UNFINISHED and one.state != "waiting"
        ]
        return of.listener.ordered and any(one is not of for one in ahead)

    def _promote(self, after: Delivery) -> None:
        """Let the first that waits in a lane run, if nothing is ahead of it."""
        waiting = [one for one in self._lane(after) if one.state == "waiting"]
        if waiting and not self._is_occupied(waiting[0]):
            waiting[0].state = "pending"
