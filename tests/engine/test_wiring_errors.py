"""What does not fit together stops the start, with file, line and what to do."""

import re
import textwrap

import pytest

from .conftest import Shop, notes

PAYMENTS = """
    class PaymentCreated(Event, key="payment_id"):
        payment_id: UUID
"""
PAY = "class Pay(Command[None]):\n    pass"
PAID = "@handle\nasync def pay(command: Pay) -> None: ..."


def test_what_fits_together_starts(shop: Shop) -> None:
    shop.slice("payments", messages=PAY, handlers=PAID)
    assert [one.name for one in shop.build().slices] == ["payments"]


def test_command_without_handler(shop: Shop) -> None:
    shop.slice("payments", messages=PAY)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/messages.py", "class Pay"))
    assert "Pay has no handler. Write one in" in error
    assert str(shop.slices / "payments" / "handlers.py") in error


def test_command_with_two_handlers(shop: Shop) -> None:
    second = "@handle\nasync def pay_again(command: Pay) -> None: ..."
    shop.slice("payments", messages=PAY, handlers=f"{PAID}\n{second}")
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "async def pay_again")[:-3])
    first = shop.at("payments/handlers.py", "@handle")[:-1]
    assert f"Pay has a handler already, pay at {first}. Remove one of them." in error


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ("gateway: Gateway", "nothing provides gateway: Gateway. Expected AsyncSession, Bus,"),
        ("gateway: Gateway | None", "nothing provides gateway: "),
        ("limit: int", "nothing provides limit: int"),
        ("names: list[str]", "nothing provides names: list[str]"),
        ("session", "parameter 'session' needs a type: it is passed by type"),
        ("*sessions: AsyncSession", "parameter 'sessions' has to be a plain one"),
        ("*, session: AsyncSession", "parameter 'session' has to be a plain one"),
        ("proceed: Proceed", "only a @guard takes a Proceed"),
    ],
)
def test_parameter_that_cannot_be_resolved(shop: Shop, parameters: str, complaint: str) -> None:
    handler = f"class Gateway: ...\n@handle\nasync def pay(command: Pay, {parameters}): ..."
    shop.slice("payments", messages=PAY, handlers=handler)
    error = shop.refusal()
    assert error.startswith(f"{shop.at('payments/handlers.py', '@handle')} pay")
    assert complaint in error
    assert "has no handler" not in error


def test_parameter_with_a_default_is_left_alone(shop: Shop) -> None:
    handler = "@handle\nasync def pay(command: Pay, limit: int = 1) -> None: ..."
    shop.slice("payments", messages=PAY, handlers=handler)
    shop.build()


@pytest.mark.parametrize("annotation", ["Late", "AsyncSession | Late", "late.Late"])
def test_annotation_that_is_imported_for_type_checkers_only(shop: Shop, annotation: str) -> None:
    handler = f"""
        if TYPE_CHECKING:
            import late
            from late import Late
        @handle
        async def pay(command: Pay, late: "{annotation}") -> None: ...
    """
    shop.slice("payments", messages=PAY, handlers=handler)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "@handle"))
    assert "is not there when the service runs" in error
    assert "outside of `if TYPE_CHECKING:`" in error
    assert "has no handler" not in error


@pytest.mark.parametrize("signature", ["()", "(command)"])
def test_handler_whose_message_is_not_known(shop: Shop, signature: str) -> None:
    shop.slice("payments", messages=PAY, handlers=f"{PAID}\n@handle\nasync def f{signature}: ...")
    assert "f: expected a message with its type as the first parameter" in shop.refusal()


@pytest.mark.parametrize(
    "annotation", ["int", "PaymentCreated", "Command[None]", "Pay | Refund", "list[Pay]"]
)
def test_handler_of_something_that_is_no_command(shop: Shop, annotation: str) -> None:
    handlers = f"{PAID}\n@handle\nasync def f(message: {annotation}) -> None: ..."
    messages = f"{PAY}\nclass Refund(Pay): ..."
    shop.slice("payments", contracts=PAYMENTS, messages=messages, handlers=handlers)
    assert "f: expected a command or query" in shop.refusal()


