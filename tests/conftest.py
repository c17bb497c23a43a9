"""Copies the template, without the settings of whoever runs the tests."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import copier
import pytest
from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

ROOT = Path(__file__).parent.parent

# Lines of context by which Copier finds where an edit belongs: so many as no file has.
WHOLE_FILE = 1_000_000


def pytest_addoption(parser: pytest.Parser) -> None:
    """For the tests that break things; options are only heard of here."""
    parser.addoption("--seed", type=int, help="what is random is as it was with this seed")
    parser.addoption("--minutes", type=float, default=0, help="how long processes are killed")
    parser.addoption("--lives", type=int, default=6, help="how many lives with random edits")
    parser.addoption("--report", type=Path, help="a file for what was found in that time")


def pytest_configure(config: pytest.Config) -> None:
    """All of pytest-xdist's workers get the seed that is shown."""
    if config.option.seed is None:
        config.option.seed = random.randrange(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"repeat what is random with --seed {config.option.seed}"


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; what it prints."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit_all(folder: Path, message: str = "x") -> None:
    """Commit everything in a folder, which becomes a repository if it is none."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its contents, the repository's own left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


@cache
def jinja() -> SandboxedEnvironment:
    """Jinja as Copier sets it up."""
    return SandboxedEnvironment(
        loader=FileSystemLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def macros(name: str) -> Any:
    """A file of the template's macros, as a module: its macros are functions of strings."""
    return jinja().get_template(f"template/{name}.jinja").module


@dataclass(frozen=True)
class Template:
    """A repository with the template, at one of its versions.

    At HEAD it is as it is now, uncommitted changes included.
    """

    path: Path
    ref: str = "HEAD"

    def copy(self, target: Path | str, **answers: Any) -> Path:
        """`copier copy --defaults` with answers."""
        copier.run_copy(
            str(self.path),
            target,
            data=answers,
            defaults=True,
            overwrite=True,
            quiet=True,
            vcs_ref=self.ref,
        )
        return Path(target)

    def update(self, target: Path | str, *, quiet: bool = True, **answers: Any) -> None:
        """`copier update --defaults`, as `shop template update` calls it; not quiet, with the
        closing message.
        """
        copier.run_update(
            target,
            data=answers,
            defaults=True,
            overwrite=True,
            quiet=quiet,
            vcs_ref=self.ref,
            context_lines=WHOLE_FILE,
        )


def template_repository(folder: Path, *, contents: bool = True) -> Template:
    """Put the template into a repository of its own, which a test may change.

    contents: False leaves out all that a project gets but its answers, for tests of the questions.
    """
    shutil.copy(ROOT / "copier.yml", folder)
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache")
    shutil.copytree(ROOT / "template", folder / "template", ignore=ignored)
    if not contents:
        for path in folder.glob("template/*/**/*"):
            if path.is_file() and "answers_file" not in path.name:
                path.unlink()
    commit_all(folder)
    return Template(folder)


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No git or Copier settings of the user's, the same author everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        patch.delenv("COPIER_SETTINGS_PATH", raising=False)
        patch.setenv("XDG_CONFIG_HOME", os.devnull)
        patch.setenv("COPIER_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        # What mypy has found out about libraries holds for all services that are made; the parent
        # is the same for all of pytest-xdist's workers.
        patch.setenv("MYPY_CACHE_DIR", str(tmp_path_factory.getbasetemp().parent / "types"))
        # Services know nothing of Hypothesis, which takes a second of each of their test runs.
        patch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
        for who in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{who}_NAME", "Test")
            patch.setenv(f"GIT_{who}_EMAIL", "test@example.com")
        yield


@pytest.fixture(scope="session")
def template(isolated: None, tmp_path_factory: pytest.TempPathFactory) -> Template:
    return template_repository(tmp_path_factory.mktemp("template"))
