"""Timeouts, cancellations and deadlocks: what failed has left nothing, what is told failed has."""

import asyncio
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from .conftest import Service, Shop, Start, notes, until

pytestmark = pytest.mark.anyio

WRITES = """
    @handle
    async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
        session.add(Note(text="run"))
        await session.flush()
        bus.publish(NoteWritten(text="run"))
        gate("inside").set()
        {then}
"""


async def usable(service: Service) -> None:
    """Passes if nothing is locked or leaked: a write and a read go through."""
    await until(lambda: service.in_use() == 0)
    async with asyncio.timeout(5):
        await service.send(service.shop.messages().Write(text="still usable"))
        await service.send(service.shop.messages().Count())


def at_commit(service: Service, act: Callable[[], object]) -> None:
    """Call act when the next commit begins in the database."""
    left = [act]

    def on_commit(_: sa.Connection) -> None:
        if left:
            left.pop()()

    sa.event.listen(service.database.writer.sync_engine, "commit", on_commit)


async def test_cancelled_handler_leaves_nothing(shop: Shop, start: Start, url: str) -> None:
    notes(shop, WRITES.format(then="await gate('never').wait()"))
    service = await start(url)
    task = asyncio.create_task(service.send(shop.messages().Run()))
    await shop.gate("inside").wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await service.texts(), await service.events()) == ([], [])
    await usable(service)


SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
    " SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(30)",
}


@pytest.mark.parametrize("nested", [False, True], ids=["command", "nested query"])
async def test_timeout_during_a_statement_leaves_nothing(
    shop: Shop, start: Start, url: str, nested: bool
) -> None:
    slow = f"await session.execute(text({SLOW[url.partition(':')[0]]!r}))"
    query = f"""
    class Slow(Query[None]): ...
    @handle
    async def slow(query: Slow, session: AsyncSession) -> None:
        {slow}
    """
    notes(shop, query + WRITES.format(then="await bus.send(Slow())" if nested else slow))
    service = await start(url)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await service.send(shop.messages().Run())
    assert (await service.texts(), await service.events()) == ([], [])
    await usable(service)


async def test_timeout_in_a_query_leaves_everything_writable(
    shop: Shop, start: Start, url: str
) -> None:
    slow = f"await session.execute(text({SLOW[url.partition(':')[0]]!r}))"
    notes(
        shop,
        f"""
        class Slow(Query[None]): ...
        @handle
        async def slow(query: Slow, session: AsyncSession) -> None:
            {slow}
        """,
    )
    service = await start(url)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await service.send(shop.module("slices.notes.handlers").Slow())
    await usable(service)


