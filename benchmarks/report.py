"""The report of a document: tables for a terminal, and docs/performance.md with its plots.

What stands in docs/performance.md between two marks is made from the document; the rest of the page is written by
people.

    python benchmarks/report.py DOCUMENT…     writes docs/performance.md anew from the documents of earlier runs
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import plot
from document import BACKING, BINDFS, EXCLFS, SECONDS, VARIANTS, Document, Series, loads, together
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DOCS: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")
PAGE: Final = os.path.join(DOCS, "performance.md")
BEGIN: Final = "<!-- made by make bench: begin -->"
END: Final = "<!-- made by make bench: end -->"
RIVALS: Final = (BINDFS, "passthrough_hp", "passthrough_ll", "mergerfs", BACKING)
TITLES: Final = {
    "metadata": "Metadata",
    "data": "Data",
    "work": "Real work",
    "latency": "Latency: the 99th percentile in times of the median",
    "holds": "While holds stand",
    "own": "What only exclfs does",
}


def tables(document: Document) -> Iterator[Table]:
    """For a terminal: one a group and filesystem."""
    for title, heading, lines in grids(document):
        table = Table(title=title)
        for number, name in enumerate(heading):
            table.add_column(name, justify="left" if number == 0 else "right")
        for line in lines:
            table.add_row(*line)
        yield table


def grids(document: Document) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, heading and lines of every table."""
    for group, title in TITLES.items():
        chosen = [series for series in document.series if series.group == group]
        for backing in dict.fromkeys(series.backing for series in chosen):
            here = [series for series in chosen if series.backing == backing]
            for part in parts(here):
                yield (f"{title}, on {backing}", *grid(part))


def parts(series: list[Series]) -> Iterator[list[Series]]:
    """Those that are measured in the same places and units stand in one table."""

    def kind(each: Series) -> tuple[str, ...]:
        return (each.unit, *sorted({*each.wall, *each.failed}))

    for one in dict.fromkeys(map(kind, series)):
        yield [each for each in series if kind(each) == one]


def grid(series: list[Series]) -> tuple[list[str], list[list[str]]]:
    """Rivals beside exclfs where there are any, else every state in times of the first."""
    if BINDFS in series[0].wall or BINDFS in series[0].failed:
        return beside_rivals(series)
    return in_states(series)


def beside_rivals(series: list[Series]) -> tuple[list[str], list[list[str]]]:
    """The backing tree's time, then exclfs in times of everything else; CPU of the servers, µs per operation."""
    rivals = [name for name in RIVALS if any(name in each.wall or name in each.failed for each in series)]
    servers = [EXCLFS, *(name for name in rivals if name in (BINDFS, "passthrough_hp"))]
    heading = ["operation", "backing tree, µs", *(f"/ {name}" for name in rivals)]
    heading += [*(f"{option} / bindfs" for option in VARIANTS), *(f"CPU of {name}" for name in servers)]
    lines = []
    for each in series:
        line = [called(each), micro(each.median(BACKING))]
        line += [failed(each, name) or str(each.ratio(EXCLFS, name) or "") for name in rivals]
        line += [str(each.ratio(name, BINDFS) or "") for name in VARIANTS.values()]
        line += [micro(each.cpu_median(name)) for name in servers]
        lines.append(line)
    return heading, lines


def in_states(series: list[Series]) -> tuple[list[str], list[list[str]]]:
    """The first state as it is, the others in times of it; ratios and rates as they are."""
    first, *others = series[0].wall
    seconds = series[0].unit == SECONDS
    heading = ["operation", f"{first}, µs" if seconds else f"{first}: {series[0].unit}"]
    heading += [f"{name} ×" if seconds else name for name in others]
    lines = []
    for each in series:
        if not seconds:
            lines.append([called(each), *(f"{each.median(name) or 0:,.1f}" for name in (first, *others))])
            continue
        lines.append(
            [called(each), micro(each.median(first)), *(str(each.ratio(name, first) or "") for name in others)]
        )
    return heading, lines


def called(series: Series) -> str:
    """The row, and by how many it was done."""
    return series.row if series.clients == 1 else f"{series.row}, {series.clients} clients"


def micro(seconds: float | None) -> str:
    """In microseconds; three digits where they mean something."""
    if seconds is None:
        return ""
    return f"{seconds * 1e6:,.0f}" if seconds >= 100e-6 else f"{seconds * 1e6:.1f}"


def failed(series: Series, name: str) -> str:
    """That it could not do it."""
    return "fails" if name in series.failed else ""


# --- the page ---------------------------------------------------------------------------------------------------------


def write(document: Document) -> None:
    """Writes the plots, and the part of the page between the marks.

    Raises:
        ValueError: the page has no marks.
    """
    names = []
    for group in ("metadata", "data", "work"):
        for backing in dict.fromkeys(series.backing for series in document.series if series.group == group):
            chosen = [each for each in document.series if (each.group, each.backing) == (group, backing)]
            names.append(f"performance-{group}-{backing}.svg")
            with open(os.path.join(DOCS, names[-1]), "w", encoding="utf-8") as file:
                file.write(plot.ratios(f"{TITLES[group]}, on {backing}", chosen))
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(between_marks(page, "\n".join(markdown(document, names))))


def between_marks(page: str, made: str) -> str:
    """The page with this between its marks.

    Raises:
        ValueError: it has none.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def markdown(document: Document, plots: Iterable[str]) -> Iterator[str]:
    """Where it was measured, the plots, the tables."""
    yield ""
    yield (
        f"Measured on {document.when}{' by a quick run' if document.quick else ''}: "
        + "; ".join(f"{name} {value}" for name, value in document.machine.items())
        + "."
    )
    yield "Medians of the rounds; in brackets the 95 % interval of the median ratio. Below 1 exclfs is faster."
    for name in plots:
        yield f"\n![{name.removesuffix('.svg').replace('-', ' ')}]({name})"
    for title, heading, lines in grids(document):
        yield f"\n### {title}\n"
        yield "| " + " | ".join(heading) + " |"
        yield "|---" * len(heading) + "|"
        for line in lines:
            yield "| " + " | ".join(line) + " |"
    yield ""


def main() -> None:
    """Makes the report of documents that are there: parts of one run, each of its own groups or filesystems."""
    if len(sys.argv) < 2:
        sys.exit("usage: report.py DOCUMENT…")
    documents = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            documents.append(loads(file.read()))
    write(together(documents))


if __name__ == "__main__":
    main()
