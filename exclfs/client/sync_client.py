"""The client for ordinary programs: blocking, sockets only. What can be asked of a server, and its events."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

from exclfs.client import calls, discovery, sync_connection
from exclfs.client.calls import TIMEOUT
from exclfs.client.errors import Disconnected, EventsLost
from exclfs.holds.mode import Mode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from types import TracebackType

    from exclfs.client.calls import Exchange, Named, Path
    from exclfs.client.discovery import Server
    from exclfs.client.sync_connection import Connection
    from exclfs.holds.events import Event
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.wire.messages import EventsReply, Status, WhyReply


def connect(path: Path, *, timeout: float | None = TIMEOUT) -> Client:
    """Connects to the server of the mount that `path` is in, for several calls and for holds that live as long.

    Args:
        path: any path in the mount; a symlink is not followed.
        timeout: seconds that the server may take to accept and to answer each call; None waits for ever. What a call
            of hold() is to wait for its claim is added to it.

    Raises:
        NotAMount: the path is in no exclfs mount.
        NoServer: it is in one whose server cannot be reached, or is not the mount's owner.
        OSError: the path cannot be reached.
    """
    return reach(discovery.find(os.fspath(path)), timeout=timeout)


def reach(server: Server, *, timeout: float | None = TIMEOUT) -> Client:
    """Connects to a server that was found before.

    Raises:
        NoServer: it cannot be reached, or is not the mount's owner.
    """
    return Client(sync_connection.reach(server, timeout))


def listen(
    server: Server,
    path: Path | None,
    *,
    own: bool = False,
    since: datetime | None = None,
    follow: bool = True,
    timeout: float | None = TIMEOUT,
) -> Events:
    """Makes a stream of events that has a connection of its own: see Client.events().

    Raises:
        NoServer: the server cannot be reached, or is not the mount's owner.
    """
    connection = sync_connection.reach(server, timeout)
    try:
        return Events(connection, *connection.run(calls.listen(path, own=own, since=since, follow=follow)))
    except BaseException:
        connection.close()
        raise


class Client:
    """A connection to the server of one mount: connect() makes it. Holds that are placed on it end with it.

    It may be used by several threads. One call runs at a time: a call that waits for its claim keeps the others
    waiting, so whoever waits long takes a client of their own. After a fork it is the parent's alone: in the child
    every call raises Disconnected. As a context manager it closes itself.

    Besides what their own docstrings name, all calls raise:
        Disconnected: the connection has ended, and with it the holds that were bound to it.
        NoAnswer: a Disconnected; the server did not answer in time, and the connection was closed.
        BadAnswer: the server answered what is not understood.
        Listening: the connection carries a stream of events (see events()).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.peer: Final = connection.peer
        """The process that serves the mount, as the kernel knows it: pid, uid, gid."""

    @property
    def mountpoint(self) -> str:
        """The mount whose server this is, in this process's mount namespace."""
        return self._connection.server.mountpoint

    @property
    def closed(self) -> bool:
        """Whether this end of the connection is closed."""
        return self._connection.closed

    def hold(
        self,
        paths: Path | Iterable[Path],
        *,
        holder: str | None = None,
        reason: str = "",
        claim: bool = True,
        flags: Flags | None = None,
        timeout: float | None = 0.0,
        pid: int | None = None,
        ttl: float | None = None,
        until_unmount: bool = False,
        persistent: bool = False,
        connection: bool | None = None,
    ) -> tuple[Hold, ...]:
        """Places one hold on each path, all or none, in their order.

        They end with this connection, unless another end is named; of several ends the first wins. Interrupting the
        call closes the connection.

        Args:
            paths: one path or up to 10,000, all in this mount; a symlink is held itself.
            holder: who holds, 1 to 255 bytes of UTF-8; by default the name of the running program.
            reason: why, for whoever is refused; up to 1,024 bytes of UTF-8.
            claim: whether it is exclusive: EXCL_INUSE beside NO_REMOVE.
            flags: exactly these, instead.
            timeout: seconds to queue for a claim that is taken; 0: at once or not at all; None: for ever.
            pid: it ends when this process does; a process id in the caller's pid namespace.
            ttl: it ends after so many seconds, unless it is renewed before.
            until_unmount: it ends with the mount.
            persistent: it is kept in the server's state file, and survives the server.
            connection: whether it ends with this connection; by default if nothing else is named.

        Raises:
            Held: a claim is taken, and was so for `timeout` seconds; the error's `hold` says by whom.
            Gone: a path was removed meanwhile.
            NotPermitted: the caller may not hold this, or not so many, or not for so long.
            BadHold: this is no hold: no flags, nothing that ends it, a name or reason that is too long, ….
            NotKept: the state file could not be written, and nothing is held.
            BadObject: a path is not in this mount; or there are more than 10,000.
            ProcessLookupError: there is no process `pid`.
            OSError: a path cannot be reached.
        """
        return self._connection.run(
            calls.place(
                self._connection.server,
                paths,
                holder=holder,
                reason=reason,
                claim=claim,
                flags=flags,
                timeout=timeout,
                pid=pid,
                ttl=ttl,
                until_unmount=until_unmount,
                persistent=persistent,
                connection=connection,
            )
        )

    def end(self, holds: Iterable[Hold]) -> None:
        """Releases holds of the caller's own; one that has ended already is as good.

        Raises:
            NotPermitted: one is not the caller's.
        """
        self._connection.run(calls.end(tuple(holds)))

    def renew(self, holds: Named | Iterable[Named], ttl: float) -> tuple[Hold, ...]:
        """Gives holds another time at which they end, all or none.

        Args:
            holds: one hold or its id, or up to 10,000 of them; each with a time among its ends.
            ttl: seconds from now.

        Returns:
            The holds as they are now, in their order.

        Raises:
            NoSuchHold: one has ended.
            NotPermitted: one is not the caller's, or `ttl` is more than the caller may have.
            BadHold: one has no time among its ends, or `ttl` is no time.
            NotKept: the state file could not be written, and nothing is renewed.
        """
        return self._connection.run(calls.renew(holds, ttl))

    def release(
        self,
        holds: Named | Iterable[Named] | None = None,
        *,
        path: Path | None = None,
        break_it: bool = False,
        reason: str = "",
    ) -> tuple[Hold, ...]:
        """Releases holds, all or none; or with `path` every hold of the caller on it.

        Args:
            holds: one hold or its id, or up to 10,000 of them.
            path: what to let go of, if no hold is named.
            break_it: those of others, too. Root and the owners of the mount and of the directory may; it is recorded.
            reason: why it is broken, for the record; up to 1,024 bytes of UTF-8.

        Returns:
            The holds that were released.

        Raises:
            NoSuchHold: one has ended already.
            NotPermitted: one is not the caller's.
            BadObject: the path is not in this mount.
            OSError: the path cannot be reached.
        """
        return self._connection.run(calls.release(holds, path, break_it=break_it, reason=reason))

    def holds(self, path: Path | None = None, *, holder: str | None = None) -> tuple[Hold, ...]:
        """Every hold that covers `path`, or without it of the whole mount, oldest first.

        Args:
            path: an object in this mount; what covers it from above counts, too.
            holder: only the holds of whoever has this name.

        Raises:
            BadObject: the path is not in this mount.
            OSError: the path cannot be reached.
        """
        return self._connection.run(calls.list_holds(path, holder))

    def inuse(self, path: Path) -> bool:
        """Whether any hold covers `path`; it may be another answer a moment later.

        Raises:
            BadObject, OSError: as holds().
        """
        return bool(self.holds(path))

    def why(self, path: Path) -> WhyReply:
        """Why a removal of `path` is refused; not `blocked`, if nothing here refuses it.

        Raises:
            BadObject, OSError: as holds().
        """
        return self._connection.run(calls.explain(path))

    def status(self) -> Status:
        """What the server says of itself: its mode, its log, and how much there is of everything."""
        return self._connection.run(calls.ask_status())

    def mode(self, new: Mode | str | None = None) -> Mode:
        """The mode of the mount; with `new` ("enforce", "warn", "off") it is switched first.

        Raises:
            ValueError: there is no such mode.
            NotPermitted: the caller is neither root nor the owner of the mount.
        """
        return self._connection.run(calls.switch(None if new is None else Mode(new)))

    def events(
        self, path: Path | None = None, *, own: bool = False, since: datetime | None = None, follow: bool = True
    ) -> Events:
        """What happens from now on, one event after another. When this returns, nothing is missed any more.

        Args:
            path: only what concerns this object; without it, what concerns any in the mount.
            own: only what concerns the holds of this process. The stream takes over this very connection: other calls
                raise Listening, and closing the stream closes the client, which ends the holds that are bound to it.
                Otherwise the stream has a connection of its own.
            since: an aware datetime: before that, what has happened since then, as far as the server still knows it.
            follow: False: nothing from now on, but what has happened, all that the server still knows or since `since`.

        Raises:
            ValueError: `since` has no time zone.
            NotPermitted: the caller has too many connections.
            BadObject: the path is not in this mount.
            NoServer, OSError: the server or the path cannot be reached.
        """
        connection = self._connection
        if own:
            return Events(connection, *connection.run(calls.listen(path, own=True, since=since, follow=follow)))
        return listen(connection.server, path, since=since, follow=follow, timeout=connection.timeout)

    def wait_until_closed(self) -> None:
        """Returns when the server has closed the connection: its mount has ended."""
        self._connection.wait_until_closed()

    def fileno(self) -> int:
        """The descriptor of the connection, for poll(2); -1 once it is closed."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes the connection, which ends the holds that are bound to it. A call that waits raises Disconnected."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes the connection."""
        self.close()


