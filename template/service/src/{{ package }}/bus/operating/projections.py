"""Read models: which there are, how they stand, and making one of them anew."""

from collections.abc import Callable

import sqlalchemy as sa

from .. import tables
from ..catalog import Catalog
from ..errors import OperationError
from ..marks import Listens
from ..runtime import Runtime
from ..subscriptions import wanted_by
from .audit import Audit
from .filters import quoted
from .rebuilds import Making, ReadModel, Rebuild, refuse_below_floor
from .standing import Row, Standing


def read_models(catalog: Catalog) -> list[ReadModel]:
    """The listeners whose marks say which tables they make."""
    wanted = {one.listener: one for one in wanted_by(catalog)}
    return [
        ReadModel(
            marked.name,
            marked.names,
            wanted[marked.name].events,
            tuple(sa.inspect(cls).local_table for cls in marked.mark.projects),
        )
        for marked in catalog.listeners
        if isinstance(marked.mark, Listens) and marked.mark.projects
    ]


class Projections(Standing):
    """The read models of a service, in its database and by its code, of which no slice runs."""

    def __init__(self, runtime: Runtime) -> None:
        """runtime is built, and need not be open. Raises OperationError without a database."""
        if runtime.database is None:
            raise OperationError("This service was built without a database.")
        super().__init__(runtime.database, runtime.clock.now)
        self._runtime = runtime

    async def all(self) -> list[Row]:
        """Each read model with its tables and events, and what its listener has not done."""
        lag = {one["listener"]: one for one in await self.lag()}
        rows = list[Row]()
        for model in read_models(self._runtime.catalog):
            stands = next((lag[name] for name in model.names if name in lag), {})
            unfinished = (stands.get(state, 0) for state in ("pending", "waiting", "working"))
            rows.append(
                {
                    "listener": model.listener,
                    "tables": [table.name for table in model.tables],
                    "events": list(model.events),
                    "unfinished": sum(unfinished),
                    "dead": stands.get("dead", 0),
                }
            )
        return rows

    async def plan(self, listener: str) -> Rebuild:
        """What is to be made anew. Raises OperationError if it cannot be."""
        models = read_models(self._runtime.catalog)
        model = next((one for one in models if listener in one.names), None)
        if model is None:
            known = ", ".join(one.listener for one in models) or "none"
            raise OperationError(
                f"{listener} is no read model: those say in @listen what they make, by"
                f" `projects`. Here: {known}."
            )
        event = tables.event
        async with self._database.reader.connect() as connection:
            subscribed = await self._subscription(connection, model.listener)
            if subscribed.retired_at is not None:
                raise OperationError(
                    f"{listener} is retired: nothing would keep it up to date. `events resume`"
                    " takes it up again."
                )
            await refuse_below_floor(connection)
            mine = event.c.name.in_(model.events), tables.corrected_for().is_(None)
            count = sa.select(sa.func.count()).where(*mine)
            return Rebuild(model, subscribed, await connection.scalar(count) or 0)

    async def rebuild(
        self,
        planned: Rebuild,
        *,
        who: str,
        reason: str = "",
        progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Make it anew; returns how many rows it has then. If it fails, nothing has changed.

        Its listener runs for all events of the log, in their order, on temporary tables in the
        place of the live ones. In the last transaction, for which publishers wait, their rows
        replace those of the live tables, and what was to be delivered counts as done. progress is
        called with how many events more have been gone through. Raises OperationError.
        """
        listener = await self._runtime.listener(planned.model.listener)
        details = {
            "listener": listener.name,
            "tables": [table.name for table in planned.model.tables],
        }
        where = f"listener={quoted(listener.name)}"
        audit = Audit("rebuild", where, who=who, reason=reason, details=details)
        engine = self._database.apart()
        try:
            async with engine.connect() as connection:
                await Making(self._runtime, planned, listener, connection, audit).make(progress)
        finally:
            await engine.dispose()
        return audit.count
