"""Every error leaves as a problem document (RFC 9457): one shape, and nothing internal in it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.client import METHOD_NOT_ALLOWED, responses
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ..bus import (
    Command,
    EventTokenError,
    IdempotencyKeyError,
    NeverSeenError,
    NotSeenInTimeError,
)
from ..bus.engines import is_away
from ..bus.errors import NoConnectionError
from ..bus.texts import message_of, said
from ..bus.unit import is_transient
from .errors import (
    Conflict,
    Invalid,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    ProblemError,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"

_TITLES = {
    kind.status: kind.title
    for kind in (NotAuthenticated, NotAllowed, NotFound, Conflict, Invalid, Unavailable)
}
_DETAILS = {404: "There is nothing at this path."}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
# The class of SQLSTATEs for values that are impossible; PostgreSQL checks more than SQLite.
_DATA_EXCEPTION = "22"
# A required column that got nothing: PostgreSQL's SQLSTATE, and SQLite's name for it.
_NOT_NULL = ("23502", "SQLITE_CONSTRAINT_NOTNULL")

log = structlog.stdlib.get_logger(__name__)


class FieldError(BaseModel):
    location: str
    message: str


class Problem(BaseModel):
    """What went wrong. Quote the correlation_id to find the request in the logs."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldError] | None = None
    correlation_id: str | None = None


def install(app: FastAPI) -> None:
    """Answer all errors of the app as problems.

    What no handler here expects is answered by RequestContext, which sees it last.
    """
    app.add_exception_handler(ProblemError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(IdempotencyKeyError, _bad_header)
    app.add_exception_handler(EventTokenError, _bad_header)
    app.add_exception_handler(NeverSeenError, _never_seen)
    app.add_exception_handler(NotSeenInTimeError, _late)
    app.add_exception_handler(ValidationError, _refused_by_command)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StaleDataError, _stale)
    app.add_exception_handler(IntegrityError, _integrity)
    app.add_exception_handler(DBAPIError, _refused_by_database)
    app.add_exception_handler(PoolTimeoutError, _busy)
    app.add_exception_handler(ConnectionError, _unreachable)


def unexpected(request: Request) -> JSONResponse:
    """The answer to an exception that nobody foresaw: tells nothing but where to look."""
    return _problem(
        request,
        500,
        "Unexpected error",
        "Something went wrong here. The logs have more under this correlation id.",
    )


def not_started(why: str) -> JSONResponse:
    """The answer of a service that has not started."""
    problem = Problem(title=Unavailable.title, status=Unavailable.status, detail=why)
    return _ProblemResponse(problem.model_dump(exclude_none=True), Unavailable.status)


class _ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        # The name of an unknown field may be half of a surrogate pair.
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.encode(errors="replace")


