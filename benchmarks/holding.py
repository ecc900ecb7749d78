"""What holding costs: how fast holds come and go, and what those that stand cost everybody else.

    python benchmarks/holding.py [--rounds N] [--quick] [--standing N] [--on DIR] [--json FILE] [--only WORD]

1. Holds that end with their connection, placed and released one by one, by one client and by several.
2. Operations on other inodes, with no hold and with many standing holds on the same mount.
3. The same while one hold stands elsewhere that reaches beyond its inode.
4. Opening, closing and reading, with --hold-open=own and without.

The first is told as a rate. All else is told as a ratio within one run: each round measures a row in every state, one
right after the other and in a changing order, and the table has the median of the rounds' ratios, with the lowest and
the highest. "Nothing, again" is a second mount on which nothing stands: how far it is from 1 is the machine's doing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import frozen
from compare import Times, forget, ratio, shuffled
from peers import Peer, versions
from rich.console import Console
from rich.table import Table
from rows import DATA, METADATA

import exclfs
from exclfs.holds.flags import DEFAULT, Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

State = AbstractContextManager[str]
"""While it lasts something is the case; it gives the mountpoint where that is so."""

ROWS: Final = {row.name: row for row in (*METADATA, *DATA)}
HOLDER: Final = "bench"
RATES: Final = "holds placed and released, one by one"
SEVERAL: Final = 4
"""Clients."""
PAIRS: Final = 2_000
"""Of placing and releasing, in one round."""
IN_ONE_CALL: Final = 10_000
IN_ONE_DIRECTORY: Final = 1_000
DEEP: Final = "/".join(f"level{level}" for level in range(8))
"""Where names are removed while a hold stands elsewhere: what covers them is looked for upwards."""


@frozen
class Comparison:
    """One table: rows in several states. The first state is what the others are compared with."""

    title: str
    rows: tuple[str, ...]
    states: dict[str, Callable[[], State]]
    where: str = ""
    """The directory in which everything happens, below the root."""


def measure(comparison: Comparison, source: str, rounds: int) -> Times:
    """Seconds per operation by row and state."""
    times: Times = {name: {} for name in comparison.rows}
    os.makedirs(os.path.join(source, comparison.where), exist_ok=True)
    for turn in range(rounds):
        for place, row in enumerate(ROWS[name] for name in comparison.rows):
            for number, state in shuffled(list(enumerate(comparison.states)), f"{turn} {row.name}"):
                directory = os.path.join(comparison.where, f"w{turn}-{place}-{number}")  # a new name: no old caches
                behind = os.path.join(source, directory)
                with comparison.states[state]() as mountpoint:
                    taken = row.measure(behind, os.path.join(mountpoint, directory))
                times[row.name].setdefault(state, []).append(taken)
                shutil.rmtree(behind)
            forget()
        print(f"{comparison.title}: round {turn + 1} of {rounds}", file=sys.stderr)
    return times


def table(comparison: Comparison, times: Times) -> Table:
    """One line a row: the first state in µs, then every other as ratio to it."""
    first, *others = comparison.states
    shown = Table("operation", title=comparison.title)
    for heading in (f"{first}, µs", *(f"{state} ×" for state in others)):
        shown.add_column(heading, justify="right")
    for row, measured in times.items():
        ratios = (ratio(measured, state, first) for state in others)
        told = (f"{middle:.2f} ({low:.2f}-{high:.2f})" for middle, low, high in ratios)
        shown.add_row(row, f"{statistics.median(measured[first]) * 1e6:.1f}", *told)
    return shown


# --- one by one -------------------------------------------------------------------------------------------------------


def one_by_one(path: str, count: int) -> None:
    """Places and releases holds on one inode, one after the other."""
    with exclfs.connect(path) as client:
        for _ in range(count):
            client.end(client.hold(path, holder=HOLDER))


def rate(source: str, mountpoint: str, clients: int) -> float:
    """Pairs per second of several clients together, each a process with an inode of its own."""
    names = [f"held{number}" for number in range(clients)]
    for name in names:
        with open(os.path.join(source, name), "w"):
            pass
    with multiprocessing.get_context("fork").Pool(clients) as pool:
        began = time.perf_counter()
        pool.starmap(one_by_one, [(os.path.join(mountpoint, name), PAIRS // clients) for name in names])
        return PAIRS / (time.perf_counter() - began)


def rates(source: str, mountpoint: str, rounds: int) -> dict[str, list[float]]:
    """Pairs per second by number of clients."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        for clients in shuffled([1, SEVERAL], f"{turn}"):
            found.setdefault(str(clients), []).append(rate(source, mountpoint, clients))
        print(f"one by one: round {turn + 1} of {rounds}", file=sys.stderr)
    return found