class Events:
    """A stream of events: an iterator that waits for the next, and a context manager that closes its connection.

    One thread reads it; any may close it, and then the iteration ends. While nobody reads, the server keeps events only
    as long as it keeps any.

    Iterating raises:
        Disconnected: the server has ended.
        EventsLost: it was read too slowly; its `number` says how many events happened here that the server no longer
            knows, whomever they concern. Iterating again goes on after them.
        BadAnswer: the server sent what is not understood.
    """

    def __init__(self, connection: Connection, first: EventsReply, stream: Exchange[EventsReply]) -> None:
        self._connection = connection
        self._stream = stream
        self._closed = False
        self.missed: Final = first.missed
        """How many events before the first of these the server no longer knows, whomever they concern; 0 if all of them
        happened before `since`."""

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Event:
        """The next event; waits for it as long as it takes."""
        while not (self._closed or self._stream.ended):
            try:
                reply = self._connection.next(self._stream)
            except Disconnected:
                if not self._closed:
                    raise
            else:
                if reply.event is not None:
                    return reply.event
                if reply.missed:
                    raise EventsLost(reply.missed)
        raise StopIteration

    def close(self) -> None:
        """Closes the stream and its connection; also while another thread waits for an event."""
        self._closed = True
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes it."""
        self.close()
