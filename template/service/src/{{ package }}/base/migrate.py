"""`db`: Alembic's own command line, with the migrations of all slices filled in."""

import asyncio
import importlib.util
import logging
import sys
import traceback
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import CommandFunction, CommandLine, Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from ..bus.engines import Database
from ..bus.errors import WiringError
from .branches import Branches, birth_name
from .environment import Environment

# What is done with a database that has just been upgraded.
AfterUpgrade = Callable[[Database], Coroutine[Any, Any, None]]


def run(
    argv: Sequence[str],
    *,
    package: str,
    url: str,
    before_upgrade: Callable[[], AfterUpgrade] | None = None,
) -> None:
    """Run one command, such as ['upgrade'] or ['revision', 'payments', '-m', 'add note'].

    package is the service's, url its database's. before_upgrade is called before an upgrade, and
    what it gives is awaited when the upgrade has been committed, if that has brought the bus up to
    date. Raises SystemExit with a message that says what is wrong, if something is.
    """
    line = _Line(prog=f"{Path(sys.argv[0]).name} db")
    options = line.parser.parse_args(argv)
    if not hasattr(options, "cmd"):
        line.parser.error("which command? --help lists them")
    # The second one tells of each number that PostgreSQL counts up, that it is just that.
    for quiet in ("alembic.runtime.plugins", "alembic.ddl.postgresql"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    logging.getLogger("alembic.runtime.migration").addFilter(_tells_something)
    show_traceback, options.raiseerr = options.raiseerr, True
    try:
        branches = Branches(package)
        _fill_in(options, branches)
        upgrades = options.cmd[0] is command.upgrade and not options.sql
        after_upgrade = before_upgrade() if before_upgrade and upgrades else None
        line.run_cmd(_config(branches, url, options), options)
        if after_upgrade:
            asyncio.run(_follow(after_upgrade, branches, url))
    except Exception as error:
        if show_traceback:
            raise
        sys.exit(f"{line.parser.prog}: {_explain(error)}")


async def upgrade(package: str, url: str) -> None:
    """Bring the database up to all heads of the code, as `db upgrade` does; raises its errors."""
    config = _config(Branches(package), url)
    # Alembic's commands are synchronous, and start an event loop of their own.
    await asyncio.to_thread(command.upgrade, config, "heads")


async def _follow(after_upgrade: AfterUpgrade, branches: Branches, url: str) -> None:
    database = Database(url)
    try:
        standing = await branches.compare(database)
        if "bus" not in map(birth_name, standing.behind):
            await after_upgrade(database)
    finally:
        await database.close()


class _Line(CommandLine):
    """Alembic's parser, without what makes no sense here, and with what its commands lack here."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        for option in self.parser._actions:
            if option.dest in ("config", "name", "x"):  # of alembic.ini, of which there is none
                option.help = SUPPRESS

    def register_command(self, fn: CommandFunction) -> None:
        if fn in (command.init, command.list_templates):
            return
        super().register_command(fn)
        parser = self.subparsers.choices[fn.__name__]
        if fn is command.upgrade:
            (target,) = (one for one in parser._actions if one.dest == "revision")
            target.nargs, target.required, target.default = "?", False, "heads"
        elif fn is command.revision:
            parser.add_argument("slice", help="whose tables have changed")
            parser.add_argument(
                "--empty", action="store_true", help="write a revision to fill in by hand"
            )


def _config(branches: Branches, url: str, options: Namespace | None = None) -> Config:
    config = branches.config()
    config.cmd_opts = options
    config.attributes["environment"] = Environment(
        branches, url, only=getattr(options, "slice", None)
    )
    if importlib.util.find_spec("ruff"):
        for option, value in {
            "hooks": "format",
            "format.type": "module",
            "format.module": "ruff",
            "format.options": "format --quiet REVISION_SCRIPT_FILENAME",
        }.items():
            config.set_section_option("post_write_hooks", option, value)
    return config


def _tells_something(line: logging.LogRecord) -> bool:
    """Not what Alembic says of the kind of database at each command."""
    return not str(line.msg).startswith(("Context impl", "Will assume", "Generating static SQL"))


def _fill_in(options: Namespace, branches: Branches) -> None:
    revision = getattr(options, "revision", None)
    if isinstance(revision, str):
        options.revision = _target(revision, branches, down=options.cmd[0] is command.downgrade)
    elif options.cmd[0] is command.stamp:
        options.revisions = [_target(one, branches) for one in options.revisions]
    if options.cmd[0] is command.revision:
        _fill_in_revision(options, branches)
    elif options.cmd[0] is command.merge:
        found = branches.scripts.get_revisions(options.revisions)
        names = {birth_name(one.revision) for one in found}
        if len(names) != 1:
            raise CommandError(f"expected revisions of one slice, got {', '.join(sorted(names))}")
        options.rev_id = branches.next_revision(names.pop())


def _target(text: str, branches: Branches, *, down: bool = False) -> str:
    """Where to go to, with the slice's name at birth; a name alone means all of the slice.

    Alembic takes a name alone for the first revision of the branch. Raises CommandError.
    """
    name, at, which = text.partition("@")
    if at:
        # Of another name Alembic would say only that there is no such branch.
        return f"{branches.named(name)}@{which}"
    slice_ = branches.find(name)
    if slice_ is None:
        return text
    if down:
        raise CommandError(
            f"how far down? Say {name}@-1 (one revision back) or {name}@base (all of {name})"
        )
    return f"{slice_}@head"


def _fill_in_revision(options: Namespace, branches: Branches) -> None:
    options.slice = name = branches.named(options.slice)
    if not options.message:
        raise CommandError("-m is missing: what does the revision change?")
    options.rev_id = branches.next_revision(name)
    options.version_path = str(branches.folders[name])
    options.autogenerate = not options.empty
    if branches.has_revisions(name):
        options.head = options.head or f"{name}@head"
    else:
        options.head, options.branch_label = "base", name


# What SQLite and PostgreSQL say of a column that rows have no value for.
_NULLS = ("Cannot add a NOT NULL column", "contains null values")
_FILL_FIRST = (
    " Rows that are there need a value: add the column as nullable, fill it, then make it NOT NULL."
)


def _explain(error: Exception) -> str:
    """The error in one line, with the migration's line if it came from there.

    What is wrong with the wiring has its lines already.
    """
    if isinstance(error, WiringError):
        return str(error)
    cause: BaseException | None = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig.__cause__ or error.orig
    text = " ".join(str(cause).split())
    if not isinstance(error, CommandError):
        text = f"{type(cause).__name__}: {text}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).parent.name == "migrations" and Path(frame.filename).stem != "env":
            hint = _FILL_FIRST if any(one in text for one in _NULLS) else ""
            return f"{frame.filename}:{frame.lineno}: {text}. All was rolled back.{hint}"
    if isinstance(cause, AssertionError):
        # All that Alembic says of a way down that is longer than the branch.
        return "there are not so many revisions: `db history` lists them"
    return text
