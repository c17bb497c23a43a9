"""Any order of what can happen to deliveries leaves them as a simple model says.

The engine is driven step by step: a listener stands still in mid-transaction until a later step
says how it ends, and meanwhile its lease may be lost, or an operator retry or drop things.
"""

import asyncio
import datetime as dt
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from .conftest import Service, Shop, create_tables, options, until
from .delivery_model import (
    ALONE_AFTER,
    FOR_EVER,
    UNFINISHED,
    Delivery,
    Lease,
    Listener,
    Model,
    Told,
)

LISTENERS = [
    Listener("talk.single", retries=1),
    Listener("talk.batch", retries=1, batch=5),
    Listener("talk.lane", retries=0, ordered=True),
    Listener("talk.lanes", retries=0, ordered=True, batch=5),
]
AT_ONCE = 3
WHO = {"who": "alice", "reason": "the model says so"}

TALK = {
    "contracts": """
        class Told(Event, key="about"):
            about: str
            number: int
    """,
    "messages": """
        class Tell(Command[None]):
            abouts: list[str]
            first: int
            fails: bool
    """,
    "models": """
        class Heard(Base):
            __tablename__ = "talk"
            place: Mapped[int] = mapped_column(primary_key=True)
            message: Mapped[UUID]
    """,
    "handlers": """
        @handle
        async def tell(command: Tell, bus: Bus) -> None:
            for number, about in enumerate(command.abouts, command.first):
                bus.publish(Told(about=about, number=number))
            if command.fails:
                raise LookupError
    """,
    "listeners": """
        class Down(ConnectionError): ...
        how = {"timeout": 3600, "backoff": 600, "errors": {Down: Pause(720)}}
        async def hear(session: AsyncSession, context: Context) -> None:
            session.add(Heard(message=context.message_id))
            if session.get_bind().dialect.name == "postgresql":
                await session.flush()  # On SQLite, nobody else could write from here on.
            ending = asyncio.get_running_loop().create_future()
            seen.append((context.message_id, ending))
            if not gate("open").is_set():
                match await ending:
                    case "fails": raise LookupError
                    case "is down": raise Down
        @listen(retries=1, **how)
        async def single(event: Told, session: AsyncSession, context: Context) -> None:
            await hear(session, context)
        @listen(retries=1, batch=5, **how)
        async def batch(event: Told, session: AsyncSession, context: Context) -> None:
            await hear(session, context)
        @listen(retries=0, ordered=True, **how)
        async def lane(event: Told, session: AsyncSession, context: Context) -> None:
            await hear(session, context)
        @listen(retries=0, ordered=True, batch=5, **how)
        async def lanes(event: Told, session: AsyncSession, context: Context) -> None:
            await hear(session, context)
    """,
}

