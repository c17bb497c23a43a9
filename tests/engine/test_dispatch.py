"""From a message to its handler: guards, nested sends, context, dependencies."""

import asyncio

import pytest

from .conftest import Service, Shop, Start, notes, until

pytestmark = pytest.mark.anyio

PAY = """
    class Pay(Command[str]):
        text: str = ""
    class Refund(Command[str]): ...
    class Find(Query[str]): ...
"""
PAID = """
    @handle
    async def pay(command: Pay) -> str:
        seen.append("pay")
        return "paid"
    @handle
    async def refund(command: Refund) -> str:
        return "refunded"
    @handle
    async def find(query: Find) -> str:
        seen.append("find")
        return "found"
"""


async def open_bus(shop: Shop, **options: object) -> Service:
    """A bus without a database."""
    return Service(shop, await shop.build(**options).__aenter__())


async def payments(shop: Shop, handlers: str, messages: str = PAY, **more: str) -> Service:
    shop.slice("payments", messages=messages, handlers=handlers, **more)
    return await open_bus(shop)


async def test_message_reaches_its_handler(shop: Shop) -> None:
    service = await payments(shop, PAID)
    assert await service.send(shop.messages("payments").Pay()) == "paid"
    assert await service.send(shop.messages("payments").Find()) == "found"


async def test_unknown_message_is_explained(shop: Shop) -> None:
    service = await payments(shop, PAID)
    with pytest.raises(shop.bus.BusError, match="Command is no command or query of a slice"):
        await service.send(shop.bus.Command())


# Guards


async def test_guard_refuses_by_raising(shop: Shop) -> None:
    guard = """
    @guard
    def refuse(command: Pay) -> None:
        if command.text == "bad":
            raise PermissionError
    """
    service = await payments(shop, PAID + guard)
    with pytest.raises(PermissionError):
        await service.send(shop.messages("payments").Pay(text="bad"))
    assert shop.seen == []
    assert await service.send(shop.messages("payments").Pay()) == "paid"


async def test_guard_covers_subtypes_and_mixins(shop: Shop) -> None:
    messages = """
    class Secret: ...
    class Base(Command[str]): ...
    class Pay(Base, Secret): ...
    class Find(Query[str], Secret): ...
    class Other(Command[str]): ...
    """
    handlers = "\n".join(
        f"@handle\nasync def {name.lower()}(message: {name}) -> str: return '{name}'"
        for name in ("Pay", "Find", "Other")
    )
    for kind in ("Base", "Secret", "Query[Any]", "Command[Any]", "Command", "Message"):
        name = "".join(letter for letter in kind if letter.isalpha()).lower()
        handlers += (
            f"\n@guard\ndef guard_{name}(message: {kind}) -> None: seen.append('{kind}')"
            f"\n@guard(queries=False)\nasync def commands_{name}(message: {kind}) -> None:"
            f" seen.append('only {kind}')"
        )
    service = await payments(shop, handlers, messages)
    everything = ["Command[Any]", "Command", "Message"]
    for name, kinds in [("Pay", ["Base", "Secret"]), ("Other", [])]:
        await service.send(getattr(shop.messages("payments"), name)())
        kinds = kinds + everything
        assert shop.seen == [text for kind in kinds for text in (kind, f"only {kind}")]
        shop.seen.clear()
    await service.send(shop.messages("payments").Find())
    assert shop.seen == ["Secret", "Query[Any]", *everything]


async def test_guards_run_in_their_order_around_and_before(shop: Shop) -> None:
    guards = """
    @guard
    async def outer(command: Pay, proceed: Proceed) -> Any:
        seen.append("outer in")
        answer = await proceed()
        seen.append("outer out")
        return answer + "!"
    @guard
    def before(command: Command[Any]) -> None:
        seen.append("before")
    @guard
    async def awaiting(command: Pay, context: Context) -> None:
        await asyncio.sleep(0)
        seen.append("awaiting")
    @guard
    async def inner(command: Pay, context: Context, proceed: Proceed) -> Any:
        seen.append("inner in")
        try:
            return await proceed()
        finally:
            seen.append("inner out")
    """
    service = await payments(shop, guards + PAID)
    assert await service.send(shop.messages("payments").Pay()) == "paid!"
    inner = ["before", "awaiting", "inner in", "pay", "inner out"]
    assert shop.seen == ["outer in", *inner, "outer out"]