def _problem(
    request: Request,
    status: int,
    title: str,
    detail: str | None = None,
    *,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> JSONResponse:
    problem = Problem(
        title=title,
        status=status,
        detail=detail,
        errors=errors,
        correlation_id=getattr(request.state, "correlation_id", None),
        **(members or {}),
    )
    return _ProblemResponse(problem.model_dump(exclude_none=True), status, dict(headers or {}))


async def _expected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return _problem(
        request,
        error.status,
        error.title,
        error.detail,
        headers=error.headers,
        members=error.members,
    )


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _invalid_fields(request, error.errors())


async def _refused_by_command(request: Request, error: Exception) -> JSONResponse:
    """A route makes its command of path, query and body: what the command refuses, they are.

    Anything else that is not valid is a bug; RequestBus sees to what is made in handlers.
    """
    assert isinstance(error, ValidationError)
    if error.title not in _titles(Command):
        raise error
    return _invalid_fields(request, error.errors())


def _titles(cls: type[BaseModel]) -> Iterator[str]:
    """What pydantic calls the class, and all that are made of it, in its errors."""
    yield cls.model_config.get("title") or cls.__name__
    for made in cls.__subclasses__():
        yield from _titles(made)


def _invalid_fields(request: Request, found: Iterable[Any]) -> JSONResponse:
    # Only where and why: the input may be a password.
    errors = list(map(_field_error, found))
    detail = "The request does not have the expected form; errors says where and why."
    return _problem(request, Invalid.status, Invalid.title, detail, errors=errors)


def _field_error(found: Any) -> FieldError:
    location, message = found["loc"], message_of(found)
    if location and isinstance(location[-1], int) and found["type"] == "json_invalid":
        # FastAPI puts the position in the text where others have the field.
        *location, position = location
        message = f"{message} at character {position}: {found['ctx']['error']}"
    return FieldError(location=".".join(map(str, location)) or "request", message=message)


async def _bad_header(request: Request, error: Exception) -> JSONResponse:
    return _problem(request, Invalid.status, Invalid.title, str(error))


async def _never_seen(request: Request, error: Exception) -> JSONResponse:
    log.error("a query waits for what nobody will do", error=str(error))
    detail = "What this reads has failed to take over a change; somebody has to see to that first."
    return _problem(request, 424, "Failed dependency", detail)


async def _late(request: Request, error: Exception) -> JSONResponse:
    log.warning("a query has waited too long", error=str(error))
    detail = "What this reads has not taken over the change yet. It will: ask again later."
    return _problem(request, 504, "Not in time", detail)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, dict(error.headers or {})
    phrase = responses.get(status, "Error")
    detail = error.detail if error.detail != phrase else _DETAILS.get(status)
    if status == METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
        detail = detail or f"This path takes {headers['Allow']}."
    title = _TITLES.get(status, phrase.capitalize())
    return _problem(request, status, title, detail, headers=headers)


def _methods(request: Request) -> Sequence[str]:
    """The methods that some route of this path has; the router looks at the first one only."""
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _stale(request: Request, error: Exception) -> JSONResponse:
    detail = "Someone else changed this in the meantime: load it again and repeat the change."
    return _problem(request, Conflict.status, Conflict.title, detail)


async def _integrity(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, IntegrityError)
    if _code(error) in _NOT_NULL:
        # It contradicts no row: some handler has left the column out.
        raise error
    # May be a bug as well as a duplicate, and the caller is not told which constraint it was.
    log.warning("integrity error", exc_info=error)
    detail = "This contradicts what is stored already, such as a value that must be unique."
    return _problem(request, Conflict.status, Conflict.title, detail)


async def _refused_by_database(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DBAPIError)
    code = _code(error)
    if code.startswith("SQLITE_BUSY") or is_transient(error):
        return await _busy(request, error)
    if is_away(error):
        return await _unreachable(request, error)
    # SQLite has no code for a number that is too large: the kind of error says it.
    if not isinstance(error, DataError) and not code.startswith(_DATA_EXCEPTION):
        raise error
    log.warning("data error", exc_info=error)
    detail = (
        "No column can hold one of the values, such as a text with a NUL character, or a number of"
        " more than 64 bits."
    )
    return _problem(request, Invalid.status, Invalid.title, detail)


def _code(error: DBAPIError) -> str:
    """What kind of error it is to the database."""
    names = ("sqlstate", "sqlite_errorname")
    return next((getattr(error.orig, one) for one in names if hasattr(error.orig, one)), "")


async def _busy(request: Request, error: Exception) -> JSONResponse:
    log.error("the database is busy", error=str(error))
    detail = "The database is busy: try again later."
    return _problem(request, Unavailable.status, Unavailable.title, detail)


async def _unreachable(request: Request, error: Exception) -> JSONResponse:
    # Of what handlers call themselves nobody knows where it was.
    is_ours = isinstance(error, (NoConnectionError, DBAPIError))
    traceback = None if is_ours else error
    log.error("what this needs cannot be reached", error=said(error), exc_info=traceback)
    detail = "The database, or something else that this needs, cannot be reached: try again later."
    return _problem(request, Unavailable.status, Unavailable.title, detail)
