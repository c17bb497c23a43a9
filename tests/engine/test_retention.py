"""What is finished and old is removed; dead letters, and what is unfinished, never."""

import datetime as dt
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

LISTENERS = """
    @listen
    async def copy(event: NoteWritten) -> None: ...
"""
WEEK = dt.timedelta(days=7)
OLD = dt.timedelta(days=8)


@pytest.fixture
async def service(shop: Shop, start: Start, url: str) -> Service:
    notes(shop, listeners=LISTENERS)
    return await start(url)


async def write(service: Service, **states: str) -> None:
    """An old event for each, with a delivery in that state and a failed attempt of it."""
    tables, then = service.shop.tables, dt.datetime.now(dt.UTC) - OLD
    for text, state in states.items():
        await service.send(service.shop.messages().Write(text=text))
        delivery = (await service.deliveries())[-1]
        finished = then if state in ("done", "dropped") else None
        await service.write(
            sa.update(tables.delivery)
            .where(tables.delivery.c.id == delivery.id)
            .values(state=state, finished_at=finished)
        )
        attempt = {"delivery_id": delivery.id, "number": 1, "failed_at": then}
        error = {"error_type": "E", "error_frame": "", "error_message": text}
        await service.write(sa.insert(tables.attempt).values(**attempt, **error))
    await service.write(sa.update(tables.event).values(recorded_at=then))


async def keys(service: Service) -> list[str]:
    return [one.key for one in await service.events()]


async def floor(service: Service) -> int:
    [found] = await service.column("SELECT floor FROM bus_log")
    assert isinstance(found, int)
    return found


def retention(service: Service) -> Any:
    return service.shop.module("bus.retention")


async def test_finished_deliveries_go_with_their_attempts(service: Service) -> None:
    await write(service, a="done", b="dropped", c="dead", d="pending", e="working", f="waiting")
    remove = retention(service).remove_finished
    assert await remove(service.database, dt.timedelta(days=9)) == 0
    assert await remove(service.database, WEEK, limit=1) == 1
    assert await remove(service.database, WEEK) == 1
    assert await remove(service.database, WEEK) == 0
    states = [one.state for one in await service.deliveries()]
    assert states == ["dead", "pending", "working", "waiting"]
    errors = await service.column("SELECT error_message FROM bus_attempt ORDER BY id")
    assert errors == ["c", "d", "e", "f"]
    assert await keys(service) == ["a", "b", "c", "d", "e", "f"]


async def test_old_events_go_and_the_floor_rises(service: Service) -> None:
    await write(service, a="done", b="dead", c="done", d="dropped", e="pending")
    await service.send(service.shop.messages().Write(text="new"))
    a, b, c, d, e, _ = [one.position for one in await service.events()]
    remove = retention(service).remove_events
    assert await remove(service.database, WEEK, limit=2) == 1
    assert (await keys(service), await floor(service)) == (["b", "c", "d", "e", "new"], b)
    assert await remove(service.database, WEEK, limit=2) == 2
    assert (await keys(service), await floor(service)) == (["b", "e", "new"], d)
    assert await remove(service.database, WEEK) == 0
    assert await floor(service) == e
    # What had to stay goes when it is finished, though the floor has passed it.
    await service.write("UPDATE bus_delivery SET state = 'dropped' WHERE state = 'dead'")
    assert await remove(service.database, WEEK, limit=1) == 1
    assert (await keys(service), await floor(service)) == (["e", "new"], e)
    assert a < b < c < d < e
    assert len(await service.deliveries()) == 2
    assert await service.column("SELECT error_message FROM bus_attempt") == ["e"]


async def test_house_is_kept_by_the_settings(service: Service) -> None:
    await write(service, a="done", b="dead", c="done")
    module, tables = retention(service), service.shop.tables
    now = dt.datetime.now(dt.UTC)
    for key, expires in {"old": now - OLD, "new": now + OLD}.items():
        row = {"user_id": "u", "command": "c", "key": key, "body_hash": "", "created_at": now}
        await service.write(sa.insert(tables.idempotency).values(**row, expires_at=expires))
    for host, seen in {"gone": now - OLD, "here": now}.items():
        row = {"id": uuid4(), "host": host, "pid": 1, "version": "", "slices": [], "listeners": []}
        await service.write(sa.insert(tables.worker).values(**row, started_at=now, seen_at=seen))
    await module.keep_house(service.database, module.Retention(finished=None))
    assert len(await service.deliveries()) == 3
    assert await service.column("SELECT key FROM bus_idempotency") == ["new"]
    assert await service.column("SELECT host FROM bus_worker") == ["here"]
    await module.keep_house(service.database, module.Retention())
    assert [one.state for one in await service.deliveries()] == ["dead"]
    assert await keys(service) == ["a", "b", "c"]
    await module.keep_house(service.database, module.Retention(events=WEEK))
    assert await keys(service) == ["b"]


async def test_finding_what_is_finished_reads_no_more_than_that(
    shop: Shop, start: Start, sqlite_url: str
) -> None:
    notes(shop, listeners=LISTENERS)
    service = await start(sqlite_url)
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement)

    sa.event.listen(service.database.writer.sync_engine, "before_cursor_execute", note)
    await retention(service).remove_finished(service.database, WEEK)
    [select] = [one for one in seen if one.startswith("SELECT")]
    plan = await service.rows(f"EXPLAIN QUERY PLAN {select.replace('?', '1')}")
    assert "ix_bus_delivery_finished" in plan[0].detail


async def test_what_a_listener_that_is_being_filled_lacks_stays(service: Service) -> None:
    await write(service, a="done", b="done", c="done")
    subscription = service.shop.tables.subscription
    filling = sa.update(subscription).values(backfilled_to=1, from_position=3)
    await service.write(filling)
    assert await retention(service).remove_events(service.database, WEEK) == 1
    assert (await keys(service), await floor(service)) == (["b", "c"], 1)
    # A retired one that was never filled keeps nothing.
    await service.write(sa.update(subscription).values(retired_at=dt.datetime.now(dt.UTC)))
    assert await retention(service).remove_events(service.database, WEEK) == 2
    assert (await keys(service), await floor(service)) == ([], 3)
