"""Many deliveries in one transaction, for listeners that only touch the database."""

import textwrap
from typing import Any

import pytest

from .conftest import Service, Shop, Start, notes, write

pytestmark = pytest.mark.anyio

BATCH = """
    @listen(batch=10)
    async def copy(event: NoteWritten, session: AsyncSession, context: Context) -> None:
        if event.text.startswith("copy"):
            return
        seen.append((event.text, context.correlation_id))
        if event.text.startswith("bad"):
            raise LookupError(event.text)
        number = (await session.execute(text(TRANSACTION))).scalar_one()
        session.add(Note(text="copy of " + event.text))
        seen.append(number)
"""
TRANSACTION = {
    "sqlite": "SELECT 1",
    "postgresql": "SELECT CAST(CAST(pg_current_xact_id() AS TEXT) AS BIGINT)",
}


def batching(shop: Shop, url: str, listeners: str = BATCH, **more: str) -> None:
    statement = f"TRANSACTION = {TRANSACTION[url.partition(':')[0]]!r}\n"
    notes(shop, listeners=statement + textwrap.dedent(listeners), **more)


async def states(service: Service) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for one in await service.deliveries():
        found.setdefault(one.listener, []).append((one.state, one.attempts))
    return found


async def test_deliveries_share_a_transaction_each_in_its_context(
    shop: Shop, start: Start, url: str
) -> None:
    batching(shop, url)
    service = await start(url)
    await write(service, *"abcd")
    await service.settled()
    assert await service.texts() == sorted([*"abcd", *(f"copy of {x}" for x in "abcd")])
    transactions = {entry for entry in shop.seen if not isinstance(entry, tuple)}
    assert len(transactions) == 1
    events = await service.events()
    assert [entry for entry in shop.seen if isinstance(entry, tuple)] == [
        (x, events["abcd".index(x)].correlation_id) for x in "abcd"
    ]


async def test_culprit_drops_out_and_the_rest_is_done(shop: Shop, start: Start, url: str) -> None:
    batching(shop, url)
    service = await start(url)
    await write(service, "a", "bad 1", "b", "bad 2", "c", "bad 3", "bad 4", "d")
    await service.runtime.relay.work_off()
    assert await states(service) == {
        "notes.copy": [
            ("done", 0),
            ("pending", 1),
            ("done", 0),
            ("pending", 1),
            ("done", 0),
            ("pending", 1),
            ("pending", 1),
            ("done", 0),
        ]
    }
    assert [text for text in await service.texts() if text.startswith("copy")] == [
        f"copy of {x}" for x in "abcd"
    ]
    # Together three times at most, then one by one.
    runs = [entry[0] for entry in shop.seen if isinstance(entry, tuple)]
    assert runs.count("a") == 4


async def test_failure_of_the_common_flush_is_found_one_by_one(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=10, retries=0)
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            session.add(Note(text="a" if event.text == "b" else "copy of " + event.text))
        """,
    )
    service = await start(url)
    await write(service, *"abc")
    await service.runtime.relay.work_off()
    assert await states(service) == {"notes.copy": [("done", 0), ("dead", 1), ("done", 0)]}
    assert await service.texts() == ["a", "b", "c", "copy of a", "copy of c"]


async def test_listener_of_a_whole_list(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=3)
        async def copy(events: list[NoteWritten], session: AsyncSession) -> None:
            seen.append([event.text for event in events])
        """,
    )
    service = await start(url)
    await write(service, *"abcde")
    await service.settled()
    assert shop.seen == [["a", "b", "c"], ["d", "e"]]


async def test_what_a_batch_publishes_belongs_to_its_cause(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=10)
        async def again(event: NoteWritten, bus: Bus) -> None:
            if len(event.text) == 1:
                bus.publish(NoteWritten(text=event.text * 2))
        """,
    )
    service = await start(url)
    await write(service, "a", "b")
    await service.settled()
    a, b, aa, bb = await service.events()
    assert (aa.payload, aa.correlation_id, aa.causation_id) == (
        {"text": "aa"},
        a.correlation_id,
        a.id,
    )
    assert (bb.correlation_id, bb.causation_id) == (b.correlation_id, b.id)


async def test_batch_listener_that_cancels_itself_has_failed(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=10, retries=0)
        async def cancel(event: NoteWritten, session: AsyncSession) -> None:
            if event.text == "b":
                raise asyncio.CancelledError
        """,
    )
    service = await start(url)
    await write(service, *"abc")
    await service.runtime.relay.work_off()
    assert await states(service) == {"notes.cancel": [("done", 0), ("dead", 1), ("done", 0)]}


