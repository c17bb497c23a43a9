"""The commands of `events` that change something: count, show, ask, and do just that."""

import getpass
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from .bus.errors import OperationError
from .bus.operating.changes import Selection
from .bus.operating.filters import duration
from .bus.operating.operations import Operations
from .bus.operating.standing import Row
from .cli_events import (
    Listener,
    Where,
    WhereScheduled,
    run_operations,
    warn_of_unknown_events,
)
from .cli_output import (
    AsJson,
    Yes,
    ask,
    counted,
    print_json,
    progress,
    tell_changed,
    tell_counts,
    tell_edit,
    tell_not_moved,
    text,
    until,
)

changes = typer.Typer()

Change = Callable[..., Awaitable[int]]

_WHICH = {
    "delivery": "Which deliveries? Give their ids, or --where 'state=dead …'.",
    "id": "Which events? Give their ids, or --where 'event=… key=…'.",
}


def _or_user(who: str) -> str:
    if who:
        return who
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        return "unknown"


Ids = Annotated[list[int] | None, typer.Argument(help="Deliveries by their ids.")]
EventIds = Annotated[list[UUID] | None, typer.Argument(help="Events by their ids.")]
WhereReplayed = Annotated[
    str, typer.Option(help="Which: 'event=a.B key=… since=7d', or by correlation, id, until.")
]
Reason = Annotated[str, typer.Option(help="Why; kept in bus_audit.")]
Who = Annotated[
    str,
    typer.Option(help="Who does it.", callback=_or_user, show_default="the system's user"),
]
Edit = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A corrected payload, as JSON.")
]
OtherKey = Annotated[
    bool, typer.Option("--other-key", help="With --edit: it may be about something else.")
]


