"""A command sent again under its idempotency key: the first result, and no second effect."""

import asyncio
import datetime as dt
import textwrap
from typing import Any

import pytest
import sqlalchemy as sa

from .conftest import Service, Shop, Start, notes

pytestmark = pytest.mark.anyio

# A command that writes, waits for a gate if told to, and answers with something new each time.
ADD = """
class Added(View):
    id: UUID
    amount: Decimal
    at: dt.datetime
class Add(Command[Added]):
    text: str
    wait: bool = False
    fail: bool = False
class Tagged(Command[int]):
    tags: frozenset[str]
class Touch(Command[None]):
    pass
"""
HANDLERS = """
@handle
async def add(command: Add, session: AsyncSession, bus: Bus) -> Added:
    seen.append(command.text)
    if command.wait:
        gate("inside").set()
        await gate("go on").wait()
    session.add(Note(text=f"{command.text} {uuid4()}"))
    bus.publish(NoteWritten(text=command.text))
    if command.fail and not gate("mended").is_set():
        raise LookupError("failed")
    return Added(id=uuid4(), amount=Decimal("1.50"), at=dt.datetime.now(dt.UTC))
@handle
async def tagged(command: Tagged) -> int:
    seen.append(sorted(command.tags))
    return len(seen)
@handle
def touch(command: Touch) -> None:
    seen.append("touched")
"""


def slice_(shop: Shop, handlers: str = "", messages: str = "", **more: str) -> None:
    run, messages = HANDLERS + textwrap.dedent(handlers), ADD + textwrap.dedent(messages)
    notes(shop, run, messages=messages, **more)


async def rows(service: Service) -> list[Any]:
    """The keys that are stored."""
    return await service.rows(sa.select(service.shop.tables.idempotency))


async def send(service: Service, command: Any, key: str = "k", user: str | None = None) -> Any:
    """Send under a key, for a user."""
    known = service.shop.bus.User(user) if user else None
    return await service.bus(user=known).send(command, idempotency_key=key)


async def expire(service: Service) -> None:
    """As if a long time had passed."""
    past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
    await service.write(sa.update(service.shop.tables.idempotency).values(expires_at=past))


