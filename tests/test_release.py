"""A version is tagged only if it is one, is told of, and breaks no database that follows it."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, commit_all, git

import release

APP = "template/service/src/{{ package }}/app.py"
MODELS = "template/slice/{% if state %}models.py{% endif %}.jinja"

NOTES = """# Changelog

## Unreleased

## 1.1.0 - 2026-11-26

- Slices: `slices/<slice>/models.py` has a docstring.
- The application in `src/<package>/app.py`, and the bus (`src/<package>/bus/`).

### What you have to do

Nothing.

## 1.0.0 - 2026-01-01

### What you have to do

Begin.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """After 1.0.0 two files of the template were changed, one was added, and all is told of."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    write(tmp_path, {APP: "1", MODELS: "1", f"{release.MIGRATIONS}/bus_0001_create.py": "1"})
    write(tmp_path, {"CHANGELOG.md": NOTES, "docs/index.md": "1"})
    commit_all(tmp_path)
    git(tmp_path, "tag", "1.0.0")
    git(tmp_path, "tag", "not-a-version")
    write(tmp_path, {APP: "2", MODELS: "2", "docs/index.md": "2"})
    write(tmp_path, {f"{release.MIGRATIONS}/bus_0002_more.py": "1"})
    commit_all(tmp_path)
    return tmp_path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def problem(repository: Path, version: str = "1.1.0") -> str:
    """The one thing that is wrong."""
    (found,) = release.problems(repository, version)
    return found


def test_what_is_right_is_tagged(repository: Path) -> None:
    assert release.problems(repository, "1.1.0") == []
    release.make_tag(repository, "1.1.0")
    assert git(repository, "cat-file", "-t", "1.1.0") == "tag"
    text = git(repository, "tag", "--list", "--format=%(contents)", "1.1.0")
    assert text == release.section(NOTES, "1.1.0").strip()
    assert "1.1.0 is not newer than 1.1.0" in problem(repository)


def test_first_release_is_compared_with_nothing(repository: Path) -> None:
    git(repository, "tag", "--delete", "1.0.0")
    assert release.problems(repository, "1.1.0") == []


@pytest.mark.parametrize("version", ["1.1", "v1.1.0", "1.1.0-beta", "01.1.0", "1.1.0rc0", "main"])
def test_no_version(repository: Path, version: str) -> None:
    assert f"{version} is no version" in problem(repository, version)


def test_versions_are_compared_by_their_numbers(repository: Path) -> None:
    ordered = ["1.0.0rc1", "1.0.0rc2", "1.0.0", "1.9.0", "1.10.0rc1", "1.10.0", "2.0.0"]
    mixed = ["1.10.0", "1.0.0", "2.0.0", "1.9.0", "1.0.0rc2", "1.10.0rc1", "1.0.0rc1"]
    assert sorted(mixed, key=lambda one: release.version_of(one) or ()) == ordered
    git(repository, "tag", "1.10.0")
    assert "1.1.0 is not newer than 1.10.0, the newest tag" in release.problems(repository, "1.1.0")


def test_another_branch(repository: Path) -> None:
    git(repository, "switch", "--quiet", "--create", "feature")
    assert "feature is checked out: releases are made from main" in problem(repository)


def test_changes_that_are_not_committed(repository: Path) -> None:
    write(repository, {"new.txt": ""})
    assert "?? new.txt" in problem(repository)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("## 1.1.0 - 2026-11-26", "## 1.1.1 - 2026-11-26", "begin one with `## 1.1.0 - <date>`"),
        ("## 1.1.0 - 2026-11-26", "## 1.1.0 - 2026-13-26", "expected `## 1.1.0 - <date>`"),
        ("## 1.1.0 - 2026-11-26", "## 1.1.0", "expected `## 1.1.0 - <date>`"),
        ("Nothing.\n", "\n", "say under `### What you have to do` of 1.1.0"),
        ("Nothing.\n", "### Thanks\n\nTo all.\n", "say under `### What you have to do` of 1.1.0"),
        ("## Unreleased\n", "## Unreleased\n\n- Faster.\n", "move what is under `## Unreleased`"),
        ("app.py", "cli.py", "what has changed in `src/<package>/app.py`"),
        (
            "`slices/<slice>/models.py`",
            "models.py",
            "what has changed in `slices/<slice>/models.py`",
        ),
        ("/bus/", "/bus", "what has changed in `src/<package>/bus/migrations/bus_0002_more.py`"),
    ],
)
def test_changelog(repository: Path, old: str, new: str, expected: str) -> None:
    assert old in NOTES
    write(repository, {"CHANGELOG.md": NOTES.replace(old, new, 1)})
    commit_all(repository)
    assert any(expected in one for one in release.problems(repository, "1.1.0"))


@pytest.mark.parametrize("how", ["changed", "removed", "renamed"])
def test_released_migration(repository: Path, how: str) -> None:
    file = repository / release.MIGRATIONS / "bus_0001_create.py"
    if how == "changed":
        file.write_text("2")
    elif how == "removed":
        file.unlink()
    else:
        file.rename(file.with_name("bus_0001_begin.py"))
    commit_all(repository)
    assert "bus_0001_create.py was released with 1.0.0: undo the change" in problem(repository)


def test_names_of_files_are_those_of_users() -> None:
    """All that the template has: no Jinja is left in any of them."""
    files = git(ROOT, "ls-files", "template/service", "template/slice").splitlines()
    names = {release.generated(file) for file in files}
    assert not [name for name in names if "{" in name or name.endswith(".jinja")]
    assert {
        ".github/workflows/ci.yml",
        "src/<package>/base/auth.py",
        "slices/<slice>/migrations/<slice>_0001_create.py",
        "slices/<slice>/.copier-answers.yml",
    } <= names


def test_command_says_what_is_wrong() -> None:
    command = [sys.executable, str(ROOT / "release.py"), "one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "one cannot be released:\n- one is no version: expected such as 1.2.0 or 1.2.0rc1\n"
    )
