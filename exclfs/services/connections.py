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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from exclfs.holds.errors import NotPermitted
from exclfs.holds.holder import Credentials
from exclfs.host import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.holds.holder import Process
    from exclfs.holds.limits import Limits

MOST_CONNECTIONS: Final = 1024
LOOK_AGAIN: Final = 1.0
"""Seconds between two looks whether a client has gone that has sent more than is read."""

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
        self.credentials = Credentials(uid, gid, _groups(connection))
        self._pidfd = _pidfd(connection, pid)
        self._seen: Process | None = None

    def describe(self) -> Process:
        """The process as it is now: it may have become another program since it connected (execve(2)).

        It is looked at anew where its comm has changed, for there may be thousands of calls in a second.
        """
        if self._seen is None or _comm(self.pid) != self._seen.comm:
            self._seen = processes.describe(self.pid, uid=self.uid)
        return self._seen

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

    async def hung_up(self) -> None:
        """Waits until the client has closed the connection. To be called while nothing else reads from it."""
        with suppress(OSError):
            if await self._connection.recv(1, socket.MSG_PEEK):
                # What it has sent is read when its turn comes; until then the end of it cannot be seen from here.
                while self.is_alive():  # noqa: ASYNC110 - the kernel wakes nobody who waits for POLLHUP alone
                    await trio.sleep(LOOK_AGAIN)

    def close(self) -> None:
        """Lets go of the process. It does not count as alive any more."""
        self._connection.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


class Attendance:
    """How many connections there are, and of whom, so that no user can take them all; and how many calls that wait.

    Args:
        limits: of each user.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: Counter[int] = Counter()
        self._waiting: Counter[int] = Counter()

    @contextmanager
    def connected(self, uid: int) -> Iterator[None]:
        """There is one connection more of this user.

        Raises:
            NotPermitted: there are too many.
        """
        limit = self._limits.connections
        if self._of[uid] >= limit:
            raise NotPermitted(f"uid {uid} has {limit} connections open, which is the limit; close one and try again")
        if self._of.total() >= MOST_CONNECTIONS:
            raise NotPermitted(
                f"the server has {MOST_CONNECTIONS} connections open, which is the limit; try again later"
            )
        with _counted(self._of, uid):
            yield

    @contextmanager
    def waiting(self, uid: int) -> Iterator[None]:
        """There is one call more of this user that may queue for a claim.

        Raises:
            NotPermitted: there are too many.
        """
        limit = self._limits.waiting
        if self._waiting[uid] >= limit:
            raise NotPermitted(
                f"{limit} calls of uid {uid} wait for a claim, which is the limit; end one and try again"
            )
        with _counted(self._waiting, uid):
            yield


@contextmanager
def _counted(counter: Counter[int], uid: int) -> Iterator[None]:
    counter[uid] += 1
    try:
        yield
    finally:
        counter[uid] -= 1
        if not counter[uid]:
            del counter[uid]


def _groups(connection: trio.socket.SocketType) -> tuple[int, ...]:
    """The supplementary groups (SO_PEERGROUPS, Linux 4.13). Of more than fit none count: less right, not more."""
    groups = array.array("I")
    try:
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _LARGEST_OPTION))
    except OSError as error:
        if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
            raise
    return tuple(groups)


def _comm(pid: int) -> str | None:
    try:
        descriptor = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fsdecode(os.read(descriptor, 64).removesuffix(b"\n")) or None
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)


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
