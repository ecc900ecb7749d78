"""Descriptors that clients pass along with their calls (SCM_RIGHTS, unix(7)).

The rules that this module owns. A descriptor has one owner from the moment it arrives, and is closed exactly once,
whatever comes of the call. The event loop never does anything to a foreign descriptor that its filesystem could delay:
close(2) of a FUSE file waits for its server, SIGKILL or not. So only one that is known to lie on our own mount, or to
be a pidfd, is closed at once; any other is closed by a thread that may hang. Each user has so many descriptors with us
and so many such threads; of who has used them up, no more are taken.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import ExitStack

MOST_OF_A_USER: Final = 4096
"""How many descriptors the connections of one user may have with the server at one time."""
MOST_HANGING: Final = 16
"""After how many threads that hang in close(2) of a user's descriptors no more are taken from that user."""

_AT_ONCE: Final = 253
"""SCM_MAX_FD: the most that the kernel passes in one message."""
_CHUNK: Final = 65536


class Allowance:
    """What the descriptors of all connections come to, by user."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # closed() is called by the threads
        self._open: Counter[int] = Counter()
        self._closing: Counter[int] = Counter()

    def room(self, uid: int) -> int:
        """How many more descriptors may be taken from this user."""
        with self._lock:
            return 0 if self._closing[uid] >= MOST_HANGING else max(0, MOST_OF_A_USER - self._open[uid])

    def taken(self, uid: int, number: int) -> None:
        """Descriptors have come."""
        with self._lock:
            self._open[uid] += number

    def closing(self, uid: int) -> None:
        """A thread begins to close some."""
        with self._lock:
            self._closing[uid] += 1

    def closed(self, uid: int, number: int, *, by_thread: bool) -> None:
        """Descriptors are closed."""
        with self._lock:
            self._open[uid] -= number
            self._closing[uid] -= by_thread
            for counter in self._open, self._closing:
                if not counter[uid]:
                    del counter[uid]


@frozen
class Arrival:
    """What one read of a connection brought."""

    data: bytes
    """Empty at the end of the connection."""
    descriptors: tuple[int, ...]
    """Those that came with the last byte of the data, or before it."""
    lost: bool
    """Some could not be taken: this user, or this process, has too many."""


class Descriptors:
    """The descriptors of one connection. It owns every one until that is closed."""

    def __init__(self, allowance: Allowance, uid: int) -> None:
        self._allowance = allowance
        self._uid = uid
        self._open: set[int] = set()
        self._harmless: set[int] = set()

    async def receive(self, connection: trio.socket.SocketType) -> Arrival:
        """Waits for data and what is passed along with it.

        Raises:
            OSError: the connection is broken.
        """
        # Not earlier: how many may come is not known before they do.
        await trio.lowlevel.wait_readable(connection)
        room = min(_AT_ONCE, self._allowance.room(self._uid))
        space = socket.CMSG_SPACE(room * array.array("i").itemsize) if room else 0
        # If this call is cancelled, nothing was received: trio's promise, without which descriptors could be lost.
        data, ancillary, flags, _ = await connection.recvmsg(_CHUNK, space, socket.MSG_CMSG_CLOEXEC)
        arrived = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                arrived.frombytes(content[: len(content) - len(content) % arrived.itemsize])
        self._open.update(arrived)
        self._allowance.taken(self._uid, len(arrived))
        return Arrival(data, tuple(arrived), lost=bool(flags & socket.MSG_CTRUNC))

    def is_harmless(self, descriptor: int) -> None:
        """Says that closing this descriptor waits for nobody: it is O_PATH and of our own mount, or a pidfd."""
        self._harmless.add(descriptor)

    def close(self, descriptors: Iterable[int] | None = None) -> None:
        """Closes these, or all that are left. Never waits, and may be called while a task is being cancelled."""
        closing = self._open.intersection(self._open if descriptors is None else descriptors)
        harmless = closing & self._harmless
        self._open -= closing
        self._harmless -= closing
        _close(harmless)
        self._allowance.closed(self._uid, len(harmless), by_thread=False)
        foreign = closing - harmless
        if foreign:
            self._allowance.closing(self._uid)
            trio.lowlevel.start_thread_soon(lambda: _close(foreign), lambda _: self._closed_by_thread(len(foreign)))

    def _closed_by_thread(self, number: int) -> None:
        self._allowance.closed(self._uid, number, by_thread=True)


@frozen
class Passed:
    """What was passed along with one call."""

    owner: Descriptors
    descriptors: Sequence[int]
    after: ExitStack
    """Is left what is to be done when the call is over."""

    def __len__(self) -> int:
        """How many descriptors came with the call."""
        return len(self.descriptors)

    def __getitem__(self, index: int) -> int:
        """The descriptor that the call means by this index. Raises IndexError."""
        return self.descriptors[index]

    def close(self) -> None:
        """Closes them before the call is over; a second time this does nothing."""
        self.owner.close(self.descriptors)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):  # EIO of a file that we never wrote to tells us nothing
            os.close(descriptor)
