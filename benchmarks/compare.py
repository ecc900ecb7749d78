"""Compares exclfs with its peers and with the backing tree, in one run, and writes down all that was measured.

    python benchmarks/compare.py [--quick] [--rounds N] [--on NAME]… [--group NAME]… [--only WORD] [--peer NAME]…
                                 [--files N] [--json FILE] [--report]

What is told is the median over the rounds, as a ratio within the same round: absolute times of a shared machine mean
little (rounds.py). --report writes docs/performance.md and its plots anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import holding
import latencies
import own
import report
import work
from backings import BACKINGS
from document import BACKING, BINDFS, EXCLFS, VARIANTS, VERSION, Document, Series, dumps
from peers import available, install, machine
from rich.console import Console
from rounds import Course, Place, standing
from rows import DATA, METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rows import Row

GROUPS: Final = ("metadata", "data", "work", "latency", "own", "holds")
PROCESSORS: Final = os.cpu_count() or 1
QUICK_PEERS: Final = (EXCLFS, *VARIANTS.values(), BINDFS, "passthrough_hp")


def main() -> None:
    """Measures, prints the tables, and writes the document."""
    arguments = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no mount is left behind
    install()
    here = {**machine(), "load before": f"{os.getloadavg()[0]:.1f}"}
    began = time.monotonic()
    series: list[Series] = []

    def document() -> Document:
        minutes = f"{(time.monotonic() - began) / 60:.0f}"
        facts = {**here, "load after": f"{os.getloadavg()[0]:.1f}", "minutes": minutes}
        return Document(VERSION, time.strftime("%Y-%m-%d", time.gmtime()), arguments.quick, facts, series)

    with tempfile.TemporaryDirectory(prefix="exclfs-bench-") as workspace:
        for name in arguments.on:
            with BACKINGS[name](workspace) as source:
                for one in on(name, source, workspace, arguments):
                    series.append(one)
                    keep(document(), arguments.json)
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in report.tables(document()):
        console.print(table)
    if arguments.report:
        report.write(document())


def keep(document: Document, path: str | None) -> None:
    """Writes what is known so far: a run takes an hour, and may not come to its end."""
    if path is None:
        return
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(dumps(document))
    os.replace(path + ".new", path)


def parsed() -> argparse.Namespace:
    """The command line; leaves with a line and status 5 if this is not root."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three rounds on tmpfs, of fewer operations, with bindfs and passthrough_hp",
    )
    parser.add_argument("--rounds", type=int, help="default: 11; quick: 3")
    parser.add_argument("--on", action="append", choices=BACKINGS, help="default: all; quick: tmpfs")
    parser.add_argument("--group", action="append", choices=GROUPS, help="default: all")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--peer", action="append", help="only these peers; default: all that are here")
    parser.add_argument("--files", type=int, help="for find and rm -rf; default: 1,000,000; quick: 5,000")
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--report", action="store_true", help="write docs/performance.md anew")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "benchmarks/compare.py: mounting with passthrough needs root\n")
    quick = arguments.quick
    arguments.rounds = arguments.rounds or (3 if quick else 11)
    arguments.peer = arguments.peer or (list(QUICK_PEERS) if quick else None)
    arguments.on = arguments.on or (["tmpfs"] if quick else list(BACKINGS))
    arguments.group = arguments.group or list(GROUPS)
    arguments.files = arguments.files or (5_000 if quick else 1_000_000)
    return arguments


def on(backing: str, source: str, workspace: str, arguments: argparse.Namespace) -> Iterator[Series]:
    """Everything on one filesystem."""
    quick, rounds, groups = arguments.quick, arguments.rounds, arguments.group
    half = max(rounds // 2, 1)
    places = {BACKING: Place(source)}
    with ExitStack() as stack:
        for number, peer in enumerate(available()):
            if arguments.peer and peer.name not in arguments.peer:
                continue
            mountpoint = os.path.join(workspace, f"{backing}{number}")
            places[peer.name] = Place(mountpoint, stack.enter_context(peer.mounted(source, mountpoint)))

        def course(group: str, rounds: int = rounds) -> Course:
            return Course(group, backing, source, standing(places), rounds)

        def chosen(rows: Iterator[Row] | tuple[Row, ...]) -> list[Row]:
            found = [row for row in rows if arguments.only in row.name]
            slow = backing != "tmpfs"
            return [row.shorter((4 if quick else 1) * (10 if slow and row.disk else 1)) for row in found]

        if "metadata" in groups:
            for clients in (1, PROCESSORS) if quick else (1, PROCESSORS, 2 * PROCESSORS):
                yield from course("metadata").measure(chosen(METADATA), clients)
        if "data" in groups:
            yield from course("data").measure(chosen(DATA))
        if "work" in groups:
            found = [row for row in work.rows(arguments.files) if arguments.only in row.name]
            many = [row for row in found if row.count == arguments.files]
            rest = [row for row in found if row not in many and not (quick and row.name not in work.QUICK)]
            yield from course("work", half).measure(rest)
            yield from course("work", 1).measure(many)
        if "latency" in groups:
            ours = {name: places[name] for name in (BACKING, EXCLFS)}
            yield from latencies.measure(backing, source, ours, half, 200 if quick else 1000)
        if "own" in groups:
            yield from own.measure(backing, source, places[EXCLFS], half, 100 if quick else 500)
            yield own.memory(backing, os.path.dirname(source), min(arguments.files, 200_000))
    if "holds" in groups and backing == "tmpfs":
        numbers = (1_000,) if quick else (1_000, 100_000)
        yield from holding.measured(backing, source, workspace, half if quick else rounds, numbers, quick)


if __name__ == "__main__":
    main()