async def test_guards_of_the_service_run_before_those_of_a_slice(shop: Shop) -> None:
    shop.write(
        "base/auth.py",
        """
        from shop.names import *
        @guard
        def signed_in(command: Command[Any], context: Context) -> None:
            seen.append("service")
            if context.user is None:
                raise PermissionError
        """,
    )
    guard = "\n    @guard\n    def own(command: Pay) -> None: seen.append('slice')\n"
    service = await payments(shop, PAID + guard)
    with pytest.raises(PermissionError):
        await service.send(shop.messages("payments").Pay())
    assert shop.seen == ["service"]
    user = shop.bus.User("alice")
    assert await service.bus(user=user).send(shop.messages("payments").Pay()) == "paid"
    assert shop.seen == ["service", "service", "slice", "pay"]


async def test_service_may_have_guards_of_its_own(shop: Shop) -> None:
    shop.write(
        "guards.py",
        """
        from shop.names import *
        @guard
        def limit(command: Command[Any]) -> None:
            seen.append("limit")
        """,
    )
    service = await payments(shop, PAID)
    await service.send(shop.messages("payments").Pay())
    assert shop.seen == ["limit", "pay"]


async def test_guard_runs_for_nested_sends_too(shop: Shop) -> None:
    handlers = """
    @handle
    async def pay(command: Pay, bus: Bus) -> str:
        return await bus.send(Refund())
    @handle
    async def refund(command: Refund) -> str: return ""
    @handle
    async def find(query: Find) -> str: return ""
    @guard
    def count(command: Command[Any]) -> None: seen.append(type(command).__name__)
    """
    service = await payments(shop, handlers)
    await service.send(shop.messages("payments").Pay())
    assert shop.seen == ["Pay", "Refund"]


