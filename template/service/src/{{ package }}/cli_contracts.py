"""The commands of `contracts`: what events promise, and whether the code still keeps it."""

from typing import Annotated

import typer

from .app import PACKAGE
from .bus.catalog import relative
from .bus.contracts import Contracts
from .cli_output import AsJson, Yes, ask, counted, print_json

contracts = typer.Typer(no_args_is_help=True, help="What events promise, and whether it is kept.")


@contracts.command()
def check(
    strict: Annotated[
        bool, typer.Option("--strict", help="Also if some are not accepted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare events with what was accepted; exits with 1 if somebody would notice."""
    found = Contracts(PACKAGE)
    if as_json:
        print_json([one.data for one in found.changes])
        raise typer.Exit(bool(found.breaking or (strict and found.changes)))
    found.check()
    for one in found.changes:
        typer.echo(one)
    if not found.changes:
        typer.echo("Events promise what was accepted.")
    elif strict:
        raise typer.Exit(1)


@contracts.command()
def accept(yes: Yes = False) -> None:
    """Write what events promise now into the contracts.json of their slices."""
    found = Contracts(PACKAGE)
    for one in found.breaking:
        typer.echo(one)
    if found.breaking:
        ask(f"Accept {counted(len(found.breaking), 'change')} that others may rely on?", yes)
    written = found.accept()
    for one in found.changes:
        typer.echo(f"Accepted {one.accepted}")
    for file in written:
        typer.echo(f"{'Wrote' if file.exists() else 'Removed'} {relative(str(file))}.")
