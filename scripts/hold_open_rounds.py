"""A million rounds of each kind that must never be refused because of a file that was closed: `make hold-open-rounds`.

    python scripts/hold_open_rounds.py [--rounds N] [--processes N] [--threads N] [--on DIR]

close, then unlink: write a file, close it, unlink it. write a temporary file, then rename: read a target and close it,
write a temporary file and close it, rename it over the target. Of each kind half the rounds are done by one process,
and half by two: the second unlinks or renames as soon as it hears that the first has closed. Many threads of several
processes do that at the same time, on a mount with --hold-open=all. Prints the rounds and how many of them met EBUSY;
exit code 1 unless that is none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hold_open_rounds.c")
KINDS: Final = {"unlink": "close, then unlink", "rename": "write a temporary file, then rename"}
WHOSE: Final = {"same": "by the same process", "other": "by another process"}


def main() -> int:
    """Runs them all."""
    parser = argparse.ArgumentParser(description="Rounds that a closed file must never refuse.")
    parser.add_argument("--rounds", type=int, default=1_000_000, help="of each kind (default: a million)")
    parser.add_argument("--processes", type=int, default=2, help="pairs of them, where two take part (default: 2)")
    parser.add_argument("--threads", type=int, default=4, help="of each process (default: 4)")
    parser.add_argument("--on", metavar="DIR", help="where the backing tree is made (default: the temporary directory)")
    wanted = parser.parse_args()
    refused = 0
    with tempfile.TemporaryDirectory(dir=wanted.on) as workspace, mounted(workspace) as mountpoint:
        program = compiled(workspace)
        for kind, what in KINDS.items():
            for whose, by in WHOSE.items():
                directory = os.path.join(mountpoint, f"{kind}-{whose}")
                os.mkdir(directory)
                numbers = (wanted.rounds // 2, wanted.processes, wanted.threads)
                began = time.monotonic()
                said = subprocess.run(
                    [program, directory, kind, whose, *map(str, numbers)], check=True, capture_output=True, text=True
                ).stdout
                done, busy = map(int, said.split())
                print(f"{what}, {by}: {done} rounds, {busy} EBUSY ({time.monotonic() - began:.0f} s)", flush=True)
                refused += busy
    return 1 if refused else 0


def compiled(workspace: str) -> str:
    """The program of one kind of rounds."""
    program = os.path.join(workspace, "rounds")
    subprocess.run(["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-pthread", PROGRAM, "-o", program], check=True)
    return program


@contextmanager
def mounted(workspace: str) -> Iterator[str]:
    """A mount of an empty tree, on which every open file counts."""
    source, mountpoint = os.path.join(workspace, "tree"), os.path.join(workspace, "mnt")
    for directory in (source, mountpoint):
        os.mkdir(directory)
    exclfs = [sys.executable, "-m", "exclfs.cli"]
    options = ["--hold-open", "all", "--log", os.path.join(workspace, "log")]
    subprocess.run([*exclfs, "mount", source, mountpoint, *options], check=True, stdout=subprocess.DEVNULL)
    try:
        yield mountpoint
    finally:
        subprocess.run([*exclfs, "umount", mountpoint], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
