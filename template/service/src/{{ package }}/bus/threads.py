"""Runs plain functions beside the event loop."""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from threading import Thread
from typing import Any

from .errors import BusError


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a thread of its own; raises what it raises.

    Python cannot end a thread: one that hangs is left to itself when the caller is cancelled. It
    takes no room in a pool away from others, and does not keep the process alive.
    """
    loop = asyncio.get_running_loop()
    called: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if called.done():
            return
        if error is None:
            called.set_result(result)
        else:
            called.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = context.run(function, *arguments)
        except BaseException as error:
            failed = _raisable(error)
        with suppress(RuntimeError):  # The loop may be closed by now.
            loop.call_soon_threadsafe(settle, result, failed)

    Thread(target=run, name=function.__name__, daemon=True).start()
    return refuse_awaitable(function, await called)


def refuse_awaitable(function: Callable[..., Any], result: Any) -> Any:
    """Give back what a plain function has returned. Raises BusError if that has yet to run."""
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()
    raise BusError(
        f"{function.__name__} is a plain function and returned what is to be awaited: it has not"
        " run. Make it `async def`; if a decorator made it, the function inside of that."
    )


def _raisable(error: BaseException) -> BaseException:
    """The error, but for those that a future cannot hold."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"raised {error!r}")
    return error
