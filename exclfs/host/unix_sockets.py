"""Which Unix sockets are bound to a name on a filesystem.

The rule that this module owns: the kernel is asked (sock_diag(7)), for it has the inode; /proc/net/unix has only the
name as it was bound, which may be relative and may since have been given to another. A socket that is bound keeps its
mount busy (unix_bind_bsd() in net/unix/af_unix.c), and no descriptor of its process tells so. Sockets of other network
namespaces are not seen.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.host import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_ERROR, _DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
_ASKED: Final = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFF_FFFF, 0, 3, 0xFFFF_FFFF, 0xFFFF_FFFF)
"""struct unix_diag_req: sockets in every state, with UDIAG_SHOW_NAME and UDIAG_SHOW_VFS."""
_SOCKET: Final = struct.Struct("=BBBBIII")
"""struct unix_diag_msg: family, type, state, and the number of the socket."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_NAME, _VFS = 0, 1
_INODE: Final = struct.Struct("=II")
"""struct unix_diag_vfs: inode, and device as the kernel counts (MKDEV())."""


@frozen
class Bound:
    """A socket that is bound to a name on a filesystem. One that was accepted has the name of the one that listens."""

    number: int
    """Its own inode: that of `socket:[N]`."""
    inode: int
    """That of its name."""
    name: str
    """As it was bound: absolute, or relative to what was the working directory then."""


@frozen
class Sockets:
    """Those that are bound to names on one filesystem."""

    mount: int
    """The id of the mount that all sockets have: what fdinfo calls the mnt_id of each of them."""
    bound: tuple[Bound, ...]


def bound(device: int) -> Sockets:
    """The sockets of this network namespace that are bound to a name on this filesystem.

    Args:
        device: as the kernel counts, major << 20 | minor.

    Raises:
        OSError: the kernel does not tell (ENOENT: it was built without CONFIG_UNIX_DIAG).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as line:
        line.send(_HEADER.pack(_HEADER.size + len(_ASKED), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + _ASKED)
        found = [_parsed(message, device) for message in _messages(line)]
        return Sockets(mounts.id_of(line.fileno()), tuple(filter(None, found)))


def _messages(line: socket.socket) -> Iterator[memoryview]:
    while True:
        packet = memoryview(line.recv(1 << 16))
        while packet:
            length, kind, _, _, _ = _HEADER.unpack_from(packet)
            message, packet = packet[_HEADER.size : length], packet[_aligned(length) :]
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -struct.unpack_from("=i", message)[0]
                raise OSError(code, os.strerror(code))
            yield message


def _parsed(message: memoryview, device: int) -> Bound | None:
    number = _SOCKET.unpack_from(message)[4]
    attributes = dict(_attributes(message[_SOCKET.size :]))
    inode, on = _INODE.unpack_from(attributes[_VFS]) if _VFS in attributes else (0, None)
    return Bound(number, inode, os.fsdecode(attributes.get(_NAME, b"")).rstrip("\0")) if on == device else None


def _attributes(text: memoryview) -> Iterator[tuple[int, bytes]]:
    while text:
        length, kind = _ATTRIBUTE.unpack_from(text)
        yield kind, bytes(text[_ATTRIBUTE.size : length])
        text = text[_aligned(length) :]


def _aligned(length: int) -> int:
    """Messages and attributes begin at multiples of four (netlink(7))."""
    return (length + 3) & ~3
