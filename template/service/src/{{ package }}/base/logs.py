"""One way out for all logs, our own, the libraries' and the server's: structlog to stderr."""

import logging
import sys

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict, Processor

_HANDLER = "structlog"


def configure(level: str = "INFO", *, json: bool = False) -> None:
    """Set up logging for this process: JSON lines for machines, else text for people."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        cache_logger_on_first_use=True,
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _without_colors],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json() if json else _text()),
            ],
        )
    )
    root = logging.getLogger()
    root.setLevel(level)
    # Others, such as pytest's, stay.
    root.handlers = [one for one in root.handlers if one.name != _HANDLER] + [handler]
    _take_over_uvicorn()


def _json() -> list[Processor]:
    # Tracebacks as plain text: the structured ones print local variables, secrets included.
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_to_json)]


def _to_json(line: EventDict, **_: object) -> str:
    # Takes a third of the time of the json module, and every request and delivery has a line.
    return to_json(line, fallback=repr).decode()


def _text() -> list[Processor]:
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


def _without_colors(logger: object, method: str, line: EventDict) -> EventDict:
    line.pop("color_message", None)
    return line


def _take_over_uvicorn() -> None:
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        # RequestContext writes the access lines.
        logger.propagate = name != "uvicorn.access"