# The seed decides what is tried; with `--seed` it is something else. In each round the first
# example is one in which all goes well and the next eight are by chance: then Hypothesis would only
# vary those that it had.
ROUNDS = 3
SETTINGS = settings(
    database=None,
    report_multiple_bugs=False,
    deadline=None,
    max_examples=9,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Work:
    """A listener that runs: its task, its course by the model, and what it stands still for."""

    def __init__(
        self, worker: "Worker", leases: list[Lease], course: Any, task: asyncio.Task[None]
    ) -> None:
        self.worker = worker
        self.leases = leases
        self.course = course
        self.task = task
        self.ending: asyncio.Future[str] | None = None

    def __repr__(self) -> str:
        return f"work for {[lease.delivery for lease in self.leases]}"


class Worker:
    """A process that delivers: what it has claimed, and what it is doing."""

    def __init__(self, place: int, service: Service) -> None:
        self.place = place
        self.clock = service.runtime.clock
        self.service = service
        self.relay = service.runtime.relay
        self.claims = self.relay._claims
        self.subscriptions = {one.name: number for number, one in self.relay._here.items()}
        self.ready: dict[Listener, deque[Lease]] = {one: deque() for one in LISTENERS}
        self.works: list[Work] = []

    def __repr__(self) -> str:
        return f"worker {self.place}"

    @property
    def not_begun(self) -> list[Lease]:
        """What it has claimed and not begun."""
        return [lease for ready in self.ready.values() for lease in ready]

    @property
    def leases(self) -> list[Lease]:
        """All that it has claimed and not finished, whether it still holds it or not."""
        return self.not_begun + [lease for work in self.works for lease in work.leases]

    def take(self, listener: Listener) -> list[Lease]:
        """The next that is ready, with those that may share its transaction."""
        ready = self.ready[listener]
        taken = [ready.popleft()]
        while ready and len(taken) < listener.batch and not taken[-1].attempts + ready[0].attempts:
            taken.append(ready.popleft())
        return taken

    async def begin(self, leases: Sequence[Lease]) -> asyncio.Task[None]:
        """Run the listener for these."""
        listener = self.relay._here[leases[0].row.subscription_id]
        return asyncio.create_task(self.relay._deliver(listener, [one.row for one in leases]))

    async def cut_off(self) -> None:
        """Nothing of what runs is committed."""
        for work in self.works:
            work.task.cancel()
        if self.works:
            await asyncio.wait([work.task for work in self.works])
        self.works.clear()


class World:
    """One database for many examples, and the processes of one of them."""

    def __init__(self, shop: Shop, runner: asyncio.Runner, url: str) -> None:
        self.shop = shop
        self.run = runner.run
        self._databases = [shop.database(url) for _ in range(2)]
        self._processes = AsyncExitStack()

    async def open(self) -> None:
        """Make the tables."""
        self.shop.build(self._databases[0])
        await create_tables(self.shop, self._databases[0])

    async def close(self) -> None:
        """Disconnect."""
        for one in self._databases:
            await one.close()

    async def begin(self) -> list[Worker]:
        """Two processes on an empty database."""
        self.shop.seen.clear()
        self.shop.gate("open").clear()
        workers = [await self.start(place) for place in range(2)]
        subscription = self.shop.tables.subscription
        kept = (subscription, self.shop.tables.subscription_name)
        heard = self.shop.module("slices.talk.models").Heard.__table__
        async with self._databases[0].writer.begin() as connection:
            for table in (heard, *self.shop.tables.metadata.tables.values()):
                if table not in kept:
                    await connection.execute(sa.delete(table))
            nothing = {"paused_until": None, "paused_reason": None}
            await connection.execute(sa.update(subscription).values(nothing))
        return workers

    async def start(self, place: int) -> Worker:
        """A new process in the place of another, or of none."""
        # What takes long on a slow machine is not to be lost for that.
        relay = options(self.shop, lease=3600)
        runtime = self.shop.build(self._databases[place], relay=relay)
        await self._processes.enter_async_context(runtime)
        return Worker(place, Service(self.shop, runtime))

    async def end(self, workers: Sequence[Worker]) -> None:
        """All processes are gone."""
        for worker in workers:
            await worker.cut_off()
        await self._processes.aclose()


WORKER, LISTENER = st.integers(0, 1), st.sampled_from(LISTENERS)
KEYS = st.sampled_from(["a", "b", "c"])
WHERE = st.sampled_from(
    ["", "state=dead", "key=a", "key=b", *(f"listener={one.name}" for one in LISTENERS)]
)
HOW = st.sampled_from([*["works"] * 4, "fails", "fails", "is down", "is down"])
# How often a step is taken in relation to the others, if it can be.
WEIGHTS = {
    "finish": 10,
    "finish_late": 4,
    "finish_disowned": 8,
    "take_over": 3,
    "claim": 5,
    "claim_suspect": 4,
    "claim_on_probation": 6,
    "publish": 2,
    "publish_and_fail": 1,
    "run_out": 3,
    "expire": 4,
    "renew": 1,
    "renew_late": 2,
    "give_back": 1,
    "end": 1,
    "choose": 3,
    "change": 3,
    "change_late": 6,
    "replay": 1,
    "pause": 1,
    "pause_on_probation": 6,
    "resume": 1,
    "time_passes": 3,
}


class Deliveries(RuleBasedStateMachine):
    """What can happen, done to the engine and said to the model."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.model = Model(LISTENERS)
        self.workers: list[Worker] = self.do(world.begin())
        self.chosen: list[tuple[Any, list[Delivery]]] = []
        here = self.workers[0].service
        operations = world.shop.module("bus.operating.operations").Operations
        self.operations = operations(here.database, here.runtime.catalog, self.now)

    def do(self, step: Coroutine[Any, Any, T]) -> T:
        """Let the engine take a step."""
        self.is_checked = False
        return self.world.run(step)

    def now(self) -> dt.datetime:
        """The time by which deliveries are due."""
        now: dt.datetime = self.workers[0].clock.now()
        return now

    @property
    def works(self) -> list[Work]:
        """What stands still."""
        return [work for worker in self.workers for work in worker.works]

    @property
    def held(self) -> list[Work]:
        """What goes on and is still its worker's."""
        return [work for work in self.works if work not in self.lost]

    @property
    def lost(self) -> list[Work]:
        """What goes on although somebody else may have it by now."""
        return [work for work in self.works if not all(lease.holds for lease in work.leases)]

    @property
    def disowned(self) -> list[Work]:
        """What goes on although somebody else has it by now."""
        leases = [(work, lease) for work in self.lost for lease in work.leases]
        return [w for w, one in leases if one.delivery.state == "working" and not one.holds]

    @property
    def on_probation(self) -> list[Work]:
        """What is to show whether a listener works again."""
        return [work for work in self.works if work.leases[0].on_probation]

    @property
    def suspected(self) -> list[Listener]:
        """Listeners of what may be the cause of what happened to its processes."""
        return [one.listener for one in self.model.of("pending") if one.losses >= ALONE_AFTER]

    @property
    def probed(self) -> list[Listener]:
        """Listeners of which one delivery may run, to show whether they work again."""
        over = [one for one, until in self.model.pauses.items() if until <= self.model.now]
        return [one.listener for one in self.model.of("pending") if one.listener in over]

    @property
    def late(self) -> list[tuple[Any, list[Delivery]]]:
        """What was chosen of which something is being worked by now."""
        return [one for one in self.chosen if any(each.state == "working" for each in one[1])]

    @rule(
        what=st.runner().flatmap(lambda machine: st.sampled_from(machine.possible())),
        data=st.data(),
    )
    def step(self, what: str, data: st.DataObject) -> None:
        getattr(self, what)(lambda strategy: data.draw(strategy, label=what))
        self.check()

    def possible(self) -> list[str]:
        """What can be done now, each as often as it has weight."""
        held, pending = self.model.of("working"), self.model.of("pending")
        unfinished = self.model.of(*UNFINISHED)
        needs: dict[str, Sequence[object]] = {
            "claim": pending,
            "claim_suspect": self.suspected,
            "claim_on_probation": self.probed,
            "take_over": self.held,
            "give_back": [one for worker in self.workers for one in worker.not_begun],
            "finish": self.works,
            "finish_late": self.lost,
            "finish_disowned": self.disowned,
            "end": held,
            "run_out": held,
            "expire": held,
            "renew": held,
            "renew_late": [one for one in held if one.is_late],
            "choose": unfinished,
            "change": self.chosen,
            "change_late": self.late,
            "replay": self.model.deliveries,
            "pause": unfinished,
            "pause_on_probation": self.on_probation,
            "resume": [*self.model.pauses],
            "time_passes": unfinished,
        }
        can = [what for what in WEIGHTS if needs.get(what, "always")]
        return [what for what in can for _ in range(WEIGHTS[what])]

    def publish(self, draw: Draw) -> None:
        worker, tell = self._tell(draw, fails=False)
        self.do(worker.service.send(tell))
        self.model.publish(tell.abouts)

    def publish_and_fail(self, draw: Draw) -> None:
        worker, tell = self._tell(draw, fails=True)
        with pytest.raises(LookupError):
            self.do(worker.service.send(tell))

    def _tell(self, draw: Draw, *, fails: bool) -> tuple[Worker, Any]:
        keys = draw(st.lists(KEYS, min_size=1, max_size=3))
        tell = self.world.shop.messages("talk").Tell
        first = len(self.model.events) + 1
        return self.workers[draw(WORKER)], tell(abouts=keys, first=first, fails=fails)

    def claim(self, draw: Draw) -> None:
        listeners = draw(st.just(LISTENERS) | LISTENER.map(lambda one: [one]))
        self._claim(self.workers[draw(WORKER)], listeners, draw(st.integers(1, 6)))

    def claim_suspect(self, draw: Draw) -> None:
        listener = draw(st.sampled_from(self.suspected))
        self._claim(self.workers[draw(WORKER)], [listener], 1, suspects=True)

    def claim_on_probation(self, draw: Draw) -> None:
        listener = draw(st.sampled_from(self.probed))
        self._claim(self.workers[draw(WORKER)], [listener], 3)

    def take_over(self, draw: Draw) -> None:
        """A worker is not heard of, and goes on all the same when another has what it had."""
        most = max(work.leases[0].delivery.losses for work in self.held)
        works = [work for work in self.held if work.leases[0].delivery.losses == most]
        work = draw(st.sampled_from(works))
        other, delivery = self.workers[1 - work.worker.place], work.leases[0].delivery
        self._lose(work.worker.claims.worker_id)
        self._expire(other)
        self._claim(other, [delivery.listener], 6, suspects=delivery.losses >= ALONE_AFTER)

    def _claim(
        self, worker: Worker, listeners: Sequence[Listener], each: int, *, suspects: bool = False
    ) -> None:
        subscriptions = [worker.subscriptions[one.name] for one in listeners]
        found = self.do(worker.claims.claim(subscriptions, each, suspects=suspects))
        assert {row.state for row in found} <= {"pending"}, "it was another worker's"
        rows = {row.id: row for row in found}
        leases = self.model.claim(worker.claims.worker_id, listeners, each, suspects=suspects)
        assert sorted(rows) == sorted(one.delivery.row.id for one in leases)
        for lease in leases:
            lease.row = rows[lease.delivery.row.id]
            worker.ready[lease.delivery.listener].append(lease)
        self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        """Begin what is ready, as far as there is room."""
        for listener in LISTENERS:
            while worker.ready[listener] and len(worker.works) < AT_ONCE:
                leases = worker.take(listener)
                task = self.do(worker.begin(leases))
                work = Work(worker, leases, self.model.work(leases), task)
                worker.works.append(work)
                self._go_on(work)

    def finish(self, draw: Draw) -> None:
        self._finish(draw(st.sampled_from(self.works)), draw(HOW))

    def finish_late(self, draw: Draw) -> None:
        self._finish(draw(st.sampled_from(self.lost)), draw(HOW))

    def finish_disowned(self, draw: Draw) -> None:
        self._finish(draw(st.sampled_from(self.disowned)), draw(HOW))

    def _finish(self, work: Work, how: str) -> None:
        assert work.ending is not None
        work.ending.set_result(how)
        self._go_on(work, how)
        self._begin(work.worker)

    def _go_on(self, work: Work, how: str | None = None) -> None:
        """Until it stands still in a listener, or is over; whichever the model says."""
        seen = self.world.shop.seen
        # Nothing that it waits for is held by what stands still: only the machine can be slow.
        self.do(until(lambda: bool(seen) or work.task.done(), within=60))
        try:
            lease = work.course.send(how)
        except StopIteration:
            assert not seen
            work.worker.works.remove(work)
            work.task.result()
        else:
            message, work.ending = seen.pop()
            assert message == self._message(lease.delivery.row)

    def give_back(self, draw: Draw) -> None:
        worker = self.workers[draw(WORKER)]
        leases = worker.not_begun
        for ready in worker.ready.values():
            ready.clear()
        if leases:
            self.do(worker.claims.give_back([one.row for one in leases]))
            self.model.give_back(leases)

    def end(self, draw: Draw) -> None:
        worker = self.workers[draw(WORKER)]
        self.do(worker.cut_off())
        if draw(st.booleans()):
            self.do(worker.claims.leave())
            self.model.leave(worker.claims.worker_id)
        self.workers[worker.place] = new = self.do(self.world.start(worker.place))
        new.clock.advance(dt.timedelta(hours=self.model.now))

    def run_out(self, draw: Draw) -> None:
        self._lose(draw(st.sampled_from([one.owner for one in self.model.of("working")])))

    def _lose(self, owner: UUID) -> None:
        self.do(self._run_out(owner))
        self.model.run_out(owner)

    def expire(self, draw: Draw) -> None:
        self._expire(self.workers[draw(WORKER)])

    def _expire(self, worker: Worker) -> None:
        freed = self.do(worker.claims.expire())
        expected = [(one.row.id, one.state) for one in self.model.expire()]
        assert sorted((row.id, row.state) for row in freed) == expected

    def renew(self, draw: Draw) -> None:
        self._renew(self.workers[draw(WORKER)])

    def renew_late(self, draw: Draw) -> None:
        owners = {one.owner for one in self.model.of("working") if one.is_late}
        for worker in self.workers:
            if worker.claims.worker_id in owners:
                self._renew(worker)

    def _renew(self, worker: Worker) -> None:
        self.do(worker.claims.renew([one.row.id for one in worker.leases]))
        self.model.renew(worker.claims.worker_id, worker.leases)

    def choose(self, draw: Draw) -> None:
        action, where = draw(st.sampled_from(["retry", "drop"])), draw(WHERE)
        chosen = self.do(self.operations.select(action, where))
        fitting = [one for one in self.model.fitting(action) if _is_meant(one, where)]
        assert list(chosen.ids) == [one.row.id for one in fitting]
        if fitting:
            # Kept, and so it may come late, and again.
            self.chosen = [*self.chosen, (chosen, fitting)][-2:]

    def change(self, draw: Draw) -> None:
        self._change(*draw(st.sampled_from(self.chosen)))

    def change_late(self, draw: Draw) -> None:
        self._change(*draw(st.sampled_from(self.late)))

    def _change(self, chosen: Any, deliveries: Sequence[Delivery]) -> None:
        changed = self.do(getattr(self.operations, chosen.action)(chosen, **WHO))
        assert changed == self.model.change(chosen.action, deliveries)

    def replay(self, draw: Draw) -> None:
        known = st.sampled_from(sorted({key for _, key in self.model.events}))
        listener, keys = draw(LISTENER), draw(st.lists(known, min_size=1, unique=True))
        planned = self.do(self.operations.plan_replay(listener.name, f"key={','.join(keys)}"))
        made = self.do(self.operations.replay(planned, **WHO))
        assert made == self.model.replay(listener, keys)

    def pause(self, draw: Draw) -> None:
        self._pause(draw(LISTENER), draw(st.sampled_from([30, None])))

    def pause_on_probation(self, draw: Draw) -> None:
        """A person wants it, whatever the delivery that runs is going to show."""
        work = draw(st.sampled_from(self.on_probation))
        self._pause(work.leases[0].delivery.listener, draw(st.sampled_from([30, None])))

    def _pause(self, listener: Listener, minutes: int | None) -> None:
        span = None if minutes is None else dt.timedelta(minutes=minutes)
        self.do(self.operations.pause(listener.name, span=span, **WHO))
        self.model.pause(listener, FOR_EVER if minutes is None else minutes / 60)

    def resume(self, draw: Draw) -> None:
        listener = draw(st.sampled_from([*self.model.pauses]))
        self.do(self.operations.resume(listener.name, **WHO))
        self.model.resume(listener)

    def time_passes(self, draw: Draw) -> None:
        for worker in self.workers:
            worker.clock.advance(dt.timedelta(hours=1))
        self.model.now += 1

    def check(self) -> None:
        """All is as the model says."""
        rows, heard, paused = self.do(self._stored())
        self._check_heard(rows, heard)
        assert [self._told(row) for row in rows] == self.model.told()
        assert paused == self.model.paused()
        for delivery, row in zip(self.model.deliveries, rows, strict=True):
            delivery.row = row
        self.is_checked = True

    def _told(self, row: Any) -> Told:
        owner = (row.worker_id, row.is_late) if row.state == "working" else None
        counts = (row.attempts, row.losses, row.failures)
        is_due = row.due <= self.now()
        event = (row.payload["number"], row.key)
        return (event, row.listener, row.run, row.state, is_due, counts, row.error_type, owner)

    def _message(self, row: Any) -> UUID:
        """What the listener knows its delivery by, whenever it runs."""
        context = self.world.shop.bus.Context.of_delivery
        message: UUID = context(row.event_id, "", {}, delivery=row.id).message_id
        return message

    def _check_heard(self, rows: Sequence[Any], heard: Sequence[UUID]) -> None:
        """Each delivery that is done was applied once, no other at all, and each lane in order."""
        messages = {self._message(row): row for row in rows}
        assert Counter(heard) == Counter(self._message(row) for row in rows if row.state == "done")
        lanes: dict[tuple[str, str], list[int]] = {}
        for row in (messages[one] for one in heard):
            if row.lane is not None:
                lanes.setdefault((row.listener, row.lane), []).append(row.id)
        for order in lanes.values():
            assert order == sorted(order)

    def teardown(self) -> None:
        try:
            if self.is_checked:
                self.do(self._nothing_is_lost())
        finally:
            self.do(self.world.end(self.workers))

    async def _nothing_is_lost(self) -> None:
        """When all processes have died, one that comes later delivers what was not dropped."""
        changes = reversed(await self.operations.changes(limit=1000))
        assert [(one["action"], one["count"]) for one in changes] == self.model.audit
        for worker in self.workers:
            await worker.cut_off()
            worker.clock.advance(dt.timedelta(hours=1))
        await self._run_out(*{one.owner for one in self.model.of("working")})
        await self.workers[0].claims.expire()
        for listener in LISTENERS:
            await self.operations.resume(listener.name, **WHO)
        await self.operations.retry(await self.operations.select("retry", "state=dead"), **WHO)
        self.world.shop.gate("open").set()
        await self.workers[0].service.settled(30)
        rows, heard, _ = await self._stored()
        self._check_heard(rows, heard)
        dropped = [one.row.id for one in self.model.of("dropped")]
        assert [row.id for row in rows if row.state != "done"] == dropped
        live = [(row.payload["number"], row.listener) for row in rows if row.run == 0]
        assert live == [(n, one.name) for n, _ in self.model.events for one in LISTENERS]

    async def _run_out(self, *owners: UUID) -> None:
        delivery = self.world.shop.tables.delivery
        past = self.world.shop.module("bus.leases").from_now(-1)
        held = sa.and_(delivery.c.state == "working", delivery.c.worker_id.in_(owners))
        await self.workers[0].service.write(
            sa.update(delivery).where(held).values(lease_until=past)
        )

    async def _stored(self) -> tuple[Sequence[Any], Sequence[UUID], dict[str, bool]]:
        """Deliveries in order, what was heard in order, and which listeners are paused."""
        tables, database = self.world.shop.tables, self.workers[0].service.database
        from_now = self.world.shop.module("bus.leases").from_now
        delivery, event, subscription = tables.delivery, tables.event, tables.subscription
        failures = sa.select(sa.func.count()).where(tables.attempt.c.delivery_id == delivery.c.id)
        deliveries = (
            sa.select(
                delivery,
                event.c.id.label("event_id"),
                event.c.key,
                event.c.payload,
                subscription.c.listener,
                failures.scalar_subquery().label("failures"),
                (delivery.c.lease_until < from_now(0)).label("is_late"),
            )
            .join(event, event.c.position == delivery.c.event_position)
            .join(subscription, subscription.c.id == delivery.c.subscription_id)
            .order_by(delivery.c.id)
        )
        heard = self.world.shop.module("slices.talk.models").Heard
        is_paused = subscription.c.paused_until.is_not(None)
        async with database.reader.connect() as connection:
            rows = (await connection.execute(deliveries)).all()
            messages = await connection.scalars(sa.select(heard.message).order_by(heard.place))
            paused = await connection.execute(sa.select(subscription).where(is_paused))
        until = {row.listener: row.paused_until for row in paused}
        return rows, messages.all(), {name: end > self.now() for name, end in until.items()}


def _is_meant(delivery: Delivery, where: str) -> bool:
    found = {"state": delivery.state, "key": delivery.key, "listener": delivery.listener.name}
    field, _, value = where.partition("=")
    return not where or found[field] == value


@pytest.fixture
def world(shop: Shop, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A database for the examples."""
    shop.slice("talk", **TALK)
    # Many failures in a row pause a listener by themselves: test_policies.py has that.
    monkeypatch.setattr(shop.module("bus.breaker"), "_BREAK_AFTER", 1000)
    with asyncio.Runner() as runner:
        made = World(shop, runner, url)
        runner.run(made.open())
        yield made
        runner.run(made.close())


@pytest.mark.parametrize("number", range(ROUNDS))
def test_deliveries_are_as_the_model_says(
    world: World, number: int, request: pytest.FixtureRequest
) -> None:
    class Machine(Deliveries):
        def __init__(self) -> None:
            super().__init__(world)

    given = request.config.getoption("--seed") or 0
    seed(given * ROUNDS + number)(Machine)
    run_state_machine_as_test(Machine, settings=SETTINGS)
