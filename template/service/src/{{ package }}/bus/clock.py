"""The time by which events become due; tests move it forward instead of waiting."""

import datetime as dt


def utc_now() -> dt.datetime:
    """The system's time, aware and in UTC."""
    return dt.datetime.now(dt.UTC)


class Clock:
    """The system's clock in UTC, plus what a test has moved it forward."""

    def __init__(self) -> None:
        self._moved = dt.timedelta()

    def now(self) -> dt.datetime:
        """The current time, aware and in UTC."""
        return utc_now() + self._moved

    def advance(self, by: dt.timedelta) -> None:
        """Move the time forward; for tests."""
        self._moved += by
