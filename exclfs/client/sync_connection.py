"""A connection for threads: how requests and their answers travel, blocking.

The rule that this module owns: a call that did not run to its end (no answer in time, an interrupt) closes the
connection, for nobody knows what it did, and the answer of one call must never be taken for that of the next.
"""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from exclfs.client import discovery
from exclfs.client.calls import Errand, Exchange
from exclfs.client.errors import Disconnected, Listening, NoAnswer
from exclfs.client.sockets import hang_up, unconnected

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from exclfs.client.calls import Operation, Request
    from exclfs.client.discovery import Server
    from exclfs.client.sockets import Ancillary

_CHUNK: Final = 65536
_CLOSED: Final = "it was closed here, or is the parent process's"
_LONGEST: Final = 1e6
"""Seconds that a socket may be told to wait: more does not fit into poll(2), and is for ever."""

Result = TypeVar("Result")
Reply = TypeVar("Reply")


def reach(server: Server, timeout: float | None) -> Connection:
    """Connects to a server that was found before.

    Raises:
        NoServer: it cannot be reached, or is not the mount's owner.
    """
    connection = unconnected()
    try:
        connection.settimeout(timeout)
        try:
            connection.connect(server.socket)
        except OSError as error:
            raise discovery.unreachable(server, error) from error
        discovery.verify(connection, server)
        return Connection(connection, server, timeout)
    except BaseException:
        connection.close()
        raise


class Connection:
    """One connection to one server; one request at a time."""

    def __init__(self, connection: socket.socket, server: Server, timeout: float | None) -> None:
        self._socket = connection
        self._one_at_a_time = threading.Lock()
        self._listening = False
        self.server: Final = server
        self.timeout: Final = timeout
        self.peer: Final = discovery.peer(connection)

    @property
    def closed(self) -> bool:
        """Whether this end is closed."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The descriptor, for poll(2); -1 once it is closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Closes it, also for a thread that waits for an answer on it."""
        hang_up(self._socket)

    def run(self, operation: Operation[Result]) -> Result:
        """Carries an operation out, and returns what it does.

        Raises:
            Disconnected, NoAnswer, BadAnswer: the connection is of no further use.
            Listening: it carries a stream of events.
        """
        self._must_be_free()
        with contextlib.closing(operation):
            try:
                step = next(operation)
                while True:
                    try:
                        outcome = step.do() if isinstance(step, Errand) else self._ask(step)
                    except Exception as error:
                        step = operation.throw(error)
                    else:
                        step = operation.send(outcome)
            except StopIteration as end:
                result: Result = end.value
                return result

    def next(self, stream: Exchange[Reply]) -> Reply:
        """The next reply of a stream; waits for it as long as it takes.

        Raises:
            Disconnected: the connection has ended, and what had come by then has been returned.
        """
        with self._or_ended():
            self._receive(stream, math.inf)
            reply = stream.reply()
            self._listening = not stream.ended
            return reply

    def wait_until_closed(self) -> None:
        """Returns when the server has closed the connection."""
        self._must_be_free()
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        poll.poll()

    def _ask(self, request: Request[Any]) -> Any:
        exchange = Exchange(self.server.mountpoint, request)
        patience = math.inf if self.timeout is None else self.timeout + request.wait
        with self._one_at_a_time:
            self._must_be_free()
            with self._or_ended(patience):
                deadline = time.monotonic() + patience
                self._send(exchange.message, request.ancillary, deadline)
                self._receive(exchange, deadline)
            reply = exchange.reply()
            self._listening = request.more and not exchange.ended
        return (reply, exchange) if request.more else reply

    def _send(self, message: bytes, ancillary: Ancillary, deadline: float) -> None:
        # A server that turns the connection away has said why before it closed it: that is still there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._wait_until(deadline)
            sent = self._socket.sendmsg([message], ancillary)
            if sent < len(message):
                self._socket.sendall(memoryview(message)[sent:])

    def _receive(self, exchange: Exchange[Any], deadline: float) -> None:
        while not exchange.answered:
            self._wait_until(deadline)
            exchange.feed(self._socket.recv(_CHUNK))

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left if left < _LONGEST else None)

    @contextlib.contextmanager
    def _or_ended(self, patience: float = math.inf) -> Iterator[None]:
        """Closes the connection if what is done with it does not come to its end."""
        mountpoint = self.server.mountpoint
        try:
            yield
        except TimeoutError as error:
            self.close()
            raise NoAnswer(mountpoint, patience) from error
        except OSError as error:
            why = _CLOSED if self.closed else (error.strerror or str(error)).lower()
            self.close()
            raise Disconnected(mountpoint, why) from error
        except BaseException:
            self.close()
            raise

    def _must_be_free(self) -> None:
        # Asked before the lock is taken, too: in a forked child a thread that is no more may have it.
        if self.closed:
            raise Disconnected(self.server.mountpoint, _CLOSED)
        if self._listening:
            raise Listening(self.server.mountpoint)
