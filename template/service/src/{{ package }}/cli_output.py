"""What commands print: tables for people, JSON for machines."""

import datetime as dt
import json
from collections.abc import Iterable, Sequence

import typer

from .bus.operating.standing import Row


def ask(question: str, yes: bool) -> None:
    """Let the user confirm. Ends the command if they do not."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


def tell(rows: Iterable[Row], columns: Sequence[str], as_json: bool) -> None:
    """A table, or JSON."""
    rows = list(rows)
    if as_json:
        return print_json(rows)
    lines = [columns, *([text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines if rows else ():
        typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())
    return None if rows else typer.echo("None.")


def tell_one(row: Row) -> None:
    """The values of one row, a line for each."""
    width = max(map(len, row))
    for name, value in row.items():
        typer.echo(f"{name:{width}}  {text(value)}".rstrip())


def tell_counts(counts: Iterable[Row], as_json: bool) -> None:
    """What is about to change; beside the answer if that is for a machine."""
    for one in counts:
        typer.echo("  ".join(map(text, one.values())), err=as_json)


def tell_changed(action: str, changed: int, total: int, as_json: bool) -> None:
    """How many of those that were shown were changed."""
    if as_json:
        return print_json({"action": action, "chosen": total, "changed": changed})
    typer.echo(f"{action}: {changed} of {total}.")
    if changed < total:
        typer.echo("The others are worked, or were changed, by now; or are there already.")
    return None


def warn_unattended(unattended: Iterable[str]) -> None:
    """Name listeners that nothing runs."""
    for listener in unattended:
        typer.echo(f"warning: no live process runs {listener}", err=True)


def counted(number: int, what: str) -> str:
    """A number and its noun, such as '2 events'."""
    plural = what.removesuffix("y") + "ies" if what.endswith("y") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def print_json(value: object) -> None:
    """A value for machines."""
    typer.echo(json.dumps(value, indent=2, default=text))


def text(value: object) -> str:
    """A value as people read it."""
    match value:
        case None:
            return ""
        case dt.datetime():
            return value.isoformat(timespec="seconds")
        case float():
            return f"{value:.0f}"
        case list() | dict():
            return json.dumps(value, default=str)
    return str(value)
