"""A line of the log: JSON whatever it tells, on one line, without what a repr hides."""

import dataclasses
import importlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from .conftest import Shop

Logs = Callable[..., dict[str, Any]]


@dataclasses.dataclass
class Card:
    number: str = dataclasses.field(repr=False)
    holder: str


class Silent:
    def __repr__(self) -> str:
        raise LookupError


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.fixture
def configured(shop: Shop) -> Iterator[Any]:
    """The module of the logs, which configures them for this test only."""
    before, root = structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers, root.level
    yield importlib.import_module("shop.base.logs")
    structlog.configure(**before)
    root.handlers = handlers
    root.setLevel(level)


def written(**values: Any) -> str:
    """Log as it is configured; what is written."""
    (handler,) = (one for one in logging.getLogger().handlers if one.name == "structlog")
    handler.setStream(stream := io.StringIO())  # type: ignore[attr-defined]
    # pytest's own, which are there by now, fail for what they cannot show.
    logging.getLogger().handlers = [handler]
    structlog.stdlib.get_logger("shop").info("told", **values)
    return stream.getvalue()


@pytest.fixture
def logs(configured: Any) -> Logs:
    """Log a line as in production; what it says."""
    configured.configure(json=True)

    def line(**values: Any) -> dict[str, Any]:
        (text,) = written(**values).splitlines()
        told: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
        assert (told["event"], told["level"]) == ("told", "info")
        return told

    return line


def test_what_json_has_stays_as_it_is(logs: Logs) -> None:
    values = {"a": [1, 2.5, None, True, "Z\u00fcrich"], "b": {"c": ("d",)}}
    assert logs(**values).items() >= {"a": values["a"], "b": {"c": ["d"]}}.items()


@pytest.mark.parametrize(
    "value",
    [b"\xff\xfe", "half \ud800 pair", CIRCULAR, DEEP, float("nan"), Silent(), 10**1000, {b"k": 1}],
    ids=["bytes", "surrogate", "circular", "deep", "nan", "silent", "huge", "key"],
)
def test_line_is_written_whatever_it_tells(logs: Logs, value: Any) -> None:
    assert "value" in logs(value=value)


@pytest.mark.parametrize("value", [Silent(), [Silent()], {"a": Silent()}, DEEP])
def test_line_for_people_is_written_whatever_it_tells(configured: Any, value: Any) -> None:
    configured.configure()
    try:
        raise LookupError("lost")
    except LookupError:
        line = written(value=value, count=1, exc_info=True)
    assert "count=1" in line
    assert "whose repr raises" in line
    assert line.endswith("LookupError: lost\n")


@pytest.mark.parametrize("nested", [False, True])
def test_what_a_repr_hides_is_hidden(logs: Logs, nested: bool) -> None:
    card = Card("4242", "Ann")
    told = logs(card={"cards": [card]} if nested else card)
    assert "Ann" in str(told)
    assert "4242" not in str(told)


def test_lines_can_be_captured_time_and_again(configured: Any) -> None:
    log = structlog.stdlib.get_logger("shop")
    for _ in range(2):
        configured.configure()
        with structlog.testing.capture_logs() as lines:
            log.info("told")
        assert [one["event"] for one in lines] == ["told"]
