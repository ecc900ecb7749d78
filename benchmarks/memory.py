"""How much memory the server has for each inode that the kernel knows, and whether it gives it back.

    python benchmarks/memory.py [--files N] [--rounds N] [--on DIR]... [--json FILE]

A tree of many files is looked at through a mount, each once (stat). How much the resident memory of the server grew
for that is told, for each inode that the server says it knows; all is in it: entries, names, handles, hash tables,
what malloc loses. Then the files are removed through the mount, so that the kernel forgets them, and it is told what
is left; and once more, for memory that is given back is not yet proof that none is lost.

The kernel has to remember all of them meanwhile (about 1.5 KiB each). Run it as root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import exclfs

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCLFS: Final = (sys.executable, "-m", "exclfs.cli")
IN_ONE_DIRECTORY: Final = 1000
PATIENCE: Final = 60.0
"""Seconds in which the kernel has to have told what it forgets."""


@contextmanager
def mounted(directory: str) -> Iterator[str]:
    """An exclfs mount of a new tree in this directory."""
    source, mountpoint = os.path.join(directory, "tree"), os.path.join(directory, "mnt")
    os.mkdir(source)
    os.mkdir(mountpoint)
    subprocess.run([*EXCLFS, "mount", source, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([*EXCLFS, "umount", mountpoint], check=True)


def resident(pid: int) -> int:
    """Bytes of memory that the process has and nobody else (proc_pid_smaps(5))."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) * 1024


def names(files: int) -> Iterator[str]:
    """Paths of the files, in directories of a thousand."""
    for number in range(files):
        yield f"directory{number // IN_ONE_DIRECTORY:06}/file{number:08}"


def make(source: str, files: int) -> None:
    """The tree, behind the mount."""
    for path in names(files):
        try:
            os.mknod(os.path.join(source, path))
        except FileNotFoundError:
            os.mkdir(os.path.join(source, os.path.dirname(path)))
            os.mknod(os.path.join(source, path))


def measure(directory: str, files: int, rounds: int) -> dict[str, Any]:
    """One filesystem: bytes for each inode while they are known, and bytes in all once they are not any more."""
    found: dict[str, Any] = {"files": files}
    with mounted(directory) as mountpoint, exclfs.connect(mountpoint) as client:
        pid = client.status().pid
        source = client.status().source
        before, known_before = resident(pid), client.status().inodes
        for number in range(1, rounds + 1):
            make(source, files)
            for path in names(files):
                os.stat(os.path.join(mountpoint, path))
            known = client.status().inodes - known_before
            found |= {f"known_{number}": known, f"bytes_each_{number}": round_to((resident(pid) - before) / known)}
            for path in names(files):
                os.unlink(os.path.join(mountpoint, path))
            deadline = time.monotonic() + PATIENCE
            while client.status().inodes - known_before > files // 10 and time.monotonic() < deadline:
                time.sleep(0.1)
            for name in os.listdir(mountpoint):
                os.rmdir(os.path.join(mountpoint, name))
            found[f"left_{number}"] = resident(pid) - before
    return found


def round_to(value: float) -> float:
    """One digit after the point is all that a measurement is worth."""
    return round(value, 1)


def main() -> None:
    """Measures each of the places, and tells."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--on", action="append", metavar="DIR", help="where the tree lies; /var/tmp and /dev/shm")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results = {}
    for place in arguments.on or ["/var/tmp", "/dev/shm"]:
        with tempfile.TemporaryDirectory(dir=place, prefix="exclfs-memory-") as directory:
            kind = subprocess.check_output(["stat", "-f", "-c", "%T", directory], text=True).strip()
            found = results[kind] = measure(directory, arguments.files, arguments.rounds)
        print(f"{kind}, {found['files']:,} files")
        for number in range(1, arguments.rounds + 1):
            print(
                f"  {found[f'bytes_each_{number}']} bytes for each of {found[f'known_{number}']:,} inodes; "
                f"once they are forgotten {found[f'left_{number}'] / 1024:,.0f} KiB are left"
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
