"""Who is at the other end of a connection, and whether they are still there.

The rule that this module owns: a connection is its process. Who that is, the kernel says (SO_PEERCRED, SO_PEERPIDFD,
SO_PEERGROUPS of socket(7) and unix(7)), as it was at connect(2); nothing that the client says of itself counts. When
that process has died the connection has ended, whoever may have inherited the socket.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from exclfs.host import processes

if TYPE_CHECKING:
    from exclfs.holds.holder import Process

MOST_CONNECTIONS: Final = 1024
MOST_OF_A_USER: Final = 256

_SO_PEERGROUPS: Final = 59
_SO_PEERPIDFD: Final = 77
_UCRED: Final = struct.Struct("=iII")
_LARGEST_OPTION: Final = 1024
"""Of what Python's getsockopt() can return, in bytes: 256 groups."""


class PeerGone(Exception):
    """The process that connected has died before it could be looked at."""


class Peer:
    """The process that opened a connection.

    Args:
        connection: an accepted Unix stream socket; stays the caller's to close, after this.

    Raises:
        PeerGone: it has died already.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.pid: int = pid
        """0 for a process of a foreign pid namespace."""
        self.uid: int = uid
        self.gid: int = gid
        self.groups: tuple[int, ...] = _groups(connection)
        self._pidfd = _pidfd(connection, pid)

    def describe(self) -> Process:
        """The process as it is now: it may have become another program since it connected (execve(2))."""
        return processes.describe(self.pid, uid=self.uid)

    def is_alive(self) -> bool:
        """Whether the connection is open at the other end and the process that opened it lives. Asks the kernel now."""
        if self._connection.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._connection.fileno(), 0)  # POLLHUP and POLLERR are always told
        if self._pidfd is not None:
            poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    async def died(self) -> None:
        """Waits until the process has died."""
        if self._pidfd is None:
            await trio.sleep_forever()
        else:
            await trio.lowlevel.wait_readable(self._pidfd)

    def close(self) -> None:
        """Lets go of the process. It does not count as alive any more."""
        self._connection.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class Attendance:
    """How many connections there are, and of whom, so that no user can take them all."""

    def __init__(self) -> None:
        self._of: Counter[int] = Counter()

    def obstacle(self, uid: int) -> str | None:
        """Why one more connection of this user cannot be taken; None if it can."""
        if self._of[uid] >= MOST_OF_A_USER:
            return f"uid {uid} has {MOST_OF_A_USER} connections open, which is the limit; close one and try again"
        if self._of.total() >= MOST_CONNECTIONS:
            return f"the server has {MOST_CONNECTIONS} connections open, which is the limit; try again later"
        return None

    def enter(self, uid: int) -> None:
        """One connection more."""
        self._of[uid] += 1

    def leave(self, uid: int) -> None:
        """One connection less."""
        self._of[uid] -= 1
        if not self._of[uid]:
            del self._of[uid]


def _groups(connection: trio.socket.SocketType) -> tuple[int, ...]:
    """The supplementary groups (SO_PEERGROUPS, Linux 4.13). Of more than fit none count: less right, not more."""
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LARGEST_OPTION))
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
    return tuple(groups)


def _pidfd(connection: trio.socket.SocketType, pid: int) -> int | None:
    """A pidfd of the process; None where there is no way to have one: a foreign namespace on a kernel before 6.5."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # ESRCH, EINVAL: it has been waited for, and its pid is free
            raise PeerGone from error
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise PeerGone from error
