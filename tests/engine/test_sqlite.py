"""What the driver of SQLite is asked, and that every row of the answer comes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .conftest import Relays, Shop, Start, notes, options, until
from .conftest import write as note

pytestmark = pytest.mark.anyio

MANY = 1_234


@pytest.fixture
async def connection(shop: Shop, tmp_path: Path) -> AsyncIterator[AsyncConnection]:
    database = shop.database(f"sqlite:///{tmp_path}/many.db")
    async with database.writer.connect() as connection:
        await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER UNIQUE)"))
        rows = [{"number": number} for number in range(MANY)]
        await connection.execute(sa.text("INSERT INTO numbers VALUES (:number)"), rows)
        yield connection
    await database.close()


ALL = sa.text("SELECT number FROM numbers ORDER BY number")


async def test_all_rows_come(connection: AsyncConnection) -> None:
    assert list((await connection.execute(ALL)).scalars()) == list(range(MANY))


async def test_first_rows_and_single_rows_come(connection: AsyncConnection) -> None:
    assert (await connection.execute(ALL)).scalars().first() == 0
    assert (await connection.execute(sa.text("SELECT 7"))).scalar_one() == 7
    assert (await connection.execute(sa.text("SELECT 7 WHERE 0"))).scalar() is None


@pytest.mark.parametrize("size", [1, 7, 500, 1_000, 5_000])
async def test_rows_are_streamed(connection: AsyncConnection, size: int) -> None:
    async with connection.stream(ALL) as streamed:
        sizes = [len(part) async for part in streamed.partitions(size)]
    assert sizes == [size] * (MANY // size) + [MANY % size] * (MANY % size > 0)


async def test_stream_that_is_left_leaves_nothing_open(connection: AsyncConnection) -> None:
    async with connection.stream(ALL) as streamed:
        assert (await anext(aiter(streamed))).number == 0
    # SQLite refuses this while a statement of the connection still reads.
    await connection.execute(sa.text("DROP TABLE numbers"))


async def test_changes_tell_their_number_and_what_they_return(connection: AsyncConnection) -> None:
    changed = await connection.execute(sa.text("UPDATE numbers SET number = -number"))
    assert changed.rowcount == MANY
    gone = await connection.execute(sa.text("DELETE FROM numbers RETURNING number"))
    assert len(gone.all()) == MANY
    assert (await connection.execute(sa.text("SELECT count(*) FROM numbers"))).scalar() == 0


async def test_refused_statement_leaves_the_connection_usable(connection: AsyncConnection) -> None:
    with pytest.raises(sa.exc.IntegrityError):
        await connection.execute(sa.text("INSERT INTO numbers VALUES (7) RETURNING number"))
    assert (await connection.execute(sa.text("SELECT count(*) FROM numbers"))).scalar() == MANY


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
async def test_number_of_more_than_64_bits_is_the_databases_error(
    connection: AsyncConnection, number: int
) -> None:
    asked = sa.text("SELECT number FROM numbers WHERE number > :number")
    with pytest.raises(sa.exc.DataError, match="too large"):
        await connection.execute(asked, {"number": number})
    assert len((await connection.execute(ALL)).all()) == MANY


async def test_statement_behind_the_transaction_is_refused(connection: AsyncConnection) -> None:
    raw: Any = await connection.get_raw_connection()
    await connection.commit()
    cursor = await connection.run_sync(lambda _: raw.dbapi_connection.cursor())
    with pytest.raises(sqlite3.ProgrammingError, match="transaction of this statement is over"):
        await connection.run_sync(lambda _: cursor.execute("DELETE FROM numbers"))
    assert (await connection.execute(sa.text("SELECT count(*) FROM numbers"))).scalar() == MANY


async def test_statement_is_one_call_to_the_drivers_thread(
    connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = aiosqlite.Connection._execute

    async def counted(self: aiosqlite.Connection, function: Any, *args: Any, **named: Any) -> Any:
        calls.append(function)
        return await call(self, function, *args, **named)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    await connection.execute(sa.text("SELECT number FROM numbers WHERE number < 400"))
    assert len(calls) == 1
    await connection.execute(sa.text("INSERT INTO numbers VALUES (-1)"))
    assert len(calls) == 2
    await connection.execute(ALL)
    assert len(calls) == 5  # The rest of the rows, and the end.


async def test_writer_tells_of_what_others_commit(shop: Shop, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    ours, theirs, told = shop.database(url), shop.database(url), []
    await write(ours)
    ours.on_others = lambda: told.append("others")
    await write(ours)
    assert told == []
    await write(theirs)
    await write(ours)
    assert told == ["others"]
    await write(ours)
    assert told == ["others"]
    await ours.close()
    await theirs.close()


async def write(database: Any) -> None:
    async with database.writer.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS numbers (number INTEGER)"))
        await connection.execute(sa.text("INSERT INTO numbers VALUES (1)"))


async def test_relay_hears_of_others_while_its_own_process_commits(
    shop: Shop,
    start: Start,
    sqlite_url: str,
    relays: Relays,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It looks once, and then hears of the rest from the writer only.
    monkeypatch.setattr(shop.module("bus.waking"), "_LOOK_SECONDS", 3600)
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            session.add(Note(text=str(uuid4())))
        """,
        listeners="@listen\nasync def hear(event: NoteWritten) -> None: seen.append(event.text)",
    )
    service = await start(sqlite_url, relay=options(shop, poll=3600))
    other = await start(sqlite_url)
    relays(service)
    await note(service, "first")
    await service.settled()
    relay = service.runtime.relay
    await until(lambda: bool(relay._dry) and relay._due_known)  # It sleeps until it is woken.

    async def commit_all_the_time() -> None:
        while len(shop.seen) < 2:
            await service.send(shop.messages().Run())

    async with asyncio.timeout(10):
        await asyncio.gather(commit_all_the_time(), note(other, "a"))
    assert shop.seen == ["first", "a"]
