"""A slice as one would write it by hand, with FastAPI and SQLAlchemy, for `scale.py`.

It has the table and the five routes of a generated one, in a single file, and neither messages,
handlers nor events. `scale.py` writes this text as often as it needs it, with other names.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from uuid_utils.compat import uuid7

from benchmarks.handwritten import SQLITE, Base, Exact, session

SessionDep = Annotated[AsyncSession, Depends(session)]


class Thing(Base):
    __tablename__ = "things"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int]
    created_at: Mapped[datetime]
    amount: Mapped[Decimal] = mapped_column(Exact() if SQLITE else sa.Numeric(12, 2))
    currency: Mapped[str]


class ThingView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    version: int
    created_at: datetime
    amount: Decimal
    currency: str


class ThingPage(BaseModel):
    items: list[ThingView]
    next: UUID | None


class ThingFields(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: Annotated[Decimal, Field(max_digits=12, decimal_places=2)] = Field(examples=["9.50"])
    currency: str = Field(examples=["some currency"])


class ThingChange(ThingFields):
    version: int = Field(examples=[1])


class ThingList(BaseModel):
    after: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


router = APIRouter(prefix="/things", tags=["things"])


@router.post("", status_code=201)
async def post_thing(fields: ThingFields, session: SessionDep) -> ThingView:
    thing = Thing(id=uuid7(), version=1, created_at=datetime.now(UTC), **dict(fields))
    session.add(thing)
    await session.commit()
    return ThingView.model_validate(thing)


@router.get("/{thing_id}")
async def get_thing(thing_id: UUID, session: SessionDep) -> ThingView:
    return ThingView.model_validate(await _thing(session, thing_id))


@router.get("")
async def list_things(query: Annotated[ThingList, Query()], session: SessionDep) -> ThingPage:
    statement = sa.select(Thing).order_by(Thing.id).limit(query.limit + 1)
    if query.after is not None:
        statement = statement.where(Thing.id > query.after)
    found = [ThingView.model_validate(one) for one in await session.scalars(statement)]
    items = found[: query.limit]
    return ThingPage(items=items, next=items[-1].id if len(found) > query.limit else None)


@router.put("/{thing_id}")
async def put_thing(thing_id: UUID, change: ThingChange, session: SessionDep) -> ThingView:
    thing = await _thing(session, thing_id)
    if thing.version != change.version:
        raise HTTPException(409)
    thing.amount, thing.currency, thing.version = change.amount, change.currency, thing.version + 1
    await session.commit()
    return ThingView.model_validate(thing)


@router.delete("/{thing_id}", status_code=204)
async def delete_thing(thing_id: UUID, session: SessionDep) -> None:
    await session.delete(await _thing(session, thing_id))
    await session.commit()


async def _thing(session: AsyncSession, thing_id: UUID) -> Thing:
    thing = await session.get(Thing, thing_id)
    if thing is None:
        raise HTTPException(404)
    return thing