def test_bare_command(shop: Shop) -> None:
    shop.slice("payments", messages="class Pay(Command):\n    pass", handlers=PAID)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/messages.py", "class Pay"))
    assert "write `class Pay(Command[None])`, or the view in place of None" in error


@pytest.mark.parametrize(
    ("promised", "returned", "complaint"),
    [
        ("str", "int", "expected it to return str, which Pay promises, got int"),
        ("None", "int", "expected it to return None, which Pay promises, got int"),
        ("str", "None", "expected it to return str, which Pay promises, got None"),
        ("list[str]", "str", "expected it to return list[str], which Pay promises, got str"),
    ],
)
def test_handler_that_returns_something_else(
    shop: Shop, promised: str, returned: str, complaint: str
) -> None:
    messages = f"class Pay(Command[{promised}]):\n    pass"
    handlers = f"@handle\nasync def pay(command: Pay) -> {returned}: ..."
    shop.slice("payments", messages=messages, handlers=handlers)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "@handle"))
    assert complaint in error


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        ("str | None", "str | None"),
        ("list[str]", "list[str]"),
        ("'list[str]'", "list[str]"),
        ("list[Page]", "list[Page]"),
        ("'list[Page]'", "list[Page]"),
        ("'Page'", "Page"),
        ("str", "Any"),
        ("None", "None"),
    ],
)
def test_handler_that_returns_what_is_promised(shop: Shop, promised: str, returned: str) -> None:
    messages = f"""
        class Pay(Query[{promised}]):
            pass
        class Page(View):
            pass
    """
    if "'" not in promised:
        messages = f"class Page(View): ...\nclass Pay(Query[{promised}]): ..."
    handlers = f"@handle\nasync def pay(query: Pay) -> {returned}: ..."
    shop.slice("payments", messages=messages, handlers=handlers)
    shop.build()


def test_handler_that_does_not_say_what_it_returns(shop: Shop) -> None:
    handlers = "@handle\nasync def pay(command: Pay): ..."
    shop.slice("payments", messages=PAY, handlers=handlers)
    shop.build()


def test_query_handler_with_a_bus_that_commands(shop: Shop) -> None:
    messages = "class Find(Query[int]):\n    pass"
    handlers = "@handle\nasync def find(query: Find, bus: Bus) -> int: ..."
    shop.slice("payments", messages=messages, handlers=handlers)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "@handle"))
    assert "ask for a QueryBus, not a Bus" in error


@pytest.mark.parametrize("parameter", ["session: AsyncSession", "bus: Bus", "bus: QueryBus"])
def test_plain_function_that_asks_for_what_a_thread_cannot_use(shop: Shop, parameter: str) -> None:
    handlers = f"@handle\ndef pay(command: Pay, {parameter}) -> None: ..."
    shop.slice("payments", messages=PAY, handlers=handlers)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "@handle"))
    assert "can use neither session nor bus" in error
    assert "make it `async def`" in error


@pytest.mark.parametrize("start", ["async def", "def"])
def test_function_that_yields(shop: Shop, start: str) -> None:
    handlers = f"@handle\n{start} pay(command: Pay) -> Any:\n    yield"
    shop.slice("payments", messages=PAY, handlers=handlers)
    error = shop.refusal()
    assert error.startswith(shop.at("payments/handlers.py", "@handle"))
    assert "it has a `yield`" in error


def test_decorator_that_awaits_nothing(shop: Shop) -> None:
    handlers = """
        import functools
        def timed(function):
            @functools.wraps(function)
            def call(*arguments, **named):
                return function(*arguments, **named)
            return call
        @handle
        @timed
        async def pay(command: Pay) -> None: ...
    """
    shop.slice("payments", messages=PAY, handlers=handlers)
    assert "let the decorator's inner function be `async def`, too" in shop.refusal()


def test_handler_of_another_slices_command(shop: Shop) -> None:
    shop.slice("payments", messages=PAY, handlers=PAID)
    handlers = """
        from shop.slices.payments.messages import Pay
        @handle
        async def pay(command: Pay) -> None: ...
    """
    shop.slice("orders", handlers=handlers)
    error = shop.refusal()
    assert "Pay belongs to the slice payments: only that slice handles it" in error
    assert shop.at("orders/handlers.py", "@handle") in error


