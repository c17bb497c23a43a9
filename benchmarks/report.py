"""What the benchmarks share: their options, their tables, their JSON."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

Row = dict[str, object]


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


def bars(rows: Sequence[Row], label: str, value: str, ours: str) -> str:
    """An SVG of horizontal bars, the longest first; those with `ours` in the label stand out."""
    figures = sorted(((float(str(row[value])), str(row[label])) for row in rows), reverse=True)
    left, longest, line = 8 * max(len(name) for _, name in figures) + 16, 480, 28
    width, height = left + longest + 80, line * (len(figures) + 1) + 8
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        ' font-family="sans-serif" font-size="14" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="20" font-weight="bold">{escape(value)}</text>',
    ]
    for number, (figure, name) in enumerate(figures, start=1):
        top, length = line * number, max(1.0, longest * figure / figures[0][0])
        colour, weight = ("#3f51b5", "bold") if ours in name else ("#b0b4bb", "normal")
        drawn += [
            f'<text x="{left - 8}" y="{top + 18}" text-anchor="end" font-weight="{weight}">'
            f"{escape(name)}</text>",
            f'<rect x="{left}" y="{top + 3}" width="{length:.1f}" height="22" fill="{colour}"/>',
            f'<text x="{left + length + 6:.1f}" y="{top + 18}">{figure:,.0f}</text>',
        ]
    return "\n".join([*drawn, "</svg>\n"])


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
