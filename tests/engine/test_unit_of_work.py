"""One transaction, from the first message in to the commit."""

import asyncio
from contextlib import suppress

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InterfaceError, InvalidRequestError

from .conftest import Service, Shop, Start, notes, until, write

pytestmark = pytest.mark.anyio


async def names(service: Service) -> list[str]:
    """The keys of the stored events, which are the texts of the notes that they tell of."""
    return [event.key for event in await service.events()]


async def usable(service: Service) -> None:
    """Passes if nothing is locked or leaked: a write and a read go through."""
    await until(lambda: service.in_use() == 0)
    async with asyncio.timeout(5):
        await service.send(service.shop.messages().Write(text="still usable"))
        await service.send(service.shop.messages().Count())


async def test_what_a_handler_did_is_committed_when_it_answers(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop)
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    assert await service.texts() == ["a"]
    assert [event.name for event in await service.events()] == ["notes.NoteWritten"]
    await usable(service)


async def test_failed_handler_leaves_nothing(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            session.add(Note(text="a"))
            await session.flush()
            bus.publish(NoteWritten(text="a"))
            raise LookupError("no")
        """,
    )
    service = await start(url)
    with pytest.raises(LookupError, match="no"):
        await service.send(shop.messages().Run())
    assert (await service.texts(), await service.events()) == ([], [])
    await usable(service)


async def test_failed_flush_at_the_commit_leaves_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop)
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    with pytest.raises(sa.exc.IntegrityError):
        await service.send(shop.messages().Write(text="a"))
    assert (await service.texts(), await names(service)) == (["a"], ["a"])
    await usable(service)


async def test_nested_send_joins_the_unit(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            await bus.send(Write(text="b"))
            if command.text == "fail":
                raise LookupError
        """,
    )
    service = await start(url)
    with pytest.raises(LookupError):
        await service.send(shop.messages().Run(text="fail"))
    assert await service.texts() == []
    await service.send(shop.messages().Run())
    assert (await service.texts(), await names(service)) == (["a", "b"], ["a", "b"])