# Listeners


@pytest.mark.parametrize("annotation", ["int", "Pay", "None", "PaymentCreated | Pay", "Event"])
def test_listener_on_no_event(shop: Shop, annotation: str) -> None:
    listeners = f"@listen\nasync def react(event: {annotation}) -> None: ..."
    shop.slice("payments", contracts=PAYMENTS, messages=PAY, handlers=PAID, listeners=listeners)
    error = shop.refusal()
    assert error.startswith(f"{shop.at('payments/listeners.py', '@listen')} react: ")
    assert "expected an event" in error or "belongs to no slice" in error


def test_listener_on_a_private_event_of_another_slice(shop: Shop) -> None:
    shop.slice("payments", messages=PAYMENTS)
    listeners = """
        from shop.slices.payments.messages import PaymentCreated
        @listen
        async def react(event: PaymentCreated) -> None: ...
    """
    shop.slice("orders", listeners=listeners)
    error = shop.refusal()
    assert error.startswith(f"{shop.at('orders/listeners.py', '@listen')} react: PaymentCreated is")
    assert f"({shop.at('payments/messages.py', 'class')[:-1]})" in error
    assert "Only events in its contracts.py are for others" in error


LISTENS = """
    from shop.slices.payments.contracts import PaymentCreated
    @listen
    async def react(event: PaymentCreated) -> None: ...
"""


def test_slices_that_are_here_are_sorted_by_what_is_shown(shop: Shop) -> None:
    shop.slice("orders", born="a_first", listeners=LISTENS)
    shop.slice("bills", born="z_last")
    assert "(the slices here: bills, orders)" in shop.refusal()


def test_slice_that_is_listened_to_and_not_there(shop: Shop) -> None:
    shop.slice("orders", listeners=LISTENS)
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "from shop.slices")[:-1])
    assert "imports shop.slices.payments, which is not here (the slices here: orders)" in error
    assert "Add the slice payments, or stop listening to it" in error


def test_slice_that_is_listened_to_under_the_name_of_its_birth(shop: Shop) -> None:
    shop.slice("incomes", born="payments", contracts=PAYMENTS)
    shop.slice("orders", listeners=LISTENS)
    assert shop.refusal() == (
        f"{shop.at('orders/listeners.py', 'from shop.slices')[:-1]} imports shop.slices.payments,"
        " which is not here: the slice that was born as payments is in the folder incomes."
        " Import shop.slices.incomes.contracts instead."
    )


def test_what_is_broken_in_each_slice_is_told_at_once(shop: Shop) -> None:
    shop.slice("payments", contracts=f"{PAYMENTS}\n    Nope")
    shop.slice("orders", listeners=LISTENS)
    shop.slice("parcels", listeners=LISTENS.replace("payments.contracts", "gone.contracts"))
    shop.slice("refunds", contracts="1 / 0")
    # What is broken in payments is so for orders, too, and told once.
    broken, gone, refused = shop.refusal().splitlines()
    assert broken.startswith(shop.at("payments/contracts.py", "Nope"))
    assert gone.startswith(shop.at("parcels/listeners.py", "from shop.slices")[:-1])
    assert refused.startswith(shop.at("refunds/contracts.py", "1 / 0"))


def test_slice_that_is_listened_to_and_has_no_contracts(shop: Shop) -> None:
    shop.slice("payments", messages=PAY, handlers=PAID)
    shop.slice("orders", listeners=LISTENS)
    error = shop.refusal()
    assert "shop.slices.payments.contracts, which has no such name" in error
    assert "add the event to it" in error


def test_missing_slice_that_is_imported_as_a_name(shop: Shop) -> None:
    shop.slice("orders", listeners="from shop.slices import payments")
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "from shop.slices")[:-1])
    assert "payments" in error


