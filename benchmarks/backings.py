"""What lies behind the mounts: a directory of tmpfs, and one of ext4 on a loop device of its own."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

IMAGE_BYTES: Final = 4 << 30
"""Sparse: it takes what is written to it."""


@contextmanager
def tmpfs(workspace: str) -> Iterator[str]:
    """A tmpfs of its own; gives a directory in it."""
    yield from _mounted(workspace, "tmpfs", "-t", "tmpfs", "-o", "size=75%,nr_inodes=0", "tmpfs")


@contextmanager
def ext4(workspace: str) -> Iterator[str]:
    """An ext4 as mkfs makes it, on a loop device over a file of the workspace; gives a directory in it."""
    image = os.path.join(workspace, "ext4.image")
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "1200000", image], check=True)
    yield from _mounted(workspace, "ext4", "-o", "loop", image)


BACKINGS: Final[dict[str, Callable[[str], AbstractContextManager[str]]]] = {"tmpfs": tmpfs, "ext4": ext4}


def _mounted(workspace: str, name: str, *arguments: str) -> Iterator[str]:
    mountpoint = os.path.join(workspace, name)
    os.mkdir(mountpoint)
    subprocess.run(["mount", *arguments, mountpoint], check=True)
    try:
        tree = os.path.join(mountpoint, "tree")
        os.mkdir(tree)
        yield tree
    finally:
        subprocess.run(["umount", "--lazy", mountpoint], check=True)
