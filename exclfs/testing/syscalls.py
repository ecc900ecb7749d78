"""The system calls that reach a filesystem: which operation each is, and where its paths are.

The rule that this module owns: one table for both architectures; a program is stopped at what is in it and at nothing
else. Numbers are those of arch/x86/entry/syscalls/syscall_64.tbl and, for aarch64, scripts/syscall.tbl; arguments are
those of section 2 of the manual.
"""

from __future__ import annotations

import functools
import os
from typing import Final

from attrs import frozen

from exclfs.gating import Operation

AT_FDCWD: Final = -100
AT_REMOVEDIR: Final = 0x200
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000


@frozen
class ByName:
    """A path argument, looked up from a directory."""

    path: int
    """Which argument is the path."""
    directory: int | None = None
    """Which argument is the descriptor that a relative path starts at; None: the working directory."""
    follows: bool = False
    """Whether a symlink at its end is followed."""
    flags: int | None = None
    """Which argument has flags: `unless` among them turns `follows` round, and with AT_EMPTY_PATH an empty path is the
    descriptor itself."""
    turn: int = 0
    """The flag that turns `follows` round."""


@frozen
class ByDescriptor:
    """A file that is open: its descriptor is this argument."""

    argument: int


@frozen
class SystemCall:
    """One system call of the table."""

    name: str
    operation: Operation
    first: ByName | ByDescriptor
    second: ByName | ByDescriptor | None = None
    x86_64: int | None = None
    aarch64: int | None = None
    commands: tuple[int, frozenset[int]] | None = None
    """Only with one of these values in this argument."""

    @property
    def number(self) -> int | None:
        """Its number on this machine; None: there is no such call."""
        return self.aarch64 if os.uname().machine == "aarch64" else self.x86_64


def _at(path: int, *, follows: bool = False, flags: int | None = None, turn: int = 0) -> ByName:
    """As most *at() calls have it: the descriptor is the argument before the path."""
    return ByName(path, path - 1, follows, flags, turn)


_F_SETLK, _F_SETLKW, _F_OFD_SETLK, _F_OFD_SETLKW = 6, 7, 37, 38
_LOCKS: Final = (1, frozenset({_F_SETLK, _F_SETLKW, _F_OFD_SETLK, _F_OFD_SETLKW}))
_FOLLOWED, _NOT_FOLLOWED = ByName(0, follows=True), ByName(0)
_FD: Final = ByDescriptor(0)
_O: Final = Operation

