"""Everything that people do with deliveries and listeners by hand, for a console or an API."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import tables
from ..catalog import Catalog
from ..clock import utc_now
from ..engines import Database
from ..errors import OperationError
from ..subscriptions import (
    Wanted,
    lock_log,
    log_floor,
    names_of_events,
    stored_in,
    tie,
    until_locked,
    wanted_by,
)
from ..waking import waking
from .audit import Audit
from .changes import (
    FITTING,
    Selection,
    batched,
    cancelling,
    change_all,
    drop_all_of,
    dropping,
    moving,
    retrying,
)
from .checks import Finding, check
from .edits import Edit, edit, plan_edit
from .filters import parse, quoted, unknown_event
from .inspection import Inspection
from .projections import read_models
from .replays import Replay, plan, play
from .standing import FOR_EVER, Subscribed


class Resumed(NamedTuple):
    """A listener that runs again; retired_since is None if it was only paused, or on probation."""

    retired_since: dt.datetime | None


class Operations(Inspection):
    """What operators look at and change, in a database and by the code of the service.

    catalog is that of all slices. What changes things takes who does it, and why, and leaves an
    audit row. Many deliveries are changed in two steps: a selection fixes and counts them, the
    change does just those. What a worker has taken meanwhile is left alone; the answer is how many
    were changed. It commits some hundred at a time, each time with the audit row's new count.
    """

    def __init__(
        self, database: Database, catalog: Catalog, now: Callable[[], dt.datetime] = utc_now
    ) -> None:
        super().__init__(database, now)
        self._catalog = catalog

    async def select(self, action: str, where: str) -> Selection:
        """Which deliveries a filter means that action (retry, drop or move) can change.

        Retry is for dead letters, and for what waits for its next attempt. Raises OperationError.
        """
        delivery, subscription = tables.delivery, tables.subscription
        fitting = tables.is_in(*FITTING[action])
        if action == "retry":
            backs_off = sa.and_(tables.is_in("pending"), delivery.c.due > self._now())
            fitting = sa.or_(tables.is_in("dead"), backs_off)
        async with self._database.reader.connect() as connection:
            conditions = await self._conditions(connection, where)
            found = await connection.execute(
                sa.select(delivery.c.id, delivery.c.state, subscription.c.listener)
                .join(tables.event, tables.event.c.position == delivery.c.event_position)
                .join(subscription, subscription.c.id == delivery.c.subscription_id)
                .where(fitting, *conditions)
                .order_by(delivery.c.id)
            )
            rows = found.all()
        counts = Counter((row.listener, row.state) for row in rows)
        told = (
            {"listener": listener, "state": state, "count": count}
            for (listener, state), count in sorted(counts.items())
        )
        return Selection(action, where, tuple(row.id for row in rows), tuple(told))

    async def select_left(self, action: str, listener: str) -> Selection:
        """What a listener that is gone from the code has left unfinished; action as for select.

        Raises OperationError if this code still has the listener.
        """
        async with self._database.reader.connect() as connection:
            await self._refuse_present(connection, await self._subscription(connection, listener))
        return await self.select(action, f"listener={quoted(listener)}")

    async def unknown_events(self, where: str) -> list[str]:
        """What to say of events that a filter names, and neither the code nor a subscription knows.

        They are no error: what is stored may be of a class that is gone. Raises OperationError.
        """
        named = parse(where, self._now()).exact("event")
        async with self._database.reader.connect() as connection:
            subscribed = await self._subscriptions(connection)
        known = names_of_events(self._catalog).union(*(one.events for one in subscribed))
        return [unknown_event(one, sorted(known)) for one in named if one not in known]

    async def retry(self, chosen: Selection, *, who: str, reason: str = "") -> int:
        """Let dead letters run again, and what waits for its next attempt run now.

        They get all their attempts anew; the record of those that failed stays.
        """
        change = retrying(self._now())
        return await change_all(
            self._database, chosen, change, now=self._now, who=who, reason=reason
        )

    async def drop(self, chosen: Selection, *, who: str, reason: str = "") -> int:
        """Give deliveries up: they will not run, and are removed as finished ones are."""
        change = dropping(self._now())
        return await change_all(
            self._database, chosen, change, now=self._now, who=who, reason=reason
        )

    async def select_scheduled(self, where: str) -> Selection:
        """Which events that are published for later a filter means. Raises OperationError."""
        scheduled = tables.scheduled
        query = sa.select(scheduled.c.id, scheduled.c.name).where(*self._scheduled_where(where))
        async with self._database.reader.connect() as connection:
            rows = (await connection.execute(query.order_by(scheduled.c.position))).all()
        counts = sorted(Counter(row.name for row in rows).items())
        told = tuple({"event": name, "count": count} for name, count in counts)
        return Selection("cancel", where, tuple(row.id for row in rows), told, "events")

    async def cancel(self, chosen: Selection, *, who: str, reason: str = "") -> int:
        """Take events for later back, as far as they are not published by now."""
        return await change_all(
            self._database, chosen, cancelling, now=self._now, who=who, reason=reason
        )

    async def move(self, chosen: Selection, to: str, *, who: str, reason: str = "") -> int:
        """Hand deliveries to another listener, all but those whose event and run it has already.

        Those of events to which it does not listen stay, too. Raises OperationError if that is so
        of all of them, if the listener is not there, or retired, or if it is to see what is older
        before, and has not got that yet.
        """
        async with self._database.reader.connect() as connection:
            target = await self._subscription(connection, to)
            events = await self._events(connection, chosen)
        if target.retired_at is not None:
            raise OperationError(f"{to} is retired: nothing would run what is moved to it.")
        if target.ordered and target.backfilled_to is not None:
            raise OperationError(
                f"{to} is ordered, and still gets what was published before: wait until it is"
                " filled (`events lag` shows it)."
            )
        if events and events.isdisjoint(target.events):
            raise OperationError(
                f"{to} does not listen to {', '.join(sorted(events))}: it would not run what is"
                " moved to it."
            )
        change = moving(target, self._now())
        return await change_all(
            self._database, chosen, change, now=self._now, who=who, reason=reason, to=to
        )

    async def plan_edit(
        self, delivery_id: int, payload: Mapping[str, Any], *, other_key: bool = False
    ) -> Edit:
        """What `edit` would change. Raises OperationError as that does."""
        async with self._database.reader.connect() as connection:
            return await plan_edit(
                connection, self._catalog, delivery_id, payload, other_key=other_key
            )

    async def edit(
        self,
        delivery_id: int,
        payload: Mapping[str, Any],
        *,
        other_key: bool = False,
        who: str,
        reason: str = "",
    ) -> UUID:
        """Deliver a corrected event in the place of one that fails; returns the new event's id.

        The event itself stays as it was: the new one names it as its cause, goes to this listener
        only, and the old delivery is dropped. Raises OperationError if the payload does not fit the
        event's class, if it has another key and that is not allowed by other_key, or if the
        delivery is neither dead nor pending.
        """
        async with waking(self._database) as connection:
            made, details = await edit(
                connection, self._catalog, delivery_id, payload, self._now(), other_key=other_key
            )
            where = f"delivery={delivery_id}"
            audit = Audit("edit", where, who=who, reason=reason, details=details)
            await audit.add(connection, 1, self._now())
        return made

    async def plan_replay(self, listener: str, where: str = "") -> Replay:
        """Which past events a replay would run a listener again over. Raises OperationError."""
        async with self._database.reader.connect() as connection:
            subscribed = await self._subscription(connection, listener)
            models = [name for one in read_models(self._catalog) for name in one.names]
            is_model = not set(models).isdisjoint(subscribed.names)
            found = parse(where, self._now())
            return await plan(connection, subscribed, found, is_read_model=is_model)

    async def replay(
        self,
        planned: Replay,
        *,
        who: str,
        reason: str = "",
        progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Make new deliveries, of a run of their own; returns how many.

        progress is called with how many events more have been gone through.
        """
        return await play(
            self._database, planned, now=self._now, who=who, reason=reason, progress=progress
        )

    async def pause(
        self, listener: str, *, span: dt.timedelta | None = None, who: str, reason: str = ""
    ) -> dt.datetime:
        """Start nothing of this listener for a time (None: until resume); returns until when."""
        try:
            until = self._now() + span if span is not None else FOR_EVER
        except OverflowError:
            until = FOR_EVER
        # Who it was tells it from a pause that the service has made.
        why = f"{reason} ({who})" if reason else f"paused by {who}"
        values = {"paused_until": until, "paused_reason": why}
        async with self._database.writer.begin() as connection:
            await self._set(connection, "pause", listener, values, who=who, reason=reason)
        return until

    async def resume(self, listener: str, *, who: str, reason: str = "") -> Resumed | None:
        """End a pause; take up again a listener that was retired, and is in this code again.

        Such a one is filled with what was published meanwhile if it starts at the beginning, or
        else goes on with what is published from now on. Returns None, and leaves no audit row, if
        it was neither paused nor retired. Raises OperationError if this code does not have one that
        was retired, or what it would need is removed.
        """
        ended = {"paused_until": None, "paused_reason": None}

        async def attempt() -> Resumed | None:
            async with waking(self._database) as connection:
                found = await self._held(connection, listener)
                if found.retired_at is None and found.paused_reason is None:
                    return None
                revived = {} if found.retired_at is None else await self._revived(connection, found)
                values = {**ended, **revived}
                await self._set(connection, "resume", listener, values, who=who, reason=reason)
            return Resumed(found.retired_at)

        return await until_locked(attempt)

    async def _revived(self, connection: AsyncConnection, found: Subscribed) -> dict[str, Any]:
        wanted = await self._wanted(connection, found)
        if wanted is None:
            raise OperationError(
                f"{found.listener} is retired, and not in this code: nothing would run it."
            )
        filled = found.filled_to
        # Held, so that retention removes nothing of what this one lacks.
        if wanted.from_beginning and (floor := await log_floor(connection, held=True)) > filled:
            raise OperationError(
                f"{found.listener} starts at the beginning, but events up to position {floor} have"
                f" been removed, and it has seen those up to {filled}: give it another name, and"
                ' let it start="now".'
            )
        newest = await lock_log(connection)
        filling = filled if wanted.from_beginning and filled < newest else None
        return {"retired_at": None, "from_position": newest, "backfilled_to": filling}

    async def retire(self, listener: str, *, drop: bool = False, who: str, reason: str = "") -> int:
        """Make no more deliveries for a listener that is gone; what it has left stays to be seen.

        drop: that is given up in the same transaction, but for what is being worked. Returns how
        many were dropped. Raises OperationError if this code still has the listener.
        """

        async def attempt() -> int:
            async with self._database.writer.begin() as connection:
                return await self._retire(connection, listener, drop=drop, who=who, reason=reason)

        return await until_locked(attempt)

    async def _retire(
        self, connection: AsyncConnection, listener: str, *, drop: bool, who: str, reason: str
    ) -> int:
        now, where = self._now(), f"listener={quoted(listener)}"
        found = await self._held(connection, listener)
        await self._refuse_present(connection, found)
        values: dict[str, Any] = {"retired_at": now}
        if found.retired_at is None and found.backfilled_to is None:
            # If it comes back, it has seen all up to here.
            values["from_position"] = await lock_log(connection)
        await self._set(connection, "retire", listener, values, who=who, reason=reason)
        if not drop:
            return 0
        dropped = await drop_all_of(connection, found.id, now)
        audit = Audit("drop", where, who=who, reason=reason, details={"listener": listener})
        await audit.add(connection, dropped, now)
        return dropped

    async def not_moved(self, chosen: Selection, to: str) -> Mapping[str, int]:
        """How many of those that were to be moved are not with that listener, by their states.

        Or, if that listener does not hear their event, by that: it is no reason to drop them.
        """
        delivery, event, states = tables.delivery, tables.event, Counter[str]()
        async with self._database.reader.connect() as connection:
            target = await self._subscription(connection, to)
            for ids in batched(chosen.ids):
                query = (
                    sa.select(delivery.c.state, event.c.name)
                    .join(event, event.c.position == delivery.c.event_position)
                    .where(delivery.c.id.in_(ids), delivery.c.subscription_id != target.id)
                )
                for state, name in await connection.execute(query):
                    is_heard = name in target.events
                    states[state if is_heard else f"{name}, which {to} does not hear"] += 1
        return states

    async def _events(self, connection: AsyncConnection, chosen: Selection) -> set[str]:
        """The names of the events of these deliveries."""
        delivery, event, names = tables.delivery, tables.event, set[str]()
        for ids in batched(chosen.ids):
            query = sa.select(event.c.name).distinct()
            query = query.join(delivery, event.c.position == delivery.c.event_position)
            names.update(await connection.scalars(query.where(delivery.c.id.in_(ids))))
        return names

    async def check(self) -> list[Finding]:
        """What of all that is unfinished, dead or scheduled this code could not deliver."""
        return await check(self._database, self._catalog)

    async def _set(
        self,
        connection: AsyncConnection,
        action: str,
        listener: str,
        values: Mapping[str, Any],
        *,
        who: str,
        reason: str,
    ) -> Subscribed:
        told = {name: value and str(value) for name, value in values.items()}
        details = {"listener": listener, **told}
        where = f"listener={quoted(listener)}"
        audit = Audit(action, where, who=who, reason=reason, details=details)
        subscription = tables.subscription
        found = await self._subscription(connection, listener)
        await connection.execute(
            sa.update(subscription).where(subscription.c.id == found.id).values(values)
        )
        await audit.add(connection, 1, self._now())
        return found

    async def _held(self, connection: AsyncConnection, listener: str) -> Subscribed:
        """A subscription that stays as it is until the transaction ends: no step fills it."""
        row = tables.subscription
        found = await self._subscription(connection, listener)
        held = sa.select(row.c.id).where(row.c.id == found.id).with_for_update()
        await connection.execute(held)
        # Read only now: the one that had it may have changed it.
        return await self._subscription(connection, listener)

    async def _wanted(self, connection: AsyncConnection, found: Subscribed) -> Wanted | None:
        """What this code wants of a subscription: nothing of one whose listener has another."""
        return tie(wanted_by(self._catalog), await stored_in(connection)).get(found.id)

    async def _refuse_present(self, connection: AsyncConnection, found: Subscribed) -> None:
        if await self._wanted(connection, found) is not None:
            raise OperationError(
                f"{found.listener} is still in this code, which would go on to want its events:"
                " remove the listener first."
            )
