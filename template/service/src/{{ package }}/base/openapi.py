"""What the API's document says that FastAPI would not, and holding requests to it."""

from collections import defaultdict
from collections.abc import Callable
from http.client import UNSUPPORTED_MEDIA_TYPE
from typing import Any

from fastapi import FastAPI, HTTPException, Request, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.utils import generate_unique_id
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from .problems import MEDIA_TYPE, Problem

_SCHEMAS = "#/components/schemas/"
_RESPONSE = {
    "description": "What went wrong",
    "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + Problem.__name__}}},
}
# Strict validation goes further where a validator of the user's has seen the value before: then a
# date in a text is refused, too. So only these count; all else is for FastAPI to find.
_NEVER = {"json_invalid", "int_type", "float_type", "bool_type", "string_type"}
_BUT_FOR_TEXTS = {"date_type", "datetime_type", "time_type", "time_delta_type"}

_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}


def install(app: FastAPI) -> None:
    """Document errors, short names, bounds of integers as integers; before routes are added."""
    app.router.responses["default"] = _RESPONSE
    app.router.generate_unique_id_function = _operation_id
    change_document(app, _show_problems)
    change_document(app, _bound_integers_by_integers)


def change_document(app: FastAPI, change: Callable[[dict[str, Any]], None]) -> None:
    """Let change mend the document, once, when it is made."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            change(generate())
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def _show_problems(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    problem = Problem.model_json_schema(ref_template=_SCHEMAS + "{model}")
    schemas.update(problem.pop("$defs"), Problem=problem)


def _operation_id(route: APIRoute) -> str:
    """What a generated client calls its function: books-put_book, of the slice's tag and the name.

    Without a tag, another slice may have the name, too, and FastAPI's long one stays.
    """
    return f"{route.tags[0]}-{route.name}" if route.tags else generate_unique_id(route)


async def json_as_documented(request: Request) -> None:
    """A dependency of all routes: refuses JSON of another type than the document asks for.

    FastAPI has the body as Python objects, of which pydantic takes "1" for an integer and 1 for a
    date, because a text is all that paths and queries can have; so the JSON itself is looked at.
    Raises RequestValidationError, and HTTPException for what does not say that it is JSON.
    """
    route = request.scope.get("route")
    field = route.body_field if isinstance(route, APIRoute) else None
    body = await request.body() if field and not isinstance(field.field_info, params.Form) else b""
    if field is None or not body:
        return
    if not _is_json(request.headers.get("content-type", "")):
        raise HTTPException(
            int(UNSUPPORTED_MEDIA_TYPE),
            "Expected JSON, and the header Content-Type: application/json.",
        )
    adapter = _adapter(route)
    if found := _that_count(_errors(adapter, body, strict=True), body):
        places = [one["loc"] for one in found]
        others = [one for one in _errors(adapter, body) if one["loc"] not in places]
        raise RequestValidationError(
            [{**one, "loc": ("body", *one["loc"])} for one in (*others, *found)]
        )


def _errors(adapter: TypeAdapter[Any], body: bytes, *, strict: bool = False) -> list[ErrorDetails]:
    try:
        adapter.validate_json(body, strict=strict)
    except ValidationError as error:
        return error.errors()
    return []


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _that_count(errors: list[ErrorDetails], body: bytes) -> list[ErrorDetails]:
    """Those of which all at the same place count: one branch of a union may fail as it should."""
    if not errors or errors[0]["type"] == "json_invalid":
        return errors
    value, by_place = from_json(body), defaultdict[tuple[Any, ...], list[ErrorDetails]](list)
    for one in errors:
        by_place[_place(value, one["loc"])].append(one)
    return [one for there in by_place.values() if all(map(_counts, there)) for one in there]


def _place(value: Any, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The part of a location that is in the JSON; branches of unions are not."""
    for depth, step in enumerate(location):
        try:
            value = value[step]
        except (LookupError, TypeError):
            return location[:depth]
    return location


def _counts(error: ErrorDetails) -> bool:
    is_text = isinstance(error["input"], str)
    return error["type"] in _NEVER or (error["type"] in _BUT_FOR_TEXTS and not is_text)


def _adapter(route: Any) -> TypeAdapter[Any]:
    found: TypeAdapter[Any] | None = getattr(route, "json_adapter", None)
    if found is None:
        found = route.json_adapter = TypeAdapter(route.body_field.field_info.annotation)
    return found


def _bound_integers_by_integers(node: Any) -> None:
    # FastAPI's own model of the document has all numbers as floats.
    if isinstance(node, list):
        for one in node:
            _bound_integers_by_integers(one)
    elif isinstance(node, dict):
        if node.get("type") == "integer":
            node.update({name: int(node[name]) for name in _BOUNDS & node.keys()})
            # 2**63 itself does not fit into the integers that a client may have for these.
            if "exclusiveMaximum" in node:
                last = node.pop("exclusiveMaximum") - 1
                node["maximum"] = min(last, node.get("maximum", last))
        for one in node.values():
            _bound_integers_by_integers(one)
