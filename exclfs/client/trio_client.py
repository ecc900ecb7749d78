"""The client for programs on trio: the same names as the blocking one, and cancellable.

Where `exclfs` has a function, this module has one of the same name; Client and Events are AsyncClient and AsyncEvents.
What they take and what they raise is the same. A call that is cancelled closes its connection, for nobody knows what
it did; but waiting for an event may be cancelled, and none is lost.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Self, overload

import trio

from exclfs.client import calls, discovery, trio_connection
from exclfs.client.calls import TIMEOUT
from exclfs.client.errors import ClientError, Disconnected, EventsLost
from exclfs.holds.mode import Mode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from types import TracebackType

    from exclfs.client.calls import Exchange, Named, Operation, Path, Stream
    from exclfs.client.discovery import Server
    from exclfs.client.trio_connection import Connection
    from exclfs.holds.events import Event
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.wire.messages import EventsReply, Status, WhyReply

__all__ = ["AsyncClient", "AsyncEvents", "connect", "events", "hold", "holds", "inuse", "release"]

TO_RELEASE: Final = 5.0
"""Seconds that a release may take when a cancelled block is left; then closing the connection has to do."""


async def connect(path: Path, *, timeout: float | None = TIMEOUT) -> AsyncClient:  # noqa: ASYNC109  of every call
    """Connects to the server of the mount that `path` is in: see exclfs.connect(), also for what it raises.

    Args:
        path: any path in the mount; a symlink is not followed.
        timeout: seconds that the server may take to accept and to answer each call; None waits for ever.
    """
    return await reach(await _find(path), timeout=timeout)


async def reach(server: Server, *, timeout: float | None = TIMEOUT) -> AsyncClient:  # noqa: ASYNC109
    """Connects to a server that was found before.

    Raises:
        NoServer: it cannot be reached, or is not the mount's owner.
    """
    return AsyncClient(await trio_connection.reach(server, timeout))


@overload
def hold(  # type: ignore[overload-overlap]  # a str is a path, though it is an iterable of them, too
    paths: Path,
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractAsyncContextManager[Hold]: ...


@overload
def hold(
    paths: Iterable[Path],
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractAsyncContextManager[tuple[Hold, ...]]: ...


def hold(
    paths: Path | Iterable[Path],
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = 0.0,
) -> AbstractAsyncContextManager[Any]:
    """Holds a path, or several, for as long as the `async with` block runs: see exclfs.hold().

    If the block is cancelled, the hold is released all the same, within 5 seconds.
    """
    return _held(paths, holder=holder, reason=reason, claim=claim, flags=flags, timeout=timeout)


@contextlib.asynccontextmanager
async def _held(paths: Path | Iterable[Path], **wanted: Any) -> AsyncIterator[Any]:
    named = calls.several(paths)
    async with await connect(named[0]) as client:
        placed = await client.hold(named, **wanted)
        try:
            yield placed[0] if isinstance(paths, str | os.PathLike) else placed
        finally:
            # Closing would end it as well, but not before this task goes on: it may remove the path right now.
            with (
                contextlib.suppress(ClientError),
                trio.CancelScope(deadline=trio.current_time() + TO_RELEASE, shield=True),
            ):
                await client.end(placed)


async def holds(path: Path, *, holder: str | None = None) -> tuple[Hold, ...]:
    """Every hold that covers `path`, oldest first; of one holder, if one is named: see exclfs.holds()."""
    async with await connect(path) as client:
        return await client.holds(path, holder=holder)


async def inuse(path: Path) -> bool:
    """Whether any hold covers `path`: see exclfs.inuse()."""
    return bool(await holds(path))


async def release(path: Path, *, break_it: bool = False, reason: str = "") -> tuple[Hold, ...]:
    """Releases every hold of the caller on `path`, and returns them: see exclfs.release()."""
    async with await connect(path) as client:
        return await client.release(path=path, break_it=break_it, reason=reason)


@contextlib.asynccontextmanager
async def events(
    path: Path, *, own: bool = False, since: datetime | None = None, follow: bool = True
) -> AsyncIterator[AsyncEvents]:
    """What happens from now on, for as long as the `async with` block runs: see exclfs.events()."""
    server = await _find(path)
    asked = calls.listen(None if server.whole else path, own=own, since=since, follow=follow)
    async with _listen(server, asked, patience=TIMEOUT) as stream:
        yield stream


async def _find(path: Path) -> Server:
    return await trio.to_thread.run_sync(discovery.find, os.fspath(path), abandon_on_cancel=True)


@contextlib.asynccontextmanager
async def _listen(server: Server, asked: Operation[Stream], *, patience: float | None) -> AsyncIterator[AsyncEvents]:
    """A stream of events that has a connection of its own."""
    with contextlib.closing(await trio_connection.reach(server, patience)) as connection:
        stream = AsyncEvents(connection, *await connection.run(asked))
        with contextlib.closing(stream):
            yield stream


class AsyncClient:
    """A connection to the server of one mount, with the methods of exclfs.Client. connect() makes it.

    It may be used by several tasks. One call runs at a time: a call that waits for its claim keeps the others waiting.
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

    async def hold(
        self,
        paths: Path | Iterable[Path],
        *,
        holder: str | None = None,
        reason: str = "",
        claim: bool = True,
        flags: Flags | None = None,
        timeout: float | None = 0.0,  # noqa: ASYNC109  of the server
        pid: int | None = None,
        ttl: float | None = None,
        until_unmount: bool = False,
        persistent: bool = False,
        connection: bool | None = None,
    ) -> tuple[Hold, ...]:
        """Places one hold on each path, all or none, in their order: see Client.hold()."""
        return await self._connection.run(
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

    async def end(self, holds: Iterable[Hold]) -> None:
        """Releases holds of the caller's own; one that has ended already is as good: see Client.end()."""
        await self._connection.run(calls.end(tuple(holds)))

    async def renew(self, holds: Named | Iterable[Named], ttl: float) -> tuple[Hold, ...]:
        """Gives holds another time at which they end, `ttl` seconds from now, all or none: see Client.renew()."""
        return await self._connection.run(calls.renew(holds, ttl))

    async def release(
        self,
        holds: Named | Iterable[Named] | None = None,
        *,
        path: Path | None = None,
        break_it: bool = False,
        reason: str = "",
    ) -> tuple[Hold, ...]:
        """Releases holds, all or none; or with `path` every hold of the caller on it: see Client.release()."""
        return await self._connection.run(calls.release(holds, path, break_it=break_it, reason=reason))

    async def holds(self, path: Path | None = None, *, holder: str | None = None) -> tuple[Hold, ...]:
        """Every hold that covers `path`, or without it of the whole mount: see Client.holds()."""
        return await self._connection.run(calls.list_holds(path, holder))

    async def inuse(self, path: Path) -> bool:
        """Whether any hold covers `path`: see Client.inuse()."""
        return bool(await self.holds(path))

    async def why(self, path: Path) -> WhyReply:
        """Why a removal of `path` is refused: see Client.why()."""
        return await self._connection.run(calls.explain(path))

    async def status(self) -> Status:
        """What the server says of itself: see Client.status()."""
        return await self._connection.run(calls.ask_status())

    async def mode(self, new: Mode | str | None = None) -> Mode:
        """The mode of the mount; with `new` it is switched first: see Client.mode()."""
        return await self._connection.run(calls.switch(None if new is None else Mode(new)))

    @contextlib.asynccontextmanager
    async def events(
        self, path: Path | None = None, *, own: bool = False, since: datetime | None = None, follow: bool = True
    ) -> AsyncIterator[AsyncEvents]:
        """What happens from now on, for as long as the `async with` block runs: see Client.events().

        With `own` the stream takes over this very connection, and leaving the block closes it.
        """
        connection = self._connection
        asked = calls.listen(path, own=own, since=since, follow=follow)
        if own:
            with contextlib.closing(AsyncEvents(connection, *await connection.run(asked))) as stream:
                yield stream
        else:
            async with _listen(connection.server, asked, patience=connection.timeout) as stream:
                yield stream

    async def wait_until_closed(self) -> None:
        """Returns when the server has closed the connection: its mount has ended."""
        await self._connection.wait_until_closed()

    def fileno(self) -> int:
        """The descriptor of the connection; -1 once it is closed."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes the connection, which ends the holds that are bound to it. A call that waits raises Disconnected."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()


class AsyncEvents:
    """A stream of events: an asynchronous iterator. See exclfs.Events, also for what iterating raises.

    Waiting for the next event may be cancelled; none is lost, and the stream goes on.
    """

    def __init__(self, connection: Connection, first: EventsReply, stream: Exchange[EventsReply]) -> None:
        self._connection = connection
        self._stream = stream
        self._closed = False
        self.missed: Final = first.missed
        """How many events before the first of these the server no longer knows: see Events.missed."""

    def __aiter__(self) -> Self:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event; waits for it as long as it takes."""
        while not (self._closed or self._stream.ended):
            try:
                reply = await self._connection.next(self._stream)
            except Disconnected:
                if not self._closed:
                    raise
            else:
                if reply.event is not None:
                    return reply.event
                if reply.missed:
                    raise EventsLost(reply.missed)
        raise StopAsyncIteration

    def close(self) -> None:
        """Closes the stream and its connection; also while another task waits for an event."""
        self._closed = True
        self._connection.close()