async def test_guard_uses_the_session_of_the_unit(shop: Shop, start: Start, url: str) -> None:
    notes(
        shop,
        """
        @guard
        async def count_before(command: Write, session: AsyncSession, bus: Bus) -> None:
            seen.append(await bus.send(Count()))
            if seen[-1] > 1:
                raise PermissionError
        @guard
        async def around(command: Write, session: AsyncSession, proceed: Proceed) -> None:
            session.add(Note(text="around " + command.text))
            await proceed()
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Write(text="a"))
    with pytest.raises(PermissionError):
        await service.send(shop.messages().Write(text="b"))
    assert shop.seen == [0, 2]
    assert await service.texts() == ["a", "around a"]


async def test_guard_that_asks_for_the_session_makes_the_unit(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run) -> None: ...
        @guard
        async def log(command: Run, session: AsyncSession) -> None:
            session.add(Note(text="log"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    assert await service.texts() == ["log"]


# Plain functions


async def test_plain_handler_runs_in_a_thread(shop: Shop) -> None:
    handlers = """
    @handle
    def pay(command: Pay, context: Context) -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        return context.correlation_id
    @handle
    def refund(command: Refund) -> str: raise LookupError
    @handle
    def find(query: Find) -> str: return "found"
    """
    service = await payments(shop, handlers)
    answer = await service.bus(correlation_id="c1").send(shop.messages("payments").Pay())
    assert (answer, shop.seen) == ("c1", [False])
    assert await service.send(shop.messages("payments").Find()) == "found"
    with pytest.raises(LookupError):
        await service.send(shop.messages("payments").Refund())


async def test_plain_functions_that_hang_keep_nobody_waiting(shop: Shop) -> None:
    handlers = """
    free = threading.Event()
    @handle
    def pay(command: Pay) -> str:
        seen.append(threading.current_thread().daemon)
        free.wait()
        return "paid"
    @handle
    async def refund(command: Refund) -> str: return "refunded"
    @handle
    def find(query: Find) -> str: return "found"
    """
    service = await payments(shop, handlers)
    messages = shop.messages("payments")
    hanging = [asyncio.create_task(service.send(messages.Pay())) for _ in range(50)]
    await until(lambda: len(shop.seen) == 50)
    hanging.pop().cancel()
    assert await asyncio.wait_for(service.send(messages.Find()), 5) == "found"
    assert all(shop.seen)  # They do not keep the process alive either.
    shop.module("slices.payments.handlers").free.set()
    assert await asyncio.gather(*hanging) == ["paid"] * len(hanging)


async def test_plain_function_that_returns_what_is_to_be_awaited_has_failed(shop: Shop) -> None:
    handlers = """
    async def later() -> str: return "paid"
    @handle
    def pay(command: Pay) -> str: return later()
    @handle
    async def refund(command: Refund) -> str: return "refunded"
    @handle
    async def find(query: Find) -> str: return "found"
    @guard
    def check(command: Refund) -> None: return later()
    """
    service = await payments(shop, handlers)
    messages = shop.messages("payments")
    with pytest.raises(shop.bus.BusError, match="pay is a plain function and returned"):
        await service.send(messages.Pay())
    with pytest.raises(shop.bus.BusError, match="check is a plain function and returned"):
        await service.send(messages.Refund())


# Context


async def test_context_travels_into_listeners_and_what_they_cause(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        class Second(Event, key="text"):
            text: str
        @handle
        async def run(command: Run, session: AsyncSession, bus: Bus, context: Context) -> None:
            seen.append((command.text, context, bus.context))
            bus.publish(Second(text=command.text))
        """,
        listeners="""
        @listen
        def next(event: NoteWritten) -> Run: return Run(text="next")
        @listen
        async def last(event: Second, context: Context) -> None:
            seen.append(("last", context, context))
        """,
    )
    service = await start(url)
    bus = shop.bus
    trace = {"traceparent": "00-1-2-01", "tracestate": "a=b"}
    context = bus.Context(user=bus.User("alice", ("admin",)), correlation_id="c1", trace=trace)
    await service.runtime.bus(context).send(shop.messages().Write(text="a"))
    await service.settled()
    written, second = await service.events()
    assert (written.correlation_id, written.causation_id) == ("c1", None)
    assert (second.correlation_id, second.causation_id) == ("c1", written.id)
    assert [name for name, *_ in shop.seen] == ["next", "last"]
    for (_, given, of_bus), cause in zip(shop.seen, [written.id, second.id], strict=True):
        assert given == of_bus
        assert (given.user, given.trace) == (context.user, trace)
        assert (given.correlation_id, given.causation_id) == ("c1", cause)


async def test_context_is_inherited_by_nested_sends(shop: Shop) -> None:
    handlers = """
    @handle
    async def pay(command: Pay, bus: Bus) -> str: return await bus.send(Refund())
    @handle
    async def refund(command: Refund, context: Context) -> str: return context.user.id
    @handle
    async def find(query: Find) -> str: return ""
    """
    service = await payments(shop, handlers)
    user = shop.bus.User("alice")
    assert await service.bus(user=user).send(shop.messages("payments").Pay()) == "alice"


async def test_each_request_without_a_context_has_a_correlation_of_its_own(shop: Shop) -> None:
    context = shop.bus.Context
    assert context().correlation_id != context().correlation_id


# Dependencies

