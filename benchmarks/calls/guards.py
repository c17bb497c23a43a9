from typing import Any

from .bus import Command, Proceed, guard


class Guarded1(Command[None]): ...


class Guarded3(Guarded1): ...


class Surrounded1(Command[None]): ...


class Surrounded3(Surrounded1): ...


@guard
def first(command: Guarded1) -> None: ...


@guard
def second(command: Guarded3) -> None: ...


@guard
def third(command: Guarded3) -> None: ...


@guard
async def around_first(command: Surrounded1, proceed: Proceed) -> Any:
    return await proceed()


@guard
async def around_second(command: Surrounded3, proceed: Proceed) -> Any:
    return await proceed()


@guard
async def around_third(command: Surrounded3, proceed: Proceed) -> Any:
    return await proceed()
