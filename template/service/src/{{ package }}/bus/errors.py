"""What the bus raises: at start-up (WiringError) and while messages run (the others)."""


class WiringError(Exception):
    """The code cannot be wired: raised before the service starts; lists every finding."""


class UnreachableError(Exception):
    """The database was gone when the bus was to open; says which, and why, in one line."""


class NoConnectionError(ConnectionError):
    """No connection to the database could be made, for whatever reason."""


class BusError(RuntimeError):
    """The bus was used in a way that would lose or corrupt something; says what to do instead."""


class IdempotencyKeyError(ValueError):
    """Whoever sent a command chose a bad idempotency key, or reused one; the message tells them."""


class EventTokenError(ValueError):
    """Whoever sent a query gave something back as a token that is none; the message tells them."""


class NeverSeenError(RuntimeError):
    """What a query waits for will not happen by itself: a person has to see to a delivery."""


class NotSeenInTimeError(TimeoutError):
    """A read model has not seen in time what a query was to wait for."""


class UnitDoomedError(BusError):
    """A part of this unit failed and its caller went on: nothing of it can be committed."""


class RefusedError(Exception):
    """What was asked for cannot be had. It tells nothing against whoever was asked.

    So a listener that fails with it, however often, is not taken to be down.
    """


class OperationError(Exception):
    """What an operator asked for cannot be done; says why, and what can be asked for instead."""
