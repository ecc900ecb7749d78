"""What a stopped system call is about: which operation, on which path of the mount.

The rule that this module owns: nothing here touches the mount, so that looking at one stopped program never waits for
another. Paths are read from the program's memory; symlinks inside the mount are read in the backing tree, those outside
where they are. What was read counts only if the call still stands afterwards (seccomp_unotify(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.gating import Operation
from exclfs.testing.syscalls import AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, ByDescriptor, ByName, SystemCall

if TYPE_CHECKING:
    from exclfs.testing.seccomp import Listener, Notification

_PATH_MAX: Final = 4096
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST_SYMLINKS: Final = 40
_DELETED: Final = b" (deleted)"
_TMPFILE: Final = os.O_TMPFILE & ~os.O_DIRECTORY


@frozen
class Call:
    """A call that is about something in the mount."""

    system_call: str
    operation: Operation
    path: str
    """Relative to the mount's root, "" is the root itself; of a rename into the mount, where it goes to."""
    second_path: str | None
    """Of a rename, a link or a copy: to where, if that is in the mount as well."""
    pid: int
    """Of the thread."""
    comm: str
    open_already: bool
    """It is about a descriptor that is open, and looks up no name."""


class CallReader:
    """Reads calls, for one mount.

    Args:
        root: the mountpoint.
        backing: the tree behind it; the mountpoint itself, if nothing is mounted.
    """

    def __init__(self, root: Path, backing: Path) -> None:
        # The parent is asked, so that the mount is not.
        self._root: Final = os.path.join(os.path.realpath(os.fsencode(root.parent)), os.fsencode(root.name))
        self._inside: Final = self._root + b"/"
        self._backing: Final = os.fsencode(backing)

    def read(self, notification: Notification, call: SystemCall, listener: Listener) -> Call | None:
        """What a call is about; None if that is nothing in this mount, cannot be read, or has gone.

        What cannot be read: a process that is not dumpable, or, for a user, one that has gone to another user.
        """
        try:
            process = os.open(f"/proc/{notification.pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = self._read(_Thread(process, notification.pid), notification, call)
        except OSError:
            return None
        finally:
            os.close(process)
        return found if found is not None and listener.stands(notification.id) else None

    def _read(self, thread: _Thread, notification: Notification, call: SystemCall) -> Call | None:
        arguments = notification.arguments
        flags = _open_flags(thread, call, arguments)
        paths, by_descriptor = [], False
        for where in (call.first, call.second):
            path, open_already = self._place(thread, where, arguments, flags) if where is not None else (None, False)
            by_descriptor = by_descriptor or (where is call.first and open_already)
            paths.append(self._relative(path) if path is not None else None)
        first, second = paths
        if first is None:
            first, second = second, None
        if first is None:
            return None
        return Call(
            call.name,
            self._operation(call, arguments, flags, first),
            os.fsdecode(first),
            os.fsdecode(second) if second is not None else None,
            notification.pid,
            thread.comm(),
            by_descriptor,
        )

    def _place(
        self, thread: _Thread, where: ByName | ByDescriptor, arguments: tuple[int, ...], flags: int
    ) -> tuple[bytes | None, bool]:
        """The absolute path that an argument means, and whether it is what a descriptor has open."""
        if isinstance(where, ByDescriptor):
            return self._opened(thread, _int(arguments[where.argument])), True
        directory = AT_FDCWD if where.directory is None else _int(arguments[where.directory])
        own_flags = arguments[where.flags] if where.flags is not None else 0
        address = arguments[where.path]
        name = thread.string(address) if address else b""
        if not name:
            # Without AT_EMPTY_PATH it is ENOENT; utimensat(2) takes a null pointer instead.
            if directory == AT_FDCWD or (address and not own_flags & AT_EMPTY_PATH):
                return None, False
            return self._opened(thread, directory), True
        follows = where.follows != bool(own_flags & where.turn)
        if flags & os.O_NOFOLLOW or flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
            follows = False
        if name.startswith(b"/"):
            start = thread.root()
        elif directory == AT_FDCWD:
            start = self._existing(thread.working_directory())
        else:
            start = self._opened(thread, directory) or b""
        if not start.startswith(b"/"):
            return None, False
        return self._walk(thread, start, name, follows), False

    def _opened(self, thread: _Thread, descriptor: int) -> bytes | None:
        path = thread.descriptor(descriptor)
        return self._existing(path) if path.startswith(b"/") else None

    def _existing(self, path: bytes) -> bytes:
        """A path as /proc gives it, without what it says of one that has been removed (proc_pid_fd(5))."""
        if path.endswith(_DELETED) and not os.path.lexists(self._behind(path)):
            return path.removesuffix(_DELETED)
        return path

    def _walk(self, thread: _Thread, start: bytes, name: bytes, follows: bool) -> bytes:
        """Where a name leads from a directory that is a true path (path_resolution(7))."""
        root = thread.root()
        if name.startswith(self._inside) and root == b"/":
            # The mountpoint is a true path itself.
            start, name = self._root, name[len(self._inside) :]
        at, rest, symlinks = start, [part for part in name.split(b"/") if part], 0
        # A slash at the end has the last name followed as well.
        follows = follows or name.endswith(b"/")
        while rest:
            part = rest.pop(0)
            if part == b".":
                continue
            if part == b"..":
                at = at if at == root else os.path.dirname(at)
                continue
            entered = os.path.join(at, part)
            target = self._symlink(thread, entered) if rest or follows else None
            if target is None or symlinks == _MOST_SYMLINKS:
                at = entered
                continue
            symlinks += 1
            at = root if target.startswith(b"/") else at
            rest = [part for part in target.split(b"/") if part] + rest
        return at

    def _symlink(self, thread: _Thread, path: bytes) -> bytes | None:
        if path == self._root:
            return None
        if path in (b"/proc/self", b"/proc/thread-self"):
            return b"%d" % thread.pid
        try:
            return os.readlink(self._behind(path))
        except OSError:
            return None

    def _behind(self, path: bytes) -> bytes:
        """Where a path is to be looked at without asking the mount."""
        inside = self._relative(path)
        return path if inside is None else os.path.join(self._backing, inside)

    def _relative(self, path: bytes) -> bytes | None:
        if path == self._root:
            return b""
        return path[len(self._inside) :] if path.startswith(self._inside) else None

    def _operation(self, call: SystemCall, arguments: tuple[int, ...], flags: int, path: bytes) -> Operation:
        if call.name == "unlinkat":
            return Operation.RMDIR if arguments[2] & AT_REMOVEDIR else Operation.UNLINK
        if call.operation is not Operation.OPEN:
            return call.operation
        if flags & _TMPFILE:
            return Operation.CREATE
        if flags & os.O_DIRECTORY:
            return Operation.OPENDIR
        try:
            mode = os.stat(os.path.join(self._backing, path), follow_symlinks=False).st_mode
        except OSError:
            return Operation.CREATE if flags & os.O_CREAT else Operation.OPEN
        if flags & os.O_CREAT and flags & os.O_EXCL:
            return Operation.CREATE
        return Operation.OPENDIR if stat.S_ISDIR(mode) else Operation.OPEN


class _Thread:
    """What /proc says of a thread, below one open directory, which stays bound to it."""

    def __init__(self, directory: int, pid: int) -> None:
        self._directory = directory
        self.pid: Final = pid
        self._root: bytes | None = None

    def string(self, address: int) -> bytes:
        """The string at an address of its memory."""
        end = min(_PATH_MAX, _PAGE - address % _PAGE)
        text = self.memory(address, end)
        if b"\0" not in text:
            text += self.memory(address + end, _PATH_MAX - end)
        return text.split(b"\0", 1)[0]

    def memory(self, address: int, length: int) -> bytes:
        """So many bytes of its memory, or as many of them as there are."""
        if address >= 1 << 63:
            raise OSError(errno.EFAULT, "not an address")
        memory = os.open("mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.pread(memory, length, address)
        finally:
            os.close(memory)

    def root(self) -> bytes:
        """Its root directory, as this process sees it."""
        if self._root is None:
            self._root = self._link(b"root")
        return self._root

    def working_directory(self) -> bytes:
        return self._link(b"cwd")

    def descriptor(self, number: int) -> bytes:
        """What it has open with this number."""
        return self._link(b"fd/%d" % number)

    def _link(self, name: bytes) -> bytes:
        return os.readlink(name, dir_fd=self._directory)

    def comm(self) -> str:
        file = os.open(b"comm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.read(file, 64).decode(errors="surrogateescape").rstrip("\n")
        finally:
            os.close(file)


def _open_flags(thread: _Thread, call: SystemCall, arguments: tuple[int, ...]) -> int:
    """The flags of an open; 0 of anything else."""
    if call.name == "open":
        return arguments[1]
    if call.name == "openat":
        return arguments[2]
    if call.name == "creat":
        return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    if call.name == "openat2":
        return int.from_bytes(thread.memory(arguments[2], 8), "little")
    return 0


def _int(argument: int) -> int:
    """An int as the kernel takes it from a register: the lower half, with its sign."""
    argument &= 0xFFFF_FFFF
    return argument - (1 << 32) if argument >= 1 << 31 else argument
