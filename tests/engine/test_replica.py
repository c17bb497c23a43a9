"""Queries may ask a server that follows the database; nothing else does."""

import pytest
import sqlalchemy as sa

from .conftest import Replica, Shop, Start, notes, write

pytestmark = pytest.mark.anyio

COPIES = """
    @listen
    async def copy(event: NoteWritten, session: AsyncSession) -> None:
        await session.execute(sa.update(Note).values(text=event.text + "!"))
"""


async def test_queries_alone_read_from_the_replica(
    shop: Shop, start: Start, postgresql_url: str, following: Replica
) -> None:
    notes(
        shop,
        """
        class Recount(Query[int]): ...
        @handle
        async def recount(query: Recount, bus: QueryBus) -> int:
            return await bus.send(Count())
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Write(text="b"))
            seen.append(await bus.send(Count()))
        """,
        listeners=COPIES,
    )
    service = await start(postgresql_url, replica=following.url)
    count = shop.messages().Count()
    recount = shop.module("slices.notes.handlers").Recount()
    await following.stop()
    await write(service, "a")
    await service.settled()
    assert await service.texts() == ["a!"]
    assert [await service.send(one) for one in (count, recount)] == [0, 0]
    await service.send(shop.messages().Run())
    assert shop.seen == [2]
    await following.go_on()
    await following.catch_up()
    assert [await service.send(one) for one in (count, recount)] == [2, 2]
    assert service.in_use() == 0


async def test_query_cannot_write_by_way_of_the_replica(
    shop: Shop, start: Start, postgresql_url: str, following: Replica
) -> None:
    notes(
        shop,
        """
        class Look(Query[None]): ...
        @handle
        async def look(query: Look, session: AsyncSession) -> None:
            session.add(Note(text="q"))
        """,
    )
    # The server itself, so that it is not its being a replica that refuses.
    service = await start(postgresql_url, replica=postgresql_url)
    with pytest.raises(sa.exc.DBAPIError, match="read-only"):
        await service.send(shop.module("slices.notes.handlers").Look())
    assert service.in_use() == 0


@pytest.mark.parametrize(
    ("url", "replica", "complaint"),
    [
        ("sqlite:///shop.db", "postgresql://host/name", "SQLite has no replicas"),
        ("postgresql://host/name", "sqlite:///shop.db", "SQLite has no replicas"),
        ("postgresql://host/name", "nonsense", "got no URL"),
        ("postgresql://host/name", "postgresql://host/name?sslmode=always", "sslmode"),
    ],
)
def test_unusable_replica_is_refused(shop: Shop, url: str, replica: str, complaint: str) -> None:
    with pytest.raises(shop.bus.WiringError, match=complaint) as refused:
        shop.database(url, replica=replica)
    assert str(refused.value).startswith("DATABASE_REPLICA_URL: expected ")


def test_replica_that_cannot_be_reached_is_told_without_its_password(shop: Shop) -> None:
    database = shop.database("postgresql://host/name", replica="postgresql://me:secret@there/name")
    told = database.unreachable(OSError("no"), replica=True)
    assert told == "The replica postgresql://me:***@there/name cannot be reached: no"
