"""Compares exclfs with its peers and with the backing tree: every row, in turn, in one run.

    python benchmarks/compare.py [--rounds N] [--quick] [--on DIR] [--json FILE] [--only WORD]

A round measures a row on every filesystem, one after the other and in a changing order, so that a slow minute of the
machine hits all alike.
What is told is the median over the rounds, as a ratio to the backing tree and to bindfs of the same round: absolute
times of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from typing import TypeVar

from peers import Peer, available, cpu_seconds, versions
from rich.console import Console
from rich.table import Table
from rows import DATA, METADATA, Row

BACKING = "backing tree"
T = TypeVar("T")
Times = dict[str, dict[str, list[float]]]


def measure(rows: list[Row], peers: list[Peer], source: str, workspace: str, rounds: int) -> tuple[Times, Times]:
    """Seconds per operation, and CPU seconds of the server per operation, by row and filesystem."""
    wall: Times = {row.name: {} for row in rows}
    cpu: Times = {row.name: {} for row in rows}
    with ExitStack() as stack:
        seen = {BACKING: (source, None)}
        for number, peer in enumerate(peers):
            mountpoint = os.path.join(workspace, f"mnt{number}")
            seen[peer.name] = (mountpoint, stack.enter_context(peer.mounted(source, mountpoint)))
        for turn in range(rounds):
            for place, row in enumerate(rows):
                for number, (name, (root, pid)) in shuffled(list(enumerate(seen.items())), f"{turn} {row.name}"):
                    directory = f"w{turn}-{place}-{number}"  # a new name: the old one may be cached
                    before = cpu_seconds(pid)
                    taken = row.measure(os.path.join(source, directory), os.path.join(root, directory))
                    used = (cpu_seconds(pid) - before) / row.count
                    wall[row.name].setdefault(name, []).append(taken)
                    cpu[row.name].setdefault(name, []).append(used)
                    shutil.rmtree(os.path.join(source, directory))
                forget()
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return wall, cpu


def shuffled(things: list[T], seed: str) -> list[T]:
    """The same in another order, so that nobody always follows the same: what ran before leaves the machine warm."""
    return random.Random(seed).sample(things, len(things))


def forget() -> None:
    """Has the kernel forget what it knows of names and inodes: a peer may keep a descriptor open for each."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")


def ratio(times: dict[str, list[float]], one: str, other: str) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios, paired round by round."""
    ratios = sorted(a / b for a, b in zip(times[one], times[other], strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def table(wall: Times, cpu: Times, names: list[str]) -> Table:
    """One line a row: the backing tree in µs, then each filesystem as ratio to it, then exclfs against bindfs."""
    shown = Table(title="median of the rounds; × is times the backing tree, CPU is of the server in µs per operation")
    shown.add_column("operation")
    shown.add_column("backing µs", justify="right")
    for name in names:
        shown.add_column(f"{name} ×", justify="right")
        shown.add_column("CPU", justify="right")
    rivals = [name for name in names if not name.startswith("exclfs")]
    for rival in rivals:
        shown.add_column(f"exclfs / {rival}", justify="right")
    for row, times in wall.items():
        cells = [row, f"{statistics.median(times[BACKING]) * 1e6:.1f}"]
        for name in names:
            cells += [f"{ratio(times, name, BACKING)[0]:.1f}", f"{statistics.median(cpu[row][name]) * 1e6:.0f}"]
        for rival in rivals:
            middle, low, high = ratio(times, "exclfs", rival)
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
        shown.add_row(*cells)
    return shown


def main() -> None:
    """Measures, prints the table, and writes the figures as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--on", help="a directory of the filesystem to measure on; default: the one of $TMPDIR")
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--only", help="only rows whose name contains this")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "benchmarks/compare.py: mounting with passthrough needs root\n")
    rows = [row for row in (*METADATA, *DATA) if arguments.only is None or arguments.only in row.name]
    with (
        tempfile.TemporaryDirectory(prefix="exclfs-bench-") as workspace,
        tempfile.TemporaryDirectory(prefix="exclfs-bench-tree-", dir=arguments.on) as source,
    ):
        peers = available(workspace)
        wall, cpu = measure(rows, peers, source, workspace, 3 if arguments.quick else arguments.rounds)
    Console(width=None if sys.stdout.isatty() else 220).print(table(wall, cpu, [peer.name for peer in peers]))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": versions(), "wall": wall, "cpu": cpu}, file, indent=1)


if __name__ == "__main__":
    main()