def test_event_that_the_other_slice_does_not_have(shop: Shop) -> None:
    shop.slice("payments", contracts=PAYMENTS.replace("PaymentCreated", "PaymentMade"))
    shop.slice("orders", listeners=LISTENS)
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "from shop.slices")[:-1])
    assert "imports PaymentCreated from shop.slices.payments.contracts" in error
    assert "has no such name" in error


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("from .messages import Typo", "ImportError: cannot import name 'Typo' from"),
        ("Nope", "NameError: name 'Nope' is not defined"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def x(:", "SyntaxError: invalid syntax in 'def x(:'"),
        ("  pass", "IndentationError: unexpected indent in 'pass'"),
        ("<<<<<<< before updating", "an update or a merge left conflict markers here"),
    ],
)
def test_module_that_cannot_be_imported(shop: Shop, line: str, complaint: str) -> None:
    shop.slice("orders", messages=PAY, handlers=f"{PAID}\n{line}")
    with pytest.raises(shop.bus.WiringError) as refused:
        shop.build()
    assert str(refused.value).startswith(f"{shop.at('orders/handlers.py', line)} {complaint}")
    assert isinstance(refused.value.__cause__, Exception)


def test_broken_module_of_the_slice_that_is_listened_to(shop: Shop) -> None:
    shop.slice("payments", contracts=f"{PAYMENTS}\n    Nope")
    shop.slice("orders", listeners=LISTENS)
    assert shop.refusal().startswith(shop.at("payments/contracts.py", "Nope"))


def test_broken_module_of_the_service_itself(shop: Shop) -> None:
    shop.write("guards.py", "import no_such_library")
    assert shop.refusal().startswith(f"{shop.folder / 'guards.py'}:1: ModuleNotFoundError")


def test_folder_with_modules_that_nothing_would_find(shop: Shop) -> None:
    shop.write("slices/orders/handlers.py", "")
    error = shop.refusal()
    assert error.startswith(f"{shop.slices / 'orders'}: ")
    assert 'Add one with NAME = "orders"' in error


def test_two_slices_born_with_one_name(shop: Shop) -> None:
    shop.slice("orders")
    shop.slice("orders_two", born="orders")
    error = shop.refusal()
    assert "Two slices were born as 'orders'" in error
    assert str(shop.slices / "orders") in error
    assert str(shop.slices / "orders_two") in error
    assert "another NAME in its __init__.py" in error


def test_slice_without_a_name(shop: Shop) -> None:
    shop.write("slices/orders/__init__.py", "")
    error = shop.refusal()
    assert error.startswith(str(shop.slices / "orders" / "__init__.py"))
    assert 'NAME = "orders"' in error


def test_left_over_bytecode_is_no_slice(shop: Shop) -> None:
    shop.slice("payments")
    shop.write("slices/gone/__pycache__/handlers.cpython-311.pyc", "")
    assert [one.name for one in shop.build().slices] == ["payments"]


@pytest.mark.parametrize(
    ("declaration", "got"),
    [('(Event, key="payment")', "'payment'"), ("(Event)", "''")],
)
def test_event_without_a_proper_key(shop: Shop, declaration: str, got: str) -> None:
    shop.slice("payments", contracts=f"class PaymentCreated{declaration}:\n    payment_id: UUID")
    error = shop.refusal()
    assert error.startswith(shop.at("payments/contracts.py", "class"))
    assert 'key="…", one of its fields (payment_id)' in error
    assert error.endswith(f"got {got}.")


def test_reaction_that_reads_a_field_that_the_event_lacks(shop: Shop) -> None:
    shop.slice("payments", contracts=PAYMENTS)
    shop.slice("orders", listeners=f"{LISTENS[:-4]}\n        print(event.order_id)\n")
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "@listen"))
    assert "reads event.order_id, but PaymentCreated" in error
    assert "has payment_id" in error


def test_reaction_may_read_what_only_one_event_of_a_union_has(shop: Shop) -> None:
    contracts = (
        f"{PAYMENTS}\n    class Refunded(Event, key='refund_id'):\n        refund_id: UUID\n"
    )
    listeners = """
        @listen
        async def react(event: PaymentCreated | Refunded) -> None:
            print(event.refund_id if isinstance(event, Refunded) else event.payment_id)
    """
    shop.slice("payments", contracts=contracts, listeners=listeners)
    shop.build(shop.database())


