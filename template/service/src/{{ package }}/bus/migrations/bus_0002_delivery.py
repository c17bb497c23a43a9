"""What delivery by many processes needs: attempts, delays, workers, idempotency, audit, floor."""

import sqlalchemy as sa
from alembic import op

revision = "bus_0002"
down_revision = "bus_0001"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)
_SUSPECT = sa.text("state = 'pending' AND losses > 0")


def upgrade() -> None:
    op.create_index(
        "ix_bus_delivery_suspect",
        "bus_delivery",
        ["subscription_id", "id"],
        postgresql_where=_SUSPECT,
        sqlite_where=_SUSPECT,
    )
    op.create_table(
        "bus_attempt",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("delivery_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("failed_at", _TIME, nullable=False),
        sa.Column("error_type", sa.String(200), nullable=False),
        sa.Column("error_frame", sa.String(400), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bus_attempt"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_bus_attempt_delivery_id", "bus_attempt", ["delivery_id"])

    op.create_table(
        "bus_scheduled",
        sa.Column("position", _BIG_ID, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("correlation_id", sa.String(64), nullable=False),
        sa.Column("causation_id", sa.Uuid()),
        sa.Column("due", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_bus_scheduled"),
        sa.UniqueConstraint("id", name="uq_bus_scheduled_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_bus_scheduled_due_position", "bus_scheduled", ["due", "position"])
    op.create_index("ix_bus_scheduled_name_key", "bus_scheduled", ["name", "key"])

    op.create_table(
        "bus_worker",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(100), nullable=False),
        sa.Column("slices", sa.JSON(), nullable=False),
        sa.Column("listeners", sa.JSON(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bus_worker"),
    )
    op.create_index("ix_bus_worker_seen_at", "bus_worker", ["seen_at"])

    op.create_table(
        "bus_idempotency",
        sa.Column("user_id", sa.String(200), nullable=False),
        sa.Column("command", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("result", sa.JSON()),
        sa.Column("event_token", sa.String(43), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "command", "key", name="pk_bus_idempotency"),
    )
    op.create_index("ix_bus_idempotency_expires_at", "bus_idempotency", ["expires_at"])

    op.create_table(
        "bus_audit",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bus_audit"),
        sqlite_autoincrement=True,
    )

    log = op.create_table(
        "bus_log",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bus_log"),
    )
    op.bulk_insert(log, [{"id": 1, "floor": 0}])


def downgrade() -> None:
    for table in ("log", "audit", "idempotency", "worker", "scheduled", "attempt"):
        op.drop_table(f"bus_{table}")
    op.drop_index("ix_bus_delivery_suspect", "bus_delivery")
