"""Processes: what they decide in every order, and that no two events for one of them lose any."""

import asyncio
import datetime as dt
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from .conftest import Shop, Start

pytestmark = pytest.mark.anyio

ID = UUID(int=1)

CONTRACTS = """
    class Asked(Event, key="id"):
        id: UUID
        what: str
"""
MESSAGES = """
    class Begin(Command[str]):
        id: UUID
    class Report(Command[str]):
        id: UUID
        step: str
        outcome: str
    class Run(Command[object]):
        pass
    class Stuck(Query[list[str]]):
        stuck: bool
    class TimedOut(Event, key="id"):
        id: UUID
        step: str
        asks: int
"""
MODELS = """
    from typing import ClassVar
    from shop.base.processes import Process, Step, begin, locked, tell

    def says(what: str) -> Any:
        return lambda process: Asked(id=process.id, what=what)

    def steps(text: str) -> Any:
        # "reserve! pay! ship": those with ! can be undone, those with ? need no undoing.
        undo = lambda name: {"!": says(f"undo {name[:-1]}"), "?": lambda process: None}
        return [
            Step(
                name.strip("!?"), says(name.strip("!?")), undo(name).get(name[-1]),
                within=dt.timedelta(minutes=5),
            )
            for name in text.split()
        ]

    class Flow(Process):
        __tablename__ = "flows"
        steps: ClassVar = steps("reserve! pay! ship")
        when_finished = says("finished")
        when_compensated = says("compensated")
        def when_late(self) -> Event:
            return TimedOut(id=self.id, step=self.step, asks=self.asks)
"""
HANDLERS = """
    @handle
    async def start(command: Begin, session: AsyncSession, bus: Bus) -> str:
        flow = await begin(session, Flow(id=command.id))
        tell(bus, flow, flow.start())
        return flow.step
    @handle
    async def report(command: Report, session: AsyncSession, bus: Bus) -> str:
        flow = await locked(session, Flow, command.id)
        seen.append(command.step)
        tell(bus, flow, flow.report(command.step, command.outcome))
        return flow.step
    @handle
    async def stuck(query: Stuck, session: AsyncSession) -> list[str]:
        import sqlalchemy as sa
        found = sa.select(Flow.step).where(Flow.stuck.is_not(None) == query.stuck)
        return list(await session.scalars(found.order_by(Flow.step)))
    @handle
    async def run(command: Run, session: AsyncSession, bus: Bus) -> object:
        from shop import probe
        return await probe.work(session, bus)
"""
LISTENERS = """
    @listen
    async def late(event: TimedOut, session: AsyncSession, bus: Bus) -> None:
        flow = await locked(session, Flow, event.id)
        tell(bus, flow, flow.late(event.step, event.asks))
"""


@pytest.fixture
def flows(shop: Shop) -> Any:
    """The models of a slice with a process of three steps."""
    shop.slice(
        "flows",
        contracts=CONTRACTS,
        messages=MESSAGES,
        models=MODELS,
        handlers=HANDLERS,
        listeners=LISTENERS,
    )
    return shop.module("slices.flows.models")


def flow(flows: Any, steps: str = "reserve! pay! ship") -> Any:
    made = flows.Flow(id=ID)
    # Of this one only: the class keeps its own.
    made.steps = flows.steps(steps)
    return made


def asked(events: list[Any]) -> list[str]:
    return [event.what for event in events]


def play(flow: Any, *reports: str) -> list[str]:
    """What a flow asks for, one after the other, when it hears 'reserve done', 'late pay', …"""
    told = asked(flow.start())
    for report in reports:
        step, _, outcome = report.rpartition(" ")
        late = report.removeprefix("late ")
        told += asked(flow.late(late) if late != report else flow.report(step, outcome))
    return told


