from calls.bus import Bus, handle

from .messages import (
    Checked1,
    Checked3,
    Needs0,
    Needs1,
    Needs4,
    Tell1,
    Tell3,
    Tell10,
    Told1,
    Told3,
    Told10,
    Wrapped1,
    Wrapped3,
)
from .providers import A, B, C, D

# Made once, as in the other libraries: the calls are measured, not the making of messages.
TOLD_1, TOLD_3, TOLD_10 = Told1(id=1), Told3(id=1), Told10(id=1)


@handle
async def handle_needs_0(command: Needs0) -> None: ...


@handle
async def handle_needs_1(command: Needs1, a: A) -> None: ...


@handle
async def handle_needs_4(command: Needs4, a: A, b: B, c: C, d: D) -> None: ...


@handle
async def handle_checked_1(command: Checked1) -> None: ...


@handle
async def handle_checked_3(command: Checked3) -> None: ...


@handle
async def handle_wrapped_1(command: Wrapped1) -> None: ...


@handle
async def handle_wrapped_3(command: Wrapped3) -> None: ...


@handle
async def handle_tell_1(command: Tell1, bus: Bus) -> None:
    bus.publish(TOLD_1)


@handle
async def handle_tell_3(command: Tell3, bus: Bus) -> None:
    bus.publish(TOLD_3)


@handle
async def handle_tell_10(command: Tell10, bus: Bus) -> None:
    bus.publish(TOLD_10)
