"""The commands of `events`: look at deliveries, and change them by hand."""

import asyncio
import json
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import UUID

import typer

from .app import PACKAGE, StartError, check_database
from .bus.engines import UNREACHABLE, Database
from .bus.errors import OperationError
from .bus.operating.checks import remedies
from .bus.operating.operations import Operations
from .bus.operating.standing import Row
from .bus.runtime import build
from .cli_output import (
    AsJson,
    print_json,
    span,
    tell,
    tell_block,
    tell_one,
    text,
    until,
    warn_of_more,
    warn_unattended,
)
from .settings import Settings

events = typer.Typer(no_args_is_help=True, help="Look at deliveries, and change them by hand.")

T = TypeVar("T")

Listener = Annotated[str, typer.Argument(help="A listener, such as orders.start_order.")]
Where = Annotated[
    str, typer.Option(help="Which: 'state=dead listener=a.b error~Timeout since=1h'.")
]
WhereScheduled = Annotated[str, typer.Option(help="Which: event, key, correlation or id.")]
Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="No more than so many.")]


@events.command("list")
def list_(where: Where = "", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Deliveries, the newest first."""
    warn_of_unknown_events(where)
    rows = run_operations(lambda operations: operations.deliveries(where, limit=limit + 1))
    columns = ("id", "state", "listener", "event", "key", "failures", "error_type", "recorded_at")
    none = "None. (An event has no delivery if nobody listens to it, or if it is still scheduled.)"
    tell(rows[:limit], columns, as_json, none=none)
    warn_of_more(rows, limit, "newest")


@events.command()
def scheduled(where: WhereScheduled = "", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Events that are not due yet, the next one first."""
    warn_of_unknown_events(where)
    rows = run_operations(lambda operations: operations.scheduled(where, limit=limit + 1))
    tell(rows[:limit], ("due", "name", "key", "id", "correlation_id"), as_json)
    warn_of_more(rows, limit, "next")


@events.command()
def show(
    which: Annotated[str, typer.Argument(help="The id of a delivery, or of an event.")],
    as_json: AsJson = False,
) -> None:
    """One event or delivery, with every attempt that failed."""
    found = run_operations(lambda operations: operations.show(_id(which)))
    if as_json:
        return print_json(found)
    for delivery in found["deliveries"]:
        _show_delivery(delivery)
    event = found["event"]
    return tell_block(f"event {event['name']}", {one: event[one] for one in event if one != "name"})


@events.command()
def dead(as_json: AsJson = False) -> None:
    """Dead letters by listener, error and place; the oldest and the newest delivery of each."""
    rows = run_operations(Operations.dead_letters)
    columns = ("count", "listener", "error_type", "error_frame")
    ends = ("oldest_id", "oldest", "newest_id", "newest")
    tell(rows, (*columns, *ends), as_json)


@events.command()
def lag(as_json: AsJson = False) -> None:
    """What waits for each listener, for how long, and why: a pause, a dead letter, no process.

    In JSON, attended says whether a process that was seen within 30 seconds runs the listener.
    """
    rows = run_operations(Operations.lag)
    if as_json:
        return print_json(rows)
    told = [{**one, "oldest": span(one["oldest_seconds"]), "note": _note(one)} for one in rows]
    return tell(told, ("listener", "pending", "waiting", "working", "dead", "oldest", "note"))


@events.command()
def workers(as_json: AsJson = False) -> None:
    """Processes that deliver, or did; and the slices whose listeners they run."""
    rows, unattended = run_operations(_workers)
    tell(rows, ("alive", "host", "pid", "version", "slices_with_listeners", "seen_at"), as_json)
    warn_unattended(unattended)


@events.command()
def health(as_json: AsJson = False) -> None:
    """How much is pending and since when, and how much is scheduled, and dead."""
    found = run_operations(Operations.health)
    print_json(found) if as_json else tell_one(found)


@events.command()
def audit(limit: Limit = 50, as_json: AsJson = False) -> None:
    """What was changed by hand, the newest first."""
    rows = run_operations(lambda operations: operations.changes(limit=limit + 1))
    told = [{**one, "listener": _listener_of(one["details"])} for one in rows[:limit]]
    columns = ("at", "who", "action", "listener", "filter", "count", "reason")
    print_json(rows[:limit]) if as_json else tell(told, columns)
    warn_of_more(rows, limit, "newest")


@events.command()
def check(as_json: AsJson = False) -> None:
    """Whether this code can deliver all that the database holds; exits with 1 if not."""
    found = run_operations(Operations.check)
    columns = ("count", "problem", "listener", "event", "example")
    tell(map(asdict, found), columns, as_json, none="All can be delivered.")
    if not found:
        return
    for problem, remedy in {} if as_json else remedies(found).items():
        typer.echo(f"\n{problem}: {remedy}")
    raise typer.Exit(1)


@events.command()
def export(
    where: Where = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON anyway.")] = False,
) -> None:
    """Deliveries with their events, a line of JSON for each."""
    warn_of_unknown_events(where)
    try:
        run_operations(lambda operations: _export(operations, where, output))
    except _UnwrittenError as unwritten:
        raise unwritten.error from None


def run_operations(do: Callable[[Operations], Awaitable[T]]) -> T:
    """Do something with the operations of the service's database."""

    database = Database(Settings().database_url)
    operations = Operations(database, build(PACKAGE, database=database).catalog)
    return asyncio.run(reaching(database, lambda: do(operations)))


def warn_of_unknown_events(where: str) -> None:
    """Warn of events in a filter that nobody knows: most likely a name is misspelt."""
    if "event=" not in where:
        return
    for told in run_operations(lambda operations: operations.unknown_events(where)):
        typer.echo(f"warning: {told}", err=True)


async def reaching(database: Database, do: Callable[[], Awaitable[T]]) -> T:
    """Do something with a database, and close it. Raises StartError if it does not answer."""
    try:
        return await do()
    except UNREACHABLE as error:
        # Most likely it is away, or behind the code.
        await check_database(database)
        raise StartError(f"The database {database} does not answer: {error}") from error
    finally:
        await database.close()


def _show_delivery(delivery: Row) -> None:
    """What matters first; the traceback of the last failure only."""
    failed = delivery["failed_attempts"]
    names = (
        "state",
        "paused",
        "corrected_by",
        "listener",
        "failures",
        "losses",
        "error_type",
        "error_frame",
    )
    times = ("due", "finished_at", "lane", "run")
    told = {**delivery, "paused": _pause(delivery) if delivery["paused_until"] else None}
    shown = {one: told[one] for one in (*names, *times)}
    tell_block(f"delivery {delivery['id']}", shown)
    if not failed:
        return
    typer.echo("failures")
    columns = ("failed_at", "attempt", "error_type", "error_frame")
    tell([{**one, "attempt": one["number"]} for one in failed], columns, indent="  ")
    numbers = [one["number"] for one in failed]
    if numbers != sorted(set(numbers)):
        typer.echo(
            "  (A retry by hand begins to count anew; what pauses the listener costs no attempt.)"
        )
    typer.echo("\nthe last one, in full (--json has all)")
    typer.echo(textwrap.indent(failed[-1]["error_message"].rstrip(), "  ") + "\n")


def _note(lag: Row) -> str:
    """Why deliveries of a listener may not be running."""
    if lag["retired_at"]:
        return f"retired {text(lag['retired_at'])}"
    reasons = {
        f"paused {_pause(lag)}": lag["paused_until"],
        "being filled": lag["filling"],
        f"{lag['held']} wait behind a dead letter": lag["held"],
        "no process runs it": not lag["attended"],
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def _pause(row: Row) -> str:
    return f"{until(row['paused_until'])}: {row['paused_reason']}"


def _listener_of(details: Row) -> str:
    to = details.get("to")
    return f"to {to}" if to else details.get("listener", "")


async def _workers(operations: Operations) -> tuple[Sequence[Row], Sequence[str]]:
    return await operations.workers(), await operations.unattended()


async def _export(operations: Operations, where: str, output: Path | None) -> None:
    with _writing(output):
        file = output.open("w", encoding="utf-8") if output else sys.stdout
    try:
        async for row in operations.export(where):
            with _writing(output):
                print(json.dumps(row, default=text), file=file)
    finally:
        with _writing(output):
            file.close() if output else print(end="", flush=True)


class _UnwrittenError(Exception):
    """An error of standard output, which is none of the database."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _writing(output: Path | None) -> Iterator[None]:
    """Blames the file for what goes wrong inside."""
    try:
        yield
    except OSError as error:
        if output is None:
            raise _UnwrittenError(error) from error
        raise OperationError(f"{output} cannot be written: {error.strerror}.") from error


def _id(given: str) -> int | UUID:
    try:
        return int(given) if given.isdecimal() and len(given) < 19 else UUID(given)
    except ValueError:
        raise OperationError(
            f"expected the number of a delivery or the UUID of an event, got {given!r}"
        ) from None