class TestDecisions:
    async def test_one_step_after_the_other(self, flows: Any) -> None:
        some = flow(flows)
        told = play(some, "reserve done", "pay done", "ship done")
        assert told == ["reserve", "pay", "ship", "finished"]
        assert some.finished_at is not None

    async def test_what_was_done_is_undone_the_last_first(self, flows: Any) -> None:
        some = flow(flows)
        told = play(some, "reserve done", "pay done", "ship failed", "pay undone", "reserve undone")
        assert told == ["reserve", "pay", "ship", "undo pay", "undo reserve", "compensated"]
        assert (some.done, some.undone) == ([], ["pay", "reserve"])

    async def test_a_step_that_takes_too_long_is_given_up(self, flows: Any) -> None:
        told = play(flow(flows), "reserve done", "late pay", "reserve undone")
        assert told == ["reserve", "pay", "undo reserve", "compensated"]

    async def test_what_is_done_after_all_is_undone(self, flows: Any) -> None:
        some = flow(flows)
        assert play(some, "late reserve", "reserve done")[-1] == "undo reserve"
        assert some.finished_at is None
        assert asked(some.report("reserve", "undone")) == ["compensated"]

    async def test_old_news_changes_nothing(self, flows: Any) -> None:
        some = flow(flows)
        told = play(some, "reserve done", "reserve done", "late reserve", "reserve failed")
        assert told == ["reserve", "pay"]
        assert (some.step, some.stuck) == ("pay", None)

    async def test_time_from_before_it_was_resumed_is_old_news(self, flows: Any) -> None:
        some = flow(flows)
        some.start()
        before = some.asks
        assert asked(some.resume()) == ["reserve"]
        assert some.late("reserve", before) == []
        assert asked(some.late("reserve", some.asks)) == ["compensated"]

    async def test_an_answer_may_come_before_the_question(self, flows: Any) -> None:
        told = play(flow(flows), "pay done", "reserve done", "ship done")
        assert told == ["reserve", "ship", "finished"]

    async def test_a_step_without_undo_is_never_given_up(self, flows: Any) -> None:
        some = flow(flows)
        assert play(some, "reserve done", "pay done", "late ship")[-1] == "ship"
        assert (some.step, some.stuck) == ("ship", "ship: no answer in time")
        with pytest.raises(Exception, match="It is at 'ship', which cannot be cancelled"):
            some.cancel()
        assert asked(some.resume()) == ["ship"]
        assert some.stuck is None

    async def test_behind_a_step_without_undo_there_is_no_way_back(self, flows: Any) -> None:
        some = flow(flows, "pay! ship thank!")
        assert play(some, "pay done", "ship done", "thank failed")[-1] == "thank"
        assert some.stuck == "thank failed"

    async def test_what_needs_no_undoing_is_passed_over(self, flows: Any) -> None:
        told = play(flow(flows, "reserve! check? pay!"), "reserve done", "check done", "late pay")
        assert told == ["reserve", "check", "pay", "undo reserve"]

    async def test_undoing_that_takes_too_long_is_stuck(self, flows: Any) -> None:
        some = flow(flows)
        play(some, "reserve done", "pay failed", "late undo reserve")
        assert some.stuck == "undo reserve: no answer in time"
        assert asked(some.resume()) == ["undo reserve"]

    async def test_undoing_that_fails_is_stuck(self, flows: Any) -> None:
        some = flow(flows)
        play(some, "reserve done", "pay failed", "reserve failed")
        assert (some.step, some.stuck) == ("undo reserve", "undo reserve failed")
        assert asked(some.resume()) == ["undo reserve"]
        assert asked(some.report("reserve", "undone")) == ["compensated"]

    async def test_a_person_cannot_resume_what_has_ended(self, flows: Any) -> None:
        some = flow(flows)
        play(some, "late reserve")
        with pytest.raises(Exception, match="It is compensated: there is nothing to resume"):
            some.resume()


