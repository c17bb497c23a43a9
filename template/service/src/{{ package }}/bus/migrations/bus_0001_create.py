"""The bus's tables: the event log, who is subscribed, and one row per delivery."""

import sqlalchemy as sa
from alembic import op

revision = "bus_0001"
down_revision = None
branch_labels = ("bus",)
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "bus_event",
        sa.Column("position", _BIG_ID, nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("correlation_id", sa.String(64), nullable=False),
        sa.Column("causation_id", sa.Uuid()),
        sa.Column("tx", sa.BigInteger(), nullable=False),
        sa.Column("recorded_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_bus_event"),
        sa.UniqueConstraint("id", name="uq_bus_event_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_bus_event_name_position", "bus_event", ["name", "position"])
    op.create_index("ix_bus_event_key_position", "bus_event", ["key", "position"])
    op.create_index("ix_bus_event_correlation_id", "bus_event", ["correlation_id"])

    op.create_table(
        "bus_subscription",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("listener", sa.String(200), nullable=False),
        sa.Column("slice", sa.String(32), nullable=False),
        sa.Column("ordered", sa.Boolean(), nullable=False),
        sa.Column("from_position", sa.BigInteger(), nullable=False),
        sa.Column("backfilled_to", sa.BigInteger()),
        sa.Column("paused_until", _TIME),
        sa.Column("paused_reason", sa.Text()),
        sa.Column("retired_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_bus_subscription"),
        sa.UniqueConstraint("listener", name="uq_bus_subscription_listener"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "bus_subscription_name",
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("subscription_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "subscription_id", name="pk_bus_subscription_name"),
    )

    op.create_table(
        "bus_delivery",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("event_position", sa.BigInteger(), nullable=False),
        sa.Column("subscription_id", sa.BigInteger(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("event_version", sa.Integer(), nullable=False),
        sa.Column("lane", sa.String(200)),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("due", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("token", sa.Uuid()),
        sa.Column("worker_id", sa.Uuid()),
        sa.Column("lease_until", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("error_type", sa.String(200)),
        sa.Column("error_frame", sa.String(400)),
        sa.Column("error_message", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_bus_delivery"),
        sa.UniqueConstraint(
            "event_position",
            "subscription_id",
            "run",
            name="uq_bus_delivery_event_position_subscription_id_run",
        ),
        sqlite_autoincrement=True,
    )
    _create_partial_index("claim", ["subscription_id", "due", "id"], "state = 'pending'")
    _create_partial_index(
        "order",
        ["subscription_id", "lane", "id"],
        "lane IS NOT NULL AND state IN ('waiting', 'pending', 'working', 'dead')",
    )
    _create_partial_index("lease", ["lease_until"], "state = 'working'")
    _create_partial_index(
        "dead", ["subscription_id", "error_type", "error_frame"], "state = 'dead'"
    )
    _create_partial_index("finished", ["finished_at"], "state IN ('done', 'dropped')")


def _create_partial_index(name: str, columns: list[str], where: str) -> None:
    op.create_index(
        f"ix_bus_delivery_{name}",
        "bus_delivery",
        columns,
        postgresql_where=sa.text(where),
        sqlite_where=sa.text(where),
    )


def downgrade() -> None:
    op.drop_table("bus_delivery")
    op.drop_table("bus_subscription_name")
    op.drop_table("bus_subscription")
    op.drop_table("bus_event")
