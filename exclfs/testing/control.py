"""What the kit asks the server of a mount, over its control socket.

The rule that this module owns: nothing here goes through the mount. A program that is stopped keeps directories locked,
and a look at them from here would wait for it; so objects are named by path, which the server looks up in the tree.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from exclfs.client import calls, sync_connection
from exclfs.client.discovery import Server
from exclfs.client.sync_client import Client
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.host import mounts
from exclfs.wire.messages import HoldCall, HoldsCall, Object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.client.sync_connection import Connection
    from exclfs.holds.events import Event
    from exclfs.holds.hold import Hold
    from exclfs.wire.messages import Call

TIMEOUT: Final = 30.0
"""Seconds that the server may take to answer."""

Reply = TypeVar("Reply")


def ask(connection: Connection, call: Call[Reply], wait: float = 0.0) -> Reply:
    """Asks one thing, and gives the reply.

    Args:
        connection: to the server.
        call: what is asked.
        wait: seconds that the server is asked to wait before it answers.

    Raises:
        HoldError, GateProblem: the server's refusal.
        Disconnected, NoAnswer, BadAnswer: the connection is of no further use.
    """

    def once() -> calls.Operation[Reply]:
        reply: Reply = yield calls.Request(call, wait=wait)
        return reply

    return connection.run(once())


class Control:
    """The server of one mount.

    Args:
        mountpoint: where it serves.
        socket: the path of its control socket.
        owner: the uid that the mount belongs to.
    """

    def __init__(self, mountpoint: str, socket: str, owner: int) -> None:
        mount = mounts.at(mountpoint)
        self._server = Server(mountpoint, socket, owner, whole=True, st_dev=0 if mount is None else mount.st_dev)
        self.mountpoint: Final = mountpoint
        self._own: Connection | None = None
        self._lock = threading.Lock()

    def connect(self) -> Connection:
        """One more connection: what is placed on it ends with it.

        Raises:
            NoServer: the server cannot be reached.
        """
        return sync_connection.reach(self._server, TIMEOUT)

    def ask(self, call: Call[Reply]) -> Reply:
        """Asks on a connection that all short calls share. Raises as ask() does."""
        with self._lock:
            if self._own is None or self._own.closed:
                self._own = self.connect()
            own = self._own
        return ask(own, call)

    @contextmanager
    def hold(self, path: str, *, flags: Flags | None, claim: bool, holder: str | None, reason: str) -> Iterator[Hold]:
        """Holds what is at a path relative to the root, for as long as the block lasts.

        Raises:
            HoldError: it cannot be held.
        """
        call = HoldCall(
            objects=(Object(path=path or "."),),
            flags=flags if flags is not None else DEFAULT if claim else Flags.NO_REMOVE,
            holder=holder or calls.default_holder(),
            reason=reason,
        )
        connection = self.connect()
        try:
            yield ask(connection, call).holds[0]
        finally:
            connection.close()

    def holds(self, path: str | None) -> tuple[Hold, ...]:
        """Every hold that covers a path, or of the whole mount.

        Raises:
            HoldError: there is no such path.
        """
        return self.ask(HoldsCall(None if path is None else Object(path=path or "."))).holds

    def events(self) -> tuple[Event, ...]:
        """What has happened to holds, as far as the server still knows."""
        with Client(self.connect()) as client, client.events(follow=False) as events:
            return tuple(events)

    def close(self) -> None:
        """Closes the connection of short calls; the next call makes another."""
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None
