"""The same rows written from the outboxes of other libraries, as their documentation shows.

As in slicewise, an event is stored in the transaction of the data that it tells of. What is said in
delivery_peers.py holds here, too. Only eventsourcing keeps how far its projection has come in the
transaction of what the projection has written; one thread does so, one event after the other.
"""

import asyncio
import datetime as dt
from typing import Any
from uuid import UUID

import cqrs
import sqlalchemy as sa
from cqrs.message_brokers.protocol import Message, MessageBroker
from cqrs.outbox.sqlalchemy import Base
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import get_topic
from faststream_outbox import OutboxBroker, make_outbox_table
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from uuid_utils.compat import uuid7

from .delivery_peers import AT_ONCE, Made, Peer

_INSERT = """
    INSERT INTO ledger_copies (id, version, created_at, entry_id, amount)
    VALUES (%s, 1, %s, %s, %s)
"""


class Outbox(Peer):
    """What stores through SQLAlchemy's session."""

    async def open(self) -> None:
        await super().open()
        url = sa.make_url(self.url).set(drivername="postgresql+asyncpg")
        self.engine = create_async_engine(url, pool_size=AT_ONCE + 2)

    async def close(self) -> None:
        await self.engine.dispose()
        await super().close()


Posted = cqrs.NotificationEvent[dict[str, Any]]
cqrs.OutboxedEventMap.register("Posted", Posted)


class Direct(MessageBroker):
    """Calls the listener in place of sending."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def send_message(self, message: Message) -> None:
        await self.peer.copy(**message.payload["payload"])


class Cqrs(Outbox):
    """Its producer's loop, without the pause between two looks."""

    async def open(self) -> None:
        await super().open()
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def store(self, count: int) -> None:
        async with AsyncSession(self.engine) as session:
            outbox = cqrs.SqlAlchemyOutboxedEventRepository(session)
            for one in self.events(count):
                outbox.add(Posted(event_name="Posted", payload=one))
            await outbox.commit()

    async def deliver(self) -> None:
        async with AsyncSession(self.engine) as session:
            repository = cqrs.SqlAlchemyOutboxedEventRepository(session)
            producer = cqrs.EventProducer(Direct(self), repository)
            async for events in producer.event_batch_generator():
                for one in events:
                    await producer.send_message(one)
                await repository.commit()
                if not events:
                    break


class FaststreamOutbox(Outbox):
    """Its broker, which handles the rows in place."""

    async def open(self) -> None:
        await super().open()
        metadata = sa.MetaData()
        table = make_outbox_table(metadata, table_name="outbox")
        async with self.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        self.broker = OutboxBroker(self.engine, outbox_table=table, logger=None)

        @self.broker.subscriber("copy", max_workers=AT_ONCE)
        async def copy(body: dict[str, Any]) -> None:
            await self.copy(**body)

    async def store(self, count: int) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            await self.broker.publish_batch(*self.events(count), queue="copy", session=session)

    async def deliver(self) -> None:
        await self.broker.start()
        await self.all_copied()

    async def settle(self) -> None:
        await self.broker.stop()


class Entry(Aggregate):
    @event("Posted")
    def __init__(self, amount: int) -> None:
        self.amount = amount


class Ledger(Application[UUID]):
    pass


class Copies(PostgresTrackingRecorder):
    """The projection's view: the copies, and how far it has come."""

    def copy(self, entry_id: UUID, amount: int, tracking: Tracking) -> None:
        row = (uuid7(), dt.datetime.now(dt.UTC), entry_id, amount)
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(_INSERT, row, prepare=True)
            self._insert_tracking(cursor, tracking)


class Copying(Projection[Copies]):
    topics = (get_topic(Entry.Posted),)

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.copy(domain_event.originator_id, domain_event.amount, tracking)


class Eventsourcing(Peer):
    """A projection, whose runner starts with each delivery."""

    async def open(self) -> None:
        await super().open()
        self.runner: ProjectionRunner[Ledger, Copies] | None = None
        server = conninfo_to_dict(self.url)
        self.environment = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": str(server["dbname"]),
            "POSTGRES_HOST": str(server["host"]),
            "POSTGRES_PORT": str(server.get("port", 5432)),
            "POSTGRES_USER": str(server["user"]),
            "POSTGRES_PASSWORD": str(server.get("password", "")),
        }
        self.ledger = Ledger(self.environment)

    async def store(self, count: int) -> None:
        self.ledger.save(*(Entry(amount=one["amount"]) for one in self.events(count)))

    async def deliver(self) -> None:
        self.runner = ProjectionRunner(
            application_class=Ledger,
            projection_class=Copying,
            view_class=Copies,
            env=self.environment,
        )
        self.runner.__enter__()
        await self.all_copied()

    async def settle(self) -> None:
        if self.runner is not None:
            await asyncio.to_thread(self.runner.__exit__, None, None, None)
            self.runner = None

    async def close(self) -> None:
        await self.settle()
        self.ledger.close()
        await super().close()


FORMS: dict[str, Made] = {
    "python-cqrs": ("slicewise, own transaction", Cqrs),
    "faststream-outbox": ("slicewise, own transaction", FaststreamOutbox),
    "eventsourcing": ("slicewise, own transaction", Eventsourcing),
}
