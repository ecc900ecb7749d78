"""How long it takes to be told who uses something, beside fuser and lsof.

    python benchmarks/why.py [--rounds N] [--processes N] [--files N] [--json FILE]

A machine is made busy: many processes, each with some files open. Then every program is asked about the same path, one
right after the other and in a changing order, in several rounds; each is a process of its own, so its start counts.
What is told is the median of seconds, with the lowest and the highest, and its ratio to that of `exclfs why`.
"nothing" is `exclfs --version`: what of it is the start of Python and of the command line.

Run it as root: who may not look at other users' processes is soon done. lsof asks every mounted filesystem, and waits
for one that hangs; after a minute it is ended, and told as such.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCLFS: Final = (sys.executable, "-m", "exclfs.cli")
PROGRAMS: Final = {
    "exclfs why": (*EXCLFS, "why"),
    "fuser -v": ("fuser", "-v"),
    "lsof": ("lsof",),
    "nothing": (*EXCLFS, "--version"),
}
MOST_SECONDS: Final = 60.0


@contextmanager
def busy(directory: str, processes: int, files: int) -> Iterator[dict[str, str]]:
    """That many processes, each with that many files open: what to ask about, by how much it is used."""
    paths = [os.path.join(directory, f"file{number}") for number in range(files)]
    unused = os.path.join(directory, "unused")
    for path in (*paths, unused):
        with open(path, "w"):
            pass
    children = [fork(paths, directory) for _ in range(processes)]
    try:
        yield {"nobody": unused, "one process": f"{directory}/own{children[0]}", "all of them": paths[0]}
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def fork(paths: list[str], directory: str) -> int:
    """A process that opens these and one that only it has; it is returned once it has done so."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        for path in (*paths, f"{directory}/own{os.getpid()}"):
            os.open(path, os.O_RDWR | os.O_CREAT)
        os.write(writing, b"done")
        os.close(writing)
        os.close(reading)
        signal.pause()
    os.close(writing)
    os.read(reading, 4)
    os.close(reading)
    return child


def seconds(program: tuple[str, ...], path: str) -> float:
    """How long it takes; MOST_SECONDS, if it does not end."""
    command = [*program] if program[-1] == "--version" else [*program, path]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        pidfd = os.pidfd_open(running.pid)  # Popen.wait() with a timeout looks only now and then
        ended = select.select([pidfd], [], [], MOST_SECONDS)[0]
        taken = time.perf_counter() - began
        os.close(pidfd)
        running.kill()
    return taken if ended else MOST_SECONDS


def measure(paths: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds, by how much the path is used and by program."""
    taken: dict[str, dict[str, list[float]]] = {used: {name: [] for name in PROGRAMS} for used in paths}
    for turn in range(rounds):
        for used, path in paths.items():
            for name in random.Random(f"{turn} {used}").sample(list(PROGRAMS), len(PROGRAMS)):
                taken[used][name].append(seconds(PROGRAMS[name], path))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return taken


def table(title: str, taken: dict[str, dict[str, list[float]]]) -> Table:
    """A line for each way to be used, a column for each program."""
    shown = Table("used by", title=title)
    for name in PROGRAMS:
        shown.add_column(f"{name}, s", justify="right")
    for used, by_program in taken.items():
        ours = statistics.median(by_program["exclfs why"])
        shown.add_row(used, *(cell(times, ours) for times in by_program.values()))
    return shown


def cell(times: list[float], ours: float) -> str:
    """Median, range, and ratio to ours."""
    median = statistics.median(times)
    if median >= MOST_SECONDS:
        return "hangs"
    return f"{median:.2f} ({min(times):.2f}-{max(times):.2f}), {median / ours:.2f} ×"


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--processes", type=int, default=500)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--json", metavar="FILE", help="all that was measured")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="exclfs-why-") as directory,
        busy(directory, options.processes, options.files) as paths,
    ):
        taken = measure(paths, options.rounds)
    title = f"{options.processes} processes with {options.files} open files each"
    Console(width=140).print(table(title, taken))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"title": title, "seconds": taken}, file)


if __name__ == "__main__":
    main()