TABLE: Final = (
    # Opening; which operation it really is (open, create, opendir) is in the flags, and whether the file is there.
    SystemCall("open", _O.OPEN, _FOLLOWED, x86_64=2),
    SystemCall("creat", _O.OPEN, _FOLLOWED, x86_64=85),
    SystemCall("openat", _O.OPEN, _at(1, follows=True), x86_64=257, aarch64=56),
    SystemCall("openat2", _O.OPEN, _at(1, follows=True), x86_64=437, aarch64=437),
    # Names that come, change and go.
    SystemCall("mkdir", _O.MKDIR, _NOT_FOLLOWED, x86_64=83),
    SystemCall("mkdirat", _O.MKDIR, _at(1), x86_64=258, aarch64=34),
    SystemCall("mknod", _O.MKNOD, _NOT_FOLLOWED, x86_64=133),
    SystemCall("mknodat", _O.MKNOD, _at(1), x86_64=259, aarch64=33),
    SystemCall("symlink", _O.SYMLINK, ByName(1), x86_64=88),
    SystemCall("symlinkat", _O.SYMLINK, _at(2), x86_64=266, aarch64=36),
    SystemCall("link", _O.LINK, _NOT_FOLLOWED, ByName(1), x86_64=86),
    SystemCall("linkat", _O.LINK, _at(1, flags=4, turn=AT_SYMLINK_FOLLOW), _at(3), x86_64=265, aarch64=37),
    SystemCall("unlink", _O.UNLINK, _NOT_FOLLOWED, x86_64=87),
    SystemCall("unlinkat", _O.UNLINK, _at(1), x86_64=263, aarch64=35),
    SystemCall("rmdir", _O.RMDIR, _NOT_FOLLOWED, x86_64=84),
    SystemCall("rename", _O.RENAME, _NOT_FOLLOWED, ByName(1), x86_64=82),
    SystemCall("renameat", _O.RENAME, _at(1), _at(3), x86_64=264, aarch64=38),
    SystemCall("renameat2", _O.RENAME, _at(1), _at(3), x86_64=316, aarch64=276),
    # Attributes.
    SystemCall("stat", _O.GETATTR, _FOLLOWED, x86_64=4),
    SystemCall("lstat", _O.GETATTR, _NOT_FOLLOWED, x86_64=6),
    SystemCall(
        "newfstatat", _O.GETATTR, _at(1, follows=True, flags=3, turn=AT_SYMLINK_NOFOLLOW), x86_64=262, aarch64=79
    ),
    SystemCall("statx", _O.GETATTR, _at(1, follows=True, flags=2, turn=AT_SYMLINK_NOFOLLOW), x86_64=332, aarch64=291),
    SystemCall("access", _O.GETATTR, _FOLLOWED, x86_64=21),
    SystemCall("faccessat", _O.GETATTR, _at(1, follows=True), x86_64=269, aarch64=48),
    SystemCall(
        "faccessat2", _O.GETATTR, _at(1, follows=True, flags=3, turn=AT_SYMLINK_NOFOLLOW), x86_64=439, aarch64=439
    ),
    SystemCall("chmod", _O.SETATTR, _FOLLOWED, x86_64=90),
    SystemCall("fchmod", _O.SETATTR, _FD, x86_64=91, aarch64=52),
    SystemCall("fchmodat", _O.SETATTR, _at(1, follows=True), x86_64=268, aarch64=53),
    SystemCall(
        "fchmodat2", _O.SETATTR, _at(1, follows=True, flags=3, turn=AT_SYMLINK_NOFOLLOW), x86_64=452, aarch64=452
    ),
    SystemCall("chown", _O.SETATTR, _FOLLOWED, x86_64=92),
    SystemCall("lchown", _O.SETATTR, _NOT_FOLLOWED, x86_64=94),
    SystemCall("fchown", _O.SETATTR, _FD, x86_64=93, aarch64=55),
    SystemCall("fchownat", _O.SETATTR, _at(1, follows=True, flags=4, turn=AT_SYMLINK_NOFOLLOW), x86_64=260, aarch64=54),
    SystemCall("truncate", _O.SETATTR, _FOLLOWED, x86_64=76, aarch64=45),
    SystemCall("ftruncate", _O.SETATTR, _FD, x86_64=77, aarch64=46),
    SystemCall("utime", _O.SETATTR, _FOLLOWED, x86_64=132),
    SystemCall("utimes", _O.SETATTR, _FOLLOWED, x86_64=235),
    SystemCall("futimesat", _O.SETATTR, _at(1, follows=True), x86_64=261),
    SystemCall(
        "utimensat", _O.SETATTR, _at(1, follows=True, flags=3, turn=AT_SYMLINK_NOFOLLOW), x86_64=280, aarch64=88
    ),
    SystemCall("readlink", _O.READLINK, _NOT_FOLLOWED, x86_64=89),
    SystemCall("readlinkat", _O.READLINK, _at(1), x86_64=267, aarch64=78),
    SystemCall("setxattr", _O.SETXATTR, _FOLLOWED, x86_64=188, aarch64=5),
    SystemCall("lsetxattr", _O.SETXATTR, _NOT_FOLLOWED, x86_64=189, aarch64=6),
    SystemCall("fsetxattr", _O.SETXATTR, _FD, x86_64=190, aarch64=7),
    SystemCall(
        "setxattrat", _O.SETXATTR, _at(1, follows=True, flags=2, turn=AT_SYMLINK_NOFOLLOW), x86_64=463, aarch64=463
    ),
    SystemCall("getxattr", _O.GETXATTR, _FOLLOWED, x86_64=191, aarch64=8),
    SystemCall("lgetxattr", _O.GETXATTR, _NOT_FOLLOWED, x86_64=192, aarch64=9),
    SystemCall("fgetxattr", _O.GETXATTR, _FD, x86_64=193, aarch64=10),
    SystemCall(
        "getxattrat", _O.GETXATTR, _at(1, follows=True, flags=2, turn=AT_SYMLINK_NOFOLLOW), x86_64=464, aarch64=464
    ),
    SystemCall("listxattr", _O.LISTXATTR, _FOLLOWED, x86_64=194, aarch64=11),
    SystemCall("llistxattr", _O.LISTXATTR, _NOT_FOLLOWED, x86_64=195, aarch64=12),
    SystemCall("flistxattr", _O.LISTXATTR, _FD, x86_64=196, aarch64=13),
    SystemCall(
        "listxattrat", _O.LISTXATTR, _at(1, follows=True, flags=2, turn=AT_SYMLINK_NOFOLLOW), x86_64=465, aarch64=465
    ),
    SystemCall("removexattr", _O.REMOVEXATTR, _FOLLOWED, x86_64=197, aarch64=14),
    SystemCall("lremovexattr", _O.REMOVEXATTR, _NOT_FOLLOWED, x86_64=198, aarch64=15),
    SystemCall("fremovexattr", _O.REMOVEXATTR, _FD, x86_64=199, aarch64=16),
    SystemCall(
        "removexattrat",
        _O.REMOVEXATTR,
        _at(1, follows=True, flags=2, turn=AT_SYMLINK_NOFOLLOW),
        x86_64=466,
        aarch64=466,
    ),
    SystemCall("statfs", _O.STATFS, _FOLLOWED, x86_64=137, aarch64=43),
    # What is open.
    SystemCall("getdents", _O.READDIR, _FD, x86_64=78),
    SystemCall("getdents64", _O.READDIR, _FD, x86_64=217, aarch64=61),
    SystemCall("fsync", _O.FSYNC, _FD, x86_64=74, aarch64=82),
    SystemCall("fdatasync", _O.FSYNC, _FD, x86_64=75, aarch64=83),
    SystemCall("fallocate", _O.FALLOCATE, _FD, x86_64=285, aarch64=47),
    SystemCall("copy_file_range", _O.COPY_FILE_RANGE, _FD, ByDescriptor(2), x86_64=326, aarch64=285),
    SystemCall("flock", _O.FLOCK, _FD, x86_64=73, aarch64=32),
    SystemCall("fcntl", _O.FLOCK, _FD, x86_64=72, aarch64=25, commands=_LOCKS),
    SystemCall("read", _O.READ, _FD, x86_64=0, aarch64=63),
    SystemCall("pread64", _O.READ, _FD, x86_64=17, aarch64=67),
    SystemCall("readv", _O.READ, _FD, x86_64=19, aarch64=65),
    SystemCall("preadv", _O.READ, _FD, x86_64=295, aarch64=69),
    SystemCall("preadv2", _O.READ, _FD, x86_64=327, aarch64=286),
    SystemCall("write", _O.WRITE, _FD, x86_64=1, aarch64=64),
    SystemCall("pwrite64", _O.WRITE, _FD, x86_64=18, aarch64=68),
    SystemCall("writev", _O.WRITE, _FD, x86_64=20, aarch64=66),
    SystemCall("pwritev", _O.WRITE, _FD, x86_64=296, aarch64=70),
    SystemCall("pwritev2", _O.WRITE, _FD, x86_64=328, aarch64=287),
)
"""All of them. fstat(2) is not here: what is open is no race for a name."""