class TestStepsThatTheCodeHasNoMore:
    """A process was under way when its step pay was renamed to settle."""

    @pytest.fixture
    def at_pay(self, flows: Any) -> Any:
        return self.after(flows, "reserve done")

    def after(self, flows: Any, *reports: str) -> Any:
        some = flow(flows)
        play(some, *reports)
        some.steps = flows.steps("reserve! settle! ship")
        return some

    async def test_it_is_stuck_at_once(self, flows: Any, at_pay: Any) -> None:
        assert at_pay.stuck == "pay: the code has no such step any more"
        assert at_pay.time_limit is None
        undoing = self.after(flows, "reserve done", "pay done", "ship failed")
        assert undoing.stuck == "undo pay: the code has no such step any more"

    async def test_it_is_not_turned_round_by_its_time(self, at_pay: Any) -> None:
        """Nobody knows whether it was done, or can be undone."""
        assert at_pay.late("pay") == []
        assert (at_pay.step, at_pay.done) == ("pay", ["reserve"])

    async def test_resumed_it_goes_on_with_the_next(self, at_pay: Any) -> None:
        assert asked(at_pay.resume()) == ["settle"]
        assert (at_pay.step, at_pay.stuck) == ("settle", None)

    async def test_cancelled_it_undoes_what_was_done(self, at_pay: Any) -> None:
        assert asked(at_pay.cancel()) == ["undo reserve"]
        assert asked(at_pay.report("reserve", "undone")) == ["compensated"]
        assert asked(at_pay.report("settle", "done")) == ["undo settle"]

    @pytest.mark.parametrize(
        ("outcome", "told"), [("done", ["ship"]), ("failed", ["undo reserve"])]
    )
    async def test_an_answer_to_its_new_name_is_heard(
        self, at_pay: Any, outcome: str, told: list[str]
    ) -> None:
        assert asked(at_pay.report("settle", outcome)) == told
        assert at_pay.stuck is None

    async def test_what_cannot_be_undone_any_more_is_undone_by_hand(self, flows: Any) -> None:
        some = self.after(flows, "reserve done", "pay done")
        some.steps = flows.steps("reserve! settle! ship!")
        assert some.cancel() == some.resume() == []
        assert some.stuck == "undo pay: the code has no such step any more"
        assert asked(some.report("pay", "undone")) == ["undo reserve"]
        assert some.report("pay", "undone") == []
        assert asked(some.report("reserve", "undone")) == ["compensated"]

    async def test_a_step_that_there_never_was_is_refused(self, at_pay: Any) -> None:
        for name in ("pays", "pay", "finished"):
            with pytest.raises(Exception, match=f"no step '{name}', expected one of: reserve, set"):
                at_pay.report(name, "done")

    async def test_those_that_are_stuck_are_found(self, start: Start, flows: Any, url: str) -> None:
        service = await start(url)
        messages = service.shop.messages("flows")
        undoing, at_pay, new = UUID(int=1), UUID(int=2), UUID(int=3)
        for id_, *reports in (
            (undoing, "reserve done", "pay done", "ship failed"),
            (at_pay, "reserve done"),
            (new,),
        ):
            await service.send(messages.Begin(id=id_))
            for report in reports:
                step, outcome = report.split()
                await service.send(messages.Report(id=id_, step=step, outcome=outcome))
        assert await service.send(messages.Stuck(stuck=True)) == []
        flows.Flow.steps = flows.steps("reserve! settle! ship")
        assert await service.send(messages.Stuck(stuck=True)) == ["pay", "undo pay"]
        assert await service.send(messages.Stuck(stuck=False)) == ["reserve"]


class TestEveryOrder:
    @pytest.mark.parametrize(
        "steps", ["one!", "one", "one?", "one! two!", "one! two", "one? two! three", "a! b! c! d!"]
    )
    async def test_all_is_done_or_all_is_undone(self, shop: Shop, flows: Any, steps: str) -> None:
        found = shop.module("every_order").every_order(flow(flows, steps))
        assert found.ends == {"finished", "compensated"}

    async def test_a_process_that_forgets_is_found_out(self, shop: Shop, flows: Any) -> None:
        some = flow(flows)
        some._done = lambda step: [] if step != some.step else type(some)._done(some, step)
        with pytest.raises(AssertionError, match="it ended wrongly") as found:
            shop.module("every_order").every_order(some)
        assert str(found.value).splitlines()[1:] == [
            "  reserve",
            "  reserve: too late -> compensated",
            "  reserve: done -> compensated",
            "  in effect: ['reserve']",
        ]

    async def test_behind_a_step_without_undo_it_can_be_stuck(self, shop: Shop, flows: Any) -> None:
        found = shop.module("every_order").every_order(flow(flows, "one two"))
        stuck = {"stuck: two failed", "stuck: two: no answer in time"}
        assert found.ends == {"finished", "compensated", *stuck}

    async def test_diagram_shows_what_it_does(self, shop: Shop, flows: Any) -> None:
        found = shop.module("every_order").every_order(flow(flows, "pay!"))
        assert found.diagram().splitlines() == [
            "stateDiagram-v2",
            "    [*] --> pay",
            "    pay --> finished: done",
            "    pay --> compensated: too late, cancelled, failed",
            "    compensated --> undo_pay: done after all",
            "    undo_pay --> compensated: undone",
        ]


