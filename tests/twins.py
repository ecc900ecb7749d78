"""A directory of a mount and a plain one beside its backing tree, to which the same is done: they must end equal.

Work is done by a thread that has become somebody (ids, groups, umask and working directory belong to the thread, if one
asks the kernel rather than glibc), so that closures, descriptors and exceptions cross without a process between. It
names everything relative to its working directory: pytest's own directories let nobody but root through.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import queue
import stat
import struct
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_FS = 0x200
SETGROUPS, SETRESGID, SETRESUID = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}[platform.machine()]
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


@attrs.frozen
class User:
    """As whom something is done."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022


SHARED = 61100
"""A group that alice and bob have, beside their own."""
ROOT = User("root", 0, 0)
ALICE = User("alice", 61001, 61001, (SHARED,))
BOB = User("bob", 61002, 61002, (SHARED,))
CAROL = User("carol", 61003, 61003)
"""In no group of anybody's."""


def check(result: int) -> int:
    """The result of a call of libc, or OSError."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def rename2(source: str, target: str, flags: int) -> None:
    """renameat2(2)."""
    check(LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def link_descriptor(fd: int, name: str) -> None:
    """Gives a file without a name its first one."""
    check(LIBC.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(name), AT_SYMLINK_FOLLOW))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode."""
    check(LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


class Handle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def handle_of(path: Path) -> Handle:
    """name_to_handle_at(2)."""
    handle, mount = Handle(size=128), ctypes.c_int()
    check(LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle


def open_handle(anywhere: Path, handle: Handle, flags: int = os.O_RDONLY) -> int:
    """open_by_handle_at(2), on the mount that `anywhere` is of."""
    mount = os.open(anywhere, os.O_RDONLY)
    try:
        return check(LIBC.open_by_handle_at(mount, ctypes.byref(handle), flags))
    finally:
        os.close(mount)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as its xattr: (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def acl_for(user: int, permissions: int, *, base: int = 0o750) -> bytes:
    """An ACL that gives one more user these permissions."""
    nobody = 0xFFFFFFFF
    return acl(
        (0x01, base >> 6 & 7, nobody),
        (0x02, permissions, user),
        (0x04, base >> 3 & 7, nobody),
        (0x10, 7, nobody),
        (0x20, base & 7, nobody),
    )


def become(user: User, cwd: Path | None = None) -> None:
    """Makes this thread, which must be a new one, that user's, and takes it there."""
    check(LIBC.unshare(CLONE_FS))
    entered = cwd is None or entered_by_root(cwd)
    os.umask(user.umask)
    groups = (ctypes.c_uint32 * len(user.groups))(*user.groups)
    check(LIBC.syscall(SETGROUPS, len(user.groups), groups))
    check(LIBC.syscall(SETRESGID, user.gid, user.gid, user.gid))
    check(LIBC.syscall(SETRESUID, user.uid, user.uid, user.uid))
    if cwd is not None and not entered:
        os.chdir(cwd)


def as_user(user: User, work: Callable[[], T], *, cwd: Path | None = None) -> T:
    """What `work` gives, or raises, when this user does it there."""
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            become(user, cwd)
            try:
                outcome.append(work())
            finally:
                os.chdir("/")  # join() returns before the kernel has let go of a thread's directory
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name=user.name)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return outcome[0]


class Actor:
    """A user in a directory who stays there: a thread that does one piece of work after the other."""

    def __init__(self, user: User, cwd: Path) -> None:
        self.user = user
        self._work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(cwd,), name=user.name)
        self._thread.start()
        self.do(lambda: None)

    def _run(self, cwd: Path) -> None:
        try:
            become(self.user, cwd)
        except BaseException as error:
            self._work.get()
            self._done.put((None, error))
            return
        while (work := self._work.get()) is not None:
            try:
                self._done.put((work(), None))
            except BaseException as error:
                self._done.put((None, error))

    def do(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises, when this user does it."""
        self._work.put(work)
        result, error = self._done.get()
        if error is not None:
            raise error
        outcome: T = result
        return outcome

    def leave(self) -> None:
        """Ends the thread; it is nowhere any more."""
        self.do(lambda: os.chdir("/"))  # join() returns before the kernel has let go of a thread's directory
        self._work.put(None)
        self._thread.join()


def entered_by_root(directory: Path) -> bool:
    """Goes there, unless it is on a mount of a user who lets nobody in."""
    try:
        os.chdir(directory)
    except PermissionError:
        return False
    return True


def outcome_of(user: User, work: Callable[[], Any], cwd: Path) -> Any:
    """The value, or the name of the errno."""
    try:
        return as_user(user, work, cwd=cwd)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def attributes_of(path: str, links: dict[int, str]) -> dict[str, Any]:
    """Everything that is the same for two equal files, times excepted."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    seen: dict[str, Any] = {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "links": (status.st_nlink, links.setdefault(status.st_ino, path)),
        "rdev": status.st_rdev,
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in listed(path)},
    }
    if kind == stat.S_IFLNK:
        seen["target"] = os.readlink(path)
    elif kind == stat.S_IFREG:
        with open(path, "rb") as file:
            seen["data"] = status.st_size, hashlib.file_digest(file, "sha256").hexdigest()
    return seen


