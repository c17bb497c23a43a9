"""Stored events of older versions reach listeners of the current one."""

import datetime as dt
import textwrap

import pytest

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

FIRST = """
    class Paid(Event, key="number"):
        number: int
        cents: int
"""
FIELD = "    from pydantic import Field\n"
SECOND = """
    class Paid(Event, key="number", version=2):
        number: int
        amount: Decimal
    @upcast(Paid, from_version=1)
    def in_units(payload: dict[str, Any]) -> dict[str, Any]:
        return {"number": payload["number"], "amount": payload["cents"] / 100}
"""
THIRD = """
    class Paid(Event, key="number", version=3):
        number: int
        amount: Decimal
        currency: str
    @upcast(Paid, from_version=1)
    def in_units(payload: dict[str, Any]) -> dict[str, Any]:
        return {"number": payload["number"], "amount": payload["cents"] / 100}
    @upcast(Paid, from_version=2)
    def in_euros(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"currency": "EUR"}
"""
HEARS = """
    @listen
    async def hear(event: Paid) -> None:
        seen.append(event)
"""
LATE = HEARS.replace("@listen", "@listen(start='beginning')").replace("hear", "hear_all")


def code(shop: Shop, contracts: str, listeners: str = HEARS) -> None:
    """The service as it is with these contracts; its slices are imported anew."""
    shop.forget()
    notes(shop, contracts=contracts, listeners=listeners)


async def started(shop: Shop, start: Start, url: str, contracts: str, **options: object) -> Service:
    code(shop, contracts)
    return await start(url, **options)


async def paid(service: Service, after: dt.timedelta | None = None) -> None:
    """Publish a first version, as the code that runs has it."""
    event = service.shop.contracts().Paid(number=1, cents=1050)

    async def publish(_: object, bus: object) -> None:
        bus.publish(event, after=after)  # type: ignore[attr-defined]

    unit = service.shop.module("bus.unit")
    await unit.run_unit(service.runtime._resources, service.shop.bus.Context(), publish, event)


async def problems(service: Service) -> list[tuple[str, int]]:
    """What `shop events check` finds."""
    checks = service.shop.module("bus.operating.checks")
    found = await checks.check(service.database, service.runtime.catalog)
    return [(one.problem, one.count) for one in found]


async def test_old_version_reaches_a_listener_of_the_new_one(
    shop: Shop, start: Start, url: str
) -> None:
    await paid(await started(shop, start, url, FIRST))
    service = await started(shop, start, url, SECOND)
    assert await problems(service) == []
    await service.settled()
    [event] = shop.seen
    assert event == shop.contracts().Paid(number=1, amount="10.5")
    assert [one.event_version for one in await service.deliveries()] == [1]


async def test_upcaster_that_changes_what_it_is_given(shop: Shop, start: Start, url: str) -> None:
    """It is given the same again where a batch runs again."""
    await paid(await started(shop, start, url, FIRST))
    in_place = SECOND.replace('return {"number"', 'payload["cents"] *= 2\n        return {"number"')
    code(shop, in_place)
    service = await start(url)
    await service.runtime.publish(shop.contracts().Paid(number=2, amount=2))
    read = shop.module("bus.upcasting").readers(service.runtime.catalog)["notes.Paid"][1]
    payload = {"number": 1, "cents": 1050}
    assert [read(payload).amount, read(payload).amount] == [21, 21]
    await service.settled()


async def test_versions_are_passed_through_one_after_the_other(
    shop: Shop, start: Start, url: str
) -> None:
    await paid(await started(shop, start, url, FIRST))
    second = await started(shop, start, url, SECOND)
    await second.runtime.publish(shop.contracts().Paid(number=2, amount=2))
    third = await started(shop, start, url, THIRD)
    await third.runtime.publish(shop.contracts().Paid(number=3, amount=3, currency="USD"))
    await third.settled()
    told = [(one.number, one.amount, one.currency) for one in shop.seen]
    assert sorted(told) == [(1, 10.5, "EUR"), (2, 2, "EUR"), (3, 3, "USD")]


async def test_renamed_event_is_brought_up_to_date_under_its_old_name(
    shop: Shop, start: Start, url: str
) -> None:
    await paid(await started(shop, start, url, FIRST))
    renamed = SECOND.replace("Paid", "Settled").replace("version=2", "version=2, aliases=('Paid',)")
    code(shop, renamed, HEARS.replace("Paid", "Settled"))
    service = await start(url)
    await service.settled()
    assert [one.amount for one in shop.seen] == [10.5]


async def test_replays_new_listeners_and_what_was_scheduled_read_old_versions(
    shop: Shop, start: Start, url: str
) -> None:
    first = await started(shop, start, url, FIRST)
    await paid(first)
    await first.settled()
    await paid(first, after=dt.timedelta(hours=1))
    shop.seen.clear()
    code(shop, SECOND, HEARS + LATE)
    service = await start(url)
    assert await problems(service) == []
    await service.settled()
    operations = shop.module("bus.operating.operations").Operations(
        service.database, service.runtime.catalog
    )
    planned = await operations.plan_replay("notes.hear", "")
    await operations.replay(planned, who="alice", reason="")
    await service.settled()
    service.runtime.clock.advance(dt.timedelta(hours=2))
    await service.settled()
    assert [one.amount for one in shop.seen] == [10.5] * 4


