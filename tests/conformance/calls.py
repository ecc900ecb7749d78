"""The calls of the table: each gets the name of a victim, and gives a value or raises OSError.

Their second names lie in `w`: `new` is free, `file` a file and `empty` a directory for everybody.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any, Final

from twins import (
    ALICE,
    AT_FDCWD,
    BOB,
    CAROL,
    EXCHANGE,
    LIBC,
    NOREPLACE,
    SHARED,
    WHITEOUT,
    acl_for,
    check,
    fallocate,
    rename2,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Call = "Callable[[str], Any]"
FCHMODAT2, EXECVEAT = 452, {"x86_64": 322, "aarch64": 281}[os.uname().machine]
AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, AT_EACCESS, AT_EXECVE_CHECK = 0x100, 0x1000, 0x200, 0x10000
NOW, OMIT, PAST = (0, (1 << 30) - 1), (0, (1 << 30) - 2), (10**9, 5)
BAD = ctypes.c_void_p(1)
"""An address of nothing: EFAULT."""
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def opened(flags: int, use: Callable[[int], Any] | None = None, mode: int = 0o666) -> Callable[[str], Any]:
    """Opens the victim, and uses the descriptor; never waits for the other end of a fifo."""

    def call(name: str) -> Any:
        fd = os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, mode)
        try:
            if use is not None:
                return use(fd)
            status = os.fstat(fd)
            return stat.S_IFMT(status.st_mode), status.st_size if stat.S_ISREG(status.st_mode) else None
        finally:
            os.close(fd)

    return call


def utimensat(access: tuple[int, int], modification: tuple[int, int], flags: int = 0) -> Callable[[str], Any]:
    """With seconds and nanoseconds."""

    def call(name: str) -> None:
        times = (ctypes.c_long * 4)(*access, *modification)
        check(LIBC.utimensat(AT_FDCWD, os.fsencode(name), times, flags))

    return call


def change_mode(mode: int, flags: int) -> Callable[[str], Any]:
    """fchmodat2(2)."""
    return lambda name: check(LIBC.syscall(FCHMODAT2, AT_FDCWD, os.fsencode(name), mode, flags))


def with_umask(mask: int, call: Callable[[str], Any]) -> Callable[[str], Any]:
    """The call with another umask."""

    def masked(name: str) -> Any:
        before = os.umask(mask)
        try:
            return call(name)
        finally:
            os.umask(before)

    return masked


def linked(flags: int) -> Callable[[str], Any]:
    """linkat(2) to a new name."""
    return lambda name: check(LIBC.linkat(AT_FDCWD, os.fsencode(name), AT_FDCWD, b"w/new", flags))


def renamed(target: str, flags: int = 0) -> Callable[[str], Any]:
    """To the target."""
    return lambda name: rename2(name, target, flags)


def replacing(source: str, flags: int = 0) -> Callable[[str], Any]:
    """The victim, by the source."""
    return lambda name: rename2(source, name, flags)


def bound(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)


def connected(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)


def entered(name: str) -> list[str]:
    """chdir(2) and back again."""
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(name)
        return [outcome(lambda: sorted(os.listdir("."))), outcome(lambda: os.mkdir("made"))]
    finally:
        os.fchdir(before)
        os.close(before)


def outcome(call: Callable[[], Any]) -> Any:
    """The value, or the name of the errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def shown(follow: bool) -> Callable[[str], Any]:
    """stat(2) or lstat(2)."""

    def call(name: str) -> tuple[int, ...]:
        status = os.stat(name, follow_symlinks=follow)
        return status.st_mode, status.st_uid, status.st_gid, status.st_rdev

    return call


def mapped(fd: int) -> bytes:
    """Changes the file through a mapping of it."""
    with mmap.mmap(fd, 4) as mapping:
        mapping[0:2] = b"no"
        return os.pread(fd, 10, 0)


def copied(fd: int) -> tuple[int, bytes]:
    """Part of another file to this one."""
    source = os.open("w/file", os.O_RDONLY)
    try:
        return os.copy_file_range(source, fd, 3, 0, 2), os.pread(fd, 10, 0)
    finally:
        os.close(source)


def read(fd: int) -> bytes | None:
    """Not where there is nothing: without passthrough the kernel knows that (limits.md)."""
    return os.read(fd, 10) if os.fstat(fd).st_size else None