def listed(path: str) -> list[str]:
    """The names of the xattrs, without those that every file of a machine with a security module has."""
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux")


def snapshot(directory: Path) -> dict[str, Any]:
    """All that is below, by name."""
    here = os.open(".", os.O_RDONLY)
    links: dict[int, str] = {}
    try:
        os.chdir(directory)
        found = {".": attributes_of(".", links)}
        for root, directories, files in os.walk("."):
            for name in sorted((*directories, *files)):
                path = os.path.join(root, name)
                found[path] = attributes_of(path, links)
        return found
    finally:
        os.fchdir(here)
        os.close(here)


TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


def times_of(names: Iterable[str]) -> dict[tuple[str, str], int]:
    """The three times of each."""
    statuses = {name: os.lstat(name) for name in names}
    return {(name, field): getattr(status, field) for name, status in statuses.items() for field in TIMES}


@attrs.frozen
class Twins:
    """The two directories. `behind` is the first as the backing tree has it."""

    mount: Path
    behind: Path
    shadow: Path

    def setup(self, work: Callable[[], Any]) -> None:
        """Root does this in both, going through the mount in the one."""
        for directory in (self.mount, self.shadow):
            as_user(attrs.evolve(ROOT, umask=0), work, cwd=directory)

    def both(self, work: Callable[[], Any], user: User = ROOT) -> Any:
        """The user does this in both, with the same outcome (value or errno), which is returned."""
        expected = outcome_of(user, work, self.shadow)
        outcome = outcome_of(user, work, self.mount)
        assert outcome == expected, f"{user.name}: {outcome!r} on the mount, {expected!r} beside it"
        return expected

    def succeed(self, work: Callable[[], Any], user: User = ROOT) -> Any:
        """As `both`, and it does not fail."""
        outcome = self.both(work, user)
        assert outcome not in errno.errorcode.values(), outcome
        return outcome

    def must_be_equal(self) -> None:
        """Both directories show the same, and so does the backing tree."""
        expected = snapshot(self.shadow)
        for place in (self.mount, self.behind):
            found = snapshot(place)
            differing = {
                name: (found.get(name), expected.get(name))
                for name in found.keys() | expected.keys()
                if found.get(name) != expected.get(name)
            }
            assert not differing, f"in {place}, not as beside it: {differing}"

    def touched(self, work: Callable[[], Any], names: Iterable[str], user: User = ROOT) -> set[tuple[str, str]]:
        """Which times of which names the work changes: the same in both; returned."""
        names = list(names)

        def measured() -> set[tuple[str, str]]:
            before = times_of(names)
            time.sleep(0.01)  # where the clock of a filesystem is coarse
            work()
            after = times_of(names)
            return {key for key in before if before[key] != after[key]}

        changed = self.succeed(measured, user)
        assert isinstance(changed, set)
        return changed
