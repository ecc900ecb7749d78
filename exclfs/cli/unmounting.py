"""Taking a mount away: by the system call for root, through fusermount3(1) for everybody else."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from typing import Final

from exclfs.cli.advice import Busy, UnmountFailed

MNT_DETACH: Final = 2
"""umount2(2): away from the tree now, ended with its last user."""
UMOUNT_NOFOLLOW: Final = 8
"""umount2(2): a symlink put in its place meanwhile is not followed."""


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmounts what is mounted there.

    Raises:
        Busy: it is in use.
        PermissionError: it is somebody else's.
        UnmountFailed: the system does not unmount it for another reason.
    """
    if os.geteuid() == 0:
        _by_system_call(mountpoint, lazy=lazy)
    else:
        _by_fusermount(mountpoint, lazy=lazy)


def _by_system_call(mountpoint: str, *, lazy: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if libc.umount2(os.fsencode(mountpoint), flags) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise Busy(mountpoint)
    if code == errno.EPERM:
        raise PermissionError(code, os.strerror(code), mountpoint)
    raise UnmountFailed(mountpoint, os.strerror(code).lower())


def _by_fusermount(mountpoint: str, *, lazy: bool) -> None:
    try:
        done = subprocess.run(
            ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise UnmountFailed(mountpoint, "fusermount3 is not installed (package fuse3)") from None
    if done.returncode == 0:
        return
    said = done.stderr.strip().removeprefix("fusermount3: ")
    if "busy" in said:
        raise Busy(mountpoint)
    if "not permitted" in said or "not found in" in said:
        raise PermissionError(errno.EPERM, "is not your mount", mountpoint)
    raise UnmountFailed(mountpoint, said or f"fusermount3 ended with status {done.returncode}")