def appended(fd: int) -> bytes | None:
    """As O_APPEND says; not to a fifo, whose times stay in the kernel (limits.md)."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    os.write(fd, b"one")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"two")
    return os.pread(fd, 20, 0)


def fd_calls(fd: int) -> list[Any]:
    """What fchmod and its like do."""
    return [
        outcome(lambda: os.fchmod(fd, 0o640)),
        outcome(lambda: os.fchown(fd, -1, SHARED)),
        outcome(lambda: os.utime(fd, ns=(5, 7))),
        outcome(lambda: os.setxattr(fd, "user.test", b"value")),
        outcome(lambda: os.ftruncate(fd, 1)),
        outcome(lambda: os.fsync(fd)),
        outcome(lambda: os.fdatasync(fd)),
    ]


def sought(fd: int) -> list[Any]:
    """Data and holes, but those of directories (limits.md)."""
    hows = (os.SEEK_SET,) if stat.S_ISDIR(os.fstat(fd).st_mode) else (os.SEEK_DATA, os.SEEK_HOLE)
    return [outcome(lambda: os.lseek(fd, 1, how)) for how in hows]  # noqa: B023


def may_run(name: str) -> int:
    """Whether execve(2) would take it: the kernel only looks."""
    fd = os.open(name, os.O_PATH)
    try:
        none = (ctypes.c_char_p * 1)(None)
        return check(LIBC.syscall(EXECVEAT, fd, b"", none, none, AT_EMPTY_PATH | AT_EXECVE_CHECK))
    finally:
        os.close(fd)


def unnamed(name: str) -> tuple[int, int]:
    """A file without a name in that directory, which then gets one."""
    fd = os.open(name, os.O_TMPFILE | os.O_RDWR, 0o6770)
    try:
        os.write(fd, b"unnamed")
        check(LIBC.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, b"w/new", 0x400))
        status = os.fstat(fd)
        return status.st_mode, status.st_nlink
    finally:
        os.close(fd)


def told_to(name: str, function: Callable[..., int], *arguments: Any) -> None:
    """A call of libc whose first argument is a path."""
    check(function(os.fsencode(name), *arguments))


def bad_buffers(fd: int) -> list[str]:
    """EFAULT, or what comes before it; of write(2), and of reading where there is nothing, limits.md tells."""
    return [
        outcome(lambda: os.fstat(fd).st_size and check(LIBC.pread(fd, BAD, 8, ctypes.c_long(0)))),
        outcome(lambda: check(LIBC.fstat(fd, BAD))),
        outcome(lambda: check(LIBC.fgetxattr(fd, b"user.there", BAD, 5))),
        outcome(lambda: check(LIBC.fsetxattr(fd, b"user.there", BAD, 5, 0))),
        outcome(lambda: check(LIBC.getdents64(fd, BAD, 4096))),
    ]


OPEN_FLAGS: Final = {
    "": 0,
    "creat": os.O_CREAT,
    "excl": os.O_CREAT | os.O_EXCL,
    "trunc": os.O_TRUNC,
    "creat|trunc": os.O_CREAT | os.O_TRUNC,
    "append": os.O_APPEND,
    "nofollow": os.O_NOFOLLOW,
    "directory": os.O_DIRECTORY,
    "creat|directory": os.O_CREAT | os.O_DIRECTORY,
    "creat|nofollow": os.O_CREAT | os.O_NOFOLLOW,
    "noatime": os.O_NOATIME,
    "direct": os.O_DIRECT,
    "sync|creat": os.O_SYNC | os.O_CREAT,
    "tmpfile": os.O_TMPFILE,
    "tmpfile|excl": os.O_TMPFILE | os.O_EXCL,
    "path": os.O_PATH,
    "path|nofollow": os.O_PATH | os.O_NOFOLLOW,
}
CALLS: Final[dict[str, Callable[[str], Any]]] = {
    **{
        f"open {how}{'|' if name else ''}{name}": opened(flags | more)
        for how, flags in (("rdonly", os.O_RDONLY), ("wronly", os.O_WRONLY), ("rdwr", os.O_RDWR))
        for name, more in OPEN_FLAGS.items()
    },
    **{f"create {mode:o}": opened(os.O_CREAT | os.O_RDWR, mode=mode) for mode in (0, 0o777, 0o2755, 0o4711, 0o7777)},
    "create, umask 0": with_umask(0, opened(os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "create, umask 077": with_umask(0o077, opened(os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
    "read": opened(os.O_RDONLY, read),
    "write": opened(os.O_RDWR, lambda fd: (os.pwrite(fd, b"new", 1), os.pread(fd, 10, 0))),
    "write nothing": opened(os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "write far": opened(os.O_WRONLY, lambda fd: os.pwrite(fd, b"far", 100_000)),
    "append": opened(os.O_RDWR | os.O_APPEND, appended),
    "map": opened(os.O_RDWR, mapped),
    "copy_file_range": opened(os.O_RDWR, copied),
    "bad buffers": opened(os.O_RDWR, bad_buffers),
    "bad buffers, rdonly": opened(os.O_RDONLY, bad_buffers),
    "fd": opened(os.O_RDWR, fd_calls),
    "fd rdonly": opened(os.O_RDONLY, fd_calls),
    "fd path": opened(os.O_PATH, fd_calls),
    "unnamed": unnamed,
    "lseek": opened(os.O_RDONLY, sought),
    "flock": opened(os.O_RDONLY, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    "lockf": opened(os.O_RDONLY, lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    **{f"truncate {size}": functools.partial(os.truncate, length=size) for size in (0, 2, 4, 9000, -1)},
    **{
        f"ftruncate {size}": opened(os.O_WRONLY, lambda fd, size=size: os.ftruncate(fd, size))  # type: ignore[misc]
        for size in (0, 4, 9000, -1)
    },
    "posix_fallocate": opened(os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 2, 9000)),
    "posix_fallocate nothing": opened(os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 0, 0)),
    "posix_fallocate before": opened(os.O_WRONLY, lambda fd: os.posix_fallocate(fd, -1, 5)),
    "posix_fallocate rdonly": opened(os.O_RDONLY, lambda fd: os.posix_fallocate(fd, 0, 5)),
    "fallocate punch": opened(os.O_WRONLY, lambda fd: fallocate(fd, 3, 1, 2)),
    "fallocate keep": opened(os.O_WRONLY, lambda fd: fallocate(fd, 1, 0, 9000)),
    "fallocate zero": opened(os.O_WRONLY, lambda fd: fallocate(fd, 0x10, 0, 2)),
    **{
        f"chmod {mode:o}": functools.partial(os.chmod, mode=mode)
        for mode in (0, 0o644, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777)
    },
    "fchmodat2": change_mode(0o604, 0),
    "fchmodat2 nofollow": change_mode(0o604, AT_SYMLINK_NOFOLLOW),
    "fchmodat2 wrong": change_mode(0o604, 1),
    **{
        f"chown {label}": functools.partial(os.chown, uid=uid, gid=gid)
        for label, uid, gid in (
            ("to itself", ALICE.uid, -1),
            ("to the member", BOB.uid, -1),
            ("to root", 0, 0),
            ("to the group", -1, SHARED),
            ("to the owner's group", -1, ALICE.gid),
            ("to the stranger's group", -1, CAROL.gid),
            ("to the stranger", CAROL.uid, CAROL.gid),
        )
    },
    "lchown": lambda name: os.lchown(name, BOB.uid, SHARED),
    "lchown to the group": lambda name: os.lchown(name, -1, ALICE.gid),
    "link": linked(0),
    "link followed": linked(0x400),
    "link wrong": linked(1),
    "link beside": lambda name: os.link(name, "d/new", follow_symlinks=False),
    "link onto": lambda name: os.link("w/file", name),
    "link of symlink onto": lambda name: os.link("w/symlink", name, follow_symlinks=False),
    **{f"mkdir {mode:o}": functools.partial(os.mkdir, mode=mode) for mode in (0o777, 0o1755, 0o2770, 0)},
    "mkdir, umask 0": with_umask(0, os.mkdir),
    "mkfifo": os.mkfifo,
    "mkfifo 6777": lambda name: os.mkfifo(name, 0o6777),
    "mknod file": lambda name: os.mknod(name, stat.S_IFREG | 0o2664),
    "mknod socket": lambda name: os.mknod(name, stat.S_IFSOCK | 0o666),
    "mknod char": lambda name: os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "mknod block": lambda name: os.mknod(name, stat.S_IFBLK | 0o666, os.makedev(0xFFF, 0xFFFFF)),
    "mknod whiteout": lambda name: os.mknod(name, stat.S_IFCHR, 0),
    "mknod directory": lambda name: os.mknod(name, stat.S_IFDIR | 0o755),
    "mknod symlink": lambda name: os.mknod(name, stat.S_IFLNK | 0o777),
    "symlink": lambda name: os.symlink("nowhere", name),
    "symlink long": lambda name: os.symlink("y" * 4095, name),
    "symlink too long": lambda name: os.symlink("y" * 4096, name),
    "symlink to nothing": lambda name: os.symlink("", name),
    "bind": bound,
    "connect": connected,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "unlinkat wrong": lambda name: check(LIBC.unlinkat(AT_FDCWD, os.fsencode(name), 1)),
    "rename": renamed("w/new"),
    "rename beside": renamed("d/new"),
    "rename to file": renamed("w/file"),
    "rename to directory": renamed("w/empty"),
    "rename to full": renamed("w/full"),
    "rename below none": renamed("w/none/new"),
    "rename to 255 bytes": renamed("w/" + "z" * 255),
    "rename to 256 bytes": renamed("w/" + "z" * 256),
    "rename to new/": renamed("w/new/"),
    "rename to itself": lambda name: os.rename(name, name),
    "rename into itself": lambda name: os.rename(name, f"{name}/below"),
    "rename noreplace": renamed("w/new", NOREPLACE),
    "rename noreplace to file": renamed("w/file", NOREPLACE),
    "rename exchange file": renamed("w/file", EXCHANGE),
    "rename exchange directory": renamed("w/full", EXCHANGE),
    "rename exchange none": renamed("w/new", EXCHANGE),
    "rename whiteout": renamed("w/new", WHITEOUT),
    "rename exchange noreplace": renamed("w/file", EXCHANGE | NOREPLACE),
    "rename wrong": renamed("w/new", 8),
    "replace by file": replacing("w/file"),
    "replace by empty": replacing("w/empty"),
    "replace by full": replacing("w/full"),
    "replace by symlink": replacing("w/symlink"),
    "replace by none": replacing("w/none"),
    "replace by file, noreplace": replacing("w/file", NOREPLACE),
    "replace by file, whiteout": replacing("w/file", WHITEOUT),
    "utime past": utimensat(PAST, (-5, 999_999_999)),
    "utime now": utimensat(NOW, NOW),
    "utime now, omit": utimensat(NOW, OMIT),
    "utime omit, now": utimensat(OMIT, NOW),
    "utime omit": utimensat(OMIT, OMIT),
    "utime omit, past": utimensat(OMIT, PAST),
    "utime future": utimensat((2**33, 1), (2**33, 2)),
    "utime wrong": utimensat((0, 10**9), PAST),
    "utime nofollow": utimensat(PAST, PAST, AT_SYMLINK_NOFOLLOW),
    "utime nofollow now": utimensat(NOW, NOW, AT_SYMLINK_NOFOLLOW),
    "utime null": lambda name: told_to(name, LIBC.utimes, None),
    **{f"access {mask}": functools.partial(os.access, mode=mask) for mask in range(8)},
    "access wrong": lambda name: told_to(name, LIBC.access, 8),
    "access effective": lambda name: os.access(name, os.W_OK, effective_ids=True),
    "access nofollow": lambda name: os.access(name, os.F_OK, follow_symlinks=False),
    "stat": shown(True),
    "lstat": shown(False),
    "stat bad buffer": lambda name: told_to(name, LIBC.stat, BAD),
    "readlink": os.readlink,
    "list": lambda name: sorted(os.listdir(name)),
    "chdir": entered,
    "run": may_run,
    "statfs": lambda name: os.statvfs(name).f_namemax,
    "getxattr": lambda name: os.getxattr(name, "user.there"),
    "getxattr trusted": lambda name: os.getxattr(name, "trusted.there"),
    "getxattr acl": lambda name: os.getxattr(name, "system.posix_acl_access"),
    "listxattr": lambda name: sorted(set(os.listxattr(name)) - {"security.selinux"}),
    "setxattr": lambda name: os.setxattr(name, "user.test", b"value"),
    "setxattr nofollow": lambda name: os.setxattr(name, "user.test", b"value", follow_symlinks=False),
    "setxattr create": lambda name: os.setxattr(name, "user.there", b"new", os.XATTR_CREATE),
    "setxattr replace": lambda name: os.setxattr(name, "user.there", b"new", os.XATTR_REPLACE),
    "setxattr empty": lambda name: os.setxattr(name, "user.test", b""),
    "setxattr 256 bytes": lambda name: os.setxattr(name, "user." + "x" * 251, b"value"),
    "setxattr no name": lambda name: os.setxattr(name, "user.", b"value"),
    "setxattr no namespace": lambda name: os.setxattr(name, "there", b"value"),
    "setxattr too large": lambda name: os.setxattr(name, "user.test", bytes(65537)),
    "setxattr trusted": lambda name: os.setxattr(name, "trusted.test", b"value"),
    "setxattr trusted nofollow": lambda name: os.setxattr(name, "trusted.test", b"value", follow_symlinks=False),
    "setxattr capability": lambda name: os.setxattr(name, "security.capability", CAPABILITY),
    "setxattr acl": lambda name: os.setxattr(name, "system.posix_acl_access", acl_for(BOB.uid, 5)),
    "setxattr default acl": lambda name: os.setxattr(name, "system.posix_acl_default", acl_for(BOB.uid, 5)),
    "setxattr wrong acl": lambda name: os.setxattr(name, "system.posix_acl_access", b"wrong"),
    "removexattr": lambda name: os.removexattr(name, "user.there"),
    "removexattr none": lambda name: os.removexattr(name, "user.test"),
    "removexattr trusted": lambda name: os.removexattr(name, "trusted.there"),
    "removexattr acl": lambda name: os.removexattr(name, "system.posix_acl_access"),
    "removexattr default acl": lambda name: os.removexattr(name, "system.posix_acl_default"),
}
