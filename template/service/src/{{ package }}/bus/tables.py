"""The bus's own tables: the event log, who is subscribed, deliveries, and what keeps them going."""

import sqlalchemy as sa

from .types import Utc

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only for INTEGER; there it holds 64 bits as well.
_BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_Time = Utc()

event = sa.Table(
    "bus_event",
    metadata,
    sa.Column("position", _BigId, primary_key=True),
    sa.Column("id", sa.Uuid(), nullable=False, unique=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("version", sa.Integer(), nullable=False),
    sa.Column("key", sa.String(200), nullable=False),
    sa.Column("payload", sa.JSON(), nullable=False),
    sa.Column("headers", sa.JSON(), nullable=False),
    sa.Column("correlation_id", sa.String(64), nullable=False),
    sa.Column("causation_id", sa.Uuid()),
    # The transaction that wrote the row (PostgreSQL; 0 on SQLite): readers of the log that keep a
    # position need it to tell rows that are still being committed.
    sa.Column("tx", sa.BigInteger(), nullable=False),
    sa.Column("recorded_at", _Time, nullable=False),
    sa.Index(None, "name", "position"),
    sa.Index(None, "key", "position"),
    sa.Index(None, "correlation_id"),
    sqlite_autoincrement=True,
)

subscription = sa.Table(
    "bus_subscription",
    metadata,
    sa.Column("id", _BigId, primary_key=True),
    sa.Column("listener", sa.String(200), nullable=False, unique=True),
    sa.Column("slice", sa.String(32), nullable=False),
    sa.Column("ordered", sa.Boolean(), nullable=False),
    sa.Column("from_position", sa.BigInteger(), nullable=False),
    sa.Column("backfilled_to", sa.BigInteger()),
    sa.Column("paused_until", _Time),
    sa.Column("paused_reason", sa.Text()),
    sa.Column("retired_at", _Time),
    sa.Column("created_at", _Time, nullable=False),
    sqlite_autoincrement=True,
)

# Current names and old ones, of listeners and of the events that they want.
subscription_name = sa.Table(
    "bus_subscription_name",
    metadata,
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("subscription_id", sa.BigInteger(), primary_key=True),
)

# No foreign key to the subscription: it would cost every insert a fifth to a third.
delivery = sa.Table(
    "bus_delivery",
    metadata,
    sa.Column("id", _BigId, primary_key=True),
    sa.Column("event_position", sa.BigInteger(), nullable=False),
    sa.Column("subscription_id", sa.BigInteger(), nullable=False),
    sa.Column("run", sa.Integer(), nullable=False),
    sa.Column("event_version", sa.Integer(), nullable=False),
    sa.Column("lane", sa.String(200)),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("due", _Time, nullable=False),
    sa.Column("attempts", sa.Integer(), nullable=False),
    sa.Column("losses", sa.Integer(), nullable=False),
    sa.Column("token", sa.Uuid()),
    sa.Column("worker_id", sa.Uuid()),
    sa.Column("lease_until", _Time),
    sa.Column("finished_at", _Time),
    sa.Column("error_type", sa.String(200)),
    sa.Column("error_frame", sa.String(400)),
    sa.Column("error_message", sa.Text()),
    sa.UniqueConstraint("event_position", "subscription_id", "run"),
    sqlite_autoincrement=True,
)


STATES = ("waiting", "pending", "working", "done", "dead", "dropped")
# Written out, not bound: only then does PostgreSQL see that a partial index will do.
_WRITTEN = {state: sa.literal_column(f"'{state}'", sa.String()) for state in STATES}


def is_in(*states: str, of: sa.FromClause = delivery) -> sa.ColumnElement[bool]:
    """Whether a delivery is in one of these states. Raises KeyError for a state that is none."""
    if len(states) == 1:
        return of.c.state == _WRITTEN[states[0]]
    return of.c.state.in_([_WRITTEN[state] for state in states])


def is_unfinished(of: sa.FromClause = delivery) -> sa.ColumnElement[bool]:
    """Whether later deliveries of the same lane have to wait for this one."""
    states = [_WRITTEN[state] for state in ("waiting", "pending", "working", "dead")]
    return sa.and_(of.c.lane.is_not(None), of.c.state.in_(states))


def unlocked(*conditions: sa.ColumnElement[bool]) -> sa.Update:
    """Change deliveries, but not those that a transaction works on: nobody waits for it."""
    found = sa.select(delivery.c.id).where(*conditions).with_for_update(skip_locked=True)
    return sa.update(delivery).where(delivery.c.id.in_(found))


def current_transaction() -> sa.ColumnElement[int]:
    """The number of the transaction that writes an event (PostgreSQL)."""
    return sa.cast(sa.cast(sa.func.pg_current_xact_id(), sa.Text), sa.BigInteger)


def corrected_for() -> sa.ColumnElement[int]:
    """The only subscription that an event is for: it was corrected by hand. NULL for others."""
    found: sa.ColumnElement[int] = event.c.headers["edited_for"].as_integer()
    return found


def is_live(of: sa.FromClause = subscription) -> sa.ColumnElement[bool]:
    """Whether a subscription gets what is published: not retired, not being filled."""
    return sa.and_(of.c.retired_at.is_(None), of.c.backfilled_to.is_(None))


def _partial(name: str, columns: tuple[str, ...], where: str) -> sa.Index:
    condition = sa.text(where)
    return sa.Index(
        f"ix_bus_delivery_{name}",
        *(delivery.c[column] for column in columns),
        postgresql_where=condition,
        sqlite_where=condition,
    )


_partial("claim", ("subscription_id", "due", "id"), "state = 'pending'")
_partial(
    "order",
    ("subscription_id", "lane", "id"),
    "lane IS NOT NULL AND state IN ('waiting', 'pending', 'working', 'dead')",
)
_partial("lease", ("lease_until",), "state = 'working'")
_partial("dead", ("subscription_id", "error_type", "error_frame"), "state = 'dead'")
_partial("finished", ("finished_at",), "state IN ('done', 'dropped')")
_partial("suspect", ("subscription_id", "id"), "state = 'pending' AND losses > 0")

# Failures only: what went well leaves no more than its delivery.
attempt = sa.Table(
    "bus_attempt",
    metadata,
    sa.Column("id", _BigId, primary_key=True),
    sa.Column("delivery_id", sa.BigInteger(), nullable=False, index=True),
    sa.Column("number", sa.Integer(), nullable=False),
    sa.Column("worker_id", sa.Uuid()),
    sa.Column("failed_at", _Time, nullable=False),
    sa.Column("error_type", sa.String(200), nullable=False),
    sa.Column("error_frame", sa.String(400), nullable=False),
    sa.Column("error_message", sa.Text(), nullable=False),
    sqlite_autoincrement=True,
)

# Events that are not due yet; they move to the log, and get their deliveries, when they are.
scheduled = sa.Table(
    "bus_scheduled",
    metadata,
    sa.Column("position", _BigId, primary_key=True),
    *(
        sa.Column(column.name, column.type, nullable=column.nullable)
        for column in event.c
        if column.name not in ("position", "tx", "recorded_at")
    ),
    sa.Column("due", _Time, nullable=False),
    sa.UniqueConstraint("id"),
    sa.Index(None, "due", "position"),
    sa.Index(None, "name", "key"),
    sqlite_autoincrement=True,
)

# Processes that deliver, or did; one that lives says so every few seconds.
worker = sa.Table(
    "bus_worker",
    metadata,
    sa.Column("id", sa.Uuid(), primary_key=True),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer(), nullable=False),
    sa.Column("version", sa.String(100), nullable=False),
    sa.Column("slices", sa.JSON(), nullable=False),
    sa.Column("listeners", sa.JSON(), nullable=False),
    sa.Column("started_at", _Time, nullable=False),
    sa.Column("seen_at", _Time, nullable=False, index=True),
)

# The first answers to commands that came with an idempotency key.
idempotency = sa.Table(
    "bus_idempotency",
    metadata,
    sa.Column("user_id", sa.String(200), primary_key=True),
    sa.Column("command", sa.String(200), primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("result", sa.JSON()),
    sa.Column("event_token", sa.String(43), nullable=False, default=""),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("expires_at", _Time, nullable=False, index=True),
)

# What people changed by hand, and why.
audit = sa.Table(
    "bus_audit",
    metadata,
    sa.Column("id", _BigId, primary_key=True),
    sa.Column("at", _Time, nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("filter", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("count", sa.Integer(), nullable=False),
    sa.Column("details", sa.JSON(), nullable=False),
    sqlite_autoincrement=True,
)

# One row: events up to the floor may have been removed, so that nothing can be read from the start.
log = sa.Table(
    "bus_log",
    metadata,
    sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
    sa.Column("floor", sa.BigInteger(), nullable=False),
)