def test_reaction_may_use_methods_and_properties_of_its_event(shop: Shop) -> None:
    contracts = f"{PAYMENTS}\n        @property\n        def short(self): ...\n"
    listeners = """
        @listen
        async def react(event: PaymentCreated) -> None:
            print(event.model_dump(), event.short, event.event_key)
    """
    shop.slice("payments", contracts=contracts, listeners=listeners)
    shop.build(shop.database())


@pytest.mark.parametrize("returns", ["Pay", "Pay | None", "int", "PaymentCreated"])
def test_listener_returns_a_command_of_its_own_slice_only(shop: Shop, returns: str) -> None:
    shop.slice("payments", contracts=PAYMENTS, messages=PAY, handlers=PAID)
    listeners = f"""
        from shop.slices.payments.contracts import PaymentCreated
        from shop.slices.payments.messages import Pay
        @listen
        def react(event: PaymentCreated) -> {returns}: ...
    """
    shop.slice("orders", listeners=listeners)
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "@listen"))
    assert "returns a command of its own slice, or None, got" in error


def test_inline_listener_of_another_slices_event(shop: Shop) -> None:
    shop.slice("payments", contracts=PAYMENTS)
    shop.slice("orders", listeners=LISTENS.replace("@listen", "@listen(inline=True)"))
    error = shop.refusal()
    assert error.startswith(shop.at("orders/listeners.py", "@listen"))
    assert "PaymentCreated is from payments. Drop `inline`" in error


def test_two_listeners_with_one_name(shop: Shop) -> None:
    shop.slice("payments", contracts=PAYMENTS, listeners=LISTENS)
    shop.write(
        "slices/payments/more.py", "from shop.names import *\n" + LISTENS.replace("    ", "")
    )
    error = shop.refusal()
    assert "is a listener named payments.react too: rename one" in error


@pytest.mark.parametrize("first", ["new", "old"])
def test_listener_under_a_name_that_another_had_before(shop: Shop, first: str) -> None:
    sources = {
        "new": "@listen(aliases=('old',))\nasync def new(event: PaymentCreated) -> None: ...\n",
        "old": "@listen\nasync def old(event: PaymentCreated) -> None: ...\n",
    }
    last = next(name for name in sources if name != first)
    shop.slice("payments", contracts=PAYMENTS, listeners=sources[first] + sources[last])
    assert "is a listener named payments.old too: rename one" in shop.refusal()


def test_single_alias_without_a_comma(shop: Shop) -> None:
    listener = "@listen(aliases='old')\nasync def new(event: PaymentCreated) -> None: ...\n"
    paid = "class Paid(Event, key='id', aliases='Settled'):\n    id: UUID"
    contracts = textwrap.dedent(PAYMENTS) + paid
    shop.slice("payments", contracts=contracts, listeners=listener)
    catalog = shop.build(database=shop.database()).catalog
    assert [one.names for one in catalog.listeners] == [("payments.new", "payments.old")]
    names = catalog.events[shop.contracts("payments").Paid].names
    assert tuple(names) == ("payments.Paid", "payments.Settled")


@pytest.mark.parametrize("annotation", ["SecretStr", "list[SecretStr] | None", "Secret[int]"])
def test_event_with_a_secret(shop: Shop, annotation: str) -> None:
    """What would be stored, and delivered, are asterisks."""
    event = f"class Paid(Event, key='id'):\n    id: UUID\n    token: {annotation}"
    shop.slice("payments", contracts=f"from pydantic import Secret, SecretStr\n{event}")
    assert "Paid.token: a secret cannot be stored" in shop.refusal()


def test_two_events_that_are_stored_under_one_name(shop: Shop) -> None:
    paid = "class Paid(Event, key='id', aliases=('PaymentCreated',)):\n    id: UUID"
    contracts = textwrap.dedent(PAYMENTS) + paid
    shop.slice("payments", contracts=contracts)
    error = shop.refusal()
    assert "are both stored as payments.PaymentCreated: rename one" in error
    assert shop.at("payments/contracts.py", "class Paid")[:-1] in error


# Guards and services


