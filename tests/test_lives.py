"""A service that was made long ago, is worked on, has data, and is updated again and again.

After each update, on the same database: `db upgrade`, `db check`, all data as it was, a payment
over HTTP whose order comes, ruff, and every one of the user's edits. All tests with those of
boundaries, and types, are run where a life ends, for the sake of time.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import lives
import pytest
import versions
from conftest import Template, commit_all, git
from lives import ORDERS, PAYMENTS, Life
from versions import SLICE, Versions

# Later than any that there will be.
NOW, NEXT, LAST = "90.0.0", "91.0.0", "92.0.0"
CALLED = {NOW: "what there is now", NEXT: "every file changed", LAST: "again, and slices grown"}

# The jump has most: what comes in four steps otherwise, from before the bus had its second form.
MOST_CONFLICTS = 8


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Versions, list[str]]:
    """What was released, the template as it is now, then two versions that change every file; the
    last one with something new in slices, where users may have written as well.
    """
    found, earlier = versions.history(tmp_path_factory.mktemp("template"))
    found.release(NOW)
    found.release_next(91)
    found.change_everything(92)
    add_count(found)
    found.release(LAST)
    return found, earlier


def add_count(found: Versions) -> None:
    """Slices can tell how many they have: at the end of files, and between functions."""
    slice_ = found.path / SLICE
    messages, handlers, router = (
        slice_ / f"{{% if {when} %}}{name}.py{{% endif %}}.jinja"
        for when, name in [
            ("not process", "messages"),
            ("state", "handlers"),
            ("not process", "router"),
        ]
    )
    lives.change(messages, "{% endcall -%}", COUNT_MESSAGE)
    lives.change(handlers, "async def _{{ noun }}(", COUNT_HANDLER)
    lives.change(handlers, "import select\n", "import func, select\n")
    lives.change(router, "{% endcall -%}", COUNT_ROUTE)
    for file in (handlers, router):
        lives.change(
            file, "import Change{{ entity }},", "import Change{{ entity }}, Count{{ plural }},"
        )


COUNT_MESSAGE = """

class Count{{ plural }}(Query[int]):
    pass
{% endcall -%}"""

COUNT_HANDLER = """@handle
async def count_{{ slice }}(query: Count{{ plural }}, session: AsyncSession) -> int:
    return await session.scalar(select(func.count()).select_from({{ entity }})) or 0


async def _{{ noun }}("""

COUNT_ROUTE = """

@router.get("/all/count")
async def count_{{ slice }}(bus: BusDep) -> int:
    return await bus.send(Count{{ plural }}())
{% endcall -%}"""


@pytest.fixture(scope="module")
def young(released: tuple[Versions, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a service at the oldest version, in use and edited."""
    found, (oldest, *_) = released
    template = found.at(oldest)
    shop = tmp_path_factory.mktemp("young") / "shop"
    template.copy(shop)
    template.copy(shop / PAYMENTS, fields="amount:decimal(12,2) currency:str")
    template.copy(
        shop / ORDERS, listens_to="payments.PaymentCreated:start_order", fields="note:text?"
    )
    commit_all(shop)
    life = Life(shop)
    life.use()
    for edit in lives.EDITS:
        edit(shop)
    life.run("ruff", "check", "--fix")
    life.run("ruff", "format")
    lives.assert_edits_are_there(shop)
    life.run("shop.cli", "db", "revision", "orders", "-m", "Add priority")
    life.run("shop.cli", "db", "upgrade")
    life.rows("UPDATE orders SET priority = 7")
    life.use()
    assert [order["priority"] for order in life.answers["orders"]] == [7, None]
    commit_all(shop)
    return shop.parent


@pytest.mark.long
def test_steps_and_a_jump(
    released: tuple[Versions, list[str]],
    young: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A slice is added on the way; but for it, both ways end in the same tree."""
    found, earlier = released
    middle = found.at(earlier[len(earlier) // 2])
    steps = Life(shutil.copytree(young, tmp_path / "steps") / "shop")
    step(steps, middle)
    middle.copy(steps.shop / lives.SLICES / "refunds", fields="amount:int")
    commit_all(steps.shop)
    for tag in (NOW, NEXT, LAST):
        step(steps, found.at(tag))
    jump = Life(shutil.copytree(young, tmp_path / "jump") / "shop")
    step(jump, found.at(LAST))
    check_all(steps)
    git(steps.shop, "rm", "-r", "--quiet", str(lives.SLICES / "refunds"))
    assert source(jump) == source(steps)
    for name, life in (("steps", steps), ("jump", jump)):
        for tag, conflicts in life.conflicts.items():
            # Read by `nox -s bench -- updates`.
            record_property(f"{name}: {CALLED.get(tag, tag[:7])}", len(conflicts))
            assert len(conflicts) <= MOST_CONFLICTS, conflicts
            assert all(len((one.ours + one.theirs).splitlines()) <= 30 for one in conflicts)


def source(life: Life) -> dict[str, bytes]:
    """All that Git knows of."""
    return {
        name: (life.shop / name).read_bytes() for name in git(life.shop, "ls-files").split("\n")
    }


def step(life: Life, template: Template) -> None:
    """One update, and what holds after each."""
    events = life.rows(EVENTS)
    life.update(template)
    lives.assert_edits_are_there(life.shop)
    before = life.answers
    life.use()
    for name, rows in before.items():
        # A later version may answer more.
        later = {row["id"]: row for row in life.answers[name]}
        assert all(row.items() <= later[row["id"]].items() for row in rows)
        assert len(later) == len(rows) + 1
    assert life.rows(EVENTS)[: len(events)] == events
    assert life.rows("SELECT DISTINCT state FROM bus_delivery") == [("done",)]
    git(life.shop, "diff", "--exit-code", "HEAD")


EVENTS = "SELECT position, id, name, version, key, payload FROM bus_event ORDER BY position"


def check_all(life: Life) -> None:
    """What a user runs before a commit."""
    life.run("ruff", "format", "--check")
    life.run("mypy")
    life.run("pytest", "-q", "-p", "no:cacheprovider")
