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
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

MOST_DESCRIPTORS: Final = 253
"""How many descriptors the kernel passes with one message (SCM_MAX_FD, unix(7))."""

Ancillary = list[tuple[int, int, bytes]]

_guarded: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def unconnected() -> socket.socket:
    """A Unix stream socket that a forked child loses."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    _guarded.add(made)
    return made


def _leave_to_the_parent() -> None:
    for connection in list(_guarded):
        with contextlib.suppress(OSError):
            connection.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Descriptors:
    """The objects of a call, opened: found and reachable, neither readable nor writable (O_PATH, open(2)).

    A symlink is opened itself. They close with the `with` block, or when nobody has the object any more.

    Raises:
        OSError: a path cannot be reached; nothing stays open.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._open: list[int] = []
        for path in paths:
            self._open.append(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))

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
