"""The commands of `events`: look at deliveries, and change them by hand."""

import asyncio
import getpass
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from .app import PACKAGE, StartError
from .bus.changes import Selection
from .bus.engines import Database
from .bus.errors import OperationError
from .bus.filters import duration
from .bus.operations import Operations
from .bus.runtime import build
from .cli_output import (
    ask,
    counted,
    print_json,
    tell,
    tell_changed,
    tell_counts,
    tell_one,
    text,
    warn_unattended,
)
from .settings import Settings

events = typer.Typer(no_args_is_help=True, help="Look at deliveries, and change them by hand.")

T = TypeVar("T")
Row = dict[str, Any]
Change = Callable[..., Awaitable[int]]

Ids = Annotated[list[int] | None, typer.Argument(help="Deliveries by their ids.")]
Listener = Annotated[str, typer.Argument(help="A listener, such as orders.start_order.")]
Where = Annotated[
    str, typer.Option(help="Which: 'state=dead listener=a.b error~Timeout since=1h'.")
]
Limit = Annotated[int, typer.Option(min=1, help="No more than so many.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Reason = Annotated[str, typer.Option(help="Why; kept in bus_audit.")]
Who = Annotated[str, typer.Option(default_factory=getpass.getuser, help="Who does it.")]
Edit = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A corrected payload, as JSON.")
]


@events.command("list")
def list_(where: Where = "", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Deliveries, the newest first."""
    rows = _run(lambda operations: operations.deliveries(where, limit=limit))
    columns = ("id", "state", "listener", "event", "key", "attempts", "error_type", "recorded_at")
    tell(rows, columns, as_json)


@events.command()
def show(
    which: Annotated[str, typer.Argument(help="The id of a delivery, or of an event.")],
    as_json: AsJson = False,
) -> None:
    """One event or delivery, with every attempt that failed."""
    found = _run(lambda operations: operations.show(_id(which)))
    if as_json:
        return print_json(found)
    tell_one(found["event"])
    for delivery in found["deliveries"]:
        attempts = delivery.pop("attempts_made")
        typer.echo()
        tell_one(delivery)
        for attempt in attempts:
            typer.echo(f"\nattempt {attempt['number']}, {text(attempt['failed_at'])}")
            typer.echo(attempt["error_message"].rstrip())
    return None


@events.command()
def dead(as_json: AsJson = False) -> None:
    """Dead letters by listener, error and place."""
    columns = ("count", "listener", "error_type", "error_frame", "oldest", "newest")
    tell(_run(Operations.dead_letters), columns, as_json)


@events.command()
def lag(as_json: AsJson = False) -> None:
    """What waits for each listener, and since when."""
    columns = ("listener", "pending", "waiting", "working", "dead", "oldest_seconds")
    states = ("paused_until", "paused_reason", "retired_at", "attended")
    rows = _run(Operations.lag)
    tell(rows, (*columns, *states), as_json)
    warn_unattended(
        [one["listener"] for one in rows if not one["attended"] and not one["retired_at"]]
    )


@events.command()
def workers(as_json: AsJson = False) -> None:
    """Processes that deliver, or did."""
    rows, unattended = _run(_workers)
    tell(rows, ("alive", "host", "pid", "version", "slices", "seen_at"), as_json)
    warn_unattended(unattended)


@events.command()
def health(as_json: AsJson = False) -> None:
    """How much is pending and since when, and how much is dead."""
    found = _run(Operations.health)
    print_json(found) if as_json else tell_one(found)


@events.command()
def audit(limit: Limit = 50, as_json: AsJson = False) -> None:
    """What was changed by hand, the newest first."""
    rows = _run(lambda operations: operations.changes(limit=limit))
    tell(rows, ("at", "who", "action", "filter", "count", "reason"), as_json)


@events.command()
def check(as_json: AsJson = False) -> None:
    """Whether this code can deliver all that the database holds; exits with 1 if not."""
    found = [asdict(one) for one in _run(Operations.check)]
    tell(found, ("count", "problem", "listener", "event", "example"), as_json)
    if found:
        raise typer.Exit(1)


@events.command()
def export(
    where: Where = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="It is JSON anyway.")] = False,
) -> None:
    """Deliveries with their events, a line of JSON for each."""
    _run(lambda operations: _export(operations, where, output))


@events.command()
def retry(
    ids: Ids = None,
    where: Where = "",
    edit: Edit = None,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Run dead letters again, and what waits for its next attempt now; --edit: one, corrected."""
    if edit is None:
        _change("retry", Operations.retry, _where(ids, where), yes, as_json, who=who, reason=reason)
        return
    if ids is None or len(ids) != 1 or where:
        raise OperationError("--edit is for one delivery, by its id.")
    [one] = ids
    payload = _payload(edit)
    ask(f"Drop delivery {one}, and deliver a new event with this payload instead?", yes)
    made = _run(lambda operations: operations.edit(one, payload, who=who, reason=reason))
    print_json({"event": made}) if as_json else typer.echo(f"Stored as event {made}.")


@events.command()
def drop(
    ids: Ids = None,
    where: Where = "",
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Give deliveries up: they will not run any more."""
    _change("drop", Operations.drop, _where(ids, where), yes, as_json, who=who, reason=reason)


@events.command()
def replay(
    listener: Listener,
    where: Where = "",
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Run a listener again over past events; what it does is done again."""
    planned = _run(lambda operations: operations.plan_replay(listener, where))
    total = len(planned.positions)
    tell_counts([{"event": name, "count": n} for name, n in planned.counts.items()], as_json)
    if total:
        ask(f"Run {listener} again over {counted(total, 'event')}?", yes)
    with typer.progressbar(length=total, label="Replay", file=sys.stderr) as bar:
        made = _run(
            lambda operations: operations.replay(
                planned, who=who, reason=reason, progress=bar.update
            )
        )
    tell_changed("replay", made, total, as_json)


@events.command()
def pause(
    listener: Listener,
    span: Annotated[str | None, typer.Option("--for", help="10m, 1h; until resume if not.")] = None,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Start nothing of a listener for a time."""
    length = None if span is None else duration(span)
    _show_lag(listener, as_json)
    ask(f"Pause {listener}?", yes)
    until = _run(lambda operations: operations.pause(listener, span=length, who=who, reason=reason))
    told = f"until {text(until)}" if length else "until it is resumed"
    print_json({"until": until}) if as_json else typer.echo(f"Paused {told}.")


@events.command()
def resume(
    listener: Listener,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """End a pause."""
    _show_lag(listener, as_json)
    ask(f"Resume {listener}?", yes)
    _run(lambda operations: operations.resume(listener, who=who, reason=reason))
    print_json({"resumed": listener}) if as_json else typer.echo("Resumed.")


@events.command()
def retire(
    listener: Listener,
    drop: Annotated[bool, typer.Option("--drop", help="Drop what it has left.")] = False,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Make no more deliveries for a listener that is gone from the code."""
    left = _run(lambda operations: operations.select_left("drop", listener))
    tell_counts(left.counts, as_json)
    also = f" and drop {counted(len(left.ids), 'delivery')}" if drop else ""
    ask(f"Retire {listener}{also}?", yes)
    _run(lambda operations: operations.retire(listener, who=who, reason=reason))
    dropped = _run(lambda operations: operations.drop(left, who=who, reason=reason)) if drop else 0
    print_json({"retired": listener, "dropped": dropped}) if as_json else typer.echo("Retired.")


@events.command()
def move(
    listener: Listener,
    to: Annotated[str, typer.Argument(help="The listener that takes them over.")],
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Hand what a listener that is gone has left to another one."""
    left = _run(lambda operations: operations.select_left("move", listener))
    tell_counts(left.counts, as_json)
    if left.ids:
        ask(f"Move {counted(len(left.ids), 'delivery')} to {to}?", yes)
    moved = _run(lambda operations: operations.move(left, to, who=who, reason=reason))
    tell_changed("move", moved, len(left.ids), as_json)


def _run(do: Callable[[Operations], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(Settings().database_url)
        try:
            return await do(Operations(database, build(PACKAGE, database=database).catalog))
        except (OSError, SQLAlchemyError) as error:
            raise StartError(f"The database {database.url!r} does not answer: {error}") from error
        finally:
            await database.close()

    return asyncio.run(run())


def _change(
    action: str, change: Change, where: str, yes: bool, as_json: bool, **who_and_why: str
) -> None:
    """Count, show, ask, and then change just what was counted."""
    chosen: Selection = _run(lambda operations: operations.select(action, where))
    total = len(chosen.ids)
    tell_counts(chosen.counts, as_json)
    if total:
        ask(f"{action.capitalize()} {counted(total, 'delivery')}?", yes)
    changed = _run(lambda operations: change(operations, chosen, **who_and_why))
    tell_changed(action, changed, total, as_json)


async def _workers(operations: Operations) -> tuple[Sequence[Row], Sequence[str]]:
    return await operations.workers(), await operations.unattended()


async def _export(operations: Operations, where: str, output: Path | None) -> None:
    file = output.open("w", encoding="utf-8") if output else sys.stdout
    try:
        async for row in operations.export(where):
            print(json.dumps(row, default=text), file=file)
    finally:
        if output:
            file.close()


def _where(ids: Sequence[int] | None, where: str) -> str:
    """The filter for what is to be changed. Raises OperationError if nothing limits it."""
    if not ids and not where.strip():
        raise OperationError("Which deliveries? Give their ids, or --where 'state=dead …'.")
    given = f"delivery={','.join(map(str, ids))}" if ids else ""
    return f"{given} {where}".strip()


def _id(given: str) -> int | UUID:
    try:
        return int(given) if given.isdecimal() and len(given) < 19 else UUID(given)
    except ValueError:
        raise OperationError(
            f"expected the number of a delivery or the UUID of an event, got {given!r}"
        ) from None


def _payload(file: Path) -> Row:
    try:
        payload = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OperationError(f"{file}: expected JSON: {error}") from None
    if not isinstance(payload, dict):
        raise OperationError(f"{file}: expected a JSON object, the payload of the event")
    return payload


def _show_lag(listener: str, as_json: bool) -> None:
    rows = [one for one in _run(Operations.lag) if one["listener"] == listener]
    tell_counts([{"listener": listener, "count": one["pending"]} for one in rows], as_json)
