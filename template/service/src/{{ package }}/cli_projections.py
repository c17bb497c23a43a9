"""The commands of `projections`: look at read models, and make one anew."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import typer

from .app import build_runtime
from .base import logs
from .bus.operating.projections import Projections
from .cli_changes import Reason, Who
from .cli_events import Listener, reaching
from .cli_output import AsJson, Yes, ask, counted, print_json, progress, tell
from .settings import Settings

projections = typer.Typer(no_args_is_help=True, help="Look at read models, and make one anew.")

T = TypeVar("T")


@projections.command("list")
def list_(as_json: AsJson = False) -> None:
    """Read models, and what their listeners have not done yet."""
    rows = _run(Projections.all)
    tell(rows, ("listener", "tables", "events", "unfinished", "dead"), as_json)


@projections.command()
def rebuild(
    listener: Listener,
    yes: Yes = False,
    reason: Reason = "",
    who: Who = "",
    as_json: AsJson = False,
) -> None:
    """Make a read model anew from all events, and replace the live one in the end."""
    planned = _run(lambda found: found.plan(listener))
    events, tables = counted(planned.events, "event"), [one.name for one in planned.model.tables]
    ask(f"Make {', '.join(tables)} anew of {events}?", yes)
    with progress("Rebuild", planned.events) as step:
        rows = _run(lambda found: found.rebuild(planned, who=who, reason=reason, progress=step))
    if as_json:
        print_json({"listener": planned.model.listener, "tables": tables, "rows": rows})
    else:
        typer.echo(f"{', '.join(tables)}: {counted(rows, 'row')}.")


def _run(do: Callable[[Projections], Awaitable[T]]) -> T:
    """Do something with the read models of all slices, whichever of them run here."""
    settings = Settings().model_copy(update={"slices": None})
    logs.configure(settings.log_level, json=settings.in_production)
    runtime = build_runtime(settings)
    found = Projections(runtime)

    async def run() -> T:
        try:
            return await do(found)
        finally:
            await runtime.wiring.services.container.close()

    assert runtime.database is not None
    return asyncio.run(reaching(runtime.database, run))
