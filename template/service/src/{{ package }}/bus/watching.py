"""For tests: what happened, in order; and listeners that run twice."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from textwrap import shorten
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from .messages import Query
from .work import Work

Stored = Sequence[Mapping[str, Any]]
"""Rows of events that were committed."""

_WIDTH = 160


class Timeline:
    """Messages that were sent, events that were committed, deliveries, and what failed."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []

    def note(self, kind: str, text: str) -> None:
        """Add what happens now, such as ('time', '0:30:00 later')."""
        self.entries.append((kind, shorten(text, _WIDTH, placeholder=" …")))

    def __str__(self) -> str:
        return "\n".join(f"{kind:8}  {text}" for kind, text in self.entries)

    def sent(self, route: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Put around the route of a message, notes it."""

        async def noted(message: Any, *how: Any) -> Any:
            self.note("query" if isinstance(message, Query) else "command", repr(message))
            try:
                return await route(message, *how)
            except BaseException as error:
                self.note("failed", f"{type(message).__name__}: {error!r}")
                raise

        return noted

    def before(self, on_commit: Callable[[Stored], None]) -> Callable[[Stored], None]:
        """Put before what happens after a commit, notes the events."""

        def noted(stored: Stored) -> None:
            for row in stored:
                due = f"due {row['due']:%Y-%m-%d %H:%M:%S}, " if row["due"] else ""
                self.note("event", f"{due}{row['name']} {row['payload']}")
            on_commit(stored)

        return noted


class WatchedWork(Work):
    """Notes the deliveries that a listener gets, and how that fails."""

    def __init__(self, timeline: Timeline, twice: bool, *work: Any) -> None:
        super().__init__(*work)
        self._timeline = timeline
        self._twice = twice

    async def run(self) -> None:
        """As it is declared; if twice, once more before, as if the process had died then."""
        events = ", ".join(f"{one.name} {json.loads(one.payload)}" for one in self._claimed)
        try:
            if self._twice:
                self._timeline.note("delivery", f"{self._listener.name} ← {events}, rolled back")
                with suppress(_Died):
                    await self.run_until(_Death())
            self._timeline.note("delivery", f"{self._listener.name} ← {events}")
            await super().run()
        except BaseException as error:
            self._timeline.note("failed", f"{self._listener.name}: {error!r}")
            raise


class _Died(Exception):
    """The process is taken to be gone, just before a commit."""


class _Death:
    """The end of a unit that is not committed."""

    lanes: Sequence[str] = ()

    async def __call__(self, connection: AsyncConnection) -> None:
        raise _Died