class TestOnTheBus:
    async def test_it_begins_once(self, start: Start, flows: Any, url: str) -> None:
        service = await start(url)
        begin = service.shop.messages("flows").Begin(id=ID)
        assert [await service.send(begin) for _ in range(2)] == ["reserve", "reserve"]
        assert [event.payload["what"] for event in await service.events()] == ["reserve"]

    async def test_two_begin_it_at_once(
        self, start: Start, flows: Any, postgresql_url: str
    ) -> None:
        services = [await start(postgresql_url) for _ in range(2)]
        begin = services[0].shop.messages("flows").Begin(id=ID)
        await asyncio.gather(*(one.send(begin) for one in services for _ in range(4)))
        assert len(await services[0].events()) == 1

    async def test_two_answers_at_once_are_both_heard(
        self, start: Start, flows: Any, url: str
    ) -> None:
        """Each waits until the other's transaction has ended; neither is sent again."""
        service = await start(url)
        messages = service.shop.messages("flows")
        for _ in range(10):
            id_ = uuid4()
            await service.send(messages.Begin(id=id_))
            service.shop.seen.clear()
            reports = [
                messages.Report(id=id_, step=step, outcome="done")
                for step in ("reserve", "pay", "ship", "pay", "reserve")
            ]
            assert "finished" in await asyncio.gather(*map(service.send, reports))
            assert len(service.shop.seen) == 5

    async def test_the_lock_shows_what_was_committed_meanwhile(
        self, start: Start, flows: Any, postgresql_url: str
    ) -> None:
        service = await start(postgresql_url)
        messages, gate = service.shop.messages("flows"), service.shop.gate
        await service.send(messages.Begin(id=ID))

        async def work(session: Any, bus: Any) -> Any:
            known = await session.get(flows.Flow, ID)
            gate("read").set()
            await gate("changed").wait()
            before = known.step
            return before, (await flows.locked(session, flows.Flow, ID)).step

        service.shop.module("probe").work = work
        running = asyncio.create_task(service.send(messages.Run()))
        await gate("read").wait()
        await service.send(messages.Report(id=ID, step="reserve", outcome="done"))
        gate("changed").set()
        assert await running == ("reserve", "pay")

    async def test_an_answer_comes_when_time_is_over(
        self, start: Start, flows: Any, url: str
    ) -> None:
        """Whichever is first, the other one is seen in its light."""
        service = await start(url)
        messages = service.shop.messages("flows")
        for _ in range(10):
            id_ = uuid4()
            await service.send(messages.Begin(id=id_))
            service.runtime.clock.advance(dt.timedelta(minutes=5))
            answer = service.send(messages.Report(id=id_, step="reserve", outcome="done"))
            await asyncio.gather(answer, service.runtime.relay.work_off())
            await service.settled()
            events = [one.payload for one in await service.events() if one.key == str(id_)]
            told = [payload["what"] for payload in events if "what" in payload]
            assert told in (["reserve", "pay"], ["reserve", "compensated", "undo reserve"])

    async def test_time_of_a_step_that_was_left_is_taken_back(
        self, start: Start, flows: Any, url: str
    ) -> None:
        service = await start(url)
        messages = service.shop.messages("flows")
        await service.send(messages.Begin(id=ID))
        await service.send(messages.Report(id=ID, step="reserve", outcome="done"))
        [payload] = await service.column(sa.select(service.shop.tables.scheduled.c.payload))
        assert payload["step"] == "pay"
        await service.send(messages.Report(id=ID, step="pay", outcome="done"))
        await service.send(messages.Report(id=ID, step="ship", outcome="done"))
        assert await service.column("SELECT key FROM bus_scheduled") == []
