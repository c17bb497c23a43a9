from calls.bus import listen

from .messages import Told1, Told3, Told10


@listen(inline=True)
async def listener_1(event: Told1 | Told3 | Told10) -> None: ...


@listen(inline=True)
async def listener_2(event: Told3 | Told10) -> None: ...


@listen(inline=True)
async def listener_3(event: Told3 | Told10) -> None: ...


@listen(inline=True)
async def listener_4(event: Told10) -> None: ...


@listen(inline=True)
async def listener_5(event: Told10) -> None: ...


@listen(inline=True)
async def listener_6(event: Told10) -> None: ...


@listen(inline=True)
async def listener_7(event: Told10) -> None: ...


@listen(inline=True)
async def listener_8(event: Told10) -> None: ...


@listen(inline=True)
async def listener_9(event: Told10) -> None: ...


@listen(inline=True)
async def listener_10(event: Told10) -> None: ...
