"""Subscriptions are stored: deliveries are made from rows, not from this process's code."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

HEARS = "@listen\nasync def hear(event: NoteWritten) -> None: seen.append(event.text)\n"
ORDERS = f"from shop.slices.notes.contracts import NoteWritten\n{HEARS}"


async def subscriptions(service: Service) -> list[str]:
    return await service.column("SELECT listener FROM bus_subscription ORDER BY id")


async def names(service: Service, kind: str) -> list[str]:
    return await service.column(
        f"SELECT name FROM bus_subscription_name WHERE kind = '{kind}' ORDER BY name"
    )


def hears(*listeners: str) -> str:
    """Listeners that note their name and the text: 'hear', or with its aliases 'take of hear'."""
    source = ""
    for one in listeners:
        name, _, old = one.partition(" of ")
        source += f"@listen(aliases={tuple(old.split())})\n"
        source += f"async def {name}(event: NoteWritten) -> None:\n"
        source += f"    seen.append('{name} ' + event.text)\n"
    return source


async def upgraded(shop: Shop, url: str, *listeners: str) -> None:
    """`db upgrade` by code with these listeners."""
    shop.forget()
    notes(shop, listeners=hears(*listeners))
    database = shop.database(url)
    catalog, subscribing = shop.build(database).catalog, shop.module("bus.subscriptions")
    wanted, known = subscribing.wanted_by(catalog), subscribing.names_of_events(catalog)
    try:
        await subscribing.subscribe(database, wanted, upgrade_to=known)
    finally:
        await database.close()


async def deployed(shop: Shop, start: Start, url: str, *listeners: str) -> Service:
    """`db upgrade` and then a start."""
    await upgraded(shop, url, *listeners)
    return await start(url)


async def with_two(shop: Shop, start: Start, url: str) -> Service:
    """hear was renamed to take, which was deployed without an alias: each has what it got."""
    notes(shop, listeners=hears("hear"))
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    service = await deployed(shop, start, url, "take")
    await service.send(shop.messages().Write(text="b"))
    return service


def desk_of(service: Service) -> Any:
    """What operators do."""
    operations = service.shop.module("bus.operating.operations")
    return operations.Operations(service.database, service.runtime.catalog)


async def started_again(shop: Shop, start: Start, url: str, **options: object) -> Service:
    """The service after its slices were edited."""
    shop.forget()
    return await start(url, **options)


async def test_old_process_that_starts_again_takes_no_new_listeners_subscription(
    shop: Shop, start: Start, url: str
) -> None:
    """Its x was called y once, and is called z by now, when y is the name of a new one."""
    notes(shop, listeners=hears("x of y"))
    await start(url)
    await deployed(shop, start, url, "z of x", "y")
    shop.forget()
    notes(shop, listeners=hears("x of y"))
    old = await start(url)
    await old.send(old.shop.messages().Write(text="a"))
    await old.runtime.relay.work_off()
    assert shop.seen == ["x a"]
    assert {one.listener: one.state for one in await old.deliveries()} == {
        "notes.z": "done",
        "notes.y": "pending",
    }


async def test_subscriptions_are_written_once(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=HEARS)
    for _ in range(3):
        service = await start(url)
    assert await subscriptions(service) == ["notes.hear"]
    assert await names(service, "listener") == ["notes.hear"]
    assert await names(service, "event") == ["notes.NoteWritten"]


async def test_processes_that_start_at_once_write_them_once(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=HEARS)
    shop.slice("orders", listeners=ORDERS)
    first = await start(url)
    await first.write("DELETE FROM bus_subscription")
    await first.write("DELETE FROM bus_subscription_name")
    databases = [shop.database(url) for _ in range(5)]
    runtimes = [shop.build(database) for database in databases]
    await asyncio.gather(*(runtime.__aenter__() for runtime in runtimes))
    assert await subscriptions(first) == ["notes.hear", "orders.hear"]
    assert len(await first.rows("SELECT * FROM bus_subscription_name")) == 4
    for runtime, database in zip(runtimes, databases, strict=True):
        await runtime.__aexit__(None, None, None)
        await database.close()


async def test_process_with_some_slices_feeds_the_others(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop)
    shop.slice("orders", listeners=ORDERS)
    only_notes = await start(url, slices=("notes",))
    await only_notes.send(shop.messages().Write(text="a"))
    await only_notes.settled()
    assert shop.seen == []
    only_orders = await start(url, slices=("orders",))
    with pytest.raises(
        shop.bus.BusError, match="Write is no command or query of a slice that runs"
    ):
        await only_orders.send(shop.messages().Write(text="b"))
    await only_orders.settled()
    assert shop.seen == ["a"]


async def test_inline_listeners_have_no_subscription(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=HEARS.replace("@listen", "@listen(inline=True)"))
    service = await start(url)
    assert await subscriptions(service) == []


async def test_new_listener_gets_what_comes_from_now_on(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    service = await start(url)
    await service.send(shop.messages().Write(text="before"))
    shop.slice("orders", listeners=ORDERS)
    service = await started_again(shop, start, url)
    await service.send(shop.messages().Write(text="after"))
    await service.settled()
    assert shop.seen == ["after"]
    assert await service.column("SELECT from_position FROM bus_subscription") == [1]


async def test_renamed_listener_keeps_its_deliveries(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=HEARS)
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    renamed = HEARS.replace("hear(", "take(").replace("@listen", "@listen(aliases=('hear',))")
    notes(shop, listeners=renamed)
    service = await started_again(shop, start, url)
    await service.send(shop.messages().Write(text="b"))
    await service.settled()
    assert shop.seen == ["a", "b"]
    assert await names(service, "listener") == ["notes.hear", "notes.take"]
    assert len(await subscriptions(service)) == 1


async def test_old_name_that_is_given_to_a_new_listener_is_that_ones(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=hears("hear"))
    await start(url)
    service = await deployed(shop, start, url, "take of hear")
    await service.send(shop.messages().Write(text="a"))
    service = await deployed(shop, start, url, "take", "hear")
    await service.send(shop.messages().Write(text="b"))
    # In a rolling deploy a process of before starts again: it takes nothing of the new one's.
    shop.forget()
    notes(shop, listeners=hears("take of hear"))
    older = await start(url)
    await older.runtime.relay.work_off()
    assert shop.seen == ["take a", "take b"]
    assert await names(service, "listener") == ["notes.hear", "notes.take"]
    shop.forget()
    notes(shop, listeners=hears("take", "hear"))
    await (await start(url)).settled()
    assert shop.seen == ["take a", "take b", "hear b"]


async def test_process_of_before_a_renaming_finds_its_subscription(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=hears("hear"))
    await start(url)
    await deployed(shop, start, url, "take of hear")
    shop.forget()
    notes(shop, listeners=hears("hear"))
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    await service.settled()
    assert shop.seen == ["hear a"]
    # So it does when an upgrade takes the renaming back.
    await deployed(shop, start, url, "hear")
    assert await subscriptions(service) == ["notes.hear"]


async def test_two_listeners_never_share_a_subscription(shop: Shop, start: Start, url: str) -> None:
    notes(shop, listeners=hears("hear"))
    await start(url)
    await deployed(shop, start, url, "take of hear")
    service = await deployed(shop, start, url, "keep of take")
    both = "notes.hear and notes.take were both names of notes.keep"
    with pytest.raises(shop.bus.WiringError, match=both):
        await upgraded(shop, url, "hear", "take")
    await upgraded(shop, url, "hear of keep", "take")
    assert await subscriptions(service) == ["notes.hear", "notes.take"]


async def test_alias_of_another_subscription_is_refused_until_that_is_retired(
    shop: Shop, start: Start, url: str
) -> None:
    service = await with_two(shop, start, url)
    advice = (
        "notes.hear is an alias of notes.take, but has a subscription beside that of notes.take,"
        ".* `events move notes.hear notes.take`, then `events retire notes.hear`, and upgrade again"
    )
    with pytest.raises(shop.bus.WiringError, match=advice):
        await upgraded(shop, url, "take of hear")
    assert await subscriptions(service) == ["notes.hear", "notes.take"]
    # A start may be that of an older process: it works for what has its name now.
    service = await start(url)
    await service.send(shop.messages().Write(text="c"))
    await service.runtime.relay.work_off()
    assert shop.seen == ["take b", "take c"]
    desk = desk_of(service)
    left = await desk.select_left("move", "notes.hear")
    assert await desk.move(left, "notes.take", who="alice") == 1
    assert await desk.retire("notes.hear", drop=True, who="alice") == 2
    service = await deployed(shop, start, url, "take of hear")
    await service.send(shop.messages().Write(text="d"))
    await service.settled()
    assert shop.seen == ["take b", "take c", "take a", "take d"]
    assert await desk_of(service).check() == []


async def test_subscription_that_nothing_runs_is_told_though_an_alias_names_it(
    shop: Shop, start: Start, url: str, logged: list[Any]
) -> None:
    service = await with_two(shop, start, url)
    shop.forget()
    notes(shop, listeners=hears("take of hear"))
    logged.clear()
    service = await start(url)
    warned = [line["listener"] for line in logged if "no such listener" in line["event"]]
    assert warned == ["notes.hear"]
    [finding] = await desk_of(service).check()
    assert (finding.listener, finding.count) == ("notes.hear", 2)
    with pytest.raises(Exception, match=r"notes.take is still in this code"):
        await desk_of(service).retire("notes.take", who="alice")


async def test_alias_of_two_subscriptions_is_refused_though_its_own_is_retired(
    shop: Shop, start: Start, url: str
) -> None:
    service = await with_two(shop, start, url)
    service = await deployed(shop, start, url, "hear")
    await desk_of(service).retire("notes.take", who="alice")
    with pytest.raises(shop.bus.WiringError, match=r"`events resume notes.take`, then `events m"):
        await upgraded(shop, url, "take of hear")


async def test_two_listeners_become_one_when_the_second_is_moved_and_retired(
    shop: Shop, start: Start, url: str
) -> None:
    await with_two(shop, start, url)
    with pytest.raises(shop.bus.WiringError, match=r"`events move notes.take notes.hear`"):
        await upgraded(shop, url, "keep of hear take")
    desk = desk_of(await start(url))
    left = await desk.select_left("move", "notes.take")
    # The other has got "b" as well.
    assert await desk.move(left, "notes.hear", who="alice") == 0
    await desk.retire("notes.take", drop=True, who="alice")
    service = await deployed(shop, start, url, "keep of hear take")
    await service.settled()
    assert shop.seen == ["keep a", "keep b"]
    assert await subscriptions(service) == ["notes.keep", "notes.take"]


async def test_renamed_event_reaches_its_listeners(shop: Shop, start: Start, url: str) -> None:
    notes(shop)
    shop.slice("orders", listeners=ORDERS)
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    notes(
        shop,
        contracts="""
        class NoteTaken(Event, key="text", aliases=("NoteWritten",)):
            text: str
        """,
    )
    contracts = shop.slices / "notes" / "contracts.py"
    contracts.write_text(
        "\n".join(
            line for line in contracts.read_text().splitlines() if "class NoteWritten" not in line
        ).replace("    text: str\n\n", "\n", 1)
    )
    handlers = shop.slices / "notes" / "handlers.py"
    handlers.write_text(handlers.read_text().replace("NoteWritten", "NoteTaken"))
    shop.slice("orders", listeners=ORDERS.replace("NoteWritten", "NoteTaken"))
    service = await started_again(shop, start, url)
    await service.send(shop.messages().Write(text="b"))
    # An older process still publishes it under the old name.
    await service.write(
        "UPDATE bus_event SET name = 'notes.NoteWritten' WHERE name = 'notes.NoteTaken'"
    )
    await service.settled()
    assert sorted(shop.seen) == ["a", "b"]
    assert await names(service, "event") == ["notes.NoteTaken", "notes.NoteWritten"]


async def test_listener_of_a_union_gets_each_event_once(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        "@handle\nasync def run(command: Run, bus: Bus) -> None:\n"
        "    bus.publish(NoteWritten(text='w')); bus.publish(NoteRead(text='r'))",
        contracts="class NoteRead(Event, key='text'):\n    text: str",
        listeners=HEARS.replace("NoteWritten", "NoteWritten | NoteRead"),
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    await service.settled()
    assert shop.seen == ["w", "r"]


async def test_listener_that_is_gone_keeps_its_deliveries(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=HEARS)
    await start(url)
    notes(shop, listeners="")
    service = await started_again(shop, start, url)
    await service.send(shop.messages().Write(text="a"))
    await service.settled()
    assert [one.state for one in await service.deliveries()] == ["pending"]
    assert shop.seen == []
    notes(shop, listeners=HEARS)
    service = await started_again(shop, start, url)
    await service.settled()
    assert shop.seen == ["a"]


async def test_retired_subscription_gets_nothing_and_a_start_does_not_revive_it(
    shop: Shop, start: Start, url: str
) -> None:
    notes(shop, listeners=HEARS)
    service = await start(url)
    await service.write(
        sa.update(shop.tables.subscription).values(retired_at=sa.func.current_timestamp())
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    assert await service.deliveries() == []


async def test_older_process_that_starts_again_does_not_unsubscribe_newer_code(
    shop: Shop, start: Start, url: str
) -> None:
    contracts = "class NoteRead(Event, key='text'):\n    text: str"
    notes(shop, contracts=contracts, listeners=HEARS)
    await start(url)
    notes(
        shop, contracts=contracts, listeners=HEARS.replace("NoteWritten", "NoteWritten | NoteRead")
    )
    await started_again(shop, start, url)
    notes(shop, contracts=contracts, listeners=HEARS)
    service = await started_again(shop, start, url)
    assert await names(service, "event") == ["notes.NoteRead", "notes.NoteWritten"]


@pytest.mark.parametrize("url", ["sqlite:////nowhere/shop.db", "postgresql://localhost:1/shop"])
async def test_database_that_is_gone_by_now_is_told_in_a_line(shop: Shop, url: str) -> None:
    notes(shop, listeners="@listen\nasync def hear(event: NoteWritten) -> None: ...")
    runtime = shop.build(shop.database(url))
    gone = shop.module("bus.errors").UnreachableError
    with pytest.raises(gone, match=f"{url} cannot be reached: [^\n]+$"):
        async with runtime:
            pass


async def test_upgrade_forgets_an_event_only_if_its_code_knows_that(
    shop: Shop, start: Start, url: str, logged: list[Any]
) -> None:
    notes(shop, listeners=HEARS, contracts="class Gone(Event, key='text'):\n    text: str\n")
    service = await start(url)
    subscribing = shop.module("bus.subscriptions")
    for event in ("notes.Gone", "notes.Newer"):
        await service.write(
            f"INSERT INTO bus_subscription_name VALUES ('event', '{event}', (SELECT max(id) FROM"
            " bus_subscription))"
        )
    # A start, of an older process maybe, forgets nothing.
    catalog = service.runtime.catalog
    wanted, known = subscribing.wanted_by(catalog), subscribing.names_of_events(catalog)
    await subscribing.subscribe(service.database, wanted)
    stored = ["notes.Gone", "notes.Newer", "notes.NoteWritten"]
    assert await names(service, "event") == stored
    await subscribing.subscribe(service.database, wanted, upgrade_to=known)
    assert await names(service, "event") == ["notes.Newer", "notes.NoteWritten"]
    [warning] = [line for line in logged if line["log_level"] == "warning"]
    assert (warning["listener"], warning["events"]) == ("notes.hear", ["notes.Gone"])


async def test_log_that_others_keep_locked_is_told(
    shop: Shop, start: Start, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes(shop)
    service = await start(postgresql_url)
    monkeypatch.setattr(shop.module("bus.subscriptions"), "_MOST_TRIES", 1)
    notes(shop, listeners=HEARS)
    shop.forget()
    async with service.database.writer.begin() as connection:
        # As VACUUM does.
        await connection.execute(sa.text("LOCK TABLE bus_event IN SHARE UPDATE EXCLUSIVE MODE"))
        with pytest.raises(shop.module("bus.errors").OperationError, match="kept bus_event locked"):
            await start(postgresql_url)
