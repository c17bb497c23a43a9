"""A unit of work of which nothing may come but rows: what a read model is made in."""

from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection

from ..bus import RouteTable
from ..clock import Clock
from ..context import Context
from ..engines import Database
from ..errors import OperationError
from ..messages import Event
from ..outbox import Outbox
from ..recording import EventLog
from ..session import UnitSession
from ..unit import Completion, Resources, UnitOfWork


class RowsOnly(UnitOfWork):
    """One transaction of a connection that is given, and stays open.

    To send, publish, cancel or record something in it raises OperationError.
    """

    def __init__(
        self,
        database: Database,
        connection: AsyncConnection,
        clock: Clock,
        completion: Completion | None = None,
    ) -> None:
        context = Context()
        resources = Resources(_NoRoutes(), {}, _NoOutbox({}, clock), database, clock)
        super().__init__(resources, context, completion=completion)
        self.log = _NoEvents(context)
        self._session = UnitSession(connection, self.log)

    async def _close(self, session: UnitSession) -> None:
        await session.close_unit()


class _NoEvents(EventLog):
    def note(self, event: object, *_: object, **__: object) -> NoReturn:
        raise _no_read_model(f"records {type(event).__name__}")


class _NoOutbox(Outbox):
    def name_of(self, cls: type[Event]) -> NoReturn:
        raise _no_read_model(f"publishes or cancels {cls.__name__}")


class _NoRoutes(RouteTable):
    def __missing__(self, message: type) -> NoReturn:
        raise _no_read_model(f"sends {message.__name__}")


def _no_read_model(what: str) -> OperationError:
    return OperationError(f"it {what}, where a read model only writes its rows")