async def test_same_key_gets_the_first_token(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    first, again, another = service.bus(), service.bus(), service.bus()
    add = shop.messages().Add(text="a")
    await first.send(add, idempotency_key="k")
    await again.send(add, idempotency_key="k")
    await another.send(add, idempotency_key="l")
    assert again.published == first.published != ""
    assert another.published not in ("", first.published)
    touching = service.bus()
    await touching.send(shop.messages().Touch(), idempotency_key="k")
    await touching.send(shop.messages().Touch(), idempotency_key="k")
    assert touching.published == ""


async def test_same_key_gets_the_first_result(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    add = shop.messages().Add(text="a")
    first = await send(service, add)
    again = await send(service, add)
    assert (again, type(again)) == (first, shop.messages().Added)
    assert shop.seen == ["a"]
    assert len(await service.texts()) == len(await service.events()) == 1
    assert await send(service, add, key="other") != first
    assert shop.seen == ["a", "a"]


async def test_without_a_key_every_send_runs(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    for _ in range(2):
        await service.send(shop.messages().Add(text="a"))
    assert shop.seen == ["a", "a"]
    assert await rows(service) == []


async def test_bus_of_a_request_carries_its_key(shop: Shop, start: Start, url: str) -> None:
    slice_(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Add(text="b"))
            await bus.send(Add(text="b"))
        """,
    )
    service = await start(url)
    bus = service.runtime.bus(None, "k")
    messages = shop.messages()
    first = await bus.send(messages.Add(text="a"))
    await bus.send(messages.Touch())
    await bus.send(messages.Run())
    assert await service.runtime.bus(None, "k").send(messages.Add(text="a")) == first
    # What a handler sends has no key of its own: it is part of what the outermost send did.
    assert shop.seen == ["a", "touched", "b", "b"]
    with pytest.raises(shop.bus.IdempotencyKeyError, match="with different data"):
        await bus.send(messages.Add(text="other"))
    assert await bus.send(messages.Add(text="other"), idempotency_key="k2") != first
    assert {(row.command, row.key) for row in await rows(service)} == {
        ("notes.Add", "k"),
        ("notes.Add", "k2"),
        ("notes.Touch", "k"),
        ("notes.Run", "k"),
    }


async def test_different_data_under_the_same_key_is_refused(
    shop: Shop, start: Start, url: str
) -> None:
    slice_(shop)
    service = await start(url)
    await send(service, shop.messages().Add(text="a"))
    with pytest.raises(shop.bus.IdempotencyKeyError, match="used before, with different data"):
        await send(service, shop.messages().Add(text="b"))
    assert shop.seen == ["a"]
    assert len(await service.texts()) == 1


async def test_keys_belong_to_a_user(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    long = "x" * 500
    for user in ("alice", "bob", None, long, long, long + "y"):
        await send(service, shop.messages().Touch(), user=user)
    assert len(shop.seen) == 5
    assert {"alice", "bob", ""} < {row.user_id for row in await rows(service)}


async def test_duplicates_at_once_run_once(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    one, two = await start(url), await start(url)
    add = shop.messages().Add(text="a", wait=True)
    sent = [asyncio.create_task(send(service, add)) for service in (one, two, one, two)]
    await shop.gate("inside").wait()
    shop.gate("go on").set()
    first, *others = await asyncio.gather(*sent)
    assert others == [first] * 3
    assert shop.seen == ["a"]
    assert len(await one.texts()) == 1


async def test_duplicate_waits_for_the_first_and_runs_if_that_fails(
    shop: Shop, start: Start, url: str
) -> None:
    slice_(shop)
    service = await start(url)
    add = shop.messages().Add(text="a", wait=True, fail=True)
    first = asyncio.create_task(send(service, add))
    await shop.gate("inside").wait()
    second = asyncio.create_task(send(service, add))
    if service.database.dialect == "postgresql":
        await waiting_for_a_lock(service)
    shop.gate("go on").set()
    with pytest.raises(LookupError):
        await first
    with pytest.raises(LookupError):
        await second
    assert shop.seen == ["a", "a"]
    assert (await rows(service), await service.texts()) == ([], [])


async def test_cancelled_command_leaves_its_key_free(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    add = shop.messages().Add(text="a", wait=True)
    first = asyncio.create_task(send(service, add))
    await shop.gate("inside").wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    shop.gate("go on").set()
    await send(service, add)
    assert shop.seen == ["a", "a"]
    assert len(await service.texts()) == 1


async def test_failed_command_stores_nothing(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    add = shop.messages().Add(text="a", fail=True)
    with pytest.raises(LookupError, match="failed"):
        await send(service, add)
    assert (await rows(service), await service.texts()) == ([], [])
    shop.gate("mended").set()
    await send(service, add)
    assert shop.seen == ["a", "a"]
    assert len(await rows(service)) == len(await service.texts()) == 1


async def test_command_that_fails_at_the_commit_stores_nothing(
    shop: Shop, start: Start, url: str
) -> None:
    slice_(shop)
    service = await start(url)
    write = shop.messages().Write(text="a")
    await service.send(write)
    with pytest.raises(sa.exc.IntegrityError):
        await send(service, write)
    assert await rows(service) == []


async def test_transient_error_runs_the_unit_again(
    shop: Shop, start: Start, postgresql_url: str
) -> None:
    slice_(
        shop,
        """
        from shop.bus import Context
        @handle
        async def run(command: Run, session: AsyncSession) -> None:
            seen.append("run")
            session.add(Note(text=str(len(seen))))
            await session.flush()
            if len(seen) < 3:
                raise_40001 = "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"
                await session.execute(text(raise_40001))
        """,
    )
    service = await start(postgresql_url)
    for _ in range(2):
        await send(service, shop.messages().Run())
    assert shop.seen == ["run"] * 3
    assert await service.texts() == ["3"]
    assert len(await rows(service)) == 1


async def test_guards_decide_before_a_stored_result_is_given(
    shop: Shop, start: Start, url: str
) -> None:
    slice_(
        shop,
        """
        @guard
        async def allow(command: Add, context: Context) -> None:
            seen.append("guard")
            if gate("closed").is_set():
                raise PermissionError
        @guard
        async def twice(command: Touch, proceed: Proceed) -> Any:
            await proceed()
            return await proceed()
        @guard
        async def until_it_works(command: Add, bus: Bus, proceed: Proceed) -> Any:
            try:
                async with bus.savepoint():
                    return await proceed()
            except LookupError:
                gate("mended").set()
                return await proceed()
        """,
    )
    service = await start(url)
    add = shop.messages().Add(text="a")
    first = await send(service, add)
    assert await send(service, add) == first
    assert shop.seen == ["guard", "a", "guard"]
    shop.gate("closed").set()
    with pytest.raises(PermissionError):
        await send(service, add)
    shop.gate("closed").clear()
    shop.seen.clear()
    await send(service, shop.messages().Touch())
    assert shop.seen == ["touched"]
    # What has no result yet is run again by a guard that goes on twice.
    await send(service, shop.messages().Add(text="b", fail=True), key="k2")
    assert shop.seen == ["touched", "guard", "b", "b"]
    shop.gate("mended").clear()
    await expire(service)
    await send(service, shop.messages().Add(text="b", fail=True), key="k2")
    assert shop.seen == ["touched", *["guard", "b", "b"] * 2]


async def test_command_without_a_unit_gets_one_for_its_key(
    shop: Shop, start: Start, url: str
) -> None:
    slice_(shop)
    service = await start(url)
    for _ in range(2):
        assert await send(service, shop.messages().Touch()) is None
    assert shop.seen == ["touched"]


async def test_query_ignores_the_key(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    assert await send(service, shop.messages().Count(), key="") == 0
    await service.send(shop.messages().Add(text="a"))
    assert await service.runtime.bus(None, "k").send(shop.messages().Count()) == 1
    assert await service.runtime.bus(None, "k").send(shop.messages().Count()) == 1
    assert await rows(service) == []


async def test_key_within_a_unit_is_refused(shop: Shop, start: Start, url: str) -> None:
    slice_(
        shop,
        """
        @handle
        async def run(command: Run, bus: Bus) -> None:
            await bus.send(Touch(), idempotency_key="k")
        """,
    )
    service = await start(url)
    with pytest.raises(shop.bus.BusError, match="give the key to the outermost send"):
        await service.send(shop.messages().Run())
    assert shop.seen == []


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "k\n", "schlüssel", "\0"])
async def test_what_is_no_key_is_refused(
    shop: Shop, start: Start, sqlite_url: str, key: str
) -> None:
    slice_(shop)
    service = await start(sqlite_url)
    refused = pytest.raises(shop.bus.IdempotencyKeyError, match="1 to 200 printable ASCII")
    with refused:
        await send(service, shop.messages().Touch(), key=key)
    with refused:
        await service.runtime.bus(None, key).send(shop.messages().Touch())
    assert shop.seen == []


async def test_expired_key_counts_no_more(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url, key_lifetime=dt.timedelta(hours=2))
    first = await send(service, shop.messages().Add(text="a"))
    (row,) = await rows(service)
    assert row.expires_at - row.created_at == dt.timedelta(hours=2)
    await expire(service)
    second = await send(service, shop.messages().Add(text="b"))
    assert await send(service, shop.messages().Add(text="b")) == second != first
    assert shop.seen == ["a", "b"]
    (row,) = await rows(service)
    assert row.expires_at > dt.datetime.now(dt.UTC)


async def test_failure_does_not_replace_an_expired_key(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    await send(service, shop.messages().Add(text="a"))
    await expire(service)
    before = await rows(service)
    with pytest.raises(LookupError):
        await send(service, shop.messages().Add(text="b", fail=True))
    assert await rows(service) == before


async def remove_expired(service: Service, limit: int) -> int:
    remove = service.shop.module("bus.idempotency").remove_expired
    async with service.database.writer.begin() as connection:
        removed: int = await remove(connection, dt.datetime.now(dt.UTC), limit)
        return removed


async def test_expired_keys_are_removed(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    for key in "abc":
        await send(service, shop.messages().Touch(), key=key)
    await expire(service)
    await send(service, shop.messages().Touch(), key="d")
    assert [await remove_expired(service, 2) for _ in range(3)] == [2, 1, 0]
    assert [row.key for row in await rows(service)] == ["d"]


async def test_key_in_use_again_is_not_removed(shop: Shop, start: Start, url: str) -> None:
    slice_(shop)
    service = await start(url)
    await send(service, shop.messages().Add(text="a"))
    await expire(service)
    again = asyncio.create_task(send(service, shop.messages().Add(text="b", wait=True)))
    await shop.gate("inside").wait()
    removing = asyncio.create_task(remove_expired(service, 10))
    if service.database.dialect == "postgresql":
        # It does not wait for the command.
        async with asyncio.timeout(10):
            assert await removing == 0
    shop.gate("go on").set()
    await again
    assert await removing == 0
    assert len(await rows(service)) == 1


async def test_result_comes_back_as_its_type(shop: Shop, start: Start, url: str) -> None:
    slice_(
        shop,
        messages="""
        from pydantic import ConfigDict, Field, computed_field
        class Odd(View):
            model_config = ConfigDict(strict=True, extra="forbid")
            id: UUID = Field(alias="theId")
            sizes: dict[UUID, tuple[Decimal, ...]]
            @computed_field
            @property
            def label(self) -> str:
                return str(self.id)
        class Ask(Command["list[Odd] | None"]):
            some: bool
        """,
        handlers="""
        @handle
        async def ask(command: Ask) -> list[Odd] | None:
            seen.append(command.some)
            sizes = {uuid4(): (Decimal("1.20"), Decimal(3))}
            return [Odd(theId=uuid4(), sizes=sizes)] if command.some else None
        """,
    )
    service = await start(url)
    for some in (True, False):
        ask = shop.messages().Ask(some=some)
        first = await send(service, ask, key=str(some))
        assert await send(service, ask, key=str(some)) == first
    assert shop.seen == [True, False]


@pytest.mark.parametrize(
    ("result", "runs"),
    [
        ("Handle", 0),  # No schema.
        ("Hidden", 1),  # A schema, but what it writes cannot be read.
    ],
)
async def test_result_that_could_not_be_given_back_is_refused(
    shop: Shop, start: Start, url: str, result: str, runs: int
) -> None:
    slice_(
        shop,
        messages=f"""
        from pydantic import Field
        class Handle:
            pass
        class Hidden(View):
            id: int = Field(1, exclude=True)
            other: int = Field(exclude=True)
        class Make(Command[{result}]):
            pass
        """,
        handlers=f"""
        @handle
        async def make(command: Make, session: AsyncSession) -> {result}:
            seen.append("made")
            session.add(Note(text=str(uuid4())))
            return Handle() if {result} is Handle else Hidden(other=2)
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Make())
    shop.seen.clear()
    with pytest.raises(shop.bus.BusError, match=rf"notes.Make .*{result}.* written as JSON"):
        await send(service, shop.messages().Make())
    assert len(shop.seen) == runs
    assert await rows(service) == []
    assert len(await service.texts()) == 1


async def test_data_is_compared_by_what_it_says(shop: Shop, start: Start, sqlite_url: str) -> None:
    slice_(
        shop,
        messages="""
        from typing import Literal
        from pydantic import Field, SecretStr
        class Card(Message):
            kind: Literal["card"] = "card"
        class Transfer(Message):
            kind: Literal["transfer"] = "transfer"
        class Pay(Command[None]):
            method: Card | Transfer
        class Change(Command[None]):
            password: SecretStr
            sizes: dict[UUID, int] = {}
            made_up: UUID = Field(default_factory=uuid4)
            content: bytes = b""
        """,
        handlers="""
        @handle
        async def pay(command: Pay) -> None: ...
        @handle
        async def change(command: Change) -> None:
            seen.append(command)
        """,
    )
    await start(sqlite_url)
    messages = shop.messages()
    of = shop.module("bus.idempotency").fingerprint
    ids = ["00000000-0000-0000-0000-00000000000" + digit for digit in "12"]
    sizes = {ids[0]: 1, ids[1]: 2}
    turned = dict(reversed(sizes.items()))
    same = [
        messages.Change(password="a", sizes=sizes),
        messages.Change(password="a", sizes=turned),
    ]
    assert of(same[0]) == of(same[1])
    assert of(messages.Change(password="a")) == of(messages.Change(password="a", sizes={}))
    different = [
        *same[:1],
        messages.Change(password="b", sizes=sizes),
        messages.Change(password="a", sizes={ids[0]: 1}),
        messages.Change(password="a"),
        messages.Change(password="a", content=b"_w=="),
        messages.Change(password="a", content=b"\xff"),
        messages.Change(password="a", content=b"\xfe"),
        messages.Tagged(tags={"a", "b"}),
        messages.Tagged(tags={"a"}),
    ]
    assert len({of(one) for one in different}) == len(different)
    kinds = [{"kind": "card"}, {"kind": "transfer"}]
    assert len({of(messages.Pay(method=one)) for one in kinds}) == 2
    many = [str(number) for number in range(20)]
    forwards, backwards = frozenset(many), frozenset(reversed(many))
    assert of(messages.Tagged(tags=forwards)) == of(messages.Tagged(tags=backwards))


async def test_key_without_a_database_is_refused(shop: Shop) -> None:
    shop.slice(
        "plain",
        messages="class Touch(Command[None]): ...",
        handlers="@handle\nasync def touch(command: Touch) -> None: ...",
    )
    async with shop.build() as runtime:
        await runtime.bus().send(shop.messages("plain").Touch())
        with pytest.raises(shop.bus.BusError, match="without a database"):
            await runtime.bus(None, "k").send(shop.messages("plain").Touch())


async def waiting_for_a_lock(service: Service) -> None:
    """Wait until the database keeps somebody waiting."""
    held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while await service.column(held) == [0]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
