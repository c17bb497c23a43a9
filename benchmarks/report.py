"""What the benchmarks share: their options, their ratios, their tables, their JSON."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

Row = dict[str, object]


@dataclass
class Taken:
    """Seconds for each thing done, by the clock and of this process's time, round by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def ratio(base: Sequence[float], ours: Sequence[float]) -> float:
    """How many times as fast as the base ours is, of the rounds the median."""
    return median(b / o for b, o in zip(base, ours, strict=True))


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--rounds", type=int, help="how often each figure is measured")
    return parser


@dataclass
class Report:
    """Figures of one run; printed as Markdown tables, so that they can go into the docs."""

    name: str
    rows: list[Row] = field(default_factory=list)
    machine: str = f"Python {platform.python_version()}, {os.cpu_count()} cores"

    def show(self, title: str, rows: Sequence[Row]) -> None:
        """Print these rows as a table; their keys are its head."""
        self.rows += rows
        print(f"\n{title} ({self.machine})\n\n{table(rows)}", flush=True)

    def write(self, path: Path | None) -> None:
        """Write all rows as JSON, if a file was asked for."""
        if path:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows that have the same keys."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
