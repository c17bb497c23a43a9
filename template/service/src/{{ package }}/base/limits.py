"""How large a request may be."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: reading a body of more than max_bytes ends with status 413.

    A body that says its length is not read at all, one in chunks no further than the limit. (The
    limit that comes with FastAPI answers the former in plain text, not with a problem.)
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        known = int(length) if length.isdecimal() else 0
        read = 0

        async def receive_limited() -> Message:
            nonlocal read
            if known > self.max_bytes:
                raise self._too_large()
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, receive_limited, send)

    def _too_large(self) -> HTTPException:
        # The connection is of no use with the rest of the body still on its way.
        return HTTPException(
            413, f"A body has at most {self.max_bytes} bytes.", {"Connection": "close"}
        )