@changes.command()
def retry(
    ids: Ids = None,
    where: Where = "",
    edit: Edit = None,
    other_key: OtherKey = False,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Run dead letters again, and what waits for its next attempt now; --edit: one, corrected."""
    if edit is None:
        _change("retry", Operations.retry, ids, where, yes, as_json, who=who, reason=reason)
        return
    if ids is None or len(ids) != 1 or where:
        raise OperationError("--edit is for one delivery, by its id.")
    [one] = ids
    payload = _payload(edit)
    planned = run_operations(
        lambda operations: operations.plan_edit(one, payload, other_key=other_key)
    )
    tell_edit(planned, as_json)
    ask(f"Drop delivery {one}, and deliver a new event with this payload instead?", yes)
    made = run_operations(
        lambda operations: operations.edit(
            one, payload, other_key=other_key, who=who, reason=reason
        )
    )
    if as_json:
        print_json({"event": made, "key": planned.key})
    else:
        typer.echo(f"Stored as event {made}, key {planned.key}.")


@changes.command()
def drop(
    ids: Ids = None,
    where: Where = "",
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Give deliveries up: they will not run any more."""
    _change("drop", Operations.drop, ids, where, yes, as_json, who=who, reason=reason)


@changes.command()
def cancel(
    ids: EventIds = None,
    where: WhereScheduled = "",
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Take events back that are published for later."""
    found = _where("id", ids, where)
    warn_of_unknown_events(found)
    chosen = run_operations(lambda operations: operations.select_scheduled(found))
    for missing in sorted(set(ids or ()) - set(chosen.ids)):
        typer.echo(f"No event {missing} is to be published later.", err=True)
    _do(Operations.cancel, chosen, "event", ids, yes, as_json, who=who, reason=reason)


@changes.command()
def replay(
    listener: Listener,
    where: WhereReplayed = "",
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Run a listener again over past events; what it did for them it does again."""
    warn_of_unknown_events(where)
    planned = run_operations(lambda operations: operations.plan_replay(listener, where))
    total = len(planned.places)
    tell_counts([{"event": name, "count": n} for name, n in planned.counts.items()], as_json)
    if total:
        again = "What it did for them it does again, unless it finds that it is done already."
        typer.echo(again, err=as_json)
        if planned.is_read_model:
            model = (
                f"It keeps a read model: `projections rebuild {listener}` makes that anew, while a"
                " replay over rows that are there will most likely fail."
            )
            typer.echo(model, err=as_json)
        ask(f"Run {listener} again over {counted(total, 'event')}?", yes)
    with progress("Replay", total) as step:
        made = run_operations(
            lambda operations: operations.replay(planned, who=who, reason=reason, progress=step)
        )
    tell_changed("replay", made, total, as_json)


@changes.command()
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
    end = run_operations(
        lambda operations: operations.pause(listener, span=length, who=who, reason=reason)
    )
    print_json({"until": end}) if as_json else typer.echo(f"Paused {until(end)}.")


@changes.command()
def resume(
    listener: Listener,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """End a pause; take up again a listener that was retired, and is back in the code."""
    _show_lag(listener, as_json)
    ask(f"Resume {listener}?", yes)
    done = run_operations(lambda operations: operations.resume(listener, who=who, reason=reason))
    since = done and done.retired_since
    if as_json:
        print_json({"resumed": listener if done else None, "retired_since": since})
    elif done is None:
        typer.echo(f"{listener} was not paused: nothing has changed.")
    elif since is None:
        typer.echo("Resumed.")
    else:
        typer.echo(
            f"Resumed. It was retired since {text(since)}: it gets what was published meanwhile,"
            ' within half a minute, by a running process, if it has start="beginning"; any other'
            " one can be run over that by `events replay`."
        )


@changes.command()
def retire(
    listener: Listener,
    drop: Annotated[bool, typer.Option("--drop", help="Drop what it has left.")] = False,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Make no more deliveries for a listener that is gone from the code."""
    left = run_operations(lambda operations: operations.select_left("drop", listener))
    total = counted(len(left.ids), "delivery")
    tell_counts(left.counts, as_json)
    ask(f"Retire {listener}{f' and drop {total}' if drop else ''}?", yes)
    dropped = run_operations(
        lambda operations: operations.retire(listener, drop=drop, who=who, reason=reason)
    )
    if as_json:
        print_json({"retired": listener, "dropped": dropped})
    elif drop:
        typer.echo(f"Retired; dropped: {dropped}.")
    else:
        stay = f" What it has left stays: {total}. With --drop, it is dropped." if left.ids else ""
        typer.echo(f"Retired.{stay}")


@changes.command()
def move(
    listener: Listener,
    to: Annotated[str, typer.Argument(help="The listener that takes them over.")],
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Hand what a listener that is gone has left to another one."""
    left = run_operations(lambda operations: operations.select_left("move", listener))
    tell_counts(left.counts, as_json)
    if left.ids:
        ask(f"Move {counted(len(left.ids), 'delivery')} to {to}?", yes)
    moved = run_operations(lambda operations: operations.move(left, to, who=who, reason=reason))
    tell_changed("move", moved, len(left.ids), as_json)
    if not as_json:
        states = run_operations(lambda operations: operations.not_moved(left, to))
        retired = run_operations(lambda operations: operations.is_retired(listener))
        tell_not_moved(states, listener, to, retired=retired)


def _change(
    action: str,
    change: Change,
    ids: Sequence[int] | None,
    where: str,
    yes: bool,
    as_json: bool,
    **who_and_why: str,
) -> None:
    """Find deliveries, say which of the named ones are not among them, and change the others."""
    found = _where("delivery", ids, where)
    warn_of_unknown_events(found)
    chosen = run_operations(lambda operations: operations.select(action, found))
    _tell_unfit(action, set(ids or ()) - set(chosen.ids))
    _do(change, chosen, "delivery", ids, yes, as_json, **who_and_why)


def _do(
    change: Change,
    chosen: Selection,
    what: str,
    named: Sequence[int] | Sequence[UUID] | None,
    yes: bool,
    as_json: bool,
    **who_and_why: str,
) -> None:
    """Show how many there are, ask, and then change just those.

    Ends with status 1 if some were named by their ids, and none of them could be changed.
    """
    total = len(chosen.ids)
    tell_counts(chosen.counts, as_json)
    if total:
        ask(f"{chosen.action.capitalize()} {counted(total, what)}?", yes)
    changed = run_operations(lambda operations: change(operations, chosen, **who_and_why))
    tell_changed(chosen.action, changed, total, as_json)
    if named and not changed:
        raise typer.Exit(1)


def _tell_unfit(action: str, ids: Collection[int]) -> None:
    """Why deliveries that were named are not changed."""
    if not ids:
        return
    where = f"delivery={','.join(map(str, sorted(ids)))}"
    rows = run_operations(lambda operations: operations.deliveries(where, limit=len(ids)))
    for row in rows:
        told = f"Delivery {row['id']} is {row['state']}"
        if action == "retry" and row["state"] in ("done", "dropped"):
            again = f"events replay {row['listener']} --where id={row['event_id']}"
            told += f": `{again}` runs it again, by a new delivery"
        elif action == "retry" and row["state"] == "pending":
            told += " and due: a worker that is free runs it, unless its listener is paused"
        typer.echo(f"{told}.", err=True)
    for missing in sorted(set(ids) - {row["id"] for row in rows}):
        typer.echo(f"No delivery {missing} is stored here.", err=True)


def _where(field: str, ids: Sequence[int] | Sequence[UUID] | None, where: str) -> str:
    """The filter for what is to be changed. Raises OperationError if nothing limits it."""
    if not ids and not where.strip():
        raise OperationError(_WHICH[field])
    given = f"{field}={','.join(map(str, ids))}" if ids else ""
    return f"{given} {where}".strip()


def _payload(file: Path) -> Row:
    try:
        payload = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OperationError(f"{file}: expected JSON: {error}") from None
    if not isinstance(payload, dict):
        raise OperationError(f"{file}: expected a JSON object, the payload of the event")
    return payload


def _show_lag(listener: str, as_json: bool) -> None:
    for one in run_operations(Operations.lag):
        if one["listener"] == listener:
            typer.echo(f"{listener}: {counted(one['pending'], 'pending delivery')}", err=as_json)
