"""What holding costs: how fast holds come and go, and what those that stand cost everybody else.

    python benchmarks/holding.py [--rounds N] [--quick] [--standing N] [--json FILE]

1. Holds that end with their connection, placed and released one by one, by one client and by several.
2. Operations on other inodes, with no hold and with many standing holds on the same mount.
3. The same while one hold stands elsewhere that reaches beyond its inode.
4. Opening, closing and reading, with --hold-open=own and without; everything, with a verdict asked for each.

"Nothing, again" is a second mount on which nothing stands: how far it is from 1 is the machine's doing. `make bench`
measures the same among all else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

import report
from backings import tmpfs
from clients import together
from document import VERSION, Document, Series, dumps
from peers import exclfs as exclfs_peer
from peers import machine
from rich.console import Console
from rounds import Course, Place, shuffled
from rows import DATA, METADATA

import exclfs
from exclfs.holds.flags import DEFAULT, Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

ROWS: Final = {row.name: row for row in (*METADATA, *DATA)}
HOLDER: Final = "bench"
NOTHING: Final = "nothing"
SEVERAL: Final = 4
"""Clients."""
PAIRS: Final = 2_000
"""Of placing and releasing, in one round."""
IN_ONE_CALL: Final = 10_000
IN_ONE_DIRECTORY: Final = 1_000
DEEP: Final = "/".join(f"level{level}" for level in range(8))
"""Where names are removed while a hold stands elsewhere: what covers them is looked for upwards."""
ELSEWHERE: Final = ("stat, first time", "stat, again", "create", "open and close", "rename", "unlink", "mkdir", "rmdir")


# --- one by one -------------------------------------------------------------------------------------------------------


def one_by_one(count: int) -> None:
    """Places and releases holds on the working directory, one after the other."""
    with exclfs.connect(".") as client:
        for _ in range(count):
            client.end(client.hold(".", holder=HOLDER))


def rate(source: str, mountpoint: str, clients: int, pairs: int) -> float:
    """Pairs per second of several clients together, each a process with an inode of its own."""
    names = [f"held{number}" for number in range(clients)]
    for name in names:
        os.makedirs(os.path.join(source, name), exist_ok=True)
    return pairs / together([os.path.join(mountpoint, name) for name in names], lambda: one_by_one(pairs // clients))


def rates(backing: str, source: str, mountpoint: str, rounds: int, pairs: int) -> Series:
    """Pairs per second by number of clients."""
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        for clients in shuffled([1, SEVERAL], f"{turn}"):
            told = "one client" if clients == 1 else f"{clients} clients"
            found.setdefault(told, []).append(rate(source, mountpoint, clients, pairs))
        print(f"one by one: round {turn + 1} of {rounds}", file=sys.stderr)
    return Series("holds", backing, "holds placed and released", 1, "pairs per second", found)


# --- what stands meanwhile --------------------------------------------------------------------------------------------


@contextmanager
def standing(source: str, mountpoint: str, number: int) -> Iterator[None]:
    """Many holds stand, on files with which nothing else is done."""
    names = [f"standing {number}/{at // IN_ONE_DIRECTORY}/{at}" for at in range(number)]
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
def elsewhere(place: Place, flags: Flags) -> Iterator[Place]:
    """One hold stands on a directory beside the one in which everything happens."""
    with exclfs.connect(place.root) as client:
        holds = client.hold(os.path.join(place.root, "beside/deep"), holder=HOLDER, flags=flags)
        yield place
        client.end(holds)


def measured(
    backing: str, source: str, workspace: str, rounds: int, standing_numbers: Sequence[int], quick: bool
) -> Iterator[Series]:
    """All of it, on mounts of its own over the tree."""
    os.makedirs(os.path.join(source, "beside/deep"), exist_ok=True)
    with ExitStack() as stack:

        def mounted(name: str, options: str = "") -> Place:
            mountpoint = os.path.join(workspace, f"holding {name}")
            peer = exclfs_peer(name, f"log=/dev/null{options}")
            return Place(mountpoint, stack.enter_context(peer.mounted(source, mountpoint)))

        plain, again = mounted("plain"), mounted("again")
        nothing = {NOTHING: partial(nullcontext, plain), "nothing, again": partial(nullcontext, again)}
        yield rates(backing, source, plain.root, max(rounds // 2, 1), PAIRS // 4 if quick else PAIRS)

        def compared(
            rows: Sequence[str], states: dict[str, Callable[[], AbstractContextManager[Place]]], where: str = ""
        ) -> list[Series]:
            course = Course("holds", backing, source, {**nothing, **states}, rounds, where)
            return course.measure([ROWS[name].shorter(4 if quick else 1) for name in rows])

        held = {}
        for number in standing_numbers:
            place = mounted(f"{number}")
            stack.enter_context(standing(source, place.root, number))
            held[f"{number:,} holds"] = partial(nullcontext, place)
        yield from compared(ELSEWHERE, held)
        other = {
            "the default": partial(elsewhere, plain, DEFAULT),
            "NO_REMOVE_BELOW": partial(elsewhere, plain, Flags.NO_REMOVE_BELOW),
            "PIN_PATH": partial(elsewhere, plain, Flags.PIN_PATH),
        }
        yield from compared(("create", "rename", "unlink", "rmdir"), other, DEEP)
        own = {"hold_open=own": partial(nullcontext, mounted("own", ",hold_open=own"))}
        yield from compared(
            ("open and close", "read a small file", "write a small file", "random read 4k", "unlink"), own
        )
        asking = {"ask_always": partial(nullcontext, mounted("ask_always", ",ask_always"))}
        yield from compared(("stat, again", "create", "rename", "unlink", "rmdir", "set xattr"), asking)


def main() -> None:
    """Measures, prints the tables, and writes the figures as JSON where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds, and a tenth of the holds")
    parser.add_argument("--standing", type=int, default=100_000, help="how many holds stand")
    parser.add_argument("--json", help="write every figure to this file")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "benchmarks/holding.py: mounting with passthrough needs root\n")
    rounds = 3 if arguments.quick else arguments.rounds
    number = arguments.standing // 10 if arguments.quick else arguments.standing
    with tempfile.TemporaryDirectory(prefix="exclfs-bench-") as workspace, tmpfs(workspace) as source:
        series = list(measured("tmpfs", source, workspace, rounds, (number,), arguments.quick))
    document = Document(VERSION, time.strftime("%Y-%m-%d", time.gmtime()), arguments.quick, machine(), series)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in report.tables(document):
        console.print(table)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            file.write(dumps(document))


if __name__ == "__main__":
    main()
