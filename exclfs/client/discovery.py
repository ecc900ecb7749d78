"""From a path to the server of its mount.

The filesystem itself tells where its server listens: the xattr system.exclfs.socket of any path in the mount. Since
anybody may mount a filesystem that tells anything, the server is believed only if it runs as the user who mounted
(user_id= in mountinfo), which the kernel vouches for at both ends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from attrs import frozen

from exclfs.client.errors import NoServer, NotAMount, WrongServer
from exclfs.host import mounts

ATTRIBUTE: Final = "system.exclfs.socket"
"""Its value is the absolute path of the control socket."""

_NO_SUCH_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EPERM})
_SERVER_GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
_PEER: Final = struct.Struct("3i")


@frozen
class Server:
    """Where the server of one mount listens, and as whom it must run."""

    mountpoint: str
    """In this process's mount namespace."""
    socket: str
    """The absolute path of its control socket."""
    owner: int
    """The uid that the mount belongs to."""
    whole: bool
    """Whether the path that was asked for is the root of the mount."""
    st_dev: int
    """The device of the files in the mount, as stat(2) gives it."""


@frozen
class Peer:
    """Who is at the other end of a connection (SO_PEERCRED, unix(7))."""

    pid: int
    """0 if it is in a pid namespace that cannot be seen from here."""
    uid: int
    gid: int


def find(path: str) -> Server:
    """The server of the mount that `path` is in. A symlink is not followed.

    Raises:
        NotAMount: the path is in no exclfs mount.
        NoServer: it is in one whose server is gone or does not tell its socket.
        OSError: the path cannot be reached.
    """
    mount = mounts.mount_of(path)
    if mount.fstype != mounts.FSTYPE:
        raise NotAMount(path)
    mountpoint = os.fsdecode(mount.mountpoint)
    try:
        address = os.fsdecode(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))
    except OSError as error:
        if error.errno in _SERVER_GONE:
            raise NoServer(mountpoint, "it has ended and left its mountpoint behind") from None
        if error.errno in _NO_SUCH_ATTRIBUTE:
            raise NoServer(mountpoint, f"it does not tell its socket ({ATTRIBUTE})") from None
        raise
    owner = int(mount.super_option("user_id") or 0)
    return Server(mountpoint, address, owner, whole=_is_root(path, mount), st_dev=mount.st_dev)


def _is_root(path: str, mount: mounts.Mount) -> bool:
    # A bind mount of a directory inside the tree has a root of its own, which is not the tree's.
    return mount.root == b"/" and os.path.samestat(os.lstat(path), os.lstat(mount.mountpoint))


def peer(connection: socket.socket) -> Peer:
    """Who is at the other end of a connected Unix socket."""
    return Peer(*_PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)))


def verify(connection: socket.socket, server: Server) -> None:
    """Accepts the other end of `connection` if it is the user that the mount belongs to.

    Raises:
        WrongServer: it is somebody else.
    """
    uid = peer(connection).uid
    if uid != server.owner:
        raise WrongServer(server.mountpoint, uid=uid, owner=server.owner)


def unreachable(server: Server, error: OSError) -> NoServer:
    """The error for a socket that cannot be connected to."""
    if isinstance(error, FileNotFoundError):
        return NoServer(server.mountpoint, f"its socket {server.socket} is gone")
    if isinstance(error, PermissionError):
        return NoServer(server.mountpoint, f"you may not connect to {server.socket}")
    if isinstance(error, TimeoutError):
        return NoServer(server.mountpoint, f"nobody accepts a connection to {server.socket}")
    return NoServer(server.mountpoint, f"{server.socket}: {(error.strerror or str(error)).lower()}")
