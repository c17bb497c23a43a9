"""Between HTTP and the bus: who asks, under which ids, and what a list looks like."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Self, TypeVar
from uuid import UUID

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.security.base import SecurityBase
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..bus import Bus, Command, Context, IdempotencyKeyError, User
from ..bus.bus import Listeners
from ..bus.catch_up import joined
from ..bus.context import is_correlation_id, new_correlation_id
from ..bus.idempotency import KeyedBus
from . import problems
from .auth import user_of
from .openapi import change_document

R = TypeVar("R")
T = TypeVar("T")

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PROBES = {"/healthz", "/readyz"}
_IDEMPOTENCY_KEY = "Idempotency-Key"
_EVENT_TOKEN = "Event-Token"
_HEADERS = (_IDEMPOTENCY_KEY, _EVENT_TOKEN)
_READING = {"GET", "HEAD"}
_TOKEN_OF_ANSWER = {
    "description": "Names what was published, if anything was: give it to a read that is to show"
    " it.",
    "schema": {"type": "string"},
}

log = structlog.stdlib.get_logger(__name__)


class RequestBus(KeyedBus):
    """The bus of a request, which tells apart whose fault it is that something is not valid.

    A command that the route cannot make is the request's fault. What a handler makes is not.
    """

    __slots__ = ()

    async def send(
        self,
        command: Command[R],
        *,
        idempotency_key: str | None = None,
        after: str | None = None,
        seen_by: Listeners = (),
    ) -> R:
        """Send as the Bus does, but raise RuntimeError for a ValidationError of the handler's."""
        try:
            return await super().send(
                command, idempotency_key=idempotency_key, after=after, seen_by=seen_by
            )
        except ValidationError as error:
            raise RuntimeError(
                f"What handles {type(command).__name__} made something that is not valid"
            ) from error

    def _tell(self, token: str) -> None:
        """Note what a send has published, beside what others of this request did."""
        super()._tell(joined(self.published, token))


class RequestHeader(SecurityBase):
    """A dependency that gives all values of a header, which a request need not have.

    FastAPI would make a validator for it, twice for each route. Being a SecurityBase, it is in the
    document all the same, where `_document_headers` makes a parameter of it.
    """

    def __init__(self, name: str, description: str) -> None:
        self.scheme_name = name
        self.model = APIKey.model_validate(
            {"in": APIKeyIn.header, "name": name, "description": description}
        )

    async def __call__(self, request: Request) -> list[str]:
        return request.headers.getlist(self.scheme_name)


idempotency_keys = RequestHeader(
    _IDEMPOTENCY_KEY,
    "Send a request again under its key, such as a UUID, and it takes effect once: the answer is"
    " that to the first. 1 to 200 printable ASCII characters.",
)

event_tokens = RequestHeader(
    _EVENT_TOKEN,
    "Wait until this shows what was changed before: the Event-Token of the answer to that request,"
    " or several with commas in between. 504 if it takes too long, 424 if it needs somebody's help"
    " first.",
)


async def event_token(tokens: Annotated[list[str], Depends(event_tokens)]) -> str | None:
    """All of them, where there may be several headers."""
    return ",".join(tokens) or None


EventToken = Annotated[str | None, Depends(event_token)]


async def bus_of(
    request: Request,
    user: Annotated[User | None, Depends(user_of)],
    keys: Annotated[list[str], Depends(idempotency_keys)],
) -> Bus:
    state = request.state
    context = Context(user=user, correlation_id=state.correlation_id, trace=state.trace)
    if request.method in _READING:
        keys = []
    if len(keys) > 1:
        raise IdempotencyKeyError("The header Idempotency-Key came more than once: send one.")
    key = keys[0] if keys else None
    made: Bus = request.app.state.runtime.bus(context, key)
    # The answer tells what was published on it.
    state.bus = bus = RequestBus(made._routes, context, key)
    return bus


BusDep = Annotated[Bus, Depends(bus_of)]


def install(app: FastAPI) -> None:
    """Give requests their context; let OpenAPI show their headers where they count."""
    app.add_middleware(RequestContext)
    change_document(app, _document_headers)


def _document_headers(document: dict[str, Any]) -> None:
    components = document.get("components", {})
    schemes = components.get("securitySchemes", {})
    headers = [schemes.pop(name) for name in _HEADERS if name in schemes]
    if headers and not schemes:
        del components["securitySchemes"]
    for path in document.get("paths", {}).values():
        for method, operation in path.items():
            for header in headers:
                _document_header(operation, header, is_reading=method.upper() in _READING)


def _document_header(
    operation: dict[str, Any], header: dict[str, Any], *, is_reading: bool
) -> None:
    required: dict[str, Any] = {header["name"]: []}
    if required not in operation.get("security", ()):
        return
    operation["security"].remove(required)
    if not operation["security"]:
        del operation["security"]
    is_key = header["name"] == _IDEMPOTENCY_KEY
    if is_key and is_reading:
        return
    operation.setdefault("parameters", []).append(_parameter(header))
    if is_key:
        _show_the_token(operation)


def _parameter(header: dict[str, Any]) -> dict[str, Any]:
    plain = {name: header[name] for name in ("name", "in", "description")}
    return {**plain, "required": False, "schema": {"type": "string"}}


def _show_the_token(operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            response.setdefault("headers", {})[_EVENT_TOKEN] = _TOKEN_OF_ANSWER


class Page(BaseModel, Generic[T]):
    """Some of a list. next is what to pass as `after` to get more, null at the end."""

    items: list[T]
    next: UUID | None = None

    @classmethod
    def of(cls, items: Sequence[T], limit: int) -> Self:
        """The first `limit` of the items, which have ids; one more tells that more follow."""
        more = len(items) > limit
        last: Any = items[limit - 1] if more else None
        return cls(items=list(items[:limit]), next=last.id if more else None)


class RequestContext:
    """ASGI middleware: gives each request its correlation id, its line in the log, its answer.

    X-Correlation-ID is taken from the request if it is harmless, made otherwise, and sent back.
    An answer has the Event-Token of what was published for it.

    Exceptions that nothing else handles are logged and answered here, so that the answer and the
    log carry the id, too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-correlation-id", "")
        correlation_id = given if is_correlation_id(given) else new_correlation_id()
        state = scope.setdefault("state", {})
        state.update(correlation_id=correlation_id, trace=_trace(headers))
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            await self._answer(scope, receive, send, state)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, state: Mapping[str, Any]
    ) -> None:
        began = time.perf_counter()
        status: int | None = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Correlation-ID"] = state["correlation_id"]
                if "bus" in state and (token := state["bus"].published):
                    headers[_EVENT_TOKEN] = token
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except Exception:
            log.exception("unexpected error")
            if status is not None:
                # Half an answer is out: only the server can cut it off.
                raise
            await problems.unexpected(Request(scope))(scope, receive, send_marked)
        finally:
            _log_access(scope, status, time.perf_counter() - began)


def _trace(headers: Headers) -> Mapping[str, str]:
    """The W3C trace headers, if they are what they say: they are stored with every event."""
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    if state and len(state) <= 512 and state.isascii() and state.isprintable():
        return {"traceparent": parent, "tracestate": state}
    return {"traceparent": parent}


def _log_access(scope: Scope, status: int | None, seconds: float) -> None:
    write = log.debug if scope["path"] in _PROBES else log.info
    write(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        duration_ms=round(seconds * 1000, 1),
    )
