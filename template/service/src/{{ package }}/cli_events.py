"""The commands of `events`: look at deliveries, and change them by hand."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from .app import PACKAGE, StartError
from .bus.engines import Database
from .bus.errors import OperationError
from .bus.operating.operations import Operations
from .bus.operating.standing import Row
from .bus.runtime import build
from .cli_output import (
    print_json,
    tell,
    tell_one,
    text,
    warn_unattended,
)
from .settings import Settings

events = typer.Typer(no_args_is_help=True, help="Look at deliveries, and change them by hand.")

T = TypeVar("T")

Listener = Annotated[str, typer.Argument(help="A listener, such as orders.start_order.")]
Where = Annotated[
    str, typer.Option(help="Which: 'state=dead listener=a.b error~Timeout since=1h'.")
]
Limit = Annotated[int, typer.Option(min=1, help="No more than so many.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@events.command("list")
def list_(where: Where = "", limit: Limit = 50, as_json: AsJson = False) -> None:
    """Deliveries, the newest first."""
    rows = run_operations(lambda operations: operations.deliveries(where, limit=limit))
    columns = ("id", "state", "listener", "event", "key", "attempts", "error_type", "recorded_at")
    tell(rows, columns, as_json)


@events.command()
def show(
    which: Annotated[str, typer.Argument(help="The id of a delivery, or of an event.")],
    as_json: AsJson = False,
) -> None:
    """One event or delivery, with every attempt that failed."""
    found = run_operations(lambda operations: operations.show(_id(which)))
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
    tell(run_operations(Operations.dead_letters), columns, as_json)


@events.command()
def lag(as_json: AsJson = False) -> None:
    """What waits for each listener, and since when."""
    columns = ("listener", "pending", "waiting", "working", "dead", "oldest_seconds")
    states = ("paused_until", "paused_reason", "retired_at", "attended")
    rows = run_operations(Operations.lag)
    tell(rows, (*columns, *states), as_json)
    warn_unattended(
        [one["listener"] for one in rows if not one["attended"] and not one["retired_at"]]
    )


@events.command()
def workers(as_json: AsJson = False) -> None:
    """Processes that deliver, or did."""
    rows, unattended = run_operations(_workers)
    tell(rows, ("alive", "host", "pid", "version", "slices", "seen_at"), as_json)
    warn_unattended(unattended)


@events.command()
def health(as_json: AsJson = False) -> None:
    """How much is pending and since when, and how much is dead."""
    found = run_operations(Operations.health)
    print_json(found) if as_json else tell_one(found)


@events.command()
def audit(limit: Limit = 50, as_json: AsJson = False) -> None:
    """What was changed by hand, the newest first."""
    rows = run_operations(lambda operations: operations.changes(limit=limit))
    tell(rows, ("at", "who", "action", "filter", "count", "reason"), as_json)


@events.command()
def check(as_json: AsJson = False) -> None:
    """Whether this code can deliver all that the database holds; exits with 1 if not."""
    found = [asdict(one) for one in run_operations(Operations.check)]
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
    run_operations(lambda operations: _export(operations, where, output))


def run_operations(do: Callable[[Operations], Awaitable[T]]) -> T:
    """Do something with the operations of the service's database."""

    async def run() -> T:
        database = Database(Settings().database_url)
        try:
            return await do(Operations(database, build(PACKAGE, database=database).catalog))
        except (OSError, SQLAlchemyError) as error:
            raise StartError(f"The database {database.url!r} does not answer: {error}") from error
        finally:
            await database.close()

    return asyncio.run(run())


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


def _id(given: str) -> int | UUID:
    try:
        return int(given) if given.isdecimal() and len(given) < 19 else UUID(given)
    except ValueError:
        raise OperationError(
            f"expected the number of a delivery or the UUID of an event, got {given!r}"
        ) from None