ERRORS = "from shop.bus import *\n@listen(errors={{LookupError: {}}})"


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ("@listen\nasync def copy(events: list[NoteWritten])", "@listen(batch=100)"),
        ("@listen(inline=True, batch=9)\nasync def copy(event: NoteWritten)", "Drop `inline`"),
        ("@listen(retries=-1)\nasync def copy(event: NoteWritten)", "retries >= 0"),
        ("@listen(timeout=0)\nasync def copy(event: NoteWritten)", "timeout > 0"),
        ("@listen(start='begin')\nasync def copy(event: NoteWritten)", 'start="now"'),
        (f"{ERRORS.format('GiveUp')}\nasync def copy(event: NoteWritten)", "GiveUp()"),
        (f"{ERRORS.format('Pause(0)')}\nasync def copy(event: NoteWritten)", "Pause(seconds > 0)"),
        (f"{ERRORS.format('Retry(-1)')}\nasync def copy(event: NoteWritten)", "Retry(retries >= 0"),
        (
            "from shop.bus import *\n@listen(errors={'LookupError': GiveUp()})\n"
            "async def copy(event: NoteWritten)",
            "class of exceptions in errors, got 'LookupError'",
        ),
        (
            "@listen(aliases='orders.copy')\nasync def copy(event: NoteWritten)",
            "in this slice, got 'orders.copy'",
        ),
        ("@listen\nasync def copy(events: set[NoteWritten])", "expected an event"),
        ("@listen\nasync def copy(*, event: NoteWritten)", "as the first parameter"),
        ("@listen\nasync def copy(*event: NoteWritten)", "as the first parameter"),
        ("@guard\nasync def copy(event: NoteWritten)", "guards are for commands"),
    ],
)
def test_options_that_do_not_fit(shop: Shop, mark: str, complaint: str) -> None:
    notes(shop, listeners=f"{mark} -> None: ...\n")
    assert complaint in shop.refusal(database=shop.database())


def test_list_is_read_as_a_list(shop: Shop) -> None:
    notes(
        shop, listeners="@listen(batch=9)\nasync def copy(e: list[NoteWritten]) -> None: e.sort()"
    )
    shop.build(database=shop.database())


@pytest.mark.parametrize(
    "source",
    [
        "class Copies:\n    @listen\n    def copy(self, event: NoteWritten) -> None: ...",
        "class Copies:\n    @listen\n    @staticmethod\n    def copy(event: NoteWritten): ...",
        "from functools import partial\ncopy = listen(partial(print))",
    ],
    ids=["method", "static method", "partial"],
)
def test_what_would_never_be_found_is_refused(shop: Shop, source: str) -> None:
    notes(shop, listeners=source)
    assert "expected a function of a module" in shop.refusal(database=shop.database())


async def test_each_line_of_a_batch_says_what_it_is_about(
    shop: Shop, start: Start, sqlite_url: str, logged: list[Any]
) -> None:
    listeners = """
        import structlog
        log = structlog.get_logger()
        @listen(batch=10)
        async def copy(event: NoteWritten, bus: Bus) -> None:
            if event.text == "copied":
                return
            if event.text == "a":
                structlog.contextvars.bind_contextvars(customer="of a")
            log.info("copying", text=event.text)
            if event.text == "bad":
                raise LookupError
            bus.publish(NoteWritten(text="copied"))
    """
    notes(shop, listeners=listeners)
    service = await start(sqlite_url)
    await write(service, "a", "bad")
    logged.clear()
    await service.runtime.relay.work_off()
    a, bad = (await service.events())[:2]

    def told(line: str) -> list[tuple[Any, ...]]:
        names = ("listener", "correlation_id", "event_id")
        found = [one for one in logged if one["event"] == line]
        return [tuple(one.get(name) for name in names) for one in found]

    of_a = ("notes.copy", a.correlation_id, str(a.id))
    of_bad = ("notes.copy", bad.correlation_id, str(bad.id))
    assert set(told("copying")) == {of_a, of_bad}
    assert {one["correlation_id"] for one in logged if "customer" in one} == {a.correlation_id}
    assert set(told("listener failed, will be tried again")) == {of_bad}
    [(listener, correlation_id, _)] = told("event stored")
    assert (listener, correlation_id) == ("notes.copy", a.correlation_id)


async def test_row_of_one_that_the_next_one_flushes_is_not_the_next_ones(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        from sqlalchemy.exc import IntegrityError
        @listen(batch=10, errors={IntegrityError: GiveUp()})
        async def copy(event: NoteWritten, session: AsyncSession) -> None:
            await session.scalars(select(Note))
            session.add(Note(text="a" if event.text == "b" else "copy of " + event.text))
        """,
    )
    service = await start(url)
    await write(service, *"abcd")
    await service.runtime.relay.work_off()
    outcome = [("done", 0), ("dead", 1), ("done", 0), ("done", 0)]
    assert await states(service) == {"notes.copy": outcome}


async def test_nobody_of_a_batch_is_blamed_for_the_time_of_all(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        listeners="""
        @listen(batch=10, timeout=0.5, retries=0)
        async def wait(event: NoteWritten) -> None:
            seen.append(event.text)
            if seen == ["a", "b"]:
                await asyncio.Event().wait()
        """,
    )
    service = await start(url)
    await write(service, *"abc")
    await service.runtime.relay.work_off()
    assert await states(service) == {"notes.wait": [("done", 0)] * 3}
    assert shop.seen == [*"ab", *"abc"]
