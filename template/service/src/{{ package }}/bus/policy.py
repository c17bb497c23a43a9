"""What becomes of a delivery whose listener has failed: again later, given up, or a pause."""

import random
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

from .texts import said

LONGEST_BACKOFF = 300.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again this many times, after `backoff` seconds at first and twice as long each time."""

    retries: int = 10
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Keep it as a dead letter at once: trying again would change nothing."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Pause the whole listener for this many seconds; costs the delivery no attempt."""

    seconds: float


Decision = Retry | GiveUp | Pause


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a listener may take, in seconds, and what its failures mean."""

    timeout: float = 60.0
    default: Decision = field(default_factory=Retry)
    errors: Mapping[type[BaseException], Decision] = field(default_factory=dict)

    def decide(self, error: BaseException) -> Decision:
        """What the most specific entry for this kind of error says, or else the default."""
        for cls in type(error).__mro__:
            if cls in self.errors:
                return self.errors[cls]
        return self.default


def retry_delay(attempts: int, backoff: float = 1.0) -> float:
    """Seconds until the next attempt: exponential, with jitter so that failures spread out."""
    longest = min(backoff * 2 ** min(attempts - 1, 30), LONGEST_BACKOFF)
    return random.uniform(longest / 2, longest)


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as it is stored: cut to what the columns hold."""

    type: str
    frame: str
    message: str

    @classmethod
    def of(cls, error: BaseException, package: str) -> "Failure":
        """Read an exception; package is the service's, such as 'shop'."""
        return cls(
            type=_storable(type(error).__qualname__)[:200],
            frame=own_frame(error, package)[:400],
            message=_storable(_traceback_of(error)),
        )


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__)) + said(error)


def own_frame(error: BaseException, package: str) -> str:
    """Where in the service's own slices it, or its cause, failed, as 'module:function:line'.

    '' if nowhere.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(f"{package}.slices."):
            return f"{module}:{frame.f_code.co_name}:{line}"
    return own_frame(error.__cause__, package) if error.__cause__ is not None else ""


def _storable(text: str) -> str:
    """Text without what a database refuses: NUL characters and lone surrogates."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()