def test_plain_guard_that_goes_around(shop: Shop) -> None:
    handlers = f"{PAID}\n@guard\ndef around(command: Pay, proceed: Proceed) -> Any: ..."
    shop.slice("payments", messages=PAY, handlers=handlers)
    assert "around: a guard that runs around a handler is `async def`" in shop.refusal()


@pytest.mark.parametrize("annotation", ["Pay | None", "list[Pay]"])
def test_guard_of_something_that_is_no_message(shop: Shop, annotation: str) -> None:
    handlers = f"{PAID}\n@guard\ndef check(command: {annotation}) -> None: ..."
    shop.slice("payments", messages=PAY, handlers=handlers)
    assert "check: expected a message's type as the first parameter" in shop.refusal()


def test_service_that_asks_for_what_nobody_provides(shop: Shop) -> None:
    providers = """
        class Client: ...
        class Gateway:
            def __init__(self, client: Client) -> None: ...
        class Services(Provider):
            gateway = provide(Gateway, scope=Scope.APP)
    """
    shop.slice("payments", providers=providers)
    error = shop.refusal()
    assert error.startswith("providers.py")
    assert "Client" in error


def test_settings_that_are_wrong(shop: Shop) -> None:
    settings = "class PaymentSettings(BaseSettings):\n    limit: int"
    shop.slice("payments", settings=settings)
    error = shop.refusal()
    assert "PaymentSettings.limit (LIMIT): Field required" in error
    assert "limit" in error


def test_unknown_slice_in_the_setting(shop: Shop) -> None:
    shop.slice("payments")
    assert "no slice orders; here are: payments" in shop.refusal(slices=("orders",))


def test_stored_listener_needs_a_database(shop: Shop) -> None:
    shop.slice("payments", contracts=PAYMENTS, listeners=LISTENS)
    assert "payments.react listens to stored events, which need a database" in shop.refusal()


def test_all_that_does_not_fit_is_told_at_once(shop: Shop) -> None:
    messages = "class A(Command[None]): ...\nclass B(Command[None]): ...\nclass C(Command): ..."
    shop.slice("payments", messages=messages)
    assert len(shop.refusal().splitlines()) >= 3


READ_MODELS = """
    class Copy(Base):
        __tablename__ = "notes_copies"
        text: Mapped[str] = mapped_column(primary_key=True)
    class Numbered(Base):
        __tablename__ = "notes_numbered"
        id: Mapped[int] = mapped_column(primary_key=True)
    class Child(Base):
        __tablename__ = "notes_children"
        text: Mapped[str] = mapped_column(sa.ForeignKey("notes_copies.text"), primary_key=True)
"""


@pytest.mark.parametrize(
    ("mark", "returns", "complaint"),
    [
        ("projects=Copy", "None", 'a read model is made of all events: add start="beginning"'),
        ('projects=Copy, start="beginning"', "Run | None", "returns no command"),
        ('projects=NoteWritten, start="beginning"', "None", "of its own slice.*got NoteWritten"),
        ('projects=(Copy, Entity), start="beginning"', "None", "of its own slice.*got Entity"),
        ('projects=Numbered, start="beginning"', "None", "Numbered .* no number that the database"),
        ('projects=Child, start="beginning"', "None", "Child .* no foreign keys"),
        ("projects=Copy, inline=True", "None", "are for deliveries. Drop `inline`"),
    ],
)
def test_read_model_that_could_not_be_made_anew(
    shop: Shop, mark: str, returns: str, complaint: str
) -> None:
    listener = f"@listen({mark})\nasync def keep(event: NoteWritten) -> {returns}: return None"
    notes(shop, models=READ_MODELS, listeners=listener)
    told = shop.refusal()
    assert re.search(complaint, told)
    assert shop.at("notes/listeners.py", "@listen") in told
    assert len(told.splitlines()) == 1


def test_read_model_of_two_listeners(shop: Shop) -> None:
    listener = """
        @listen(start="beginning", projects=Copy)
        async def {}(event: NoteWritten) -> None: ...
    """
    notes(shop, models=READ_MODELS, listeners=listener.format("one") + listener.format("two"))
    told = shop.refusal()
    assert re.search(r"two: Copy is made by notes\.one already \(.*let one listener take", told)
