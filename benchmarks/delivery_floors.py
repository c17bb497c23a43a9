"""Deliveries worked off as one would write it by hand, on the tables of the bus.

Each claims what is pending, writes the listener's row, and marks the delivery done in the same
transaction; statements are made once. `Own` has the isolation of a plain listener: leased in one
transaction, each delivery in another one, several at a time. `Batch` and `Asyncpg` do a hundred in
one transaction, with neither leases nor fences: what kills the process is tried again for ever.
`LeasedBatch` has both.
"""

import asyncio
import datetime as dt
import json
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from uuid_utils.compat import uuid7

from . import ledger

AT_ONCE = 8
LEASED = 32
BATCH = 100


class Statements:
    """What the floors execute, for the tables of one package."""

    def __init__(self, package: str) -> None:
        tables = ledger.module(package, "bus.tables")
        delivery, event = tables.delivery, tables.event
        self.pending = (
            sa.select(delivery.c.id, event.c.payload)
            .join(event, event.c.position == delivery.c.event_position)
            .where(delivery.c.subscription_id == 1, delivery.c.state == sa.text("'pending'"))
            .where(delivery.c.due <= sa.bindparam("now", type_=delivery.c.due.type))
            .order_by(delivery.c.due, delivery.c.id)
            .limit(sa.bindparam("most", type_=sa.Integer))
            .with_for_update(skip_locked=True, of=delivery)
        )
        ids = delivery.c.id.in_(sa.bindparam("ids", expanding=True))
        self.lease = (
            sa.update(delivery)
            .where(ids)
            .values(
                state="working",
                token=sa.bindparam("token_", type_=sa.Uuid),
                lease_until=sa.bindparam("until", type_=delivery.c.due.type),
            )
        )
        done = sa.update(delivery).values(
            state="done", token=None, finished_at=sa.bindparam("now", type_=delivery.c.due.type)
        )
        self.done = done.where(
            delivery.c.id == sa.bindparam("one"),
            delivery.c.token == sa.bindparam("token_", type_=sa.Uuid),
        )
        self.all_done = done.where(ids)
        self.all_mine_done = self.all_done.where(
            delivery.c.token == sa.bindparam("token_", type_=sa.Uuid)
        )


class Own:
    """Leased together, each delivery in a transaction of its own."""

    leased = LEASED

    def __init__(self, package: str, engine: AsyncEngine, *, rows: bool = True) -> None:
        self.statements = Statements(package)
        self.copy = ledger.models(package).Copy if rows else None
        self.event = ledger.module(package, "slices.ledger.contracts").Posted
        self.engine = engine
        self.at_once = 1 if engine.dialect.name == "sqlite" else AT_ONCE

    async def run(self) -> None:
        """Work off everything."""
        while claimed := await self._claim():
            await asyncio.gather(*(self._work(claimed) for _ in range(self.at_once)))

    async def _claim(self) -> list[Any]:
        token, now = uuid7(), dt.datetime.now(dt.UTC)
        async with self.engine.begin() as connection:
            found = list(
                await connection.execute(self.statements.pending, {"now": now, "most": self.leased})
            )
            if found:
                until = now + dt.timedelta(seconds=15)
                lease = {"ids": [one.id for one in found], "token_": token, "until": until}
                await connection.execute(self.statements.lease, lease)
        return [(one.id, token, one.payload) for one in found]

    async def _work(self, claimed: list[Any]) -> None:
        while claimed:
            await self._deliver(*claimed.pop(0))

    async def _deliver(self, delivery: int, token: Any, payload: Any) -> None:
        event = self.event.model_validate(payload)
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            if self.copy is not None:
                session.add(self.copy(entry_id=event.entry_id, amount=event.amount))
                await session.flush()
            now = dt.datetime.now(dt.UTC)
            connection = await session.connection()
            done = {"one": delivery, "token_": token, "now": now}
            if (await connection.execute(self.statements.done, done)).rowcount != 1:
                raise RuntimeError("the lease ran out")
            await session.commit()


class LeasedBatch(Own):
    """Leased together, a hundred in one transaction with one flush."""

    leased = BATCH

    async def run(self) -> None:
        """Work off everything."""
        while claimed := await self._claim():
            await self._deliver_all(claimed)

    async def _deliver_all(self, claimed: list[Any]) -> None:
        assert self.copy is not None
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            for _, _, payload in claimed:
                event = self.event.model_validate(payload)
                session.add(self.copy(entry_id=event.entry_id, amount=event.amount))
            await session.flush()
            ids, token = [one for one, _, _ in claimed], claimed[0][1]
            done = {"now": dt.datetime.now(dt.UTC), "ids": ids, "token_": token}
            connection = await session.connection()
            found = await connection.execute(self.statements.all_mine_done, done)
            if found.rowcount != len(claimed):
                raise RuntimeError("the lease ran out")
            await session.commit()


class Batch:
    """A hundred in one transaction, with one flush."""

    def __init__(self, package: str, engine: AsyncEngine) -> None:
        self.statements = Statements(package)
        self.copy = ledger.models(package).Copy
        self.event = ledger.module(package, "slices.ledger.contracts").Posted
        self.engine = engine

    async def run(self) -> None:
        """Work off everything."""
        while await self._deliver():
            pass

    async def _deliver(self) -> bool:
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            now = {"now": dt.datetime.now(dt.UTC)}
            found = list(await session.execute(self.statements.pending, {**now, "most": BATCH}))
            if not found:
                return False
            for one in found:
                event = self.event.model_validate(one.payload)
                session.add(self.copy(entry_id=event.entry_id, amount=event.amount))
            await session.flush()
            connection = await session.connection()
            done = {**now, "ids": [one.id for one in found]}
            await connection.execute(self.statements.all_done, done)
            await session.commit()
            return True


class Asyncpg:
    """The same without SQLAlchemy and pydantic: what the driver and the server can do."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def run(self) -> None:
        """Work off everything."""
        connection = await asyncpg.connect(self.url)
        try:
            while await self._deliver(connection):
                pass
        finally:
            await connection.close()

    async def _deliver(self, connection: Any) -> bool:
        now = dt.datetime.now(dt.UTC)
        async with connection.transaction():
            found = await connection.fetch(_PENDING, now, BATCH)
            payloads = [json.loads(one["payload"]) for one in found]
            rows = [(uuid7(), now, one["entry_id"], one["amount"]) for one in payloads]
            await connection.executemany(_INSERT, rows)
            await connection.execute(_DONE, now, [one["id"] for one in found])
        return bool(found)


_PENDING = """
    SELECT d.id, e.payload FROM bus_delivery d JOIN bus_event e ON e.position = d.event_position
    WHERE d.subscription_id = 1 AND d.state = 'pending' AND d.due <= $1
    ORDER BY d.due, d.id LIMIT $2 FOR UPDATE OF d SKIP LOCKED
"""
_INSERT = """
    INSERT INTO ledger_copies (id, version, created_at, entry_id, amount)
    VALUES ($1, 1, $2, $3, $4)
"""
_DONE = "UPDATE bus_delivery SET state = 'done', finished_at = $1 WHERE id = ANY($2)"
