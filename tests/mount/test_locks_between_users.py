"""flock, POSIX and OFD locks hold between the users of a mount, as between those of any filesystem."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from twins import Twins

pytestmark = [pytest.mark.mount, pytest.mark.root]

OFD_SETLK = 37
TRY = """
import errno, fcntl, os, struct, sys
kind, start, length, exclusive = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "exclusive"
fd = os.open(sys.argv[1], os.O_RDWR)
try:
    if kind == "flock":
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    else:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, 0, start, length, 0)
        fcntl.fcntl(fd, fcntl.F_SETLK if kind == "posix" else 37, lock)
    print("locked")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def tried(path: str, kind: str, start: int, length: int, mode: str) -> str:
    """What another process gets."""
    command = [sys.executable, "-c", TRY, path, kind, str(start), str(length), mode]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def take(fd: int, kind: str, start: int, length: int, mode: str) -> None:
    exclusive = mode == "exclusive"
    if kind == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    else:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, 0, start, length, 0)
        fcntl.fcntl(fd, fcntl.F_SETLK if kind == "posix" else OFD_SETLK, lock)


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
@pytest.mark.parametrize("kind", ["flock", "posix", "ofd"])
def test_a_lock_holds_against_another_process(twins: Twins, kind: str, mode: str) -> None:
    twins.setup(lambda: Path("file").write_text("x" * 100))

    def use() -> list[str]:
        fd = os.open("file", os.O_RDWR)
        try:
            take(fd, kind, 10, 20, mode)
            path = f"{os.readlink('/proc/thread-self/cwd')}/file"
            return [
                tried(path, kind, 15, 5, "exclusive"),
                tried(path, kind, 15, 5, "shared"),
                tried(path, kind, 50, 5, "exclusive"),
            ]
        finally:
            os.close(fd)

    found = twins.succeed(use)
    assert found[0] == "EAGAIN"
    assert found[1] == ("EAGAIN" if mode == "exclusive" else "locked")
    assert found[2] == ("EAGAIN" if kind == "flock" else "locked")
    path = str(twins.mount / "file")
    assert tried(path, kind, 15, 5, "exclusive") == "locked", "closing the descriptor releases"


def test_a_lock_does_not_reach_the_backing_tree(twins: Twins) -> None:
    """It stays in the kernel (limits.md)."""
    twins.setup(lambda: Path("file").write_text("x"))
    with open(twins.mount / "file", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert tried(str(twins.behind / "file"), "flock", 0, 0, "exclusive") == "locked"
        assert tried(str(twins.mount / "file"), "flock", 0, 0, "exclusive") == "EAGAIN"


def test_a_lock_outlives_the_name(twins: Twins) -> None:
    twins.setup(lambda: Path("file").write_text("x"))
    with open(twins.mount / "file", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.rename(twins.mount / "file", twins.mount / "moved")
        assert tried(str(twins.mount / "moved"), "flock", 0, 0, "exclusive") == "EAGAIN"
