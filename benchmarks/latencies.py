"""Latencies: how long the slowest of a hundred operations takes while something else keeps the server busy.

Told is the 99th percentile in times of the median of the same operations: what somebody waits who is unlucky. The
backing tree is measured under the same load, for the machine has only so many processors.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from document import Series
from ratios import percentile
from rounds import forget, shuffled
from rows import METADATA, Each

import exclfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rounds import Place
    from rows import Row

ROWS: Final = tuple(row for row in METADATA if isinstance(row.run, Each))
UNIT: Final = "99th percentile / median"
BLOCK: Final = b"x" * (128 << 10)
BLOCKS: Final = 512
HOLDER: Final = "bench"


def measure(backing: str, source: str, places: dict[str, Place], rounds: int, count: int) -> list[Series]:
    """Every metadata row in each place, while nothing else happens, while another writes, and while Python is busy.

    Args:
        backing: the name of the filesystem behind.
        source: the tree.
        places: where it is seen.
        rounds: how many.
        count: operations in each.
    """
    found = []
    for load, begin in (("", _nothing), (" while another writes", _writing), (" while Python is busy", _asking)):
        with_it = {name: place for name, place in places.items() if begin is not _asking or place.pid is not None}
        series = {
            row.name: Series("latency", backing, row.name + load, 1, UNIT, {name: [] for name in with_it})
            for row in ROWS
        }
        for turn in range(rounds):
            for name in shuffled(list(with_it), f"{turn} {load}"):
                directory = f"latency {turn} {name}{load}"
                with _loaded(begin, source, with_it[name].root, directory):
                    for row in ROWS:
                        times = _times(row, source, with_it[name].root, f"{directory}/{row.name}", count)
                        series[row.name].wall[name].append(percentile(times, 0.99) / percentile(times, 0.5))
                forget()
        found += series.values()
    return found


def _times(row: Row, source: str, root: str, directory: str, count: int) -> list[float]:
    """Seconds of each operation."""
    behind = os.path.join(source, directory)
    os.mkdir(behind)
    row.prepare(behind, count)
    here = os.open(".", os.O_RDONLY)
    os.chdir(os.path.join(root, directory))
    times = []
    try:
        for number in range(count):
            began = time.perf_counter()
            row.run.one(number)  # type: ignore[attr-defined]
            times.append(time.perf_counter() - began)
    finally:
        os.fchdir(here)
        os.close(here)
    return times


@contextmanager
def _loaded(begin: Callable[[str], None], source: str, root: str, directory: str) -> Iterator[None]:
    """While a process does this in a directory of its own."""
    os.makedirs(os.path.join(source, directory, "load"))
    if begin is _nothing:
        yield
        return
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(os.path.join(root, directory, "load"))
            os.write(writing, b".")
            os.close(writing)
            begin(os.path.join(source, directory, "load"))
        finally:
            os._exit(1)
    os.close(writing)
    began = os.read(reading, 1)
    os.close(reading)
    try:
        yield
        ended, _ = os.waitpid(child, os.WNOHANG)
        if ended or not began:
            raise RuntimeError("what was to keep the server busy has ended")
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _nothing(_behind: str) -> None:
    pass


def _writing(_behind: str) -> None:
    """Writes one file flat out, over and over."""
    file = os.open("flat-out", os.O_CREAT | os.O_WRONLY, 0o644)
    while True:
        for number in range(BLOCKS):
            os.pwrite(file, BLOCK, number * len(BLOCK))


def _asking(behind: str) -> None:
    """Holds, is refused, and releases, over and over: all of it is decided in Python."""
    with open(os.path.join(behind, "held"), "w"):
        pass
    with exclfs.connect("held") as client:
        while True:
            hold = client.hold("held", holder=HOLDER)
            with suppress(OSError):
                os.unlink("held")
            client.end(hold)
