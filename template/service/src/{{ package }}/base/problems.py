"""Every error leaves as a problem document (RFC 9457): one shape, and nothing internal in it."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException

from ..bus import IdempotencyKeyError
from .errors import Conflict, Invalid, ProblemError

_MEDIA_TYPE = "application/problem+json"
_SCHEMAS = "#/components/schemas/"
# The class of SQLSTATEs for values that are impossible; PostgreSQL checks more than SQLite.
_DATA_EXCEPTION = "22"
_RESPONSE = {
    "description": "What went wrong",
    "content": {_MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}}},
}

log = structlog.stdlib.get_logger(__name__)


class FieldError(BaseModel):
    location: str
    message: str


class Problem(BaseModel):
    """What went wrong. Quote the correlation_id to find the request in the logs."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    errors: list[FieldError] | None = None
    correlation_id: str | None = None


def install(app: FastAPI) -> None:
    """Answer and document all errors of the app as problems; call it before routes are added.

    What no handler here expects is answered by RequestContext, which sees it last.
    """
    app.add_exception_handler(ProblemError, _expected)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(IdempotencyKeyError, _bad_key)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(StaleDataError, _stale)
    app.add_exception_handler(IntegrityError, _integrity)
    app.add_exception_handler(DBAPIError, _refused_by_database)
    _document(app)


def unexpected(request: Request) -> JSONResponse:
    """The answer to an exception that nobody foresaw: tells nothing but where to look."""
    return _problem(
        request,
        500,
        "Unexpected error",
        "Something went wrong here. The logs have more under this correlation id.",
    )


def _problem(
    request: Request,
    status: int,
    title: str,
    detail: str | None = None,
    *,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(
        title=title,
        status=status,
        detail=detail,
        errors=errors,
        correlation_id=getattr(request.state, "correlation_id", None),
    )
    return JSONResponse(
        problem.model_dump(exclude_none=True), status, dict(headers or {}), _MEDIA_TYPE
    )


async def _expected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return _problem(request, error.status, error.title, error.detail, headers=error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Only where and why: the input may be a password.
    errors = [
        FieldError(location=".".join(map(str, one["loc"])), message=one["msg"])
        for one in error.errors()
    ]
    detail = "The request does not have the expected form; errors says where and why."
    return _problem(request, 422, "Invalid", detail, errors=errors)


async def _bad_key(request: Request, error: Exception) -> JSONResponse:
    return _problem(request, Invalid.status, Invalid.title, str(error))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = error.detail if error.detail != title else None
    return _problem(request, error.status_code, title, detail, headers=error.headers)


async def _stale(request: Request, error: Exception) -> JSONResponse:
    detail = "Someone else changed this in the meantime: load it again and repeat the change."
    return _problem(request, Conflict.status, Conflict.title, detail)


async def _integrity(request: Request, error: Exception) -> JSONResponse:
    # May be a bug as well as a duplicate, and the caller is not told which constraint it was.
    log.warning("integrity_error", exc_info=error)
    detail = "This contradicts what is stored already, such as a value that must be unique."
    return _problem(request, Conflict.status, Conflict.title, detail)


async def _refused_by_database(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DBAPIError)
    if not str(getattr(error.orig, "sqlstate", "")).startswith(_DATA_EXCEPTION):
        raise error
    log.warning("data_error", exc_info=error)
    detail = "A value cannot be stored, such as a text with a NUL character."
    return _problem(request, Invalid.status, Invalid.title, detail)


def _document(app: FastAPI) -> None:
    """Let OpenAPI show Problem as what every operation answers if it fails."""
    app.router.responses["default"] = _RESPONSE
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if Problem.__name__ not in schemas:
            problem = Problem.model_json_schema(ref_template=_SCHEMAS + "{model}")
            schemas.update(problem.pop("$defs"), Problem=problem)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
