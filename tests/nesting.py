"""Mounts that a test makes inside a tree, and takes away again whatever happens."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from loops import make_image
from mounting import bind, umount
from predicted import mount
from twins import LIBC

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MNT_DETACH = 2


class Nesting:
    """The mounts of one test, in the order in which they were made."""

    def __init__(self) -> None:
        self._made: list[Path] = []

    def bind(self, source: Path, target: Path, limits: int = 0, *, recursive: bool = False) -> Path:
        """mount --bind (or --rbind), perhaps with MS_RDONLY and the like."""
        target.mkdir(exist_ok=True) if source.is_dir() else target.touch()
        bind(source, target, MS_REC if recursive else 0)
        self._made.append(target)
        if limits:
            mount("none", target, flags=MS_REMOUNT | MS_BIND | limits)
        return target

    def tmpfs(self, target: Path) -> Path:
        """A new directory with an empty filesystem mounted on it."""
        target.mkdir(exist_ok=True)
        mount("tmpfs", target, "tmpfs", options="mode=755")
        self._made.append(target)
        return target

    def image(self, kind: str, file: Path, target: Path, mib: int) -> Path:
        """A filesystem of its own in a file, mounted by a loop device that goes with it."""
        target.mkdir(exist_ok=True)
        make_image(file, kind, mebibytes=mib)
        subprocess.run(["mount", "-o", "loop", str(file), str(target)], check=True)
        self._made.append(target)
        return target

    def umount(self, target: Path) -> None:
        """umount(2), without flags.

        Raises:
            OSError: it is busy (EBUSY).
        """
        umount(target)
        self._made.remove(target)

    def detach(self) -> None:
        """Takes away all that is left, the last first."""
        while self._made:
            LIBC.umount2(os.fsencode(self._made.pop()), MNT_DETACH)


@contextmanager
def nesting() -> Iterator[Nesting]:
    """Mounts that are gone when the block ends."""
    made = Nesting()
    try:
        yield made
    finally:
        with suppress(OSError):
            made.detach()
