"""Two event stores that do the same with the same card: a generated slice's, and eventsourcing's.

The slice is generated from this checkout, and gets three messages more, because its own commands
do more than the peer does: they write the row that queries read, too.

What a contender is asked to do so many times it does in a loop of its own, so that the peer, which
is synchronous, runs as in a synchronous program.
"""

import datetime as dt
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import UUID

import sqlalchemy as sa
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from .databases import for_eventsourcing
from .delivery_contenders import log_to_nowhere
from .handwritten_engine import create_engine
from .shop import copy, migrate, snapshot

SNAPSHOT_EVERY = 60
NEVER = 2**31 - 1
OWNER = "Ann Example"
WORKS: Sequence[str] = ("load", "load and append", "the slice's command", "append")

_MESSAGES = """

class FillCard(Command[UUID]):
    owner: str
    length: int
    at_once: int


class LoadCard(Query[object]):
    id: UUID


class LoadAndAppend(CardChange, Command[CardView]):
    id: UUID


class Append(Command[None]):
    card: object
"""
_HANDLERS = """
from .messages import Append, FillCard, LoadAndAppend, LoadCard


@handle
async def fill_card(command: FillCard, session: AsyncSession) -> UUID:
    card = Card.create(CreateCard(owner=command.owner, amount=1))
    for number in range(1, command.length):
        if number % command.at_once == 0:
            await streams.append(session, card)
        card.change(ChangeCard(id=card.id, owner=command.owner, amount=number + 1, version=number))
    await _append(session, card)
    return card.id


@handle
async def load_card(query: LoadCard, session: AsyncSession) -> object:
    return await _card(session, query.id)


@handle
async def load_and_append(command: LoadAndAppend, session: AsyncSession) -> CardView:
    card = await _card(session, command.id)
    card.change(command)
    await streams.append(session, card)
    return CardView.model_validate(card)


@handle
async def append(command: Append, session: AsyncSession) -> None:
    await streams.append(session, command.card)
"""


class Contender(Protocol):
    """Keeps streams; each number of a stream's events is also the card's amount after it."""

    # What the column of its figures is called.
    name: str
    # What of it is shown.
    works: Sequence[str]
    # Of events, and of snapshots.
    tables: tuple[str, str]

    async def open(self) -> None: ...

    async def fill(self, length: int) -> UUID:
        """A new stream with so many events."""

    async def load(self, stream_id: UUID, length: int, times: int) -> None:
        """Load it; raises RuntimeError unless it is what so many events make of it."""

    async def load_and_append(self, stream_id: UUID, length: int, times: int) -> None:
        """Load it and append an event, in one transaction."""

    async def command(self, stream_id: UUID, length: int, times: int) -> None:
        """The same, as the contender's user would: a slice writes what queries read, too."""

    async def hold(self, stream_id: UUID) -> None:
        """Load it for `append`."""

    async def append(self, times: int) -> None:
        """Append an event to what is held."""

    async def close(self) -> None: ...


def generate(folder: Path) -> None:
    """Make the shop with the slice, where it can be imported."""
    shop = folder / "shop"
    template = snapshot(folder)
    copy(template, shop, "-d", "auth=none")
    cards = shop / "src/shop/slices/cards"
    copy(template, cards, "-d", "style=event_sourced", "-d", "fields=owner:str amount:int")
    for name, source in (("messages", _MESSAGES), ("handlers", _HANDLERS)):
        with (cards / f"{name}.py").open("a", encoding="utf-8") as module:
            module.write(source)
    sys.path.insert(0, str(shop / "src"))


def check(card: Any, length: int) -> None:
    """Raises RuntimeError unless this is what so many events make of a card."""
    if (card.version, card.amount, card.owner) != (length, length, OWNER):
        raise RuntimeError(f"not the card of {length} events: {card}")


class Slicewise:
    """The slice, by its bus: each message is a unit of work."""

    name = "slicewise"
    works = WORKS
    tables = "cards_events", "cards_snapshots"

    def __init__(self, folder: Path, url: str, *, snapshots: bool) -> None:
        self._shop, self._url = folder / "shop", url
        self._every = SNAPSHOT_EVERY if snapshots else NEVER

    async def open(self) -> None:
        migrate(self._shop, self._url)
        self._database = importlib.import_module("shop.bus.engines").Database(self._url)
        build = importlib.import_module("shop.bus.runtime").build
        self._runtime = build("shop", database=self._database)
        self._messages = importlib.import_module("shop.slices.cards.messages")
        models = importlib.import_module("shop.slices.cards.models")
        handlers: Any = importlib.import_module("shop.slices.cards.handlers")
        handlers.streams = models.Streams(
            models.Card,
            models.StoredCardEvent,
            models.StoredCardSnapshot,
            snapshot_every=self._every,
        )
        log_to_nowhere("shop")
        await self._runtime.__aenter__()

    async def fill(self, length: int) -> UUID:
        fill = self._messages.FillCard(owner=OWNER, length=length, at_once=SNAPSHOT_EVERY)
        stream_id: UUID = await self._send(fill)
        return stream_id

    async def load(self, stream_id: UUID, length: int, times: int) -> None:
        for _ in range(times):
            check(await self._send(self._messages.LoadCard(id=stream_id)), length)

    async def load_and_append(self, stream_id: UUID, length: int, times: int) -> None:
        await self._change(self._messages.LoadAndAppend, stream_id, length, times)

    async def command(self, stream_id: UUID, length: int, times: int) -> None:
        await self._change(self._messages.ChangeCard, stream_id, length, times)

    async def hold(self, stream_id: UUID) -> None:
        self._card = await self._send(self._messages.LoadCard(id=stream_id))

    async def append(self, times: int) -> None:
        card, change = self._card, self._messages.ChangeCard
        for _ in range(times):
            after = card.version + 1
            card.change(change(id=card.id, owner=OWNER, amount=after, version=card.version))
            await self._send(self._messages.Append(card=card))
        check(card, card.amount)

    async def close(self) -> None:
        await self._runtime.__aexit__(None, None, None)
        await self._database.close()

    async def _change(self, command: type, stream_id: UUID, length: int, times: int) -> None:
        for before in range(length, length + times):
            change = command(id=stream_id, owner=OWNER, amount=before + 1, version=before)
            check(await self._send(change), before + 1)

    async def _send(self, message: object) -> Any:
        return await self._runtime.bus().send(message)


