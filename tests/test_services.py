"""Every kind of service: it renders clean, and those that differ in kind pass their own checks."""

import itertools
import os
import py_compile
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Template, tree

DATABASES = ("sqlite", "postgresql")
AUTHS = ("jwt", "none")
CIS = ("github", "none")
TOOLS = Path(sys.executable).parent


def make(template: Template, folder: Path, **answers: str) -> Path:
    """A service with the example's two slices, and one that is as small as can be."""
    template.copy(folder, **answers)
    slices = folder / "src" / folder.name / "slices"
    template.copy(slices / "payments", fields="amount:decimal(12,2) currency:str")
    template.copy(slices / "orders", listens_to="payments.PaymentCreated:start_order")
    template.copy(slices / "notes")
    return folder


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """Run one of the tools in a service; what it prints."""
    inherited = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**inherited, "PYTHONPATH": "src", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert bool(done.returncode) == fails, printed
    return printed


@pytest.mark.parametrize("answers", list(itertools.product(DATABASES, AUTHS, CIS)), ids="-".join)
def test_every_service_renders_clean(
    template: Template, tmp_path: Path, answers: tuple[str, str, str]
) -> None:
    database, auth, ci = answers
    shop = make(template, tmp_path / "shop", database=database, auth=auth, ci=ci)
    assert scars(shop) == []
    for path in shop.rglob("*.py"):
        py_compile.compile(str(path), doraise=True)
    run(shop, "ruff", "format", "--check")
    run(shop, "ruff", "check")
    assert (shop / ".github").exists() == (ci == "github")
    assert (shop / "tests/test_auth.py").exists() == (auth == "jwt")
    assert f"{database}://" in (shop / ".env.example").read_text()


def scars(folder: Path) -> list[str]:
    """What only a template leaves behind: its own words, blank lines in excess, none at the end."""
    return [
        name
        for name, content in tree(folder).items()
        if not name.endswith((".pyc", ".db"))
        and re.search(rb"\{%|\bjinja\b|\n\n\n\n|[^\n]\Z|\n\n\Z|\A\n|[ \t]\n", content)
    ]


@pytest.mark.parametrize(
    "answers",
    [
        {"database": "sqlite", "auth": "jwt"},
        {"database": "postgresql", "auth": "none", "ci": "none"},
    ],
    ids=["sqlite-jwt", "postgresql-none"],
)
def test_service_passes_its_own_checks(
    template: Template, tmp_path: Path, answers: dict[str, str]
) -> None:
    shop = make(template, tmp_path / "shop", **answers)
    run(shop, "mypy")
    database = [] if answers["database"] == "sqlite" else ["--postgresql"]
    run(shop, "pytest", "-q", "-p", "no:cacheprovider", *database)


def test_service_without_slices_passes_its_own_checks(template: Template, tmp_path: Path) -> None:
    shop = template.copy(tmp_path / "shop")
    run(shop, "mypy")
    run(shop, "pytest", "-q", "-p", "no:cacheprovider")


def test_removing_a_slice_edits_no_other_file(template: Template, tmp_path: Path) -> None:
    before = tree(template.copy(tmp_path / "one/shop"))
    template.copy(tmp_path / "one/shop/src/shop/slices/notes")
    after = tree(tmp_path / "one/shop")
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("src/shop/slices/notes/") for name in after.keys() - before.keys())
