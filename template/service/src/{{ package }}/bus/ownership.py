"""Who owns a transaction: a unit of work, which alone may end or split it."""

import re

from .errors import BusError

# As SQL, behind comments, too; savepoints of SQLAlchemy's own are known by their names.
_ENDING = re.compile(
    r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
    r"(COMMIT|ROLLBACK|BEGIN|START|END|ABORT|SAVEPOINT|RELEASE)\b(?!.*\bsa_savepoint_\d+\s*$)",
    re.IGNORECASE | re.DOTALL,
)


class Owner:
    """What a unit leaves with the driver of its connection, to be asked until the unit is over.

    is_cut_off: something else than the unit has rolled it back. failed: the error of a statement
    that nothing has undone yet. last: what is executed together with the commit.
    """

    __slots__ = ("_otherwise", "failed", "is_cut_off", "is_over", "last")

    def __init__(self) -> None:
        self.is_over = self.is_cut_off = False
        self.failed: BaseException | None = None
        self.last = ""
        self._otherwise: Exception = BusError()

    def commit_with(self, update: str, otherwise: Exception) -> None:
        """Let this go with the commit, for drivers that can do that (PostgreSQL's).

        update has all its values in it. It has to change one row: else nothing is committed, and
        the commit raises otherwise.
        """
        self.last, self._otherwise = update, otherwise

    def take_last(self) -> tuple[str, Exception]:
        """What goes with the commit, and what to raise; for the driver, which executes it."""
        last, self.last = self.last, ""
        return last, self._otherwise

    def end(self) -> None:
        """The unit itself commits, or rolls back."""
        self.is_over = True
        # It would keep alive all that its traceback knows.
        self.failed = None

    def check(self, statement: str) -> None:
        """Raises BusError for what would end a transaction without SQLAlchemy's knowledge."""
        if not self.is_over and (found := _ENDING.match(statement)):
            raise refusal("execute", f'text("{found[1]}")')


def refusal(what: str, arguments: str = "") -> BusError:
    """What is raised instead of doing this to the session of a unit of work."""
    return BusError(
        f"session.{what}({arguments}) in a handler: the unit of work commits when the handler"
        " returns, and rolls back when it raises. To undo only a part, use"
        " `async with bus.savepoint():`."
    )
