"""What commands print: tables for people, JSON for machines."""

import datetime as dt
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from .bus.operating.changes import FITTING
from .bus.operating.edits import Edit
from .bus.operating.standing import FOR_EVER, Row

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def ask(question: str, yes: bool) -> None:
    """Let the user confirm. Ends the command if they do not."""
    if not yes:
        typer.confirm(question, abort=True, err=True)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar; gives what it is told of each step. Without a terminal there is none."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with typer.progressbar(length=total, label=label, file=sys.stderr) as bar:
        yield bar.update


def tell(
    rows: Iterable[Row],
    columns: Sequence[str],
    as_json: bool = False,
    *,
    none: str = "None.",
    indent: str = "",
) -> None:
    """A table, or JSON; none is what is said for no rows."""
    rows = list(rows)
    if as_json:
        return print_json(rows)
    lines = [columns, *([text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines if rows else ():
        typer.echo((indent + "  ".join(map(str.ljust, line, widths))).rstrip())
    return None if rows else typer.echo(none)


def tell_one(row: Row) -> None:
    """The values of one row, a line for each."""
    width = max(map(len, row))
    for name, value in row.items():
        typer.echo(f"{name:{width}}  {text(value)}".rstrip())


def tell_block(title: str, row: Row) -> None:
    """A title, and below it the values that there are."""
    told = {name: value for name, value in row.items() if value not in (None, "")}
    width = max(map(len, told))
    typer.echo(title)
    for name, value in told.items():
        typer.echo(f"  {name:{width}}  {text(value)}")
    typer.echo()


def tell_counts(counts: Iterable[Row], as_json: bool) -> None:
    """What is about to change; beside the answer if that is for a machine."""
    for one in counts:
        typer.echo("  ".join(map(text, one.values())), err=as_json)


def tell_edit(planned: Edit, as_json: bool) -> None:
    """What a corrected payload changes; beside the answer if that is for a machine."""
    typer.echo(f"{planned.listener}  {planned.event}  key {planned.old_key}", err=as_json)
    for field, values in planned.changes.items():
        old, new = (json.dumps(one, ensure_ascii=False, default=str) for one in values)
        typer.echo(f"  {field}: {old} → {new}", err=as_json)
    if not planned.changes:
        typer.echo("  The payload is as it was.", err=as_json)


def tell_changed(action: str, changed: int, total: int, as_json: bool) -> None:
    """How many of those that were shown were changed."""
    if as_json:
        return print_json({"action": action, "chosen": total, "changed": changed})
    typer.echo(f"{action}: {changed} of {total}.")
    if changed < total and action == "cancel":
        typer.echo("The others were published, or cancelled, by now.")
    elif changed < total and action != "move":
        typer.echo("The others are worked, or were changed, by now.")
    return None


def tell_not_moved(states: Mapping[str, int], listener: str, to: str, *, retired: bool) -> None:
    """Why some stayed where they were, and how to be rid of them and of the listener."""
    for state, count in states.items():
        why = {
            "working": "being worked",
            "done": "done by now",
            "dropped": "dropped by now",
            **dict.fromkeys(FITTING["move"], f"left, as {to} has the event already"),
        }
        typer.echo(f"{counted(count, 'delivery')}: {why.get(state, state)}.")
    if "working" in states:
        typer.echo(f"When that has ended, `events move {listener} {to}` again.")
    drop = " --drop" if set(states) & set(FITTING["move"]) else ""
    if drop or not retired:
        until = "" if retired else " Until then deliveries are made for it that nothing runs."
        typer.echo(f"Next: `events retire {listener}{drop}`.{until}")


def warn_of_more(rows: Sequence[Row], limit: int, which: str) -> None:
    """Tell that not all are shown, if one row more than the limit was found."""
    if len(rows) > limit:
        typer.echo(f"Only the {which} {limit} are shown: --limit N shows more.", err=True)


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
        case bool():
            return "yes" if value else "no"
        case dt.datetime():
            return value.isoformat(timespec="seconds")
        case float():
            return f"{value:.0f}"
        case list() if all(isinstance(one, str) for one in value):
            return ", ".join(map(str, value))
        case list() | dict():
            return json.dumps(value, default=str)
    return str(value)


def until(time: dt.datetime | None) -> str:
    """When a pause ends, as people read it."""
    if time is not None and time >= FOR_EVER:
        return "until it is resumed"
    return f"until {text(time)}"


def span(seconds: float | None) -> str:
    """A time span as people read it, such as 2d3h, 1h5m or 12s; '' for none."""
    if seconds is None:
        return ""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next((n for n, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2])