STOPPABLE: Final = frozenset(call.operation for call in TABLE) | {Operation.CREATE, Operation.OPENDIR, Operation.RMDIR}
"""What a program can be stopped at before the kernel's filesystem layer."""

USUAL: Final = STOPPABLE - {Operation.READ, Operation.WRITE}
"""What a program is stopped at unless it is told otherwise: reading and writing are many, and seldom the race."""

SLEEPS: Final = {
    "x86_64": {35: "nanosleep", 230: "clock_nanosleep"},
    "aarch64": {101: "nanosleep", 115: "clock_nanosleep"},
}
"""Calls that wait for a time and for nobody."""

FORKS: Final = {"x86_64": frozenset({56, 57, 58, 435}), "aarch64": frozenset({220, 435})}
"""clone, fork, vfork, clone3. In vfork a parent sleeps until its child has executed a program."""


def those_of(operations: frozenset[Operation]) -> dict[int, SystemCall]:
    """The calls of this machine that can be one of these operations, by number."""
    wanted = set(operations)
    if wanted & {Operation.CREATE, Operation.OPENDIR}:
        wanted.add(Operation.OPEN)
    if Operation.RMDIR in wanted:
        wanted.add(Operation.UNLINK)
    return {call.number: call for call in TABLE if call.operation in wanted and call.number is not None}


@functools.cache
def names_here() -> dict[int, str]:
    """The names of all calls of the table, by this machine's numbers."""
    sleeps = SLEEPS.get(os.uname().machine, {})
    return {call.number: call.name for call in TABLE if call.number is not None} | sleeps