def table_of_rates(found: dict[str, list[float]]) -> Table:
    """One line for each number of clients."""
    shown = Table("clients", title=RATES)
    for heading in ("pairs per second", "lowest", "highest", "× one client"):
        shown.add_column(heading, justify="right")
    for clients, measured in found.items():
        figures = (statistics.median(measured), min(measured), max(measured))
        shown.add_row(clients, *(f"{figure:,.0f}" for figure in figures), f"{ratio(found, clients, '1')[0]:.2f}")
    return shown


# --- what stands meanwhile --------------------------------------------------------------------------------------------


@contextmanager
def standing(source: str, mountpoint: str, number: int) -> Iterator[None]:
    """Many holds stand, on files with which nothing else is done."""
    names = [f"standing/{at // IN_ONE_DIRECTORY}/{at}" for at in range(number)]
    for at, name in enumerate(names):
        if at % IN_ONE_DIRECTORY == 0:
            os.makedirs(os.path.join(source, os.path.dirname(name)))
        with open(os.path.join(source, name), "w"):
            pass
    paths = [os.path.join(mountpoint, name) for name in names]
    with exclfs.connect(mountpoint, timeout=None) as client:
        for at in range(0, number, IN_ONE_CALL):
            client.hold(paths[at : at + IN_ONE_CALL], holder=HOLDER)
        yield


@contextmanager
def elsewhere(mountpoint: str, flags: Flags) -> Iterator[str]:
    """One hold stands on a directory beside the one in which everything happens."""
    with exclfs.connect(mountpoint) as client:
        holds = client.hold(os.path.join(mountpoint, "beside/deep"), holder=HOLDER, flags=flags)
        yield mountpoint
        client.end(holds)


def comparisons(plain: str, again: str, own: str, held: str, number: int) -> tuple[Comparison, ...]:
    """All tables of ratios.

    Args:
        plain: a mount on which nothing stands.
        again: another.
        own: one with --hold-open=own.
        held: one on which many holds stand.
        number: how many.
    """
    nothing = {"nothing": partial(nullcontext, plain), "nothing, again": partial(nullcontext, again)}
    return (
        Comparison(
            "other inodes while many holds stand",
            ("stat, first time", "stat, again", "create", "open and close", "rename", "unlink", "mkdir", "rmdir"),
            {**nothing, f"{number:,} holds": partial(nullcontext, held)},
        ),
        Comparison(
            "other inodes while one hold stands elsewhere",
            ("create", "rename", "unlink", "rmdir"),
            {
                **nothing,
                "the default": partial(elsewhere, plain, DEFAULT),
                "NO_REMOVE_BELOW": partial(elsewhere, plain, Flags.NO_REMOVE_BELOW),
                "PIN_PATH": partial(elsewhere, plain, Flags.PIN_PATH),
            },
            DEEP,
        ),
        Comparison(
            "hold_open=own",
            ("open and close", "read a small file", "write a small file", "random read 4k", "unlink"),
            {**nothing, "own": partial(nullcontext, own)},
        ),
    )


def main() -> None:
    """Measures, prints the tables, and writes the figures as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds, and a tenth of the holds")
    parser.add_argument("--standing", type=int, default=100_000, help="how many holds stand")
    parser.add_argument("--on", help="a directory of the filesystem to measure on; default: the one of $TMPDIR")
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--only", default="", help="only tables whose title contains this")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "benchmarks/holding.py: mounting with passthrough needs root\n")
    rounds = 3 if arguments.quick else arguments.rounds
    number = arguments.standing // 10 if arguments.quick else arguments.standing
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures: dict[str, object] = {"machine": versions()}
    with (
        tempfile.TemporaryDirectory(prefix="exclfs-bench-") as workspace,
        tempfile.TemporaryDirectory(prefix="exclfs-bench-tree-", dir=arguments.on) as source,
        ExitStack() as stack,
    ):
        mounts = []
        for name, whose in (("plain", "off"), ("again", "off"), ("own", "own"), ("held", "off")):
            options = f"log=/dev/null,hold_open={whose}"
            command = (sys.executable, "-m", "exclfs.cli", "mount", "{src}", "{mnt}", "-o", options)
            mounts.append(os.path.join(workspace, name))
            stack.enter_context(Peer(name, command).mounted(source, mounts[-1]))
        plain, *_, held = mounts
        os.makedirs(os.path.join(source, "beside/deep"))
        if arguments.only in RATES:
            figures[RATES] = found = rates(source, plain, rounds)
            console.print(table_of_rates(found))
        for comparison in comparisons(*mounts, number):
            if arguments.only not in comparison.title:
                continue
            with standing(source, held, number) if "many" in comparison.title else nullcontext():
                figures[comparison.title] = times = measure(comparison, source, rounds)
            console.print(table(comparison, times))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
