"""What only exclfs does: refusing, holding and releasing, answering at the command line."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import memory as inodes
from document import EXCLFS, SECONDS, Series
from peers import cpu_seconds

import exclfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from rounds import Place

HOLDER: Final = "bench"


def measure(backing: str, source: str, place: Place, rounds: int, count: int) -> list[Series]:
    """Seconds of each, in every round."""
    held = os.path.join(source, "own held")
    with open(held, "w"):
        pass
    seen = os.path.join(place.root, "own held")
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with exclfs.connect(seen) as client:
            hold = client.hold(seen, holder=HOLDER)
            found.setdefault("refuse an unlink", []).append(_timed(place, count, lambda: _refused(seen)))
            client.end(hold)
            pair = _timed(place, count, lambda: client.end(client.hold(seen, holder=HOLDER)))
            found.setdefault("hold and release", []).append(pair)
        for row, words in (("exclfs --version", ("--version",)), ("exclfs inuse PATH", ("inuse", seen))):
            found.setdefault(row, []).append(_timed(place, 1, lambda words=words: _command(*words)))
    os.unlink(held)
    return [
        Series("own", backing, row, 1, SECONDS, {EXCLFS: [w for w, _ in times]}, {EXCLFS: [c for _, c in times]})
        for row, times in found.items()
    ]


def memory(backing: str, directory: str, files: int) -> Series:
    """Bytes of the server for each of many inodes that the kernel knows."""
    with tempfile.TemporaryDirectory(dir=directory) as place:
        each = inodes.measure(place, files, rounds=1)["bytes_each_1"]
    return Series("own", backing, f"memory for each of {files:,} inodes", 1, "bytes", {EXCLFS: [each]})


def _timed(place: Place, count: int, work: Callable[[], object]) -> tuple[float, float]:
    """Median of the seconds of one; and CPU of the server for each."""
    before = cpu_seconds(place.pid)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times), (cpu_seconds(place.pid) - before) / count


def _refused(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
        raise RuntimeError("a held file was removed")


def _command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "exclfs.cli", *words], stdout=subprocess.DEVNULL, check=False)