SETTINGS = """
    class PaymentSettings(BaseSettings):
        limit: int = 7
"""
PROVIDERS = """
    class Client:
        open = True
    class Gateway:
        def __init__(self, client: Client, settings: PaymentSettings) -> None:
            self.client, self.settings = client, settings
    class Basket: ...
    class Services(Provider):
        gateway = provide(Gateway, scope=Scope.APP)
        @provide(scope=Scope.APP)
        async def client(self) -> AsyncIterator[Client]:
            client = Client()
            seen.append("open client")
            yield client
            client.open = False
            seen.append("close client")
        @provide(scope=Scope.REQUEST)
        async def basket(self, context: Context) -> AsyncIterator[Basket]:
            basket = Basket()
            basket.context = context
            seen.append("open basket")
            yield basket
            seen.append("close basket")
"""
TAKES = """
    @handle
    async def pay(command: Pay, {parameters}) -> str:
        {body}
    @handle
    async def refund(command: Refund) -> str: return ""
    @handle
    async def find(query: Find) -> str: return ""
"""


def takes(parameters: str, body: str) -> dict[str, str]:
    handlers = TAKES.format(parameters=parameters, body=body)
    return {
        "messages": PAY,
        "settings": SETTINGS,
        "providers": PROVIDERS,
        "handlers": handlers,
    }


