from calls.bus import Command, Event
from calls.guards import Guarded1, Guarded3, Surrounded1, Surrounded3


class Needs0(Command[None]): ...


class Needs1(Command[None]): ...


class Needs4(Command[None]): ...


class Checked1(Guarded1): ...


class Checked3(Guarded3): ...


class Wrapped1(Surrounded1): ...


class Wrapped3(Surrounded3): ...


class Tell1(Command[None]): ...


class Tell3(Command[None]): ...


class Tell10(Command[None]): ...


class Told1(Event, key="id"):
    id: int


class Told3(Event, key="id"):
    id: int


class Told10(Event, key="id"):
    id: int
