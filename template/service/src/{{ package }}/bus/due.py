"""What is due, of which listeners: the statements with which a worker looks for work."""

from typing import Any

import sqlalchemy as sa

from . import tables

Delivery = sa.Row[Any]
"""A delivery with what its listener needs to know of the event."""

# What that is, but for what the subscription has to say.
TOLD = (
    tables.delivery.c.id,
    tables.delivery.c.subscription_id,
    tables.delivery.c.event_version,
    tables.delivery.c.run,
    tables.delivery.c.lane,
    tables.delivery.c.state,
    tables.delivery.c.due,
    tables.delivery.c.attempts,
    tables.delivery.c.losses,
    tables.delivery.c.error_message,
    tables.event.c.id.label("event_id"),
    tables.event.c.name,
    # As text: what is no JSON is to fail alone, and not with all that are claimed with it.
    sa.cast(tables.event.c.payload, sa.Text()).label("payload"),
    sa.cast(tables.event.c.headers, sa.Text()).label("headers"),
    tables.event.c.correlation_id,
)

# A delivery that was lost with its process so often runs with nothing beside it: until then it may
# well have been a neighbour of the cause, or not have begun.
ALONE_AFTER = 2
# Written out: else no plan that is made once can use the index of these.
_ALONE = sa.literal_column(str(ALONE_AFTER), sa.Integer())

# By the clock of the bus, which tests can move.
NOW = sa.bindparam("now", type_=tables.delivery.c.due.type)


def deliveries(*more: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Deliveries with their events and subscriptions."""
    delivery, event, subscription = tables.delivery, tables.event, tables.subscription
    return (
        sa.select(*TOLD, subscription.c.paused_reason, *more)
        .join(event, event.c.position == delivery.c.event_position)
        .join(subscription, subscription.c.id == delivery.c.subscription_id)
    )


def is_due(suspects: bool) -> sa.ColumnElement[bool]:
    """Deliveries of a subscription that may run now; suspects: those that run alone."""
    delivery = tables.delivery
    return sa.and_(
        delivery.c.subscription_id == tables.subscription.c.id,
        tables.is_in("pending"),
        delivery.c.due <= NOW,
        delivery.c.losses >= _ALONE if suspects else delivery.c.losses < _ALONE,
    )


def is_open() -> tuple[sa.ColumnElement[bool], ...]:
    """Subscriptions that are asked for, and neither retired nor paused.

    One on probation has a single delivery at a time: until that is done it is not open.
    """
    subscription, delivery = tables.subscription, tables.delivery.alias("on_probation")
    paused_until, reason = subscription.c.paused_until, subscription.c.paused_reason
    works = sa.exists().where(
        delivery.c.subscription_id == subscription.c.id, tables.is_in("working", of=delivery)
    )
    return (
        subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)),
        subscription.c.retired_at.is_(None),
        sa.or_(
            sa.and_(paused_until.is_(None), reason.is_(None)),
            sa.and_(paused_until <= NOW, ~works.correlate(subscription)),
        ),
    )


def pick(readable: sa.ColumnElement[bool], suspects: bool) -> sa.Select[Any]:
    """What is due of one subscription (SQLite, where nobody else writes meanwhile)."""
    delivery = tables.delivery
    return (
        deliveries(sa.bindparam("held", type_=sa.Uuid()).label("token"))
        .where(
            is_due(suspects),
            tables.subscription.c.id == sa.bindparam("subscription"),
            readable,
        )
        .order_by(delivery.c.due, delivery.c.id)
        .limit(sa.bindparam("most", type_=sa.Integer()))
    )


def _busy(suspects: bool) -> sa.Select[Any]:
    subscription = tables.subscription
    return sa.select(subscription.c.id, subscription.c.paused_reason.is_not(None)).where(
        *is_open(), sa.exists().where(is_due(suspects)).correlate(subscription)
    )


def _paused() -> sa.Select[Any]:
    subscription = tables.subscription
    paused_until, reason = subscription.c.paused_until, subscription.c.paused_reason
    return sa.select(subscription.c.id).where(
        subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)),
        sa.or_(paused_until > NOW, sa.and_(paused_until.is_(None), reason.is_not(None))),
    )


def _next_due() -> sa.Select[Any]:
    subscription, delivery, scheduled = tables.subscription, tables.delivery, tables.scheduled
    after = sa.bindparam("after", type_=delivery.c.due.type)
    later = (
        sa.select(sa.func.min(delivery.c.due))
        .where(
            delivery.c.subscription_id == subscription.c.id,
            tables.is_in("pending"),
            delivery.c.due > after,
        )
        .correlate(subscription)
        .scalar_subquery()
    )
    pauses = sa.case((subscription.c.paused_until > after, subscription.c.paused_until))
    return sa.select(
        sa.func.min(later),
        sa.func.min(pauses),
        sa.select(sa.func.min(scheduled.c.due)).scalar_subquery(),
    ).where(subscription.c.id.in_(sa.bindparam("subscriptions", expanding=True)))


# Made once: they run again and again, and to build one takes longer than to send it.
BUSY = {suspects: _busy(suspects) for suspects in (False, True)}
PAUSED = _paused()
NEXT_DUE = _next_due()
