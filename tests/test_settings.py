"""Settings that cannot be right: one line says so, where a traceback would not help."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Template


@pytest.fixture(scope="module")
def service(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service with a slice that has settings of its own, migrated."""
    folder = template.copy(tmp_path_factory.mktemp("settings") / "shop")
    slice_ = template.copy(folder / "src/shop/slices/payments")
    (slice_ / "settings.py").write_text(
        "from pydantic_settings import BaseSettings, SettingsConfigDict\n\n\n"
        "class PaymentSettings(BaseSettings):\n"
        "    model_config = SettingsConfigDict(\n"
        '        env_prefix="PAYMENTS_", env_file=".env", extra="ignore"\n'
        "    )\n"
        "    limit: int = 5\n"
    )
    return folder


def shop(service: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run the service's command; its status, and what it says of errors."""
    return python(service, "-m", "shop.cli", *arguments, **environment)


def python(service: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run Python, with the service's code."""
    inherited = {name: text for name, text in os.environ.items() if name != "DATABASE_URL"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=service,
        env={**inherited, "PYTHONPATH": "src", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [("run",), ("db", "upgrade")], ids="-".join)
def test_database_url_that_cannot_be_used(service: Path, command: tuple[str, ...]) -> None:
    status, errors = shop(service, *command, DATABASE_URL="nonsense")
    assert status == 1
    assert "DATABASE_URL: expected sqlite:///FILE or postgresql://" in errors
    assert len(errors.splitlines()) == 1


def test_sslmode_is_understood(service: Path) -> None:
    """The driver tries to connect, and has nothing against the option."""
    url = "postgresql://localhost:1/shop?sslmode=require"
    status, errors = shop(service, "run", DATABASE_URL=url)
    assert status == 1
    assert "cannot be reached" in errors
    assert "Traceback" not in errors


# A worker that has found the database in order, just before that went away.
GOES_AWAY = """
import sys, shop.app, shop.cli
async def in_order(database): pass
shop.app.check_database = in_order
sys.argv = ["shop", "worker"]
shop.cli.main()
"""


def test_database_that_goes_away_during_the_start(service: Path) -> None:
    status, errors = python(service, "-c", GOES_AWAY, DATABASE_URL="postgresql://localhost:1/shop")
    assert status == 1
    assert errors.startswith("The database postgresql://localhost:1/shop cannot be reached: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"LOG_LEVEL": "LOUD"}, "Settings.log_level (LOG_LEVEL): Input should be 'DEBUG'"),
        (
            {"AUTH_SECRET": "short"},
            "AuthSettings.secret (AUTH_SECRET): Value should",
        ),
        (
            {"PAYMENTS_LIMIT": "much"},
            "PaymentSettings.limit (PAYMENTS_LIMIT): Input should",
        ),
    ],
)
def test_setting_of_the_wrong_form(
    service: Path, environment: dict[str, str], complaint: str
) -> None:
    status, errors = shop(service, "run", **environment)
    assert status == 1
    assert errors.startswith(complaint)
    assert len(errors.splitlines()) == 1


def test_env_file_that_is_no_text(service: Path) -> None:
    dotenv = service / ".env"
    dotenv.write_bytes(b"LOG_LEVEL=\xff\xfe")
    status, errors = shop(service, "run")
    dotenv.unlink()
    assert status == 1
    assert errors.startswith(".env: expected lines NAME=VALUE in UTF-8")
    assert len(errors.splitlines()) == 1


def test_misspelt_names_in_the_env_file_are_told(service: Path) -> None:
    dotenv = service / ".env"
    dotenv.write_text(
        "DATABSE_URL=sqlite:///x.db\nAUTH_SECRTE=x\nPAYMENTS_LIMTI=1\n"
        "POSTGRES_PASSWORD=x\nLOG_LEVEL=INFO\n"
    )
    # Without its tables the service does not start, but it is wired before it finds out.
    status, errors = shop(service, "run")
    dotenv.unlink()
    assert status == 1
    told = [line for line in errors.splitlines() if "no setting has this name" in line]
    assert len(told) == 3
    for name, meant in {
        "DATABSE_URL": "DATABASE_URL",
        "AUTH_SECRTE": "AUTH_SECRET",
        "PAYMENTS_LIMTI": "PAYMENTS_LIMIT",
    }.items():
        assert any(f"name={name}" in line and f"did_you_mean={meant}" in line for line in told)
