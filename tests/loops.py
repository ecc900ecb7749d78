"""Small filesystems in files, for tests that fill one up, break it, or take it away."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

import needs
from twins import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB: Final = 1 << 20
MAKE: Final = {
    "ext4": (32, ["mkfs.ext4", "-q", "-b", "4096", "-m", "0"]),
    "xfs": (300, ["mkfs.xfs", "-q"]),  # the least that mkfs.xfs makes
    "btrfs": (128, ["mkfs.btrfs", "-q"]),
}
"""How large the image is if nothing else is asked for, in MiB, and what makes the filesystem. The images are sparse."""

AMONG_NO_MOUNTS_OF_EXCLFS: Final = ["unshare", "--mount", "sh", "-c", 'umount -alt fuse.exclfs; exec "$@"', "sh"]
"""mkfs.btrfs looks at the source of every mount, and fails at that of a tree mounted over itself whose server another
test, of a run beside this one, has just killed."""

SHUTDOWN: Final = 0x8004587D
"""XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN, which are one number."""
FLUSH, FLUSH_LOG, FLUSH_NOTHING = range(3)


def run(*words: object) -> str:
    """Runs a command that must not fail: what it printed. A sanitizer that this process has is not for others."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def make_image(image: Path, kind: str, *options: str, mebibytes: int | None = None) -> None:
    """Makes the file with an empty filesystem in it."""
    least, command = MAKE[kind]
    needs.programs(command[0])
    with open(image, "wb") as file:
        file.truncate((mebibytes or least) * MIB)
    run(*AMONG_NO_MOUNTS_OF_EXCLFS, *command, *options, image)


@contextmanager
def loop_mount(image: Path, directory: Path, options: str = "") -> Iterator[Path]:
    """Mounts the image on the directory, which is made; a kernel without the filesystem skips the test."""
    directory.mkdir(exist_ok=True)
    words = ["mount", "-o", f"loop,{options}" if options else "loop", str(image), str(directory)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "unknown filesystem" in done.stderr:
        pytest.skip(f"this kernel lacks it: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield directory
    finally:
        done = subprocess.run(["umount", str(directory)], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "not mounted" in done.stderr, done.stderr


@contextmanager
def filesystem(place: Path, kind: str, options: str = "", make: tuple[str, ...] = ()) -> Iterator[Path]:
    """A filesystem of this kind, mounted on `place`; its image is beside it."""
    image = place.with_suffix(".image")
    make_image(image, kind, *make)
    with loop_mount(image, place, options) as mounted:
        mounted.chmod(0o777)
        yield mounted


def shut_down(directory: Path, how: int = FLUSH_NOTHING) -> None:
    """Has ext4 or xfs fail from now on, as if its device were gone: only umount helps."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, ctypes.c_uint32(how))
    finally:
        os.close(fd)


def sync(directory: Path) -> None:
    """syncfs(2): writes back, and takes no error of writing away from whoever has a file open."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        check(LIBC.syncfs(fd))
    finally:
        os.close(fd)