async def test_events_keep_the_order_in_which_they_were_published(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            for number in range(20):
                bus.publish(NoteWritten(text=str(number)))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await names(service) == [str(number) for number in range(20)]


# A unit that cannot be committed


async def test_nested_failure_dooms_the_unit(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        class Fail(Command[None]): ...
        @handle
        async def fail(command: Fail) -> None:
            raise LookupError("nested")
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            try:
                await bus.send(Fail())
            except LookupError:
                seen.append("caught")
        """,
    )
    service = await start(url)
    with pytest.raises(
        shop.bus.UnitDoomedError, match=r"LookupError.*'nested'.*savepoint"
    ) as doomed:
        await service.send(shop.messages().Run())
    assert isinstance(doomed.value.__cause__, LookupError)
    assert shop.seen == ["caught"]
    assert await service.texts() == []
    await usable(service)


async def test_failure_swallowed_by_an_inline_listener_dooms_the_unit(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(inline=True)
        async def react(event: NoteWritten, bus: Bus) -> None:
            try:
                await bus.send(Run())
            except LookupError:
                seen.append("caught")
        """,
        run="""
        @handle
        async def run(command: Run) -> None:
            raise LookupError
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.UnitDoomedError):
        await service.send(shop.messages().Write(text="a"))
    assert shop.seen == ["caught"]
    assert await service.texts() == []


async def test_failed_nested_flush_dooms_the_unit(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        class Twice(Command[None]): ...
        @handle
        async def twice(command: Twice, session: AsyncSession) -> None:
            session.add_all([Note(text="a"), Note(text="a")])
            await session.flush()
        @handle
        async def run(command: Run, bus: Bus) -> None:
            try:
                await bus.send(Twice())
            except sa.exc.IntegrityError:
                seen.append("caught")
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.UnitDoomedError):
        await service.send(shop.messages().Run())
    assert shop.seen == ["caught"]
    await usable(service)


# Savepoints

TRY = """
    class Tell(Command[None]):
        text: str
        fail: bool = True
    @handle
    async def tell(command: Tell, session: AsyncSession, bus: Bus) -> None:
        note = Note(text=command.text)
        session.add(note)
        note.record(NoteWritten(text=command.text + " recorded"))
        bus.publish(NoteWritten(text=command.text + " published"))
        await session.flush()
        if command.fail:
            raise LookupError
"""


async def test_savepoint_undoes_what_failed_and_only_that(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        TRY
        + """
    @handle
    async def run(command: Run, bus: Bus) -> None:
        await bus.send(Tell(text="a", fail=False))
        try:
            async with bus.savepoint():
                await bus.send(Tell(text="b"))
        except LookupError:
            pass
        async with bus.savepoint():
            await bus.send(Tell(text="c", fail=False))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == ["a", "c"]
    assert await names(service) == ["a recorded", "a published", "c recorded", "c published"]
    await usable(service)


async def test_savepoint_in_a_savepoint(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        TRY
        + """
    @handle
    async def run(command: Run, bus: Bus) -> None:
        async with bus.savepoint():
            await bus.send(Tell(text="a", fail=False))
            try:
                async with bus.savepoint():
                    await bus.send(Tell(text="b"))
            except LookupError:
                pass
        try:
            async with bus.savepoint():
                async with bus.savepoint():
                    await bus.send(Tell(text="c", fail=False))
                raise LookupError
        except LookupError:
            pass
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == ["a"]
    assert await names(service) == ["a recorded", "a published"]


async def test_failure_caught_inside_of_the_savepoint_dooms_the_unit(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        TRY
        + """
    @handle
    async def run(command: Run, bus: Bus) -> None:
        async with bus.savepoint():
            try:
                await bus.send(Tell(text="b"))
            except LookupError:
                pass
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.UnitDoomedError):
        await service.send(shop.messages().Run())
    assert await service.texts() == []


async def test_savepoint_does_not_save_a_unit_that_was_doomed_before(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        TRY
        + """
    @handle
    async def run(command: Run, bus: Bus) -> None:
        for _ in range(2):
            try:
                await bus.send(Tell(text="a"))
            except Exception:
                pass
        try:
            async with bus.savepoint():
                await bus.send(Tell(text="b"))
        except Exception:
            pass
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.UnitDoomedError):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


async def test_flush_that_fails_at_the_end_of_a_savepoint_is_undone(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            try:
                async with bus.savepoint():
                    await bus.send(Write(text="a"))
            except sa.exc.IntegrityError:
                await bus.send(Write(text="b"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert (await service.texts(), await names(service)) == (["a", "b"], ["a", "b"])


async def test_a_savepoint_of_the_session_takes_its_events_back_too(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        TRY
        + """
    @handle
    async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
        await bus.send(Tell(text="a", fail=False))
        nested = await session.begin_nested()
        await bus.send(Tell(text="b", fail=False))
        await nested.rollback()
        try:
            async with session.begin_nested():
                await bus.send(Tell(text="c", fail=False))
                raise LookupError
        except LookupError:
            pass
        async with session.begin_nested():
            await bus.send(Tell(text="d", fail=False))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == ["a", "d"]
    assert await names(service) == ["a recorded", "a published", "d recorded", "d published"]


async def test_what_is_added_again_after_a_savepoint_brings_its_events_back(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            note = Note(text="a")
            try:
                async with bus.savepoint():
                    session.add(note)
                    note.record(NoteWritten(text="a"))
                    await session.flush()
                    raise LookupError
            except LookupError:
                session.add(note)
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert (await service.texts(), await names(service)) == (["a"], ["a"])


# Queries


async def test_nested_query_sees_what_the_unit_has_written(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            seen.append(await bus.send(Count()))
            session.add(Note(text="a"))
            seen.append(await bus.send(Count()))
            await bus.send(Write(text="b"))
            seen.append(await bus.send(Count()))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert shop.seen == [0, 1, 2]
    assert await service.texts() == ["a", "b"]


WRITING_QUERIES = {
    "by an unfinished flush": "session.add(Note(text='q'))",
    "by a flush": "session.add(Note(text='q')); await session.flush()",
    "by a statement": "await session.execute(sa.insert(Note).values(id=uuid4(), text='q',"
    " version=1, created_at=dt.datetime.now(dt.UTC)))",
    "by a recorded event": "note = Note(text='q'); note.record(NoteWritten(text='q'));"
    " session.add(note)",
    "by a changed row": "note = (await session.scalars(select(Note))).one(); note.text = 'q'",
    "by an event of a row": "note = (await session.scalars(select(Note))).one();"
    " note.record(NoteWritten(text='q'))",
    "by a published event": "bus.publish(NoteWritten(text='q'))",
    "by a command": "await Bus.send(bus, Write(text='q'))",
}


@pytest.mark.parametrize("write", WRITING_QUERIES.values(), ids=WRITING_QUERIES.keys())
@pytest.mark.parametrize("nested", [False, True], ids=["outermost", "nested"])
async def test_query_cannot_write(
    shop: Shop, start: Start, url: str, write: str, nested: bool
) -> None:
    notes(
        shop,
        f"""
        class Look(Query[None]): ...
        @handle
        async def look(query: Look, session: AsyncSession, bus: QueryBus) -> None:
            {write}
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Look())
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    message = shop.messages().Run() if nested else shop.module("slices.notes.handlers").Look()
    with pytest.raises((shop.bus.BusError, sa.exc.DBAPIError)):
        await service.send(message)
    assert (await service.texts(), await names(service)) == (["a"], ["a"])
    await usable(service)


async def test_unit_goes_on_after_a_nested_query_that_failed(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        class Look(Query[None]):
            statement: str
        @handle
        async def look(query: Look, session: AsyncSession) -> None:
            await session.execute(text(query.statement))
            raise LookupError
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            for statement in ("SELECT 1", "SELECT no_such_column", "DELETE FROM notes"):
                try:
                    await bus.send(Look(statement=statement))
                except Exception as error:
                    seen.append(type(error).__name__)
            await bus.send(Write(text="b"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert shop.seen[0] == "LookupError"
    assert len(shop.seen) == 3
    assert await service.texts() == ["a", "b"]
    await usable(service)


async def test_query_in_a_query(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        class Look(Query[int]): ...
        @handle
        async def look(query: Look, session: AsyncSession, bus: QueryBus) -> int:
            return await bus.send(Count()) + len((await session.scalars(select(Note))).all())
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    assert await service.send(shop.module("slices.notes.handlers").Look()) == 2
    await usable(service)


# What is refused


SWALLOWS = """
@handle
async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
    session.add(Note(text="kept"))
    await session.flush()
    try:
        {statement}
    except sa.exc.DBAPIError:
        pass
"""


async def test_handler_that_goes_on_after_a_statement_that_failed_is_refused(
    shop: Shop, start: Start, url: str
) -> None:
    """PostgreSQL rolls back at the commit, without an error: the caller would take it for done."""
    notes(shop, SWALLOWS.format(statement="await session.execute(text('SELECT missing'))"))
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match=r"missing.*savepoint"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


async def test_key_that_is_too_long_is_refused(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="a key has up to 200"):
        await service.send(shop.messages().Write(text="a" * 201))
    assert await service.texts() == []


async def test_statement_that_failed_in_a_savepoint_is_undone(
    shop: Shop, start: Start, url: str
) -> None:
    statement = """async with bus.savepoint():
            await session.execute(text('SELECT missing'))"""
    notes(shop, SWALLOWS.format(statement=statement))
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == ["kept"]
    await usable(service)


async def test_second_unit_is_refused(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        from shop import probe
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            await probe.service.send(Write(text="b"))
        """,
    )
    service = await start(url)
    shop.module("probe").service = service
    with pytest.raises(shop.bus.BusError, match=r"Write would open a second unit.*on the bus that"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


async def test_task_that_outlives_the_unit_may_open_one_of_its_own(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        from shop import probe
        async def later() -> None:
            await gate("over").wait()
            await probe.service.send(Write(text="b"))
        @handle
        async def run(command: Run, bus: Bus) -> None:
            seen.append(asyncio.create_task(later()))
            await bus.send(Write(text="a"))
        """,
    )
    service = await start(url)
    shop.module("probe").service = service
    await service.send(shop.messages().Run())
    shop.gate("over").set()
    await shop.seen.pop()
    assert await service.texts() == ["a", "b"]


async def test_two_tasks_on_one_unit_are_refused(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        class Slow(Command[None]):
            text: str
        @handle
        async def slow(command: Slow, session: AsyncSession) -> None:
            session.add(Note(text=command.text))
            await session.flush()
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await asyncio.gather(bus.send(Slow(text="a")), bus.send(Slow(text="b")))
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="Two tasks use one unit of work at once"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


async def test_task_that_still_sends_when_the_handler_returns_is_refused(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        class Wait(Command[None]): ...
        @handle
        async def wait(command: Wait, session: AsyncSession) -> None:
            gate("inside").set()
            await gate("never").wait()
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            seen.append(asyncio.create_task(bus.send(Wait())))
            await gate("inside").wait()
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="Two tasks use one unit of work at once"):
        await service.send(shop.messages().Run())
    assert shop.seen.pop().cancelled()
    assert await service.texts() == []
    await usable(service)


async def test_refused_gather_leaves_nothing_running_on_the_session(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        class Slow(Command[None]): ...
        @handle
        async def slow(command: Slow, session: AsyncSession) -> None:
            try:
                for _ in range(1000):
                    await session.execute(text("SELECT 1"))
            except BaseException as error:
                seen.append(type(error).__name__)
                raise
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await asyncio.gather(bus.send(Slow()), bus.send(Slow()))
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="Two tasks use one unit of work at once"):
        await service.send(shop.messages().Run())
    await until(lambda: bool(shop.seen))
    await usable(service)


@pytest.mark.parametrize("ahead", ["", "await session.flush()"], ids=["first", "later"])
@pytest.mark.parametrize("reads", [2, 3])
async def test_gather_of_statements_leaves_all_or_nothing(
    shop: Shop, start: Start, url: str, ahead: str, reads: int
) -> None:
    notes(
        shop,
        f"""
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            session.add(Note(text=str(uuid4())))
            bus.publish(NoteWritten(text="a"))
            {ahead or "pass"}
            await asyncio.gather(*(session.scalar(select(Note.id)) for _ in range({reads})))
        """,
    )
    service = await start(url)
    sent = 0
    for _ in range(12):
        # SQLAlchemy or the driver refuses it, where they see it.
        with suppress(InvalidRequestError, InterfaceError):
            await service.send(shop.messages().Run())
            sent += 1
        await until(lambda: not service.in_use())
    assert len(await service.texts()) == len(await service.events()) == sent
    await usable(service)


async def test_statement_that_goes_on_beside_an_error_does_not_hide_it(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        async def refuse() -> None:
            await asyncio.sleep(0)
            raise LookupError("no")
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            await session.execute(text("SELECT 1"))
            numbers = "SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000"
            slow = f"WITH RECURSIVE n(i) AS ({numbers}) SELECT max(i) FROM n"
            await asyncio.gather(refuse(), session.execute(text(slow)))
        """,
    )
    service = await start(url)
    with pytest.raises(LookupError):
        await service.send(shop.messages().Run())
    await usable(service)


@pytest.mark.parametrize(
    "use",
    [
        "await bus.send(Write(text='b'))",
        "await bus.send(Count())",
        "bus.publish(NoteWritten(text='b'))",
        "async with bus.savepoint(): pass",
        "await session.execute(text('SELECT 1'))",
        "session.add(Note(text='b')); await session.flush()",
    ],
)
async def test_bus_and_session_are_over_with_the_handler(
    shop: Shop, start: Start, url: str, use: str
) -> None:
    notes(
        shop,
        f"""
        async def later(bus: Bus, session: AsyncSession) -> None:
            await gate("over").wait()
            {use}
        @handle
        async def run(command: Run, bus: Bus, session: AsyncSession) -> None:
            seen.append(asyncio.create_task(later(bus, session)))
            await bus.send(Write(text="a"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    shop.gate("over").set()
    with pytest.raises((shop.bus.BusError, sa.exc.InvalidRequestError)):
        await shop.seen.pop()
    assert await service.texts() == ["a"]
    await usable(service)


@pytest.mark.parametrize(
    "ending",
    [
        "await session.commit()",
        "await session.rollback()",
        "await session.close()",
        "await session.aclose()",
        "await session.reset()",
        "await session.invalidate()",
        "session.begin()",
        "async with session: pass",
        "async with session.begin(): pass",
        "await session.run_sync(lambda session: session.commit())",
        "await session.run_sync(lambda session: session.rollback())",
        "await session.get_transaction().commit()",
        "await session.get_transaction().rollback()",
        "await (await session.connection()).commit()",
        "await (await session.connection()).rollback()",
        "await (await session.connection()).close()",
        "await (await session.connection()).invalidate()",
        "async with (await session.connection()).begin_nested(): pass",
        "await session.execute(text('COMMIT'))",
        "await session.execute(text('/* c */ -- c\\n; COMMIT'))",
        "await session.execute(text('SAVEPOINT s'))",
        "await session.execute(text('ROLLBACK WORK TO SAVEPOINT s'))",
        "await (await session.connection()).run_sync(lambda c: c.commit())",
        "await session.run_sync(lambda s: s.connection().commit())",
        "await session.run_sync(lambda s: s.connection().rollback())",
        "await (await session.connection()).get_transaction().commit()",
        "await session.run_sync(lambda s: s.connection().get_transaction().commit())",
        "await session.execute(text(' rollback;'))",
        "await (await session.connection()).exec_driver_sql('END')",
    ],
)
async def test_handler_that_ends_the_transaction_is_refused(
    shop: Shop, start: Start, url: str, ending: str
) -> None:
    notes(
        shop,
        f"""
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            session.add(Note(text="a"))
            await session.flush()
            {ending}
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match=r"in a handler: the unit of work commits when"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


@pytest.mark.parametrize(
    "savepoint",
    [
        "async with bus.savepoint(): raise LookupError",
        "async with bus.savepoint(): await session.execute(text('SELECT 1'))",
        "await (await session.begin_nested()).rollback()",
    ],
)
async def test_savepoint_does_not_undo_a_statement_that_failed_before(
    shop: Shop, start: Start, url: str, savepoint: str
) -> None:
    """Where it has no statement there is none, and where all is aborted none is made."""
    notes(
        shop,
        f"""
        from contextlib import suppress
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            session.add(Note(text="a"))
            await session.flush()
            with suppress(sa.exc.DBAPIError):
                await session.execute(text("SELECT no_such_column"))
            with suppress(sa.exc.DBAPIError, LookupError):
                {savepoint}
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="a statement failed"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


@pytest.mark.parametrize(
    "ending", ["ROLLBACK", "rollback;", "ROLLBACK;", "COMMIT", "COMMIT;", "END"]
)
async def test_handler_that_ends_the_transaction_by_the_driver_is_refused(
    shop: Shop, start: Start, postgresql_url: str, ending: str
) -> None:
    notes(
        shop,
        f"""
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            session.add(Note(text="a"))
            await session.flush()
            raw = await (await session.connection()).get_raw_connection()
            await raw.driver_connection.execute("{ending}")
        """,
    )
    service = await start(postgresql_url)
    with pytest.raises(shop.bus.BusError, match=r"in a handler: the unit of work commits when"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    await usable(service)


async def test_unit_that_was_rolled_back_unbegun_keeps_nobody_from_its_connection(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            await session.connection()
            await session.run_sync(lambda session: session.rollback())
            gate("rolled back").set()
            await gate("go on").wait()
        """,
    )
    service = await start(url)
    await write(service, "a")
    task = asyncio.create_task(service.send(shop.messages().Run()))
    async with asyncio.timeout(5):
        await shop.gate("rolled back").wait()
    await service.write("UPDATE notes SET text = 'b'")
    assert await service.texts() == ["b"]
    shop.gate("go on").set()
    with pytest.raises(shop.bus.BusError, match=r"session\.rollback"):
        await task


async def test_statement_for_another_engine_takes_no_part_in_the_unit(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            await bus.send(Write(text="a"))
            await session.flush()
            await session.execute(text("SELECT 1"), bind_arguments={"bind": seen[0]})
        """,
    )
    service = await start(url)
    shop.seen.append(service.database.reader.sync_engine)
    await service.send(shop.messages().Run())
    assert (await service.texts(), await names(service)) == (["a"], ["a"])
    await usable(service)


GUARDED = """
from contextlib import suppress
@guard
async def soften(command: Run, bus: Bus, proceed: Proceed) -> None:
    with suppress(LookupError):
        {proceed}
@handle
async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
    session.add(Note(text="a"))
    bus.publish(NoteWritten(text="a"))
    await session.flush()
    raise LookupError
"""


async def test_guard_that_goes_on_after_an_error_commits_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, GUARDED.format(proceed="await proceed()"))
    service = await start(url)
    with pytest.raises(shop.bus.UnitDoomedError, match="what a guard proceeded to, failed"):
        await service.send(shop.messages().Run())
    assert await service.texts() == []
    assert await service.events() == []


async def test_guard_may_go_on_after_an_error_in_a_savepoint(
    shop: Shop, start: Start, url: str
) -> None:
    proceed = "async with bus.savepoint(): await proceed()"
    notes(shop, GUARDED.format(proceed=proceed))
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == []
    assert await service.events() == []


async def test_publishing_outside_of_a_unit_is_refused(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="published outside a unit of work"):
        service.bus().publish(shop.contracts().NoteWritten(text="a"))
    with pytest.raises(shop.bus.BusError, match="A savepoint is part of a unit of work"):
        service.bus().savepoint()


async def test_publishing_an_event_of_no_slice_is_refused(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        def stray() -> Any:
            class Stray(Event, key="text"):
                text: str
            return Stray(text="a")
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            if command.text == "publish":
                bus.publish(stray())
            note = Note(text="a")
            session.add(note)
            note.record(stray())
        """,
    )
    service = await start(url)
    for way in ("publish", "record"):
        with pytest.raises(shop.bus.BusError, match="Stray is not an event of any slice here"):
            await service.send(shop.messages().Run(text=way))
    assert await service.texts() == []


async def test_send_that_needs_no_unit_makes_none(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        from shop.bus import unit
        @handle
        async def run(command: Run, context: Context) -> None:
            seen.append(unit._current.get())
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert shop.seen == [None]


# Inline listeners


async def test_inline_listener_is_part_of_the_transaction(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(inline=True)
        async def react(event: NoteWritten, session: AsyncSession) -> None:
            seen.append(event.text)
            session.add(Note(text="inline " + event.text))
            if event.text == "bad":
                raise LookupError
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    with pytest.raises(LookupError):
        await service.send(shop.messages().Write(text="bad"))
    assert await service.texts() == ["a", "inline a"]
    assert await names(service) == ["a"]
    assert await service.deliveries() == []
    await usable(service)


async def test_inline_listeners_hear_what_others_of_them_cause(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        contracts="class Counted(Event, key='number'):\n    number: int",
        listeners="""
        @listen(inline=True)
        async def begin(event: NoteWritten, bus: Bus) -> None:
            bus.publish(Counted(number=1))
        @listen(inline=True)
        def again(event: Counted) -> Run | None:
            return Run(text=str(event.number)) if event.number < 5 else None
        """,
        run="""
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus) -> None:
            note = Note(text=command.text)
            session.add(note)
            note.record(Counted(number=int(command.text) + 1))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    assert await service.texts() == ["1", "2", "3", "4", "a"]
    assert await names(service) == ["a", "1", "2", "3", "4", "5"]


async def test_inline_listeners_that_never_end_are_stopped(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(inline=True)
        async def react(event: NoteWritten, bus: Bus) -> None:
            bus.publish(event)
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match=r"NoteWritten last.*causes its own event"):
        await service.send(shop.messages().Write(text="a"))
    assert await service.texts() == []
    await until(lambda: service.in_use() == 0)
