"""What every process has open, as /proc/PID/fdinfo has it (proc_pid_fdinfo(5)).

The rule that this module owns: it is read once, all of it, and no filesystem is asked: which mount and which inode a
descriptor leads to the kernel writes there itself. Processes are looked at, not threads, which share the descriptors of
their process unless they have called unshare(CLONE_FILES).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from exclfs.host.view import Host

_LEADS_TO: Final = re.compile(rb"^mnt_id:\t(\d+)(?:\nino:\t(\d+))?", re.MULTILINE)
_FLAGS: Final = re.compile(rb"^flags:\t([0-7]+)", re.MULTILINE)
_MOST: Final = 1 << 12
"""Bytes to read at once. Only a descriptor with very many watches has more."""
_IS_KERNEL_THREAD: Final = 0x0020_0000
"""PF_KTHREAD of include/linux/sched.h."""


@frozen
class Descriptors:
    """What all processes have open that this process may look at."""

    of: dict[int, dict[int, bytes]]
    """For each process, by the number of the descriptor, the text of its fdinfo."""
    unread: tuple[int, ...]
    """The processes that do not show it to this user: one must be allowed to trace them (ptrace(2))."""


def read(host: Host) -> Descriptors:
    """What every process has open."""
    found, unread = {}, []
    for pid in host.pids:
        try:
            found[pid] = _of(host, pid)
        except PermissionError:
            if _has_files(host, pid):
                unread.append(pid)
        except OSError:  # it has ended
            continue
    return Descriptors(found, tuple(unread))


def leads_to(fields: bytes) -> tuple[int, int | None]:
    """The ids of the mount and of the inode; None: the kernel is older than 5.14."""
    match = _LEADS_TO.search(fields)
    if match is None:
        return 0, None
    mount, inode = match.groups()
    return int(mount), None if inode is None else int(inode)


def flags(fields: bytes) -> int:
    """Those of open(2)."""
    match = _FLAGS.search(fields)
    return int(match[1], 8) if match else 0


def _of(host: Host, pid: int) -> dict[int, bytes]:
    directory = os.open(f"{host.proc}/{pid}/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = {}
        for name in os.listdir(directory):
            try:
                found[int(name)] = _contents(name, directory)
            except (FileNotFoundError, ProcessLookupError):  # it has been closed
                continue
        if pid == os.getpid():
            found.pop(directory, None)
        return found
    finally:
        os.close(directory)


def _contents(name: str, directory: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        contents = read = os.read(descriptor, _MOST)
        while len(read) == _MOST:
            read = os.read(descriptor, _MOST)
            contents += read
        return contents
    finally:
        os.close(descriptor)


def _has_files(host: Host, pid: int) -> bool:
    """Whether this is a program that runs: a kernel thread has nothing open, nor has one that waits to be collected."""
    with suppress(OSError), open(f"{host.proc}/{pid}/stat", "rb") as file:
        state, *numbers = file.read().rpartition(b")")[2].split()
        return state not in (b"Z", b"X") and not int(numbers[5]) & _IS_KERNEL_THREAD
    return False