async def test_older_process_leaves_newer_versions_alone(
    shop: Shop, start: Start, url: str
) -> None:
    old = await started(shop, start, url, FIRST)
    new = await started(shop, start, url, SECOND)
    await new.runtime.publish(shop.contracts().Paid(number=2, amount=2))
    await old.settled()
    assert shop.seen == []
    await new.settled()
    assert [one.number for one in shop.seen] == [2]


async def test_version_that_nothing_reads_any_more_waits_and_is_told(
    shop: Shop, start: Start, url: str
) -> None:
    await paid(await started(shop, start, url, FIRST))
    without = THIRD.replace("@upcast(Paid, from_version=1)", "")
    service = await started(shop, start, url, without)
    assert await problems(service) == [("version 1 has no upcaster in this code any more", 1)]
    await service.settled()
    assert [one.state for one in await service.deliveries()] == ["pending"]
    service = await started(shop, start, url, THIRD)
    await service.settled()
    assert len(shop.seen) == 1


async def test_upcaster_that_fails_is_a_failure_of_the_delivery(
    shop: Shop, start: Start, url: str
) -> None:
    await paid(await started(shop, start, url, FIRST))
    service = await started(shop, start, url, SECOND.replace('"cents"', '"pence"'))
    assert await problems(service) == [("the upcaster of version 1 failed: KeyError('pence')", 1)]
    await service.runtime.relay.work_off()
    [failed] = await service.deliveries()
    assert failed.error_type == "KeyError"
    assert failed.error_frame.startswith("shop.slices.notes.contracts:in_units:")


async def test_fields_are_stored_by_their_names_whatever_others_call_them(
    shop: Shop, start: Start, url: str
) -> None:
    field = "    cents: int = Field(5, {})"
    aliased = FIELD + FIRST.replace("    cents: int", field.format('alias="amount_cents"'))
    service = await started(shop, start, url, aliased)
    await service.runtime.publish(shop.contracts().Paid(number=1, amount_cents=7))
    called_again = FIELD + FIRST.replace("    cents: int", field.format('validation_alias="c"'))
    later = await started(shop, start, url, called_again)
    await later.settled()
    assert [one.cents for one in shop.seen] == [7]


def test_current_version_costs_no_more_than_its_model(shop: Shop) -> None:
    code(shop, THIRD)
    versions = shop.build(shop.database()).readers["notes.Paid"]
    assert list(versions) == [3, 2, 1]
    read = shop.module("bus.payloads").from_payload
    assert (versions[3].func, versions[3].args) == (read, (shop.contracts().Paid,))


@pytest.mark.parametrize(
    ("contracts", "at", "complaint"),
    [
        (
            FIRST.replace('"number"', '"number", version=2'),
            "class Paid",
            "Paid is version 2, but nothing reads what was stored as version 1: write beside it"
            " @upcast(Paid, from_version=1)",
        ),
        (
            THIRD.replace("version=3", "version=4").replace("from_version=2", "from_version=3"),
            "@upcast(Paid, from_version=1)",
            "in_units: brings Paid to version 2, from which nothing leads on to version 3:",
        ),
        (
            THIRD.replace("from_version=2", "from_version=1"),
            "@upcast(Paid, from_version=1)",
            "starts from the same version: remove one of them.",
        ),
        (
            SECOND.replace("from_version=1", "from_version=2"),
            "@upcast(Paid, from_version=2)",
            "in_units: expected from_version to be a version before the current one of Paid, 2 (",
        ),
        (
            SECOND.replace("def in_units", "async def in_units"),
            "@upcast(Paid, from_version=1)",
            "in_units: an upcaster is a plain function of one payload",
        ),
        (
            SECOND.replace("def in_units(", "def in_units(event, "),
            "@upcast(Paid, from_version=1)",
            "in_units: an upcaster is a plain function of one payload",
        ),
        (
            SECOND.replace("@upcast(Paid,", "@upcast(Decimal,"),
            "@upcast(Decimal, from_version=1)",
            "in_units: expected an event of a slice in @upcast(…), got <class 'decimal.Decimal'>.",
        ),
        (
            FIRST.replace('"number"', '"number", version=0'),
            "class Paid",
            "Paid: expected a version",
        ),
    ],
)
def test_chain_that_does_not_hold_stops_the_start(
    shop: Shop, contracts: str, at: str, complaint: str
) -> None:
    code(shop, contracts)
    error = shop.refusal()
    assert complaint in error
    assert shop.at("notes/contracts.py", at)[:-1] in error


def test_upcaster_stands_beside_its_event(shop: Shop) -> None:
    head, step = textwrap.dedent(SECOND).split("@upcast", 1)
    notes(shop, contracts=head, listeners=f"@upcast{step}")
    error = shop.refusal()
    assert error.startswith(shop.at("notes/listeners.py", "@upcast"))
    assert (
        "an upcaster stands beside its event, so that it is wherever that is: Paid is at" in error
    )