async def test_cancelled_while_it_waits_for_the_write_lock(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    notes(shop)
    service, other = await start(sqlite_url), await start(sqlite_url)
    async with other.database.writer.begin():
        task = asyncio.create_task(service.send(shop.messages().Write(text="a")))
        await until(lambda: service.in_use() == 1)
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    await usable(service)
    assert await service.texts() == ["still usable"]
    await usable_by(other)


async def usable_by(other: Service) -> None:
    """Passes if another process can write."""
    async with asyncio.timeout(5):
        await other.send(other.shop.messages().Write(text="other"))


async def test_cancelled_while_it_waits_for_a_connection(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    notes(shop, WRITES.format(then="await gate('go').wait()"))
    service = await start(sqlite_url)
    first = asyncio.create_task(service.send(shop.messages().Run()))
    await shop.gate("inside").wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await service.send(shop.messages().Write(text="a"))
    shop.gate("go").set()
    await first
    await usable(service)


@pytest.mark.parametrize("times", [1, 3])
async def test_cancellation_that_hits_the_commit_is_too_late(
    shop: Shop, start: Start, url: str, times: int
) -> None:
    notes(shop)
    service = await start(url)
    task = asyncio.create_task(service.send(shop.messages().Write(text="a")))

    def cancel() -> None:
        for _ in range(times):
            task.cancel()

    at_commit(service, cancel)
    await task
    assert await service.texts() == ["a"]
    assert len(await service.events()) == 1
    await usable(service)


async def test_timeout_that_hits_the_commit_is_no_timeout(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop)
    service = await start(url)
    async with asyncio.timeout(None) as timeout:
        at_commit(service, lambda: timeout.reschedule(0))
        await service.send(shop.messages().Write(text="a"))
    assert await service.texts() == ["a"]
    await asyncio.sleep(0)  # Nothing of the cancellation is left over.
    await usable(service)


async def test_what_is_said_to_have_timed_out_has_left_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop)
    service = await start(url)
    await service.send(shop.messages().Write(text="warm"))
    answered = {"warm"}
    for number in range(60):
        text = f"{number:03}"
        try:
            async with asyncio.timeout(0.0002 * number):
                await service.send(shop.messages().Write(text=text))
        except TimeoutError:
            continue
        answered.add(text)
    assert set(await service.texts()) == answered
    assert {event.key for event in await service.events()} == answered
    await usable(service)


DEFERRED = {
    "models": """
        class Reply(Entity):
            __tablename__ = "notes_replies"
            note_id: Mapped[UUID] = mapped_column(
                sa.ForeignKey("notes.id", deferrable=True, initially="DEFERRED")
            )
    """,
    "run": """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            session.add(Reply(note_id=uuid4()))
    """,
}


@pytest.mark.parametrize("cancelled", [False, True])
async def test_commit_that_the_database_refuses_leaves_nothing(
    shop: Shop, start: Start, url: str, cancelled: bool
) -> None:
    notes(shop, **DEFERRED)
    service = await start(url)
    task = asyncio.create_task(service.send(shop.messages().Run()))
    if cancelled:
        at_commit(service, task.cancel)
    with pytest.raises(sa.exc.IntegrityError):
        await task
    assert (await service.texts(), await service.events()) == ([], [])
    await usable(service)


async def test_request_is_cancelled_by_a_task_group(shop: Shop, start: Start, url: str) -> None:
    notes(shop, WRITES.format(then="await gate('never').wait()"))
    service = await start(url)

    async def fail() -> None:
        await shop.gate("inside").wait()
        raise ValueError

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.send(shop.messages().Run()))
            tasks.create_task(fail())

    with pytest.raises(ExceptionGroup) as group:
        await both()
    assert [type(error) for error in group.value.exceptions] == [ValueError]
    await usable(service)


# Deadlocks

CROSSING = """
    class Cross(Command[int]):
        first: str
        then: str
    @handle
    async def cross(command: Cross, session: AsyncSession, bus: Bus) -> int:
        seen.append(command.first)
        await lock(session, command.first)
        gate(command.first).set()
        await gate(command.then).wait()
        await lock(session, command.then)
        bus.publish(NoteWritten(text=command.first))
        return seen.count(command.first)
    async def lock(session: AsyncSession, name: str) -> None:
        await session.execute(sa.update(Note).values(version=Note.version + 1)
            .where(Note.text == name))
"""


async def test_deadlock_runs_again(shop: Shop, start: Start, postgresql_url: str) -> None:
    notes(shop, CROSSING)
    service = await start(postgresql_url)
    for text in "ab":
        await service.send(shop.messages().Write(text=text))
    await service.write("DELETE FROM bus_event")
    cross = shop.module("slices.notes.handlers").Cross
    runs = await asyncio.gather(
        service.send(cross(first="a", then="b")), service.send(cross(first="b", then="a"))
    )
    assert sorted(runs) == [1, 2]
    assert await service.column("SELECT version FROM notes") == [3, 3]
    assert {event.key for event in await service.events()} == {"a", "b"}
    assert len(await service.events()) == 2
    await usable(service)


async def test_other_database_errors_do_not_run_again(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            seen.append(1)
            await session.execute(text("SELECT no_such_column"))
        """,
    )
    service = await start(url)
    with pytest.raises(sa.exc.DBAPIError):
        await service.send(shop.messages().Run())
    assert shop.seen == [1]


async def test_deadlock_that_never_ends_is_told(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            seen.append(1)
            await session.execute(text(
                "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$"
            ))
        """,
    )
    service = await start(postgresql_url)
    with pytest.raises(sa.exc.DBAPIError):
        await service.send(shop.messages().Run())
    assert shop.seen == [1, 1, 1]
    await usable(service)


async def test_writers_of_two_processes_wait_for_each_other(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            note = (await session.scalars(select(Note).with_for_update())).one()
            note.text = str(int(note.text) + 1)
        """,
    )
    services = [await start(url), await start(url)]
    await services[0].send(shop.messages().Write(text="0"))
    run = shop.messages().Run()
    await asyncio.gather(*(one.send(run) for one in services for _ in range(10)))
    assert await services[0].texts() == ["20"]
