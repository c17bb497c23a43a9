"""`POST /payments` as one would write it by hand, with FastAPI and SQLAlchemy, for `http.py`.

`create_sliced_app` has as many slices by hand as lie in the folder `src`, for `scale.py`.

It writes the rows that the generated service writes: a payment, an event, and one delivery for the
subscription that it looks up when it starts. It runs on a database that the service has migrated,
with the same settings of the database, and logs what uvicorn logs: one line a request.
"""

import os
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils.compat import uuid7

from .handwritten_engine import create_engine

SQLITE = os.environ["DATABASE_URL"].startswith("sqlite")
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)
TRANSACTION = 0 if SQLITE else sa.func.pg_current_xact_id().cast(sa.Text).cast(sa.BigInteger)


class Exact(sa.TypeDecorator[Decimal]):
    """Cents, because decimals are floats on SQLite."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Any:
        return None if value is None else int(value.scaleb(2))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value).scaleb(-2)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: Time, dict[str, Any]: sa.JSON()}  # noqa: RUF012


class Payment(Base):
    __tablename__ = "payments"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int]
    created_at: Mapped[datetime]
    amount: Mapped[Decimal] = mapped_column(Exact() if SQLITE else sa.Numeric(12, 2))
    currency: Mapped[str]


class Event(Base):
    __tablename__ = "bus_event"

    position: Mapped[int] = mapped_column(BigId, primary_key=True)
    id: Mapped[UUID]
    name: Mapped[str]
    version: Mapped[int]
    key: Mapped[str]
    payload: Mapped[dict[str, Any]]
    headers: Mapped[dict[str, Any]]
    correlation_id: Mapped[str]
    causation_id: Mapped[UUID | None]
    tx: Mapped[int] = mapped_column(sa.BigInteger, insert_default=TRANSACTION)
    recorded_at: Mapped[datetime]


class Delivery(Base):
    __tablename__ = "bus_delivery"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    event_position: Mapped[int] = mapped_column(sa.BigInteger)
    subscription_id: Mapped[int] = mapped_column(sa.BigInteger)
    run: Mapped[int]
    event_version: Mapped[int]
    lane: Mapped[str | None]
    state: Mapped[str]
    due: Mapped[datetime]
    attempts: Mapped[int]
    losses: Mapped[int]


class CreatePayment(BaseModel):
    model_config = ConfigDict(extra="forbid")

    amount: Annotated[Decimal, Field(max_digits=12, decimal_places=2)]
    currency: str


class PaymentView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    version: int
    created_at: datetime
    amount: Decimal
    currency: str


engine = create_engine(os.environ["DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)
subscriptions: list[int] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.connect() as connection:
        subscriptions.extend(await connection.scalars(sa.text("SELECT id FROM bus_subscription")))
    yield
    await engine.dispose()


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as one:
        yield one


router = APIRouter()


@router.post("/payments", status_code=201)
async def post_payment(
    command: CreatePayment, session: Annotated[AsyncSession, Depends(session)]
) -> PaymentView:
    now = datetime.now(UTC)
    payment = Payment(
        id=uuid7(), version=1, created_at=now, amount=command.amount, currency=command.currency
    )
    event = Event(
        id=uuid7(),
        name="payments.PaymentCreated",
        version=1,
        key=str(payment.id),
        payload={"payment_id": str(payment.id)},
        headers={},
        correlation_id=uuid7().hex,
        causation_id=None,
        recorded_at=now,
    )
    session.add_all([payment, event])
    await session.flush()
    session.add_all(
        Delivery(
            event_position=event.position,
            subscription_id=subscription,
            run=0,
            event_version=1,
            lane=None,
            state="pending",
            due=now,
            attempts=0,
            losses=0,
        )
        for subscription in subscriptions
    )
    await session.commit()
    return PaymentView.model_validate(payment)


@router.get("/readyz")
async def ready() -> None: ...


def create_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    app.include_router(router)
    return app


def create_sliced_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)
    for found in pkgutil.iter_modules(["src"]):
        app.include_router(import_module(found.name).router)
    # Last, as in a generated service: the first answer comes when all routes are made.
    app.include_router(router)
    return app
