"""Which databases the bus takes, by their URLs."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from .conftest import Shop, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("where", ["127.0.0.1:1/none", "/none?host=/no/such/folder"])
async def test_server_that_is_not_there_is_a_connection_error(shop: Shop, where: str) -> None:
    """Whatever the driver says: so that a request is answered by 503."""
    engines = shop.module("bus.engines")
    database = engines.Database(f"postgresql://nobody@{where}")
    with pytest.raises(ConnectionError) as refused:
        await database.writer.connect()
    assert engines.is_away(refused.value)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("nonsense", "expected sqlite:///FILE or postgresql://"),
        ("postgresql://user:secret@host:port/name", "expected sqlite:///FILE or postgresql://"),
        ("mysql://host/name", "got mysql://"),
        ("sqlite://", "expected a file"),
        ("sqlite:///:memory:", "expected a file"),
        ("sqlite:///file:shop?mode=memory&cache=shared&uri=true", "expected a file"),
        ("sqlite:///file::memory:?uri=true", "expected a file"),
        ("sqlite:///file:/shop?vfs=memdb&uri=true", "expected a file"),
        ("postgresql://host/name?sslmode=always", "one of disable, allow, prefer, require"),
        ("postgresql://host/name?channel_binding=require", r"got channel_binding\. Remove it"),
        ("postgresql://host/name?sslmode=allow&sslmode=allow", "sslmode to be one of"),
        ("postgresql://host:99999/name", "ports from 1 to 65535, got 99999"),
        ("postgresql://host:-1/name", "ports from 1 to 65535, got -1"),
        ("postgresql://host/name?port=99999", "ports from 1 to 65535, got 99999"),
        ("postgresql://host/name?port=abc", "a port, or for several hosts as many"),
        ("postgresql://host/name?host=a&host=b", "a port, or for several hosts as many"),
        ("postgresql://host/name?host=a:1:2&host=b:1:2", "a port, or for several hosts as many"),
        ("postgresql://host/name?host=a,b&port=5432,70000", "got 70000"),
        ("postgresql://host/name?prepared_statement_cache_size=abc", "_size to be a number"),
        ("postgresql://us%00er:secret@host/name", "no %00"),
        ("sqlite:///shop%00.db", "no %00"),
        ("sqlite:///shop.db?timeout=abc", "timeout to be a number of seconds"),
        ("sqlite:///shop.db?timeout=1&timeout=2", "timeout to be a number of seconds"),
        ("sqlite:///shop.db?cached_statements=-1", "cached_statements to be a number"),
        ("sqlite:///shop.db?foo=bar&isolation_level=x", "got foo, isolation_level. Remove it"),
        ("sqlite:///shop.db?mode=rw", "got mode. Remove it.* needs sqlite:///file:NAME.uri=true"),
        ("sqlite:///file:shop.db?uri=maybe", "uri to be true"),
        ("sqlite:///file:shop.db?uri=true&foo=bar", "got foo. Remove it"),
        ("sqlite:///shop.db?uri=true", "uri=true behind sqlite:///file:NAME only"),
        ("sqlite://user:secret@host/shop.db", "a file behind three slashes"),
    ],
)
def test_unusable_url_is_refused(shop: Shop, url: str, complaint: str) -> None:
    with pytest.raises(shop.bus.WiringError, match=complaint) as refused:
        shop.database(url)
    assert str(refused.value).startswith("DATABASE_URL: expected ")
    assert "secret" not in str(refused.value)


def test_sslmode_is_what_the_driver_calls_ssl(shop: Shop) -> None:
    database = shop.database("postgresql://host/name?sslmode=require&host=/run/postgresql")
    assert database.url.query == {"ssl": "require", "host": "/run/postgresql"}


def test_file_is_taken_as_a_uri_too(shop: Shop) -> None:
    assert shop.database("sqlite:///file:shop.db?mode=rwc&uri=true").url.query["mode"] == "rwc"


def test_several_hosts_are_taken(shop: Shop) -> None:
    url = "postgresql:///name?host=one,other&port=5432,5433&prepared_statement_cache_size=0"
    assert shop.database(url).url.query["host"] == "one,other"


async def test_file_of_a_uri_is_opened_as_such(shop: Shop, tmp_path: Path) -> None:
    url = f"sqlite:///file:{tmp_path}/a b.db?mode=rw&uri=true"
    database, other = shop.database(url), shop.database(url)
    with pytest.raises(DBAPIError, match="unable to open"):
        async with database.writer.connect():
            pass
    sqlite3.connect(tmp_path / "a b.db").close()
    async with database.writer.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE t (n INTEGER)"))
    woken = list[None]()
    waker = shop.module("bus.waking").Waker(other, lambda: woken.append(None))
    watching = asyncio.create_task(waker.run())
    await until(lambda: len(woken) == 1)
    async with database.writer.begin() as connection:
        await connection.execute(sa.text("INSERT INTO t VALUES (1)"))
    await until(lambda: len(woken) == 2)
    watching.cancel()
    for one in (database, other):
        await one.close()


async def test_timeout_of_the_url_counts(shop: Shop, sqlite_url: str) -> None:
    first, other = shop.database(sqlite_url), shop.database(f"{sqlite_url}?timeout=0.01")
    async with first.writer.begin() as holder, asyncio.timeout(10):
        await holder.execute(sa.text("SELECT 1"))
        with pytest.raises(DBAPIError, match="locked"):
            async with other.writer.begin() as waiting:
                await waiting.execute(sa.text("SELECT 1"))
    for one in (first, other):
        await one.close()
