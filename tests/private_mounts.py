"""A mount namespace for a test: what is mounted, bound or made in it nobody else sees, and it ends with the test."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.host import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator


class PrivateMounts:
    """A mount namespace that a process keeps."""

    def __init__(self, keeper: int) -> None:
        self.keeper = keeper
        self.prefix = ["nsenter", f"--mount=/proc/{keeper}/ns/mnt"]

    def run(self, *words: object, check: bool = True, **named: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, as root."""
        done = subprocess.run(
            [*self.prefix, *map(str, words)], capture_output=True, text=True, errors="replace", check=False, **named
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def exclfs_mounts(self) -> list[mounts.Mount]:
        """The mounts of exclfs in it."""
        with open(f"/proc/{self.keeper}/mountinfo", "rb") as file:
            return [mount for mount in mounts.parse(file.read()) if mount.fstype == mounts.FSTYPE]

    def unmount_all(self) -> None:
        """Takes every mount of exclfs away, here."""
        for mount in self.exclfs_mounts():
            self.run("umount", "-l", os.fsdecode(mount.mountpoint), check=False)


@contextmanager
def private_mounts() -> Iterator[PrivateMounts]:
    """A namespace; what exclfs has mounted there is unmounted in the end."""
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        keeper.stdin.write("there\n")
        keeper.stdin.flush()
        if keeper.stdout.readline() != "there\n":
            pytest.skip(f"needs a mount namespace: {keeper.stderr.read() if keeper.stderr else ''}")
        space = PrivateMounts(keeper.pid)
        space.unmount_all()  # copies of other tests' mounts would keep their servers from ending
        try:
            yield space
        finally:
            space.unmount_all()
