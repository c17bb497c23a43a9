"""One way out for all logs, our own, the libraries' and the server's: structlog to stderr."""

import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from json import dumps
from typing import cast

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor, WrappedLogger

from ..bus.texts import said

_HANDLER = "structlog"
_OF_JSON = {str, int, float, bool, type(None)}

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
# One list for good: loggers keep it from their first line on, and tests that look at what is logged
# put something else into it.
_PROCESSORS: list[Processor] = []
_WRITTEN = {"is_written": True}


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Writes what others log as our own lines, which come as they are to be written."""

    def format(self, record: logging.LogRecord) -> str:
        return record.msg if hasattr(record, "is_written") else super().format(record)


def configure(level: str = "INFO", *, json: bool = False) -> None:
    """Set up logging for this process: JSON lines for machines, else text for people."""
    render = _json() if json else _text()
    _PROCESSORS[:] = [
        structlog.stdlib.filter_by_level,
        *_SHARED,
        structlog.stdlib.PositionalArgumentsFormatter(),
        *render,
        _as_written,
    ]
    structlog.configure(
        cache_logger_on_first_use=True,
        processors=_PROCESSORS,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        _Formatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.ExtraAdder(), _without_colors],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.setLevel(level)
    # Others, such as pytest's, stay.
    root.handlers = [one for one in root.handlers if one.name != _HANDLER] + [handler]
    _take_over_uvicorn()
    # This counts whatever changes, .pyc files too; the reloader names what it reloads for.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def _json() -> list[Processor]:
    # Tracebacks as plain text: the structured ones print local variables, secrets included.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]


def _to_json(line: EventDict, **_: object) -> str:
    try:
        return to_json(_plain(line), inf_nan_mode="strings").decode()
    except (ValueError, RecursionError):
        # Half of a surrogate pair, or nested without end: a line is never lost for what it tells.
        return dumps(_said_all(line))


def _plain(value: object) -> object:
    """What JSON has itself; of all else the repr, which may hide what the value holds."""
    if type(value) in _OF_JSON:
        return value
    if type(value) is dict:
        return {
            name if type(name) is str else said(name): _plain(one) for name, one in value.items()
        }
    if type(value) in (list, tuple):
        return [_plain(one) for one in cast(Iterable[object], value)]
    return said(value)


def _text() -> list[Processor]:
    render = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )

    def text(logger: WrappedLogger, method: str, line: EventDict) -> str:
        with suppress(Exception):
            return render(logger, method, dict(line))
        # Something has no repr: the line is written all the same, as in JSON. The exception that it
        # tells of is still the one that is handled here.
        kept = {"exc_info": line.pop("exc_info", None)}
        return render(logger, method, _said_all(line) | kept)

    return [text]


def _said_all(line: EventDict) -> dict[str, str]:
    return {name: one if type(one) is str else said(one) for name, one in line.items()}


def _as_written(logger: object, method: str, line: object) -> tuple[tuple[object], EventDict]:
    return (line,), {"extra": _WRITTEN}


def _without_colors(logger: object, method: str, line: EventDict) -> EventDict:
    line.pop("color_message", None)
    return line


def _take_over_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        # RequestContext writes the access lines.
        logger.propagate = name != "uvicorn.access"
