"""Checks that a version may be released, and tags it: `nox -s release -- 1.2.0`.

It pushes nothing: a tag that is not pushed can be taken back.
"""

import argparse
import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent
MIGRATIONS = "template/service/src/{{ package }}/bus/migrations"
MUST_DO = "### What you have to do"

Version = tuple[int, int, int, float]


def version_of(tag: str) -> Version | None:
    """1.2.0 and 1.2.0rc1, so that they can be compared; None for any other tag."""
    found = re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:rc([1-9]\d*))?", tag)
    if not found:
        return None
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch), int(candidate) if candidate else float("inf")


def problems(root: Path, tag: str) -> list[str]:
    """Why the commit that is checked out cannot be released under this tag; each with what to do.

    A release is compared with the version before it; for the first one there is none.
    """
    version = version_of(tag)
    if version is None:
        return [f"{tag} is no version: expected such as 1.2.0 or 1.2.0rc1"]
    released = {number: one for one in _git(root, "tag").split() if (number := version_of(one))}
    newest = max(released, default=None)
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    note = section(changelog, tag)
    found = [*_of_the_tree(root), *_of_the_note(changelog, tag, note)]
    if newest is not None:
        last = released[newest]
        if version <= newest:
            found.append(f"{tag} is not newer than {last}, the newest tag")
        found += [*_of_migrations(root, last), *_of_changes(root, last, tag, note)]
    return found


def _of_the_tree(root: Path) -> list[str]:
    found = []
    if (branch := _git(root, "branch", "--show-current").strip()) != "main":
        found.append(f"{branch or 'a detached HEAD'} is checked out: releases are made from main")
    if changed := _git(root, "status", "--short"):
        found.append(f"commit or remove what is not committed:\n{changed.rstrip()}")
    return found


def section(changelog: str, tag: str) -> str:
    """What the changelog says of a version, with the line of its heading; empty if nothing."""
    found = re.search(rf"(?ms)^## {re.escape(tag)}\b.*?(?=^## |\Z)", changelog)
    return found[0] if found else ""


def _of_the_note(changelog: str, tag: str, note: str) -> list[str]:
    if not note:
        return [f"CHANGELOG.md has no section for it: begin one with `## {tag} - <date>`"]
    found = []
    heading, *lines = note.splitlines()
    try:
        dt.date.fromisoformat(heading.removeprefix(f"## {tag} - "))
    except ValueError:
        found.append(f"CHANGELOG.md: expected `## {tag} - <date>`, such as 2026-11-26: {heading}")
    _, _, duties = "\n".join(lines).partition(MUST_DO)
    if not duties.partition("\n### ")[0].strip():
        found.append(f"CHANGELOG.md: say under `{MUST_DO}` of {tag} what users do; or `Nothing.`")
    if section(changelog, "Unreleased").partition("\n")[2].strip():
        found.append(f"CHANGELOG.md: move what is under `## Unreleased` to {tag}, if it is in it")
    return found


def _of_migrations(root: Path, last: str) -> list[str]:
    """A database has run them: what they do may not become something else."""
    changed = _changed(root, last, "--diff-filter=a", MIGRATIONS)
    return [f"{file} was released with {last}: undo the change, add a revision" for file in changed]


def _of_changes(root: Path, last: str, tag: str, note: str) -> list[str]:
    """Whoever updates gets these files: the changelog names each, or a folder that it is in."""
    named = re.findall(r"`([^`\n]+)`", note)
    files = {generated(path) for path in _changed(root, last, "template/service", "template/slice")}
    return [
        f"CHANGELOG.md: say under {tag} what has changed in `{file}`, or in a folder that it is in"
        for file in sorted(files)
        if not any(file == name or (name[-1] == "/" and file.startswith(name)) for name in named)
    ]


def generated(path: str) -> str:
    """What users call a file of the template: src/<package>/app.py, slices/<slice>/models.py."""
    kind, _, name = path.removeprefix("template/").partition("/")
    name = re.sub(r"{% if .*?%}(.*?){% endif %}", r"\1", name).removesuffix(".jinja")
    name = name.replace("{{ package }}", "<package>").replace("{{ slice }}", "<slice>")
    name = name.replace("{{ _copier_conf.answers_file }}", ".copier-answers.yml")
    return f"slices/<slice>/{name}" if kind == "slice" else name


def make_tag(root: Path, tag: str) -> None:
    """An annotated one, which says what the changelog says."""
    note = section((root / "CHANGELOG.md").read_text(encoding="utf-8"), tag)
    _git(root, "tag", "--annotate", "--cleanup=verbatim", "--message", note, tag)


def _changed(root: Path, last: str, *what: str) -> list[str]:
    """The files that differ from a tag."""
    diff = ("-c", "core.quotePath=off", "diff", "--name-only", "--no-renames")
    return _git(root, *diff, last, *what).splitlines()


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    parser.add_argument("--tag", action="store_true", help="make the tag, if nothing is wrong")
    arguments = parser.parse_args()
    version = arguments.version
    if found := problems(ROOT, version):
        sys.exit("\n- ".join([f"{version} cannot be released:", *found]))
    if arguments.tag:
        make_tag(ROOT, version)
        print(f"{version} is tagged here. To release it: git push origin main {version}")


if __name__ == "__main__":
    main()
