"""The client for programs on trio: the same as the blocking one, and cancellable.

The rule that this module owns: a cancelled call closes the connection, for nobody knows what it did. What may wait for
the filesystem (to look a path up) runs in a thread that is left behind if need be.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import trio
import trio.socket

from exclfs.client import calls, discovery
from exclfs.client.errors import ClientError, Disconnected
from exclfs.client.sockets import Descriptors, unconnected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

    from exclfs.client.calls import Operation, Path, Request
    from exclfs.client.discovery import Server
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.wire.messages import Status, WhyReply

TO_RELEASE: Final = 5.0
"""Seconds that a release may take when a cancelled block is left; then closing the connection has to do."""

_CHUNK: Final = 65536

Result = TypeVar("Result")


async def connect(path: Path) -> AsyncClient:
    """Connects to the server of the mount that `path` is in; raises as the blocking one does."""
    return await reach(await trio.to_thread.run_sync(discovery.find, os.fspath(path), abandon_on_cancel=True))


async def reach(server: Server) -> AsyncClient:
    """Connects to a server that was found before.

    Raises:
        NoServer: it cannot be reached, or is not the mount's owner.
    """
    plain = unconnected()
    try:
        connection = trio.socket.from_stdlib_socket(plain)
        try:
            await connection.connect(server.socket)
        except OSError as error:
            raise discovery.unreachable(server, error) from error
        discovery.verify(plain, server)
        return AsyncClient(connection, server, discovery.peer(plain))
    except BaseException:
        plain.close()
        raise


@contextlib.asynccontextmanager
async def hold(
    path: Path,
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
) -> AsyncIterator[Hold]:
    """Holds `path` for as long as the `async with` block runs: see exclfs.hold()."""
    async with await connect(path) as client:
        (placed,) = await client.hold(path, holder=holder, reason=reason, claim=claim, flags=flags)
        try:
            yield placed
        finally:
            # Closing would end it as well, but not before this task goes on: it may remove the path right now.
            with (
                contextlib.suppress(ClientError),
                trio.CancelScope(deadline=trio.current_time() + TO_RELEASE, shield=True),
            ):
                await client.end((placed,))


class AsyncClient:
    """A connection to the server of one mount, with the methods of exclfs.client.sync_client.Client.

    It may be used by several tasks; one call runs at a time.
    """

    def __init__(self, connection: trio.socket.SocketType, server: Server, peer: discovery.Peer) -> None:
        self._connection = connection
        self._server = server
        self._one_at_a_time = trio.Lock()
        self.peer: Final = peer
        """The process that serves the mount, as the kernel knows it."""

    @property
    def mountpoint(self) -> str:
        """The mount whose server this is."""
        return self._server.mountpoint

    @property
    def closed(self) -> bool:
        """Whether this end of the connection is closed."""
        return self._connection.fileno() < 0

    async def hold(
        self,
        paths: Path | Iterable[Path],
        *,
        holder: str | None = None,
        reason: str = "",
        claim: bool = True,
        flags: Flags | None = None,
        until_unmount: bool = False,
    ) -> tuple[Hold, ...]:
        """Places one hold on each path, all or none; as Client.hold()."""
        return await self._run(
            calls.place(paths, flags=flags, claim=claim, holder=holder, reason=reason, until_unmount=until_unmount)
        )

    async def end(self, holds: Iterable[Hold]) -> None:
        """Releases holds of one's own; as Client.end()."""
        await self._run(calls.end(holds))

    async def release(
        self, hold: Hold | str | None = None, *, path: Path | None = None, break_it: bool = False
    ) -> tuple[Hold, ...]:
        """Releases a hold, or every hold of the caller on a path; as Client.release()."""
        return await self._run(calls.release(hold, path, break_it=break_it))

    async def holds(self, path: Path | None = None, *, holder: str | None = None) -> tuple[Hold, ...]:
        """Every hold on `path`, or of the whole mount; as Client.holds()."""
        return await self._run(calls.list_holds(path, holder))

    async def why(self, path: Path) -> WhyReply:
        """Why a removal of `path` is refused; as Client.why()."""
        return await self._run(calls.explain(path))

    async def status(self) -> Status:
        """What the server says of itself."""
        return await self._run(calls.ask_status())

    def close(self) -> None:
        """Closes the connection, which ends the holds that are bound to it."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Closes the connection."""
        self.close()

    async def _run(self, operation: Operation[Result]) -> Result:
        try:
            request = next(operation)
            while True:
                try:
                    reply = await self._ask(request)
                except Exception as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _ask(self, request: Request[Any]) -> Any:
        exchange = calls.Exchange(self.mountpoint, request)
        async with self._one_at_a_time:
            if self.closed:
                raise Disconnected(self.mountpoint, "it was closed here")
            with await trio.to_thread.run_sync(Descriptors, request.paths, abandon_on_cancel=True) as descriptors:
                try:
                    await self._send(exchange.message, descriptors)
                    while (message := exchange.feed(await self._connection.recv(_CHUNK))) is None:
                        pass
                except OSError as error:
                    self.close()
                    raise Disconnected(self.mountpoint, (error.strerror or str(error)).lower()) from error
                except BaseException:
                    self.close()
                    raise
        return exchange.result(message)

    async def _send(self, message: bytes, descriptors: Descriptors) -> None:
        # A server that turns the connection away has said why before it closed it: that is still there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sent = await self._connection.sendmsg([message], descriptors.ancillary)
            while sent < len(message):
                sent += await self._connection.send(message[sent:])
