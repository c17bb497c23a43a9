"""Makes a shop with payments and orders, pays once over HTTP, shows the order that came of it."""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

HERE = Path(__file__).parent
TIMEOUT = 60
NEXT = 'To try it: .venv/bin/nox -s demo -- --serve. To go on: README.md, "Make your own".'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the shop running")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with tempfile.TemporaryDirectory(prefix="slicewise-demo-") as folder:
        shop = Path(folder) / "shop"
        generate(shop)
        environment = install(shop)
        with running(shop, environment) as (url, log):
            token = output(shop, "token", environment=environment | {"ENVIRONMENT": "development"})
            pay(url, token, log)
            if arguments.serve:
                serve(url, token)
        if not arguments.serve:
            print(NEXT)


def interrupt(*_: object) -> None:
    """Stop and clean up. Once: nox passes on what the terminal has sent to all of us before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def generate(shop: Path) -> None:
    copy(shop, ".")
    say("cd shop")
    slices = "src/shop/slices"
    copy(shop, f"{slices}/payments", "-d", "fields=amount:decimal(12,2) currency:str")
    copy(shop, f"{slices}/orders", "-d", "listens_to=payments.PaymentCreated:start_order")


def copy(shop: Path, place: str, *answers: str) -> None:
    target = shop / place
    typed = "shop --defaults" if target == shop else shlex.join([place, *answers])
    say(f"copier copy <template> {typed}")
    copier = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--vcs-ref=HEAD"]
    run([*copier, *answers, str(HERE), str(target)])


def install(shop: Path) -> dict[str, str]:
    """Give the shop its own environment and database; returns what it runs with."""
    ours = {"VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"}
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ours},
        "DATABASE_URL": f"sqlite:///{shop / 'shop.db'}",
        "ENVIRONMENT": "production",  # for logs in JSON
        "AUTH_SECRET": secrets.token_urlsafe(32),
    }
    say("uv sync")
    uv = [sys.executable, "-m", "uv"]
    run([*uv, "sync", "--quiet", f"--python={sys.executable}"], cwd=shop, env=environment)
    say("uv run shop db upgrade")
    output(shop, "db", "upgrade", environment=environment)
    return environment


@contextlib.contextmanager
def running(shop: Path, environment: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """Run the shop until the block is left; gives its URL and its log."""
    port, log = free_port(), shop / "shop.log"
    say(f"uv run shop run --port {port}")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [command(shop), "run", "--port", str(port)],
            cwd=shop,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("the shop to be ready", lambda: process.poll() is not None or is_ready(url))
        if process.poll() is not None:
            raise SystemExit(f"The shop ended with status {process.returncode}.")
        yield url, log
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            print(log.read_text(encoding="utf-8"), file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(TIMEOUT)
    if status:
        raise SystemExit(f"The shop should stop cleanly, and ended with status {status}.")
    print("\nThe shop has stopped cleanly.")


def pay(url: str, token: str, log: Path) -> None:
    """Make one payment, and show what came of it."""
    payment, headers = call(url, "/payments", token, {"amount": "12.50", "currency": "EUR"})
    show("POST /payments", payment)
    orders: dict[str, Any] = {}

    def order_is_there() -> bool:
        orders.update(call(url, "/orders", token)[0])
        return any(order["payment_id"] == payment["id"] for order in orders["items"])

    wait_for("an order", order_is_there)
    show("GET /orders", orders)
    correlation_id = headers["x-correlation-id"]
    print(f"\nIn between, by the log (correlation id {correlation_id}):")
    for line in timeline(log, correlation_id):
        print(f"  {line}")


def timeline(log: Path, correlation_id: str) -> Iterator[str]:
    """The lines of the log that belong to one request and to all that it caused."""
    for text in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(text)
            if entry.get("correlation_id") == correlation_id:
                hidden = {"timestamp", "level", "logger", "event", "correlation_id"}
                rest = {name: value for name, value in entry.items() if name not in hidden}
                details = " ".join(f"{name}={value}" for name, value in rest.items())
                yield f"{entry['timestamp'][11:23]}  {entry['event']:<22} {details}"


def serve(url: str, token: str) -> None:
    print(f"\nThe shop runs at {url}/docs until you press Ctrl+C. Try:\n")
    print(f"curl -H 'Authorization: Bearer {token}' {url}/orders", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def call(
    url: str, path: str, token: str, body: object = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The answer's JSON and headers; a POST if there is a body."""
    request = Request(
        url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urlopen(request, timeout=TIMEOUT) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return json.load(answer), headers


def is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=TIMEOUT):
            return True
    except URLError:
        return False


def wait_for(what: str, condition: Any) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Waited {TIMEOUT} seconds for {what} in vain.")
        time.sleep(0.05)


def command(shop: Path) -> str:
    found = shutil.which("shop", path=shop / ".venv/bin")
    if found is None:
        raise SystemExit(f"uv sync has not installed the command `shop` in {shop / '.venv'}")
    return found


def output(shop: Path, *arguments: str, environment: dict[str, str]) -> str:
    return run([command(shop), *arguments], cwd=shop, env=environment).strip()


def run(call: list[str], **options: Any) -> str:
    """Run a program; its output is shown only if it fails."""
    result = subprocess.run(call, capture_output=True, text=True, **options)
    if result.returncode:
        raise SystemExit(f"{' '.join(call)} failed:\n{result.stdout}{result.stderr}")
    stdout: str = result.stdout
    return stdout


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def say(command: str) -> None:
    print("$", command, flush=True)


def show(title: str, answer: object) -> None:
    print(f"\n{title}\n{json.dumps(answer, indent=2)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted.")
