"""Where the control socket is, and that nobody else can be there in its place.

The rule that this module owns: `<major>:<minor>.sock`, after the device of the mount, stands in a directory that only
the server's user can write to, and there only while a server listens. It is bound and listening under a temporary name
before it is renamed into place, so a client never finds a socket that does not answer yet, and a stale one of a server
that was killed is replaced, never removed first. The kernel gives the number of a device that has gone to the next
mount, perhaps at once: so whoever changes what is in the directory has it locked, and never removes another's socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOTS_DIRECTORY: Final = "/run/exclfs"
BACKLOG: Final = 1024


@frozen
class ControlSocket:
    """The listening socket of one mount."""

    path: str
    """Absolute; what the xattr exclfs.socket says."""
    listener: trio.SocketListener
    _inode: tuple[int, int]

    async def close(self) -> None:
        """Stops listening, and removes the name unless another server has taken it over."""
        # Where another has the directory locked the name stays, as after SIGKILL: the next server clears it away.
        with suppress(FileNotFoundError, BlockingIOError), _locked(os.path.dirname(self.path), wait=False):
            if _inode_of(self.path) == self._inode:
                os.unlink(self.path)
        await self.listener.aclose()


def open_control_socket(st_dev: int, directory: str | None = None) -> ControlSocket:
    """Listens for the clients of a mount. Whoever can reach the directory may connect: who may do what is asked later.

    Args:
        st_dev: of the files in the mount, as stat(2) gives it.
        directory: where; without it, runtime_directory().

    Raises:
        OSError: the directory cannot be made or is not safe, or its path is too long for a socket (unix(7)).
    """
    directory = directory or runtime_directory()
    name = f"{os.major(st_dev)}:{os.minor(st_dev)}.sock"
    path, temporary = os.path.join(directory, name), os.path.join(directory, f".{name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listening.bind(temporary)
        os.chmod(temporary, 0o666)  # noqa: S103 - who may do what is asked at every call
        listening.listen(BACKLOG)
        inode = _inode_of(temporary)
        with _locked(directory):
            _remove_dead_sockets(directory)
            os.rename(temporary, path)
    except BaseException:
        listening.close()
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return ControlSocket(path, trio.SocketListener(trio.socket.from_stdlib_socket(listening)), inode)


def runtime_directory() -> str:
    """Makes and checks the directory of this user's control sockets, and returns its path.

    For root it is /run/exclfs, which everybody may enter. For others it is theirs alone: exclfs in $XDG_RUNTIME_DIR,
    or where there is none /tmp/exclfs-UID.

    Raises:
        OSError: it cannot be made, or somebody else has made it.
    """
    uid = os.geteuid()
    if uid == 0:
        return _private_directory(ROOTS_DIRECTORY, 0o755)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _belongs_to(runtime, uid):
        return _private_directory(os.path.join(runtime, "exclfs"), 0o700)
    return _private_directory(f"/tmp/exclfs-{uid}", 0o700)  # noqa: S108 - checked below


@contextmanager
def _locked(directory: str, *, wait: bool = True) -> Iterator[None]:
    """Keeps other servers from changing the directory. The lock is a file: a directory, everybody could lock."""
    lock = os.open(os.path.join(directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _private_directory(path: str, mode: int) -> str:
    with suppress(FileExistsError):
        os.mkdir(path, mode)
    # Opened and looked at by descriptor: in /tmp the name may be a symlink, or change its meaning between two looks.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():
            raise PermissionError(errno.EPERM, f"belongs to uid {owner}; the control socket needs it to be ours", path)
        os.fchmod(descriptor, mode)  # the umask may have taken, and somebody may have added
    finally:
        os.close(descriptor)
    return path


def _belongs_to(path: str, uid: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid


def _inode_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_dead_sockets(directory: str) -> None:
    """Clears up after servers that were killed. A socket listens before it has its name, so it is dead or answers."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.endswith(".sock") and _refuses_connections(path):
            with suppress(OSError):
                os.unlink(path)


def _refuses_connections(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
