"""The document of a run: everything that was measured, as JSON, and nothing that was made of it.

`make bench` writes it, the report and `make bench-check` read it. benchmarks/accepted.json is the last one that was
found good.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Final

import cattrs
from attrs import Factory, evolve, frozen
from ratios import Ratio, ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION: Final = 1
BACKING: Final = "backing tree"
BINDFS: Final = "bindfs"
EXCLFS: Final = "exclfs"
VARIANTS: Final = {option: f"{EXCLFS}, {option}" for option in ("nopassthrough", "noidle_poll")}
"""What exclfs is called where it is mounted with this option."""
SECONDS: Final = "seconds"
"""The unit of most rows: seconds per operation."""


@frozen
class Series:
    """One row, as measured in every round on every filesystem.

    Args:
        group: which table it belongs to: metadata, data, work, latency, holds or own.
        backing: the filesystem behind the mounts.
        row: what was done.
        clients: how many did it at the same time.
        unit: of `wall`: seconds per operation, or what else is counted.
        wall: by filesystem (or by state of exclfs), one figure a round.
        cpu: seconds of the server per operation, likewise.
        failed: what could not do it, and why.
    """

    group: str
    backing: str
    row: str
    clients: int
    unit: str
    wall: dict[str, list[float]]
    cpu: dict[str, list[float]] = Factory(dict)
    failed: dict[str, str] = Factory(dict)

    @property
    def name(self) -> str:
        """What tells it from every other of the same document."""
        several = f", {self.clients} clients" if self.clients > 1 else ""
        return f"{self.row}{several} on {self.backing}"

    def ratio(self, one: str, other: str) -> Ratio | None:
        """One filesystem in times of another; None if one of them has not been measured."""
        if not self.wall.get(one) or not self.wall.get(other):
            return None
        return ratio(self.wall[one], self.wall[other])

    def median(self, name: str) -> float | None:
        """The middle of the rounds."""
        return statistics.median(self.wall[name]) if self.wall.get(name) else None

    def cpu_median(self, name: str) -> float | None:
        """Likewise of the server's CPU time."""
        return statistics.median(self.cpu[name]) if self.cpu.get(name) else None


@frozen
class Document:
    """What a run has measured, and where.

    Args:
        version: of this shape.
        when: the day, as in 2026-11-27.
        quick: whether it was a short run, whose figures are rough.
        machine: kernel, processors, versions; the load average before and after.
        series: the rows.
    """

    version: int
    when: str
    quick: bool
    machine: dict[str, str]
    series: list[Series]


def together(parts: Sequence[Document]) -> Document:
    """Parts of one run as one: of the machine what the first says, and for how long all of them ran.

    A row that was measured again is as it was the last time.
    """
    first = parts[0]
    minutes = sum(int(part.machine.get("minutes", "0")) for part in parts)
    return evolve(
        first,
        machine={**first.machine, "load after": parts[-1].machine["load after"], "minutes": str(minutes)},
        series=list({_which(series): series for part in parts for series in part.series}.values()),
    )


def _which(series: Series) -> tuple[object, ...]:
    return series.group, series.backing, series.name, series.unit, frozenset({*series.wall, *series.failed})


def dumps(document: Document) -> str:
    """As JSON; four digits of each figure, for more mean nothing."""
    plain = cattrs.unstructure(document)
    for series in plain["series"]:
        for figures in (series["wall"], series["cpu"]):
            for name, values in figures.items():
                figures[name] = [float(f"{value:.4g}") for value in values]
    lines = ",\n".join(json.dumps(series, ensure_ascii=False) for series in plain.pop("series"))
    head = json.dumps(plain, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n "series": [\n{lines}\n]}}\n'


def loads(text: str) -> Document:
    """Reads one.

    Raises:
        ValueError: it is none, or of another version.
    """
    try:
        plain = json.loads(text)
        if plain["version"] != VERSION:
            raise ValueError(f"this is version {plain['version']} of the document, and not {VERSION}")
        return cattrs.structure(plain, Document)
    except (KeyError, TypeError, cattrs.BaseValidationError) as error:
        raise ValueError(f"this is no document of make bench: {error}") from error