class ByHand(Slicewise):
    """The least that does the same with SQLAlchemy's asynchronous session: a floor.

    Plain loads and appends on the slice's table, with neither bus nor snapshots, and no check but
    that of the primary key.
    """

    name = "by hand"
    works = ("load", "append")
    engine: AsyncEngine

    async def open(self) -> None:
        await super().open()
        self.engine = create_engine(self._url)
        models = importlib.import_module("shop.slices.cards.models")
        self._card_of = models.Card
        self._kinds = {"Created": models.Created, "Changed": models.Changed}
        self._table: sa.Table = sa.inspect(models.StoredCardEvent).local_table
        columns = self._table.c
        self._stream = (
            sa.select(columns.type, columns.payload, columns.recorded_at)
            .where(columns.stream_id == sa.bindparam("id", type_=columns.stream_id.type))
            .order_by(columns.version)
        )

    async def load(self, stream_id: UUID, length: int, times: int) -> None:
        for _ in range(times):
            check(await self._loaded(stream_id), length)

    async def hold(self, stream_id: UUID) -> None:
        self._card = await self._loaded(stream_id)

    async def append(self, times: int) -> None:
        card = self._card
        change = self._kinds["Changed"]
        for _ in range(times):
            changed = change(owner=OWNER, amount=card.version + 1)
            card.replay(changed)
            row = {
                "stream_id": card.id,
                "version": card.version,
                "type": "Changed",
                "event_version": 1,
                "payload": changed.model_dump(mode="json"),
                "correlation_id": "",
                "causation_id": None,
                "recorded_at": dt.datetime.now(dt.UTC),
            }
            async with AsyncSession(self.engine) as session:
                await session.execute(sa.insert(self._table), row)
                await session.commit()
        check(card, card.amount)

    async def close(self) -> None:
        await self.engine.dispose()
        await super().close()

    async def _loaded(self, stream_id: UUID) -> Any:
        async with AsyncSession(self.engine) as session:
            rows = (await session.execute(self._stream, {"id": stream_id})).all()
        card = self._card_of.blank(stream_id, rows[0].recorded_at)
        for row in rows:
            card.replay(self._kinds[row.type].model_validate(row.payload))
        return card


class Card(Aggregate):
    @event("Created")
    def __init__(self, owner: str, amount: int) -> None:
        self.owner = owner
        self.amount = amount

    @event("Changed")
    def change(self, owner: str, amount: int) -> None:
        self.owner = owner
        self.amount = amount


class Cards(Application[UUID]):
    pass


class CardsWithSnapshots(Application[UUID]):
    name = "Cards"
    snapshotting_intervals: ClassVar = {Card: SNAPSHOT_EVERY}


class Eventsourcing:
    """The library, as its documentation shows: an application with its defaults."""

    name = "eventsourcing"
    works = WORKS

    def __init__(self, url: str, *, snapshots: bool) -> None:
        self._environment = for_eventsourcing(url)
        self.tables = (
            ("stored_events", "stored_snapshots")
            if url.startswith("sqlite")
            else ("cards_events", "cards_snapshots")
        )
        self._application = CardsWithSnapshots if snapshots else Cards

    async def open(self) -> None:
        self._cards = self._application(self._environment)

    async def fill(self, length: int) -> UUID:
        card = Card(owner=OWNER, amount=1)
        for amount in range(2, length + 1):
            card.change(owner=OWNER, amount=amount)
        self._cards.save(card)
        stream_id: UUID = card.id
        return stream_id

    async def load(self, stream_id: UUID, length: int, times: int) -> None:
        for _ in range(times):
            check(self._cards.repository.get(stream_id), length)

    async def load_and_append(self, stream_id: UUID, length: int, times: int) -> None:
        for before in range(length, length + times):
            card: Card = self._cards.repository.get(stream_id)
            card.change(owner=OWNER, amount=before + 1)
            self._cards.save(card)
            check(card, before + 1)

    command = load_and_append

    async def hold(self, stream_id: UUID) -> None:
        self._card: Card = self._cards.repository.get(stream_id)

    async def append(self, times: int) -> None:
        card = self._card
        for _ in range(times):
            card.change(owner=OWNER, amount=card.version + 1)
            self._cards.save(card)
        check(card, card.amount)

    async def close(self) -> None:
        self._cards.close()
