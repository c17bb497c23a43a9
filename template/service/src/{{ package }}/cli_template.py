"""`template`: which parts are out of date, and Copier's update for all of them in one go.

It needs nothing else of this service: it has to run while an update's conflicts are in the rest.
"""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

template = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="See which parts are behind the template, and update them.",
)

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE.parents[1]
_ANSWERS = ".copier-answers.yml"
_COMMIT = re.compile(r"^_commit: *['\"]?([^'\"\n]+)", re.MULTILINE)
_SOURCE = re.compile(r"^_src_path: *(.+(?:\n +.+)*)", re.MULTILINE)

# By a few lines around it Copier could take an edit to other lines that are alike. With all of the
# file as its context, a file that both have changed is merged line by line.
_CONTEXT = "--context-lines=1000000"

# Whatever the user's configuration says of it, and in files that are binary by .gitattributes, too.
_GREP = (
    *("grep", "--untracked", "--text", "--no-color", "--no-column", "--no-full-name"),
    *("--no-recurse-submodules", "-nE"),
)

Prereleases = Annotated[bool, typer.Option("--prereleases", help="Count pre-releases, too.")]


@dataclass(frozen=True)
class Part:
    """The service or one slice: what Copier made by itself, and updates by itself.

    commit is the version of the template that it is at, as Copier notes it.
    """

    name: str
    folder: Path
    source: str
    commit: str

    @property
    def major(self) -> str | None:
        return _major(self.commit)


@dataclass(frozen=True)
class Standing:
    """The newest version of the template, and whether a part is behind it."""

    newest: str
    behind: bool


