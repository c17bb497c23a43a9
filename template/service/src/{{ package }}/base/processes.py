"""What slices are made of that see a long-running flow through; docs: orchestration.

A process asks for one step after the other by publishing contracts of its own, hears how each went,
and takes back what was done, the last first, if one of them fails. What it decides are plain
methods, which return the events to publish; `begin`, `locked` and `tell` connect them to the
session and the bus.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from ..bus import Bus, Command, Event, View
from ..bus.clock import utc_now
from .database import Entity
from .errors import Conflict, Invalid

__all__ = [
    "COMPENSATED",
    "FINISHED",
    "Outcome",
    "Process",
    "Step",
    "begin",
    "expect_same",
    "locked",
    "tell",
]

Outcome = Literal["done", "failed", "undone"]

NEW, FINISHED, COMPENSATED = "new", "finished", "compensated"

_NO_STEPS = (NEW, FINISHED, COMPENSATED)
_UNDO = "undo "


@dataclass(frozen=True)
class Step:
    """A step of a process: the methods that make the events which ask for it, and for its undoing.

    within: how long each of the two may take; None: for ever. A step that takes longer is given
    up, and if it is done after all, it is undone then. undo makes None if nothing is to be done.

    Without undo the step is never given up, since nobody could tell whether it was done: only an
    answer ends it, and when it takes longer, or one behind it fails, the process is stuck.
    """

    name: str
    ask: Callable[[Any], Event]
    undo: Callable[[Any], Event | None] | None = None
    within: dt.timedelta | None = None


class Process(Entity):
    """One flow: `class Checkout(Process)`, with its steps, and columns for what it has to know.

    Its id is what its events are about. step is the name of the step that it waits for,
    "undo <name>" while one is undone, "finished" or "compensated" at the end. done is what was done
    and not undone, undone what was; asks counts how often it has come to a step, or begun one anew.

    One that is at a step which the code has no more, renamed or removed, is stuck as well. It goes
    on when it is resumed, or hears of another step; what has no undo any more is undone by hand.

    The methods that decide return the events to publish; none, if what they are told is old news.
    """

    __abstract__ = True

    steps: ClassVar[Sequence[Step]]

    id: Mapped[UUID] = mapped_column(primary_key=True)
    step: Mapped[str] = mapped_column(sa.String(60), default=NEW, init=False, index=True)
    done: Mapped[list[str]] = mapped_column(sa.JSON, default_factory=list, init=False)
    undone: Mapped[list[str]] = mapped_column(sa.JSON, default_factory=list, init=False)
    _stuck: Mapped[str | None] = mapped_column(
        "stuck", sa.String(200), default=None, init=False, index=True
    )
    asks: Mapped[int] = mapped_column(default=0, init=False)
    updated_at: Mapped[dt.datetime] = mapped_column(
        default_factory=utc_now, onupdate=utc_now, init=False
    )
    finished_at: Mapped[dt.datetime | None] = mapped_column(default=None, init=False)

    def when_finished(self) -> Event:
        """What is told when all steps are done."""
        raise NotImplementedError

    def when_compensated(self) -> Event:
        """What is told when all that was done is undone."""
        raise NotImplementedError

    def when_late(self) -> Event:
        """What happens when the time of the current step is over: an event of the slice's own."""
        raise NotImplementedError

    @hybrid_property
    def stuck(self) -> str | None:
        """Why a person has to see to it."""
        if self._is_lost:
            return f"{self.step}: the code has no such step any more"
        return self._stuck

    @stuck.inplace.setter
    def _set_stuck(self, reason: str | None) -> None:
        self._stuck = reason

    @stuck.inplace.expression
    @classmethod
    def _stuck_in_sql(cls) -> sa.ColumnElement[str | None]:
        names = [step.name for step in cls.steps]
        known = [*_NO_STEPS, *names, *(_UNDO + name for name in names)]
        return sa.case((cls.step.not_in(known), cls.step), else_=cls._stuck)

    @property
    def is_running(self) -> bool:
        """Whether it still goes forward."""
        return self.step not in _NO_STEPS and not self.step.startswith(_UNDO)

    @property
    def time_limit(self) -> dt.timedelta | None:
        """How long the current step, or its undoing, may take."""
        step = self._find(self._step_name)
        return step.within if step else None

    def start(self) -> list[Event]:
        """Ask for the first step."""
        return self._ask_next() if self.step == NEW else []

    def report(self, step: str, outcome: Outcome) -> list[Event]:
        """Hear how a step went, early, in time, late or again. Raises Invalid if it has no such."""
        names = [one.name for one in self.steps]
        # What was done when the code still had the step may have to be reported as undone.
        if step not in (*names, *self.done, *self.undone):
            raise Invalid(f"There is no step {step!r}, expected one of: {', '.join(names)}.")
        match outcome:
            case "done":
                return self._done(step)
            case "failed":
                return self._failed(step)
            case "undone":
                return self._undone(step)

    def late(self, step: str, asks: int | None = None) -> list[Event]:
        """Hear that the time of a step, or of its undoing, is over: old news if it is elsewhere.

        asks is what it was when that time began: since then a person may have resumed the step.
        """
        if step != self.step or asks not in (None, self.asks):
            return []
        reason = f"{step}: no answer in time"
        if self.is_running and not self._is_lost:
            return self._turn_back(reason)
        self._stuck = reason
        return []

    def cancel(self) -> list[Event]:
        """Undo what was done. Raises Conflict if it is too late for that."""
        if not self.is_running or self._cannot_be_undone():
            raise Conflict(f"It is at {self.step!r}, which cannot be cancelled.")
        return self._turn_back("cancelled")

    def resume(self) -> list[Event]:
        """Ask once more for what it waits for. Raises Conflict if it has ended.

        From a step that the code has no more it goes on to the first that is not done.
        """
        if self.step in (FINISHED, COMPENSATED):
            raise Conflict(f"It is {self.step}: there is nothing to resume.")
        if self.step.startswith(_UNDO):
            return self._undo(self._step_name)
        return self._ask_next()

    def _done(self, step: str) -> list[Event]:
        if step in self.done or step in self.undone:
            return []
        self.done = [*self.done, step]
        # What a step was called before is done by an answer to what it is called now.
        if step == self.step or (self.is_running and self._is_lost):
            return self._ask_next()
        # Of a step that was given up. While another one is undone, it waits for its turn.
        return self._undo_next() if self.step == COMPENSATED else []

    def _failed(self, step: str) -> list[Event]:
        if self.step == _UNDO + step:
            # Nothing leads on from here: a person has to see to it.
            self._stuck = f"undo {step} failed"
            return []
        if not self.is_running or step in self.done:
            return []
        return self._turn_back(f"{step} failed", failed=step)

    def _undone(self, step: str) -> list[Event]:
        if self.is_running or self.step == FINISHED or step not in self.done:
            return []
        self.done = [one for one in self.done if one != step]
        self.undone = [*self.undone, step]
        return self._undo_next() if self.step == _UNDO + step else []

    def _ask_next(self) -> list[Event]:
        for step in self.steps:
            if step.name not in self.done:
                self._be_at(step.name)
                return [step.ask(self)]
        self._be_at(FINISHED, ended=True)
        return [self.when_finished()]

    def _turn_back(self, reason: str, failed: str = "") -> list[Event]:
        if self._cannot_be_undone(failed):
            self._stuck = reason
            return []
        return self._undo_next()

    def _undo_next(self) -> list[Event]:
        if not self.done:
            self._be_at(COMPENSATED, ended=True)
            return [self.when_compensated()]
        return self._undo(self.done[-1])

    def _undo(self, name: str) -> list[Event]:
        step = self._find(name)
        self._be_at(_UNDO + name)
        if step is None:
            return []
        if step.undo is None:
            self._stuck = f"{name} was done after all, and cannot be undone"
            return []
        event = step.undo(self)
        return [event] if event is not None else self._undone(name)

    def _cannot_be_undone(self, failed: str = "") -> bool:
        """Whether one that is done, or may be, has no undo."""
        names = {*self.done, self.step} - {failed}
        return any(step.undo is None for step in self.steps if step.name in names)

    def _be_at(self, step: str, *, ended: bool = False) -> None:
        self.step, self._stuck, self.asks = step, None, self.asks + 1
        self.finished_at = utc_now() if ended else None

    @property
    def _step_name(self) -> str:
        """The name of the step that it is at, be it to be done or undone."""
        return self.step.removeprefix(_UNDO)

    @property
    def _is_lost(self) -> bool:
        """Whether it is at a step that the code has no more."""
        return self.step not in _NO_STEPS and self._find(self._step_name) is None

    def _find(self, name: str) -> Step | None:
        return next((step for step in self.steps if step.name == name), None)


