"""A unit of work of which nothing may come but rows: what a read model is made in."""

from typing import NoReturn

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import ORMExecuteState, Session

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
        _keep_rows(self._session.sync_session)

    async def _close(self, session: UnitSession) -> None:
        await session.close_unit()


def _keep_rows(session: Session) -> None:
    """Let nobody read twice what a thousand events change, and write it once for all of them.

    A session forgets a row that nobody holds; here it is held until a statement is executed that
    may change it behind the session's back, and finds then what was changed before.
    """
    kept = list[object]()

    def keep(_: Session, row: object) -> None:
        kept.append(row)

    def forget(execution: ORMExecuteState) -> None:
        if not execution.is_select:
            session.flush()
            kept.clear()

    event.listen(session, "loaded_as_persistent", keep)
    event.listen(session, "pending_to_persistent", keep)
    event.listen(session, "do_orm_execute", forget)


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
