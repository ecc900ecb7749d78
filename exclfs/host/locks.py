"""Which locks stand on a file, and who waits for one: flock(2), and fcntl(2) of a process or of an open file.

The rule that this module owns: a lock is told once, whoever tells of it. /proc/locks (proc_locks(5)) is for everybody
to read, but leaves out the processes of other pid namespaces, names a process that may be gone (a child has its flock
then), and knows nobody for an OFD lock. The `lock:` lines of /proc/PID/fdinfo say who has it now, where they can be
read. Both are written by lock_get_status() (fs/locks.c), so that one lock is the same words in both.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.host.identities import Identity


class Kind(StrEnum):
    """Which of the three sorts that Linux has."""

    FLOCK = "flock"
    POSIX = "POSIX lock"
    OFD = "OFD lock"


_KINDS: Final = {b"FLOCK": Kind.FLOCK, b"POSIX": Kind.POSIX, b"OFDLCK": Kind.OFD}


@frozen
class Lock:
    """A lock on a file, or somebody who waits for one."""

    kind: Kind
    writing: bool
    """Whether it is exclusive."""
    start: int
    """The first byte."""
    end: int | None
    """The last one; None: to the end, however far that will be."""
    waits: bool
    """Whether it is only wanted."""
    pid: int | None
    """Who took it; None of an OFD lock, and of one that was taken in another pid namespace."""


def in_locks(lines: bytes, identity: Identity) -> Iterator[Lock]:
    """The locks on this inode, of the text of /proc/locks."""
    name = _name(identity)
    for line in lines.split(b"\n"):
        if name in line:
            yield from _parsed(line)


def in_fdinfo(fields: bytes) -> Iterator[Lock]:
    """The locks that a process has by one of its descriptors, of the text of its fdinfo."""
    for line in fields.split(b"\n"):
        if line.startswith(b"lock:"):
            yield from _parsed(line.removeprefix(b"lock:"))


def _name(identity: Identity) -> bytes:
    major, minor = identity.numbers
    return b" %02x:%02x:%d " % (major, minor, identity.inode)


def _parsed(line: bytes) -> Iterator[Lock]:
    # 1: POSIX  ADVISORY  WRITE 4711 fe:00:2498568 0 EOF, and of who waits for that: 1: -> POSIX  ADVISORY  WRITE …
    _, *words = line.split()
    waits = words[0] == b"->"
    with suppress(KeyError, ValueError):  # a lease, which is no lock; or a line of a kernel to come
        kind, _, access, pid, _, start, end = words[waits:]
        yield Lock(
            kind=_KINDS[kind],
            writing=access == b"WRITE",
            start=int(start),
            end=None if end == b"EOF" else int(end),
            waits=waits,
            pid=int(pid) if int(pid) > 0 else None,
        )
