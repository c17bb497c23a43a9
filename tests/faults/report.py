"""What the long run of killing has found, as a small page in Markdown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_HEAD = """# Processes killed under load

Seed {seed}. Every command that was acknowledged, or committed before its process died, has to have
reached each listener's tables exactly once, or to stand as a dead letter; those are run again at
the end, and may not be dead then.

| database | minutes | kills | commits | deliveries | dead letters | verdict |
| --- | ---: | --- | ---: | ---: | ---: | --- |
"""


@dataclass
class Outcome:
    """What one database went through, as far as it got. deliveries are rows of listeners."""

    database: str
    minutes: float = 0
    kills: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    deliveries: int = 0
    dead: int = 0
    verdict: str = "broken off"

    def row(self) -> str:
        kills = ", ".join(f"{count} {who}s" for who, count in sorted(self.kills.items()))
        cells = (self.database, f"{self.minutes:.1f}", kills, self.commits, self.deliveries)
        return "".join(f"| {cell} " for cell in (*cells, self.dead, self.verdict)) + "|\n"


def write(path: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """Write the report."""
    path.write_text(_HEAD.format(seed=seed) + "".join(one.row() for one in outcomes))
