"""Migrations of decimals whose places behind the point change: on SQLite their rows change, too.

There `Exact` keeps a number as an integer of its smallest unit, so that with another unit each
stored number is another integer. PostgreSQL rounds and extends them itself.
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import AlterColumnOp, MigrateOperation, MigrationScript, ModifyTableOps
from alembic.util import CommandError

from ..bus.exact import Exact


class Rescale(MigrateOperation):
    """So many places more for each number of a column, or fewer if below 0; for SQLite."""

    def __init__(self, table: str, column: str, places: int) -> None:
        self.table, self.column, self.places = table, column, places

    @property
    def statement(self) -> str:
        """The SQL; what has places too many is rounded, halves away from 0, as PostgreSQL does."""
        column, unit = f'"{self.column}"', 10 ** abs(self.places)
        value = f"{column} * {unit}"
        if self.places < 0:
            value = f"({column} + sign({column}) * {unit // 2}) / {unit}"
        return f'UPDATE "{self.table}" SET {column} = {value}'

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How `db check` tells of it."""
        return "rescale", self.table, self.column, self.places


def rescale(script: MigrationScript) -> None:
    """Add what its rows need to a revision that changes the places of decimals.

    Raises CommandError if a decimal becomes anything but a number, or the other way round.
    """
    for operations in (*script.upgrade_ops_list, *script.downgrade_ops_list):
        operations.ops = [
            step for operation in operations.ops for step in (operation, *_rescales(operation))
        ]


def _rescales(operation: MigrateOperation) -> Iterator[Rescale]:
    if not isinstance(operation, ModifyTableOps):
        return
    for one in operation.ops:
        if not isinstance(one, AlterColumnOp) or one.modify_type is None:
            continue
        before, after = _scale(one.existing_type), _scale(one.modify_type)
        if not before and not after:
            continue  # Without places, a number is kept as what it is.
        if before is None or after is None:
            raise CommandError(_by_hand(one))
        if before != after:
            yield Rescale(one.table_name, one.column_name, after - before)


def _scale(kind: Any) -> int | None:
    """Places behind the point; None for what is not an exact number."""
    if isinstance(kind, sa.Integer):
        return 0
    if isinstance(kind, Exact) or (isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float)):
        return kind.scale
    return None


def _by_hand(operation: AlterColumnOp) -> str:
    return (
        f"{operation.table_name}.{operation.column_name} changes from {operation.existing_type!r}"
        f" to {operation.modify_type!r}: only you can say what becomes of its values. Write the"
        " revision by hand (`db revision … --empty`); on SQLite a decimal is stored as an integer"
        " of its smallest unit, 12.50 as 1250."
    )


@renderers.dispatch_for(Rescale)
def _render(_: AutogenContext, operation: Rescale) -> list[str]:
    return [
        "# SQLite has decimals as integers of their smallest unit, which is another one now.",
        'if op.get_context().dialect.name == "sqlite":',
        f"op.execute({operation.statement!r})",
        "",
    ]