@template.command()
def status(prereleases: Prereleases = False) -> None:
    """Show the template's version of the service and of each slice, and what is in conflict."""
    parts = _parts()
    rows = [("part", "at", "newest")]
    standings = [_standing(part, prereleases) for part in parts]
    for part, one in zip(parts, standings, strict=True):
        rows.append((part.name, part.commit, one.newest if one.behind else "the same"))
    rows += [(name, "not from the template", "") for name in _others(parts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    for told in of_other_majors():
        typer.echo(f"warning: {told}", err=True)
    for place in _conflicts():
        typer.echo(f"conflict: {place}", err=True)


@template.command()
def update(
    slices: Annotated[
        list[str] | None, typer.Argument(help="Only these slices; or else all, and the service.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="TAG", help="This version, in place of the newest.")
    ] = None,
    prereleases: Prereleases = False,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Answer new questions with their defaults.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="First undo an update that broke off in the middle.")
    ] = False,
) -> None:
    """Update the service, then each slice; after a conflict is solved, the same command goes on.

    Nothing is committed: the changes are staged.
    """
    _undo_what_broke_off(restart=restart)
    _refuse_conflicts()
    parts = _parts()
    wanted = _chosen(parts, slices)
    _refuse_uncommitted(wanted)
    behind = [
        part
        for part in wanted
        if (part.commit != to if to else _standing(part, prereleases).behind)
    ]
    if not behind:
        typer.echo(f"Nothing to update: all is at {to or 'the newest version'}.")
        if not any(map(_is_under_way, parts)):
            return
    elif parts[0] not in behind:
        _refuse_another_major(parts[0], to or _standing(behind[0], prereleases).newest)
    options = ["--vcs-ref", to] if to else ["--prereleases"] if prereleases else []
    for part in behind:
        _refuse_dirty(part)
        typer.echo(f"Updating {part.name} …")
        # Copier looks at the index: it would bring back what an update before has removed, and
        # stop at conflicts that are solved, but not staged.
        _stage()
        _update(part, [*options, "--skip-answered", *(["--defaults"] if defaults else [])])
        if _conflicts():
            # Whoever commits when they are solved would not be told at the end.
            _tell_removed()
        _refuse_conflicts()
    _stage()
    _tell_removed()
    _tell_next([part.name for part in parts[1:] if _is_under_way(part)])


def _parts() -> list[Part]:
    """The service, then its slices, as far as they are from the template."""
    if not (_ROOT / _ANSWERS).is_file():
        sys.exit(
            f"There is no {_ANSWERS} in {_ROOT}. This command works in the service's source tree,"
            " and needs that file, which Copier wrote; if it is lost, take it from Git."
        )
    folders = sorted(file.parent for file in (_PACKAGE / "slices").glob(f"*/{_ANSWERS}"))
    return [_part(folder) for folder in (_ROOT, *folders)]


def _part(folder: Path) -> Part:
    answers = (folder / _ANSWERS).read_text(encoding="utf-8")
    commit, source = _COMMIT.search(answers), _SOURCE.search(answers)
    if not commit or not source:
        missing = "_src_path" if commit else "_commit"
        sys.exit(
            f"{folder / _ANSWERS} has no {missing}, which Copier wrote and needs: take the file"
            " from Git as it was. Nobody but Copier should change it."
        )
    name = "service" if folder == _ROOT else folder.name
    return Part(name, folder, source[1], commit[1])


def of_other_majors() -> list[str]:
    """What to say of each slice that is of another major version than the service."""
    if not (_ROOT / _ANSWERS).is_file():
        return []
    service, *slices = _parts()
    return [
        f"{one.name} is at {one.commit} and the service at {service.commit}: {_TOGETHER}"
        f" Run `{_command()} update`."
        for one in slices
        if _differ(one.major, service.major)
    ]


def _refuse_another_major(service: Part, version: str) -> None:
    """A slice may not get ahead of its service so far."""
    if _differ(service.major, _major(version)):
        sys.exit(
            f"The service is at {service.commit}, and these slices would come to {version}:"
            f" {_TOGETHER} Run `{_command()} update` for all; or stay within its major version, by"
            " --to."
        )


_TOGETHER = "only within one major version are they made to work together."


def _major(version: str) -> str | None:
    """None for a commit before the first version."""
    found = re.match(r"v?(\d+)\.\d", version)
    return found[1] if found else None


def _differ(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and one != other


def _others(parts: list[Part]) -> list[str]:
    """Slices that Copier did not make."""
    known = {part.folder for part in parts}
    return sorted(
        file.parent.name
        for file in (_PACKAGE / "slices").glob("*/__init__.py")
        if file.parent not in known
    )


def _chosen(parts: list[Part], slices: list[str] | None) -> list[Part]:
    if not slices:
        return parts
    known = {part.name: part for part in parts[1:]}
    for name in slices:
        if name not in known:
            here = ", ".join(known) or "none"
            sys.exit(f"No slice {name} of the template is here; there are: {here}.")
    return [known[name] for name in slices]


def _standing(part: Part, prereleases: bool) -> Standing:
    return _standing_of(part.source, part.commit, prereleases, part.folder)


_seen: dict[tuple[str, str, bool], Standing] = {}


def _standing_of(source: str, commit: str, prereleases: bool, folder: Path) -> Standing:
    """What Copier knows of a version; asked once for all parts that are at it."""
    key = (source, commit, prereleases)
    if key not in _seen:
        options = ["--prereleases"] if prereleases else []
        command = ["check-update", "--output-format", "json", *options, str(folder)]
        done = subprocess.run(
            [*_copier(), *command], capture_output=True, text=True, encoding="utf-8", check=False
        )
        if done.returncode:
            sys.exit(f"Copier cannot compare {folder} with {source} at {commit}: {_reason(done)}")
        found = json.loads(done.stdout)
        _seen[key] = Standing(found["latest_version"], found["update_available"])
    return _seen[key]


def _update(part: Part, options: list[str]) -> None:
    """Let Copier update a part, whose folder is clean. If it fails, the folder is as it was."""
    command = [*_copier(), "update", "--quiet", _CONTEXT, *options, str(part.folder)]
    # Copier writes its new version first and merges afterwards: killed in between, it leaves a
    # folder that looks updated, without what was edited there.
    mark = _mark()
    folder = Path(_git("rev-parse", "--show-prefix"), part.folder.relative_to(_ROOT))
    mark.write_text(folder.as_posix(), encoding="utf-8")
    for ended in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(ended, signal.default_int_handler)
    try:
        # It may ask, on standard output.
        done = subprocess.run(
            command, stderr=subprocess.PIPE, text=True, encoding="utf-8", check=False
        )
    except KeyboardInterrupt:
        _restore(part.folder)
        raise
    if done.returncode:
        _restore(part.folder)
        sys.exit(f"Copier could not update {part.name}, which is as it was: {_reason(done)}")
    mark.unlink()


def _undo_what_broke_off(*, restart: bool) -> None:
    mark = _mark()
    if not mark.is_file():
        return
    folder = Path(_git("rev-parse", "--show-toplevel"), mark.read_text(encoding="utf-8"))
    if not restart:
        sys.exit(
            f"An update of {folder} broke off in the middle: your own changes may be missing there."
            f" Run `{_again()} --restart`, which takes the folder back to the last commit"
            " before it updates it again; what you have changed there since then is lost."
        )
    _restore(folder)


def _mark() -> Path:
    """What is there while Copier works: in Git's own folder, where nobody commits it.

    It has the part's folder, as seen from the top of the repository, which may be moved.
    """
    return _ROOT / _git("rev-parse", "--git-path", "template-update")


def _stage() -> None:
    _git("add", "--all", "--", ".")


def _restore(folder: Path) -> None:
    if _git("ls-files", "--with-tree=HEAD", "--", str(folder)):
        _git("restore", "--source=HEAD", "--staged", "--worktree", "--", str(folder))
    _git("clean", "--quiet", "--force", "-d", "--", str(folder))
    _mark().unlink(missing_ok=True)


def _refuse_uncommitted(parts: list[Part]) -> None:
    """A folder that is ignored looks clean, and nothing brings back what an update changes."""
    for part in parts:
        answers = part.folder / _ANSWERS
        committed = f"HEAD:./{answers.relative_to(_ROOT).as_posix()}"
        if not _git("rev-parse", "--verify", "--quiet", committed, fails_with=1):
            sys.exit(
                f"{answers} is not committed. Copier merges into what is: commit the service and"
                f" its slices, then run `{_again()}` again."
            )


def _refuse_dirty(part: Part) -> None:
    """Copier merges into what is committed; and a failed update is undone by going back to it."""
    # If an update is under way, what it has done so far is not committed.
    under_way = _git("diff", "--name-only", "HEAD", "--", f":(glob)**/{_ANSWERS}")
    scope = part.folder if under_way else _ROOT
    if changed := _git("status", "--porcelain", "--untracked-files=all", "--", str(scope)):
        sys.exit(
            f"There are changes that are not committed. Commit or stash them, then run"
            f" `{_again()}` again:\n{changed}"
        )


def _is_under_way(part: Part) -> bool:
    """Whether an update of it is not committed yet, be it of an earlier run."""
    return "M" in _git("status", "--porcelain", "--", str(part.folder / _ANSWERS))[:2]


def _refuse_conflicts() -> None:
    if places := _conflicts():
        sys.exit(
            "Both you and the template have changed these places:\n  "
            + "\n  ".join(places)
            + "\nKeep what is above or what is below each =======, or both; remove the markers (and"
            f" files that end in .rej), then run `{_again()}` again: it goes on."
        )


def _conflicts() -> list[str]:
    """Where markers are, as file:line, and files of rejected hunks."""
    pattern = "^(<{7} |={7}[[:space:]]*$|>{7} )"
    marks = _git(*_GREP, pattern, "--", ".", fails_with=1)
    rejected = _git("ls-files", "--cached", "--others", "--exclude-standard", "--", "*.rej")
    return [*_begun(marks), *rejected.splitlines()]


def _begun(marks: str) -> Iterator[str]:
    """Where all three markers follow each other: one alone may be part of a text."""
    begun, seen = ("", ""), ""
    for file, line, mark in re.findall(r"^(.+?):(\d+):([<=>])", marks, re.MULTILINE):
        if mark == "<":
            begun, seen = (file, line), mark
        elif file == begun[0] and f"{seen}{mark}" in ("<=", "<=>"):
            seen += mark
            if mark == ">":
                yield ":".join(begun)


def _tell_removed() -> None:
    """Copier removes what the template has no more, whatever was written there."""
    changes = ("diff", "--name-only", "--no-renames", "--relative")
    files = _git(*changes, "--diff-filter=D", "HEAD").splitlines()
    if not files:
        return
    typer.echo("\nThe template has these files no more, and they are removed:\n")
    for file in files:
        part = next(one for one in (_ROOT / file).parents if (one / _ANSWERS).is_file())
        since = _git("rev-list", "-1", "HEAD", "--", str(part / _ANSWERS))
        edited = _git(*changes, since, "HEAD", "--", file)
        typer.echo(f"  {file}{'   # changed since the last update' if edited else ''}")
    typer.echo(
        "\n`git diff HEAD -- FILE` shows what was in one, and `git checkout HEAD -- FILE` brings it"
        " back."
    )


def _tell_next(slices: list[str]) -> None:
    steps = ["uv sync", f"uv run {_cli()} db upgrade"]
    steps += [
        f"uv run {_cli()} db revision {name} -m 'Update {name}'"
        "   # writes one only if its models have changed"
        for name in slices
    ]
    steps += [f"uv run {_cli()} db upgrade"] if slices else []
    steps += ["uv run pytest", "git diff --staged", "git commit -m 'Update from the template'"]
    typer.echo("\nAll follows the template again; the changes are staged. Next:\n")
    for number, step in enumerate(steps, 1):
        typer.echo(f"  {number}. {step}")


@cache
def _copier() -> tuple[str, ...]:
    for program in (("copier",), ("uvx", "copier")):
        if shutil.which(program[0]):
            return program
    return sys.exit(
        "Neither copier nor uvx is on PATH, and the template is followed with Copier. Install uv"
        " (https://docs.astral.sh/uv/), or Copier alone: pipx install copier"
    )


def _git(*arguments: str, fails_with: int = 0) -> str:
    """What Git prints, run in the service's folder. fails_with: another status that is no error."""
    done = subprocess.run(
        ["git", "-c", "core.quotepath=false", *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",  # Names of files are bytes, and those of a conflict any lines.
        check=False,
    )
    if done.returncode not in (0, fails_with):
        sys.exit(f"git {arguments[0]} in {_ROOT}: {_reason(done)}")
    return done.stdout.rstrip()


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a program failed: what Git says if it is to blame, or else the last line."""
    lines = [line.partition("| ")[2] or line for line in done.stderr.strip().splitlines()]
    told = [line.strip() for line in lines if line.strip()]
    return next((line for line in told if line.startswith("fatal: ")), told[-1] if told else "?")


def _cli() -> str:
    return _PACKAGE.name.replace("_", "-")


def _command() -> str:
    return f"uv run {_cli()} template"


def _again() -> str:
    """The command that is running; what it has restarted goes on."""
    given = [argument for argument in sys.argv[1:] if argument != "--restart"]
    return f"uv run {_cli()} {shlex.join(given)}"
