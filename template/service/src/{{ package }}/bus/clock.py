"""The time by which events become due; tests move it forward instead of waiting."""

import datetime as dt


class Clock:
    """The system's clock in UTC, plus what a test has moved it forward."""

    def __init__(self) -> None:
        self._moved = dt.timedelta()

    def now(self) -> dt.datetime:
        """The current time, aware and in UTC."""
        return dt.datetime.now(dt.UTC) + self._moved

    def advance(self, by: dt.timedelta) -> None:
        """Move the time forward; for tests."""
        self._moved += by
