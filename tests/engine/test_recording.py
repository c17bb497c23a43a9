"""Aggregates record events; the unit of work publishes every one of them."""

import textwrap

import pytest

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio


async def recorded(shop: Shop, start: Start, url: str, body: str) -> Service:
    """A service with one note 'a', after a handler with this body ran."""
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    notes(
        shop,
        "@handle\nasync def run(command: Run, session: AsyncSession, bus: Bus) -> None:\n" + lines,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    await service.write("DELETE FROM bus_event")
    await service.send(shop.messages().Run())
    return service


async def told(service: Service) -> list[str]:
    return [event.key for event in await service.events()]


LOAD = "note = (await session.scalars(select(Note))).one()"
KEPT = {
    "no column changed": f"{LOAD}\nnote.record(NoteWritten(text='x'))",
    "nobody holds it": f"{LOAD}\nnote.record(NoteWritten(text='x'))\ndel note",
    "after the last flush": f"{LOAD}\nnote.text = 'b'\nawait session.flush()\n"
    "note.record(NoteWritten(text='x'))",
    "before it was added": "note = Note(text='b')\nnote.record(NoteWritten(text='x'))\n"
    "session.add(note)",
    "after it was added": "note = Note(text='b')\nsession.add(note)\n"
    "note.record(NoteWritten(text='x'))",
    "of a row that is deleted": f"{LOAD}\nawait session.delete(note)\n"
    "note.record(NoteWritten(text='x'))",
    "after it was deleted": f"{LOAD}\nawait session.delete(note)\nawait session.flush()\n"
    "note.record(NoteWritten(text='x'))",
    "in a savepoint that was kept": f"{LOAD}\nasync with bus.savepoint():\n"
    "    note.record(NoteWritten(text='x'))",
    "of an object that is merged": "note = Note(text='b')\nnote.record(NoteWritten(text='x'))\n"
    "await session.merge(note)",
    "of an object that is merged again": "note = Note(text='b')\n"
    "note.record(NoteWritten(text='x'))\ntry:\n    async with bus.savepoint():\n"
    "        await session.merge(note)\n        raise LookupError\nexcept LookupError:\n"
    "    await session.merge(note)",
    "after it was expunged and added again": f"{LOAD}\nsession.expunge(note)\n"
    "note.record(NoteWritten(text='x'))\nsession.add(note)",
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT.keys())
async def test_recorded_event_is_kept(shop: Shop, start: Start, url: str, body: str) -> None:
    service = await recorded(shop, start, url, body)
    assert await told(service) == ["x"]


async def test_event_of_an_object_that_is_merged_with_another_is_kept(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            remark = Remark(note_id=None)
            remark.record(NoteWritten(text="x"))
            await session.merge(Paper(remarks=[remark]))
        """,
        models="""
        class Paper(Entity):
            __tablename__ = "notes_papers"
            remarks: Mapped[list["Remark"]] = sa.orm.relationship(cascade="all", lazy="raise")
        class Remark(Entity):
            __tablename__ = "notes_remarks"
            note_id: Mapped[UUID | None] = mapped_column(sa.ForeignKey("notes_papers.id"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await told(service) == ["x"]


async def test_object_that_is_never_added_publishes_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    body = "note = Note(text='b')\nnote.record(NoteWritten(text='x'))"
    service = await recorded(shop, start, url, body)
    assert await told(service) == []


async def test_recorded_and_published_events_keep_their_order(
    shop: Shop, start: Start, url: str
) -> None:
    body = f"""
        {LOAD}
        note.record(NoteWritten(text="1"))
        bus.publish(NoteWritten(text="2"))
        await session.flush()
        note.record(NoteWritten(text="3"))
        bus.publish(NoteWritten(text="4"))
    """
    service = await recorded(shop, start, url, body)
    assert await told(service) == ["1", "2", "3", "4"]


async def test_event_that_an_inline_listener_records_is_kept(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(inline=True)
        async def react(event: NoteWritten, session: AsyncSession) -> None:
            if event.text == "a":
                note = (await session.scalars(select(Note))).one()
                note.record(NoteWritten(text="x"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    assert await told(service) == ["a", "x"]


async def test_rolled_back_unit_publishes_nothing_later(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            note = Note(text="b")
            session.add(note)
            note.record(NoteWritten(text="x"))
            await session.flush()
            raise LookupError
        """,
    )
    service = await start(url)
    with pytest.raises(LookupError):
        await service.send(shop.messages().Run())
    await service.send(shop.messages().Write(text="a"))
    assert await told(service) == ["a"]