P = TypeVar("P", bound=Process)


async def begin(session: AsyncSession, process: P) -> P:
    """Store a new process, or find the one that has its id already; locked, as by `locked`."""
    mapper = sa.inspect(type(process))
    row = {one.columns[0].name: getattr(process, one.key) for one in mapper.column_attrs}
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    await session.execute(dialect.insert(mapper.local_table).values(row).on_conflict_do_nothing())
    found = await locked(session, type(process), process.id)
    assert found is not None
    return found


def expect_same(command: Command[Any], begun: View) -> None:
    """Raises Conflict if the process that was begun has other data than the command gives.

    For callers who choose the id themselves: it may be taken. Nothing is said by what they leave
    out, and by fields that the view does not have.
    """
    given = {name: getattr(command, name) for name in command.model_fields_set}
    other = [name for name, value in given.items() if getattr(begun, name, value) != value]
    if other:
        raise Conflict(f"This id is taken, with another {' and '.join(sorted(other))}.")


async def locked(session: AsyncSession, kind: type[P], process_id: UUID) -> P | None:
    """A process as it is now; nobody else changes it before this transaction ends.

    So of two events at the same time the second sees what the first has made of it. PostgreSQL
    locks the row; on SQLite there is one writer anyway.
    """
    query = sa.select(kind).where(kind.id == process_id).with_for_update()
    return await session.scalar(query, execution_options={"populate_existing": True})


def tell(bus: Bus, process: Process, events: Sequence[Event]) -> None:
    """Publish what a process has decided. If it has asked for something, its time begins."""
    if not events:
        return
    for event in events:
        bus.publish(event)
    timeout = process.when_late()
    bus.cancel(type(timeout), process.id)
    if process.time_limit is not None:
        bus.publish(timeout, after=process.time_limit)