async def test_settings_of_the_slice(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMIT", "9")
    shop.slice("payments", **takes("settings: PaymentSettings", "return str(settings.limit)"))
    service = await open_bus(shop)
    assert await service.send(shop.messages("payments").Pay()) == "9"


async def test_settings_of_the_service(shop: Shop) -> None:
    settings = "from pydantic_settings import BaseSettings\nclass Settings(BaseSettings):\n  x: int"
    shop.write("settings.py", settings)
    given = shop.module("settings").Settings(x=3)
    handlers = takes("settings: Settings", "return str(settings.x)")
    handlers["handlers"] = "\n    from shop.settings import Settings" + handlers["handlers"]
    shop.slice("payments", **handlers)
    service = await open_bus(shop, settings=[given])
    assert await service.send(shop.messages("payments").Pay()) == "3"


async def test_settings_are_replaced_in_tests(shop: Shop) -> None:
    shop.slice(
        "payments",
        **takes("s: PaymentSettings, g: Gateway", "return f'{s.limit} {g.settings.limit}'"),
    )
    importer = shop.build()
    settings = shop.module("slices.payments.settings").PaymentSettings
    await importer.wiring.services.container.close()
    service = await open_bus(shop, overrides={settings: settings(limit=5)})
    assert await service.send(shop.messages("payments").Pay()) == "5 5"


async def test_service_of_the_application_lives_as_long_as_it(shop: Shop) -> None:
    shop.slice(
        "payments",
        **takes("g: Gateway, c: Client", "assert g.client is c and c.open; return str(id(g))"),
    )
    async with shop.build() as runtime:
        pay = shop.messages("payments").Pay()
        assert shop.seen == ["open client"]
        assert await runtime.bus().send(pay) == await runtime.bus().send(pay)
    assert shop.seen == ["open client", "close client"]


async def test_service_of_a_message_lives_as_long_as_it(shop: Shop) -> None:
    body = "seen.append('pay'); return basket.context.correlation_id + context.correlation_id"
    shop.slice("payments", **takes("basket: Basket, context: Context", body))
    service = await open_bus(shop)
    bus = service.bus(correlation_id="c")
    assert await bus.send(shop.messages("payments").Pay()) == "cc"
    assert shop.seen == ["open basket", "pay", "close basket"]
    await bus.send(shop.messages("payments").Pay())
    assert shop.seen == ["open basket", "pay", "close basket"] * 2


async def test_service_of_a_message_is_closed_when_the_handler_fails(shop: Shop) -> None:
    shop.slice("payments", **takes("basket: Basket", "raise LookupError"))
    service = await open_bus(shop)
    with pytest.raises(LookupError):
        await service.send(shop.messages("payments").Pay())
    assert shop.seen == ["open basket", "close basket"]


async def test_service_of_a_message_is_closed_when_the_handler_is_cancelled(shop: Shop) -> None:
    shop.slice("payments", **takes("basket: Basket", "await gate('never').wait()"))
    service = await open_bus(shop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await service.send(shop.messages("payments").Pay())
    assert shop.seen == ["open basket", "close basket"]


@pytest.mark.parametrize("kind", ["Gateway", "Client", "Basket"])
async def test_services_are_replaced_in_tests(shop: Shop, kind: str) -> None:
    shop.slice("payments", **takes(f"one: {kind}", "return type(one).__name__"))
    shop.build()
    wanted = getattr(shop.module("slices.payments.providers"), kind)
    fake = type("Fake", (wanted,), {"__init__": lambda self: None})()
    async with shop.build(overrides={wanted: fake}) as runtime:
        assert await runtime.bus().send(shop.messages("payments").Pay()) == "Fake"
    assert shop.seen == []


async def test_services_are_closed_if_the_start_fails(shop: Shop) -> None:
    broken = (
        PROVIDERS + "\n        @provide(scope=Scope.APP)\n        def bad(self, client: Client)"
    )
    broken += " -> Bad: raise LookupError\n    "
    shop.slice(
        "payments",
        **{
            **takes("bad: Bad", "return ''"),
            "providers": "\n    class Bad: ..." + broken,
        },
    )
    with pytest.raises(LookupError):
        await open_bus(shop)
    assert shop.seen == ["open client", "close client"]


async def test_service_of_a_message_shares_the_session_of_the_unit(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @handle
        async def run(command: Run, notebook: Notebook, session: AsyncSession) -> None:
            assert notebook.session is session
            notebook.session.add(Note(text="a"))
        """,
        providers="""
        @dataclass
        class Notebook:
            session: AsyncSession
            bus: Bus
        class Services(Provider):
            notebook = provide(Notebook, scope=Scope.REQUEST)
        """,
        listeners="""
        @listen
        async def hear(event: NoteWritten, notebook: Notebook, context: Context) -> None:
            seen.append(context.causation_id)
            notebook.session.add(Note(text="heard"))
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    await service.send(shop.messages().Write(text="b"))
    await service.settled()
    assert await service.texts() == ["a", "b", "heard"]
    assert len(shop.seen) == 1


async def test_functions_of_one_message_share_what_lives_for_it(
    shop: Shop, start: Start, url: str
) -> None:
    notes(
        shop,
        """
        @guard
        async def look(command: Run, notebook: Notebook) -> None:
            seen.append(notebook)
        @guard
        async def look_again(command: Run, notebook: Notebook) -> None:
            seen.append(notebook)
        @handle
        async def run(command: Run, notebook: Notebook, bus: Bus) -> None:
            seen.append(notebook)
            if command.text == "run":
                await bus.send(Run(text="nested"))
                assert seen[0].is_open
        """,
        providers="""
        @dataclass
        class Notebook:
            is_open: bool = True
        class Services(Provider):
            @provide(scope=Scope.REQUEST)
            async def notebook(self) -> AsyncIterator[Notebook]:
                notebook = Notebook()
                yield notebook
                notebook.is_open = False
        """,
    )
    service = await start(url)
    await service.send(shop.messages().Run())
    outer, nested = shop.seen[:3], shop.seen[3:]
    assert [one is outer[0] for one in outer] == [True] * 3
    assert [one is nested[0] for one in nested] == [True] * 3
    assert outer[0] is not nested[0]
    assert not outer[0].is_open


@pytest.mark.parametrize("count", range(1, 7))
async def test_any_number_of_parameters(shop: Shop, count: int) -> None:
    parameters = ", ".join(f"p{number}: Context" for number in range(count))
    body = "return str(len({" + ", ".join(f"id(p{number})" for number in range(count)) + "}))"
    shop.slice("payments", **takes(parameters, body))
    service = await open_bus(shop)
    assert await service.send(shop.messages("payments").Pay()) == "1"
