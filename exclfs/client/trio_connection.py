"""A connection for tasks: how requests and their answers travel on trio.

The rule that this module owns: a call that did not run to its end (no answer in time, a cancellation) closes the
connection, for nobody knows what it did. What may wait for the filesystem (to look a path up) runs in a thread that is
left behind if need be.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
import trio.socket

from exclfs.client import discovery
from exclfs.client.calls import Errand, Exchange
from exclfs.client.errors import Disconnected, Listening, NoAnswer
from exclfs.client.sockets import unconnected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.client.calls import Operation, Request
    from exclfs.client.discovery import Server
    from exclfs.client.sockets import Ancillary

_CHUNK: Final = 65536

Result = TypeVar("Result")
Reply = TypeVar("Reply")


async def reach(server: Server, timeout: float | None) -> Connection:  # noqa: ASYNC109  of every call, as elsewhere
    """Connects to a server that was found before; raises as the blocking one does."""
    plain = unconnected()
    try:
        connection = trio.socket.from_stdlib_socket(plain)
        try:
            with trio.move_on_after(math.inf if timeout is None else timeout) as scope:
                await connection.connect(server.socket)
            if scope.cancelled_caught:
                raise TimeoutError
        except OSError as error:
            raise discovery.unreachable(server, error) from error
        discovery.verify(plain, server)
        return Connection(connection, server, timeout, discovery.peer(plain))
    except BaseException:
        plain.close()
        raise


class Connection:
    """One connection to one server; one request at a time. The methods are those of the blocking one."""

    def __init__(
        self, connection: trio.socket.SocketType, server: Server, timeout: float | None, peer: discovery.Peer
    ) -> None:
        self._socket = connection
        self._one_at_a_time = trio.Lock()
        self._listening = False
        self.server: Final = server
        self.timeout: Final = timeout
        self.peer: Final = peer

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The descriptor, for poll(2); -1 once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes it, also for a task that waits for an answer on it."""
        self._socket.close()

    async def run(self, operation: Operation[Result]) -> Result:
        """Carries an operation out, and returns what it does."""
        self._must_be_free()
        with contextlib.closing(operation):
            try:
                step = next(operation)
                while True:
                    try:
                        outcome = await self._do(step)
                    except Exception as error:
                        step = operation.throw(error)
                    else:
                        step = operation.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result

    async def next(self, stream: Exchange[Reply]) -> Reply:
        """The next reply of a stream. A cancellation loses none, and the stream goes on."""
        await trio.lowlevel.checkpoint()
        with self._or_ended():
            await self._receive(stream)
            reply = stream.reply()
            self._listening = not stream.ended
            return reply

    async def wait_until_closed(self) -> None:
        """Returns when the server has closed the connection."""
        self._must_be_free()
        with contextlib.suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(self._socket.fileno())

    async def _do(self, step: Request[Any] | Errand[Any]) -> Any:
        if isinstance(step, Errand):
            return await trio.to_thread.run_sync(step.do, abandon_on_cancel=True)
        return await self._ask(step)

    async def _ask(self, request: Request[Any]) -> Any:
        exchange = Exchange(self.server.mountpoint, request)
        patience = math.inf if self.timeout is None else self.timeout + request.wait
        async with self._one_at_a_time:
            self._must_be_free()
            try:
                with self._or_ended():
                    with trio.move_on_after(patience) as scope:
                        await self._send(exchange.message, request.ancillary)
                        await self._receive(exchange)
                    if scope.cancelled_caught:
                        raise NoAnswer(self.server.mountpoint, patience)
            except trio.Cancelled:
                self.close()
                raise
            reply = exchange.reply()
            self._listening = request.more and not exchange.ended
        return (reply, exchange) if request.more else reply

    async def _send(self, message: bytes, ancillary: Ancillary) -> None:
        # A server that turns the connection away has said why before it closed it: that is still there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            rest = memoryview(message)[await self._socket.sendmsg([message], ancillary) :]
            while rest:
                rest = rest[await self._socket.send(rest) :]

    async def _receive(self, exchange: Exchange[Any]) -> None:
        while not exchange.answered:
            exchange.feed(await self._socket.recv(_CHUNK))

    @contextlib.contextmanager
    def _or_ended(self) -> Iterator[None]:
        """Closes the connection if what is done with it fails."""
        mountpoint = self.server.mountpoint
        try:
            yield
        except trio.Cancelled:
            raise
        except trio.ClosedResourceError as error:
            raise Disconnected(mountpoint, "it was closed here") from error
        except OSError as error:
            self.close()
            raise Disconnected(mountpoint, (error.strerror or str(error)).lower()) from error
        except BaseException:
            self.close()
            raise

    def _must_be_free(self) -> None:
        if self.closed:
            raise Disconnected(self.server.mountpoint, "it was closed here, or is the parent process's")
        if self._listening:
            raise Listening(self.server.mountpoint)
