"""Descriptors that cross the socket, and sockets that no child may keep.

A hold ends when its connection closes. So the connection must be this process's alone: every descriptor is
close-on-exec, and after a fork without exec the child closes its copy before it does anything else.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

MOST_DESCRIPTORS: Final = 253
"""How many descriptors the kernel passes with one message (SCM_MAX_FD, unix(7))."""

Ancillary = Sequence[tuple[int, int, bytes]]
"""What sendmsg(2) takes beside the data."""

_guarded: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def unconnected() -> socket.socket:
    """A Unix stream socket that a forked child loses."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    _guarded.add(made)
    return made


def hang_up(connection: socket.socket) -> None:
    """Closes a connection at once, even if a thread waits for it right now: that thread finds it ended."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _leave_to_the_parent() -> None:
    for connection in list(_guarded):
        with contextlib.suppress(OSError):
            connection.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Descriptors:
    """What goes along with a call: its objects, and the process that its holds end with.

    Objects are opened O_PATH (open(2)): found and reachable, neither readable nor writable; a symlink is opened itself.
    A process is a pidfd (pidfd_open(2)), which means the same process in every pid namespace. They close with the
    `with` block, or when nobody has this object any more.

    Args:
        paths: of the objects.
        pid: of the process, which comes after them; None for none.

    Raises:
        ProcessLookupError: there is no such process; nothing stays open.
        OSError: a path cannot be reached, likewise.
    """

    def __init__(self, paths: Sequence[str] = (), pid: int | None = None) -> None:
        self._open: list[int] = []
        for path in paths:
            self._open.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
        if pid is not None:
            self._open.append(os.pidfd_open(pid))

    @property
    def ancillary(self) -> Ancillary:
        """What sendmsg(2) takes to pass them along (SCM_RIGHTS); nothing if there are none."""
        if not self._open:
            return []
        return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._open).tobytes())]

    def close(self) -> None:
        """Closes them; it does no harm to do so twice."""
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes them."""
        self.close()

    def __del__(self) -> None:
        """Closes what a cancelled caller has left behind."""
        self.close()
