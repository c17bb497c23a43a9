"""Every order in which what a process waits for can come: for tests, without a database."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from .base.errors import Conflict
from .base.processes import COMPENSATED, FINISHED, Process
from .bus import Event

_STATE = ("step", "done", "undone", "stuck")

Answer = tuple[str, Any]
"""A step, and how it went."""


@dataclass(frozen=True)
class Moment:
    """A process and the world around it.

    in_effect are the steps that others have done and not undone, coming the answers that are on
    their way, heard those that have come, and may come again; clocks the times that may be over.
    """

    state: tuple[Any, ...]
    in_effect: frozenset[str] = frozenset()
    coming: frozenset[Answer] = frozenset()
    heard: frozenset[Answer] = frozenset()
    clocks: frozenset[str] = frozenset()
    resumed: bool = False

    @property
    def step(self) -> str:
        return str(self.state[0])

    @property
    def stuck(self) -> str | None:
        return self.state[3]  # type: ignore[no-any-return]


@dataclass
class Orders:
    """What was found: where the process can end, and how it gets from step to step."""

    ends: set[str] = field(default_factory=set)
    moves: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def diagram(self) -> str:
        """The steps as a Mermaid diagram."""
        lines = ["stateDiagram-v2"]
        for (before, after), reasons in self.moves.items():
            why = f": {', '.join(reasons)}" if any(reasons) else ""
            lines.append(f"    {_id(before)} --> {_id(after)}{why}")
        return "\n".join(lines)


def every_order(process: Process) -> Orders:
    """Let a process that is new live through everything that can happen to it.

    Each step that it asks for is done, or fails, soon or at any time later, and whoever is asked
    twice says the same again; answers overtake each other and come twice; time runs out, or has run
    out, at any moment; a person cancels, and asks once to resume.

    Raises AssertionError, with all that had happened, if nothing is on its way any more and it is
    not right: all is done and the process finished, or all is undone and the process compensated,
    or it says that it is stuck.
    """
    play, found = _Play(process), Orders()
    before: dict[Moment, tuple[Moment, str] | None] = dict.fromkeys(play.begin())
    todo = list(before)
    for after in todo:
        _note(found, "[*]", after.step, "")
    # It grows while it is walked through, so that the shortest way to a moment is found first.
    for moment in todo:
        if not moment.coming:
            assert play.is_right(moment), _story(before, moment)
            found.ends.add(f"stuck: {moment.stuck}" if moment.stuck else moment.step)
        for reason, what, after in play.follow(moment):
            _note(found, moment.step, after.step, reason)
            if after not in before:
                before[after] = (moment, what)
                todo.append(after)
    return found


class _Play:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._names = frozenset(step.name for step in process.steps)
        self._asks = {step.ask(process): step.name for step in process.steps}
        undo = [(step.undo(process), step.name) for step in process.steps if step.undo]
        self._undoes = {event: name for event, name in undo if event is not None}
        self._may_stay = {name for event, name in undo if event is None}

    def begin(self) -> Iterator[Moment]:
        return self._after(Moment(self._state()), self._process.start())

    def is_right(self, moment: Moment) -> bool:
        """Whether nothing is left to do for anybody but a person."""
        if moment.stuck:
            return True
        if moment.step == FINISHED:
            return moment.in_effect == self._names
        return moment.step == COMPENSATED and moment.in_effect <= self._may_stay

    def follow(self, moment: Moment) -> Iterator[tuple[str, str, Moment]]:
        """All that can happen next: in short, in full, and what is then."""
        process = self._process
        for answer in sorted(moment.coming | moment.heard):
            step, outcome = answer
            late = step != moment.step and outcome == "done"
            then = replace(moment, coming=moment.coming - {answer}, heard=moment.heard | {answer})
            reason = "done after all" if late else outcome
            for after in self._do(then, partial(process.report, *answer)):
                yield reason, f"{step}: {outcome}", after
        for clock in sorted(moment.clocks):
            for after in self._do(moment, partial(process.late, clock)):
                yield "too late", f"{clock}: too late", after
        for after in self._do(moment, process.cancel):
            yield "cancelled", "cancelled", after
        if not moment.resumed:
            for after in self._do(replace(moment, resumed=True), process.resume):
                yield "resumed", "resumed", after

    def _do(self, moment: Moment, decide: Callable[[], Iterable[Event]]) -> Iterator[Moment]:
        for name, value in zip(_STATE, moment.state, strict=True):
            setattr(self._process, name, list(value) if isinstance(value, tuple) else value)
        try:
            events = decide()
        except Conflict:
            return iter(())
        return self._after(moment, events)

    def _after(self, moment: Moment, events: Iterable[Event]) -> Iterator[Moment]:
        """What can be once others have heard of these events."""
        now = replace(moment, state=self._state())
        if self._process.time_limit is not None:
            now = replace(now, clocks=now.clocks | {now.step})
        moments = [now]
        for event in events:
            moments = [after for one in moments for after in self._answered(one, event)]
        return iter(moments)

    def _answered(self, moment: Moment, event: Event) -> Iterator[Moment]:
        if step := self._undoes.get(event):
            yield replace(
                moment,
                in_effect=moment.in_effect - {step},
                coming=moment.coming | {(step, "undone")},
            )
        elif step := self._asks.get(event):
            done, failed = (step, "done"), (step, "failed")
            known = moment.coming | moment.heard
            if failed not in known:
                effect = moment.in_effect | {step}
                yield replace(moment, in_effect=effect, coming=moment.coming | {done})
            if done not in known:
                yield replace(moment, coming=moment.coming | {failed})
        else:
            yield moment

    def _state(self) -> tuple[Any, ...]:
        values = [getattr(self._process, name) for name in _STATE]
        return tuple(tuple(one) if isinstance(one, list) else one for one in values)


def _note(found: Orders, before: str, after: str, reason: str) -> None:
    if before != after:
        reasons = found.moves.setdefault((before, after), [])
        if reason not in reasons:
            reasons.append(reason)


def _story(before: dict[Moment, tuple[Moment, str] | None], moment: Moment) -> str:
    lines = [f"  in effect: {sorted(moment.in_effect)}"]
    at: Moment = moment
    while (last := before[at]) is not None:
        lines.append(f"  {last[1]} -> {at.step}")
        at = last[0]
    return "\n".join(["it ended wrongly:", f"  {at.step}", *reversed(lines)])


def _id(step: str) -> str:
    return step.replace(" ", "_")
