"""The command line."""

import asyncio
import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from socket import socket
from typing import Annotated, Any

import structlog
import typer
import uvicorn
from alembic.util import CommandError
from pydantic import ValidationError
from pydantic_settings import SettingsError
from starlette.types import Receive, Scope, Send
from uvicorn.supervisors import ChangeReload

from .app import PACKAGE, StartError, build_runtime, check_database, create_app, opened
from .base import auth, logs, migrate, problems
from .base.dotenv import DotenvError, check_dotenv
from .bus import WiringError
from .bus.contracts import ContractError
from .bus.describe import describe_named, describe_service
from .bus.engines import Database
from .bus.errors import OperationError, UnreachableError
from .bus.runtime import Runtime, build, choose
from .bus.subscriptions import names_of_events, subscribe, wanted_by
from .bus.texts import told
from .cli_changes import changes
from .cli_contracts import contracts
from .cli_events import events
from .cli_projections import projections
from .cli_template import template
from .settings import Settings

log = structlog.stdlib.get_logger(__name__)

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
auth.add_commands(cli)
cli.add_typer(contracts, name="contracts")
cli.add_typer(events, name="events")
events.add_typer(changes)
cli.add_typer(projections, name="projections")
cli.add_typer(template, name="template")

# The logs are the service's own.
_SERVER: dict[str, Any] = {"log_config": None, "access_log": False}
_SECONDS_BETWEEN_LOOKS = 0.5
# What keeps standard output from being written; a pipe that is closed just ends the command.
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")]


def main() -> None:
    """Run a command."""
    with _told_in_a_line():
        check_dotenv()
        try:
            cli()
        except OSError as error:
            if error.errno not in _UNWRITTEN:
                raise
            # What is left of the output would fail once more at the very end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(f"Standard output cannot be written: {error.strerror}.")


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """What keeps the service from starting ends the process, without a traceback."""
    try:
        yield
    except (
        DotenvError,
        StartError,
        WiringError,
        CommandError,
        SettingsError,
        OperationError,
        ContractError,
        UnreachableError,
    ) as error:
        sys.exit(str(error))
    except ValidationError as error:
        sys.exit(told(error))


@cli.command()
def dev(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Migrate, run, and start again when the code changes."""
    _end_when_told()
    _migrate(["upgrade"])
    create_app()  # What cannot be mended by changing the code ends the command here.
    config = uvicorn.Config(
        f"{PACKAGE}.app:create_app",
        host=host,
        port=port,
        reload=True,
        reload_dirs=["src"],
        **_SERVER,
    )
    with suppress(KeyboardInterrupt):
        ChangeReload(config, partial(_start_again, host, port), [config.bind_socket()]).run()


@cli.command()
def run(host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the service: HTTP, and delivery of events."""
    _serve(host, port)


@cli.command()
def worker() -> None:
    """Deliver events, without HTTP."""
    _end_when_told()
    settings = Settings()
    logs.configure(settings.log_level, json=settings.in_production)
    with _lasting():
        runtime = build_runtime(settings)
    asyncio.run(_work(runtime))


@cli.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def db(context: typer.Context) -> None:
    """Migrations, by Alembic's commands: `db upgrade`, `db revision SLICE -m TEXT`, `db --help`."""
    _migrate(context.args)


@cli.command()
def describe(
    name: Annotated[
        str | None, typer.Argument(help="A slice, a message, or a function that takes one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show slices and messages; or one slice, where one message goes, what one function does."""
    settings = Settings()
    runtime = build(PACKAGE, database=Database(settings.database_url))
    # All slices are shown, whichever of them run here; but those that are to run have to be there.
    choose(runtime.slices, settings.slices)
    found = describe_named(runtime, name) if name else describe_service(runtime)
    typer.echo(json.dumps(found.data, indent=2) if as_json else found.text)


@contextmanager
def _lasting() -> Iterator[None]:
    """What is there at the end lasts as long as the process: no garbage is looked for in it.

    To look takes a tenth of a second, at the start and later, while requests wait.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_when_told() -> None:
    """From now on SIGTERM ends the process with status 0, also while it is still starting."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def _serve(host: str, port: int) -> None:
    # Having stopped, the server repeats the signal that stopped it: that is no failure, either.
    _end_when_told()
    # What keeps it from starting is told in a line here; the server would end in its traceback.
    with _lasting():
        app = create_app(checked=True)
    asyncio.run(_check_database())
    with suppress(KeyboardInterrupt):
        uvicorn.run(app, host=host, port=port, **_SERVER)


def _start_again(host: str, port: int, sockets: list[socket]) -> None:
    """What `dev` runs, in a process of its own, until the code changes."""
    try:
        with _told_in_a_line():
            with _lasting():
                app = create_app(checked=True)
            # A new migration is for a person to read, and perhaps fill in, before it is applied.
            asyncio.run(_until_migrated(sockets))
    except SystemExit as end:
        why = str(end.code)
        typer.echo(f"{why}\nWaiting for the next change.", err=True)
        _refusing(lambda: why).run(sockets)
    else:
        uvicorn.Server(uvicorn.Config(app, host=host, port=port, **_SERVER)).run(sockets)


def _refusing(why: Callable[[], str]) -> uvicorn.Server:
    """Answers with 503: who asks a service that has not started is to know, and not to wait."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await problems.not_started(why())(scope, receive, send)

    return uvicorn.Server(uvicorn.Config(refuse, lifespan="off", **_SERVER))


async def _check_database() -> None:
    settings = Settings()
    database = Database(settings.database_url, replica=settings.database_replica_url)
    try:
        await check_database(database)
    finally:
        await database.close()


async def _until_migrated(sockets: list[socket]) -> None:
    told = ""
    server, serving = _refusing(lambda: told), None
    while (why := await _not_ready()) is not None:
        if told != why:
            told = why
            typer.echo(f"Not started yet: {why}", err=True)
        if serving is None:
            # A server closes its sockets when it ends.
            serving = asyncio.create_task(server.serve([one.dup() for one in sockets]))
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
    if serving is not None:
        server.should_exit = True
        await serving


async def _not_ready() -> str | None:
    try:
        await _check_database()
    except StartError as error:
        return str(error)
    return None


async def _work(runtime: Runtime) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.relay.stop)
    async with opened(runtime, relay=False):
        slices = ", ".join(one.name for one in runtime.slices)
        log.info("worker started", slices=slices, database=str(runtime.database))
        await runtime.relay.run()
    log.info("worker stopped")


def _migrate(arguments: list[str]) -> None:
    settings = Settings()
    logs.configure(settings.log_level, json=settings.in_production)
    url = settings.database_url
    migrate.run(arguments, package=PACKAGE, url=url, before_upgrade=lambda: _subscribing(url))


def _subscribing(url: str) -> migrate.AfterUpgrade:
    """What writes the subscriptions. The code is read now: if it is broken, nothing is migrated."""
    catalog = build(PACKAGE, database=Database(url)).catalog
    wanted, known = wanted_by(catalog), names_of_events(catalog)

    async def subscribing(database: Database) -> None:
        await subscribe(database, wanted, upgrade_to=known)

    return subscribing


if __name__ == "__main__":
    main()
