from typing import Any

from .bus import Command, Proceed, guard


class Guarded1(Command[None]): ...


class Guarded3(Guarded1): ...


class Surrounded1(Command[None]): ...


class Surrounded3(Surrounded1): ...


@guard
def guard_1(command: Guarded1) -> None: ...


@guard
def guard_2(command: Guarded3) -> None: ...


@guard
def guard_3(command: Guarded3) -> None: ...


@guard
async def guard_around_1(command: Surrounded1, proceed: Proceed) -> Any:
    return await proceed()


@guard
async def guard_around_2(command: Surrounded3, proceed: Proceed) -> Any:
    return await proceed()


@guard
async def guard_around_3(command: Surrounded3, proceed: Proceed) -> Any:
    return await proceed()
