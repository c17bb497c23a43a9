"""Says whether delivery kept its promises, and knows nothing of how it works.

It reads the listeners' own tables, the dead letters that a person can see, and the log in which
the publisher wrote what it was told.
"""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url

# Table and listener of each that hears of every sale.
SALE_LISTENERS = {
    "stock": ("plain", "batch", "many", "ordered", "ship"),
    "sales": ("shipped",),
    "trouble": ("hangs", "fails", "commit_fails", "commit_takes_long", "kills", "works"),
}


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What a connection of its own reads, or changes: only what is committed is there."""
    if url.startswith("sqlite"):
        with sqlite3.connect(str(make_url(url).database), timeout=30) as connection:
            found = connection.execute(statement).fetchall()
        connection.close()
        return found

    async def fetch() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


@dataclass
class Log:
    """What the publisher was told of its commands, by their numbers."""

    tried: set[int] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, *paths: Path) -> "Log":
        """Read the files as far as they are written."""
        log = cls()
        sets = {"try": log.tried, "ok": log.committed, "no": log.refused}
        for path in paths:
            for line in path.read_text().split("\n")[:-1] if path.exists() else ():
                word, number = line.split()
                sets[word].add(int(number))
        return log


def dead_letters(url: str) -> dict[tuple[str, int], str]:
    """The kind of error of each dead letter, by listener and the number of its event.

    What an ordered listener parks behind one is there too, as 'parked'.
    """
    rows = query(
        url,
        "SELECT s.listener, e.payload, CASE d.state WHEN 'dead' THEN d.error_type ELSE 'parked' END"
        " FROM bus_delivery d JOIN bus_event e ON e.position = d.event_position"
        " JOIN bus_subscription s ON s.id = d.subscription_id"
        " WHERE d.state = 'dead' OR d.state = 'waiting' AND EXISTS (SELECT 1 FROM bus_delivery h"
        " WHERE h.subscription_id = d.subscription_id AND h.lane = d.lane AND h.state = 'dead')",
    )
    return {(listener, json.loads(event)["number"]): error for listener, event, error in rows}


def violations(url: str, log: Log) -> list[str]:
    """Every promise that was broken; an empty list if none was."""
    return list(_violations(url, log))


def _violations(url: str, log: Log) -> Iterator[str]:
    sold = Counter(row[0] for row in query(url, "SELECT number FROM sales WHERE listener = 'sell'"))
    dead = dead_letters(url)
    for number in log.committed - sold.keys():
        yield f"{number} was acknowledged, and is gone"
    for number in log.refused & sold.keys():
        yield f"{number} was refused, and is there"
    for number in sold.keys() - log.tried:
        yield f"{number} was never sent, and is there"
    for table, listeners in SALE_LISTENERS.items():
        rows = query(url, f"SELECT listener, number, account FROM {table} ORDER BY place")
        for listener in listeners:
            heard = Counter(number for name, number, _ in rows if name == listener)
            yield from _heard_wrong(f"{table}.{listener}", heard, sold.keys(), dead)
    yield from _disordered(url)


def _heard_wrong(
    listener: str, heard: Counter[int], sold: Any, dead: dict[tuple[str, int], str]
) -> Iterator[str]:
    for number, times in heard.items():
        if times > 1:
            yield f"{listener} applied {number} {times} times"
        if number not in sold:
            yield f"{listener} heard of {number}, which was not committed"
        if (listener, number) in dead:
            yield f"{listener} applied {number}, which is a dead letter as well"
    for number in sold - heard.keys():
        # The chain ends where its first part is a dead letter.
        visible = {listener, "stock.ship"} if listener == "sales.shipped" else {listener}
        if not any((one, number) in dead for one in visible):
            yield f"{listener} never heard of {number}"


def _disordered(url: str) -> Iterator[str]:
    """The publisher sells to each account in rising numbers."""
    last: dict[str, int] = {}
    rows = query(url, "SELECT account, number FROM stock WHERE listener = 'ordered' ORDER BY place")
    for account, number in rows:
        if number < last.get(account, -1):
            yield f"stock.ordered heard of {number} after {last[account]} of account {account}"
        last[account] = number
