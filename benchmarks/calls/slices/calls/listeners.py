from calls.bus import listen

from .messages import Told1, Told3, Told10


@listen(inline=True)
async def listen_1(event: Told1 | Told3 | Told10) -> None: ...


@listen(inline=True)
async def listen_2(event: Told3 | Told10) -> None: ...


@listen(inline=True)
async def listen_3(event: Told3 | Told10) -> None: ...


@listen(inline=True)
async def listen_4(event: Told10) -> None: ...


@listen(inline=True)
async def listen_5(event: Told10) -> None: ...


@listen(inline=True)
async def listen_6(event: Told10) -> None: ...


@listen(inline=True)
async def listen_7(event: Told10) -> None: ...


@listen(inline=True)
async def listen_8(event: Told10) -> None: ...


@listen(inline=True)
async def listen_9(event: Told10) -> None: ...


@listen(inline=True)
async def listen_10(event: Told10) -> None: ...
