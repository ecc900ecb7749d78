"""The session: pyfuse3 at its end of the channel.

pyfuse3 thinks that it serves a mount; it serves a socket pair, named /dev/fd/N, which libfuse takes for a mounted
descriptor. The mirror has the real one. One session per process: pyfuse3 keeps it in globals.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Iterator

TASKS: Final = 10
"""With pyfuse3's default of 1 a task is started and ended for nearly every request."""


class Channel:
    """The socket pair between mirror and pyfuse3. SEQPACKET: one request or reply is one packet."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self._ours = ours
        self._theirs = theirs

    @property
    def mirror_end(self) -> int:
        """The descriptor that the mirror asks through."""
        return self._ours.fileno()

    @contextmanager
    def open(self, policy: pyfuse3.Operations) -> Iterator[None]:
        """Makes the session with these handlers; it ends with the block."""
        pyfuse3.init(policy, f"/dev/fd/{self._theirs.fileno()}", {"fsname=exclfs"})
        self._theirs.detach()  # libfuse closes it
        try:
            yield
        finally:
            pyfuse3.close(unmount=False)

    def close(self) -> None:
        """Closes the mirror's end, and the other if no session took it."""
        self._ours.close()
        self._theirs.close()


async def serve() -> None:
    """Answers questions until `end` is called."""
    await pyfuse3.main(min_tasks=TASKS)


def end() -> None:
    """Ends `serve`."""
    pyfuse3.terminate()
