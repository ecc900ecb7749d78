"""Processes that use something, each in one way, until they are ended."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from twins import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

F_OFD_SETLK: Final = 37
IN_ALL_EVENTS: Final = 0xFFF
FAN_MARK_ADD: Final = 1
FAN_MARK_MOUNT: Final = 0x10
FAN_MODIFY: Final = 2
AT_FDCWD: Final = -100

_KEPT: list[object] = []
"""What a process that has been forked for this keeps until its end."""


def opens(path: Path, flags: int = os.O_RDONLY) -> None:
    os.open(path, flags)


def works_in(path: Path) -> None:
    os.chdir(path)


def has_as_root(path: Path) -> None:
    os.chroot(path)  # and the working directory stays where it was


def maps(path: Path) -> None:
    """For writing, and without a descriptor."""
    descriptor = os.open(path, os.O_RDWR)
    address = LIBC.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    assert address != -1
    os.close(descriptor)


def binds(path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    _KEPT.append(listening)


def watches(path: Path) -> None:
    check(LIBC.inotify_add_watch(check(LIBC.inotify_init1(0)), os.fsencode(path), IN_ALL_EVENTS))


def marks(path: Path, flags: int = 0) -> None:
    """Watches with fanotify."""
    group = check(LIBC.fanotify_init(0, os.O_RDONLY))
    mask = ctypes.c_uint64(FAN_MODIFY)
    check(LIBC.fanotify_mark(group, FAN_MARK_ADD | flags, mask, AT_FDCWD, os.fsencode(path)))


def flocks(path: Path, operation: int = fcntl.LOCK_EX) -> None:
    fcntl.flock(os.open(path, os.O_RDWR), operation)


def posix_locks(path: Path, start: int = 0, length: int = 0, *, kind: int = fcntl.F_WRLCK) -> None:
    fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_SETLK, _flock(kind, start, length))


def ofd_locks(path: Path, start: int = 0, length: int = 0, *, kind: int = fcntl.F_WRLCK) -> None:
    fcntl.fcntl(os.open(path, os.O_RDWR), F_OFD_SETLK, _flock(kind, start, length))


def _flock(kind: int, start: int, length: int) -> bytes:
    return struct.pack("=hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0)


@contextmanager
def runs(path: Path) -> Iterator[int]:
    """A process whose program is this file; it has the comm `runs`."""
    shutil.copy(shutil.which("sleep") or "", path)
    with subprocess.Popen([path, "600"]) as child:
        while os.readlink(f"/proc/{child.pid}/exe") != os.path.realpath(path):
            os.sched_yield()  # it has not called execve(2) yet
        try:
            yield child.pid
        finally:
            child.send_signal(signal.SIGKILL)
