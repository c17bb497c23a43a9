"""A service that was made long ago, is worked on, has data, and is updated again and again.

After each update, with the same data: migrations, `db check`, a payment over HTTP whose order comes,
rules of style, and each of the user's edits. The rest of what a user runs (all tests with those of
the boundaries, types, format) is checked where a life ends, for the sake of time: the versions in
between are checked by what follows them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import lives
import pytest
import versions
from conftest import Template, commit_all
from lives import ORDERS, PAYMENTS, Conflict, Life
from versions import SLICE, Versions

# Later than any that there will be.
NOW, NEXT, LAST = "90.0.0", "91.0.0", "92.0.0"


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
        lives.change(file, "import Change{{ entity }},", "import Change{{ entity }}, Count{{ plural }},")


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
    life = Life(shop, {})
    life.use()
    for edit in lives.EDITS:
        edit(shop)
    life.run("shop.cli", "db", "revision", "orders", "-m", "Add priority")
    life.run("ruff", "check", "--fix")
    life.run("ruff", "format")
    lives.assert_edits_are_there(shop)
    life.use()
    life.rows("UPDATE orders SET priority = 7")
    commit_all(shop)
    return shop.parent


def test_step_by_step(
    released: tuple[Versions, list[str]],
    young: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    found, (_, middle, *_) = released
    life = live(young, tmp_path)
    life.update(found.at(middle))
    found.at(middle).copy(life.shop / lives.SLICES / "refunds", fields="amount:int")
    life.run("ruff", "check")
    commit_all(life.shop)
    for template in [found.at(NOW), found.at("91.0.0"), found.at(LAST)]:
        life.update(template)
    check_all(life)
    tell(life, record_property)


def test_in_one_jump(
    released: tuple[Versions, list[str]],
    young: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    found, _ = released
    life = live(young, tmp_path)
    life.update(found.at(LAST))
    check_all(life)
    tell(life, record_property)
