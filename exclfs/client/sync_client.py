"""The client for ordinary programs: blocking, sockets only.

The rule that this module owns: a call that did not run to its end (no answer in time, an interrupt) closes the
connection, for nobody knows what it did, and the answer of one call must never be taken for that of the next.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from exclfs.client import calls, discovery
from exclfs.client.errors import ClientError, Disconnected, NoAnswer
from exclfs.client.sockets import Descriptors, unconnected

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from exclfs.client.calls import Operation, Path, Request
    from exclfs.client.discovery import Server
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold
    from exclfs.wire.messages import Status, WhyReply

TIMEOUT: Final = 30.0
"""Seconds that a call may take unless the caller says otherwise."""

_CHUNK: Final = 65536

Result = TypeVar("Result")


def connect(path: Path, *, timeout: float | None = TIMEOUT) -> Client:
    """Connects to the server of the mount that `path` is in.

    Args:
        path: any path in the mount; a symlink is not followed.
        timeout: seconds that each call may take; None waits for ever.

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
    connection = unconnected()
    try:
        connection.settimeout(timeout)
        try:
            connection.connect(server.socket)
        except OSError as error:
            raise discovery.unreachable(server, error) from error
        discovery.verify(connection, server)
        return Client(connection, server)
    except BaseException:
        connection.close()
        raise


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    holder: str | None = None,
    reason: str = "",
    claim: bool = True,
    flags: Flags | None = None,
    timeout: float | None = TIMEOUT,
) -> Iterator[Hold]:
    """Holds `path` for as long as the `with` block runs: see exclfs.hold()."""
    with connect(path, timeout=timeout) as client:
        (placed,) = client.hold(path, holder=holder, reason=reason, claim=claim, flags=flags)
        try:
            yield placed
        finally:
            # Closing would end it as well, but not before this process goes on: it may remove the path right now.
            with contextlib.suppress(ClientError):
                client.end((placed,))


class Client:
    """A connection to the server of one mount. The holds that are placed on it end with it.

    It may be used by several threads; one call runs at a time. After a fork it is the parent's alone: in the child
    every call raises Disconnected.
    """

    def __init__(self, connection: socket.socket, server: Server) -> None:
        self._connection = connection
        self._server = server
        self._one_at_a_time = threading.Lock()
        self.peer: Final = discovery.peer(connection)
        """The process that serves the mount, as the kernel knows it."""

    @property
    def mountpoint(self) -> str:
        """The mount whose server this is."""
        return self._server.mountpoint

    @property
    def closed(self) -> bool:
        """Whether this end of the connection is closed."""
        return self._connection.fileno() < 0

    def hold(
        self,
        paths: Path | Iterable[Path],
        *,
        holder: str | None = None,
        reason: str = "",
        claim: bool = True,
        flags: Flags | None = None,
        until_unmount: bool = False,
    ) -> tuple[Hold, ...]:
        """Places one hold on each path, all or none, in their order.

        Args:
            paths: one path or several, all in this mount; a symlink is held itself.
            holder: who holds; by default the name of the running program.
            reason: why, for whoever is refused.
            claim: whether it is exclusive: EXCL_INUSE beside NO_REMOVE.
            flags: exactly these, instead.
            until_unmount: it ends with the mount, not with this connection.

        Raises:
            Held: a claim is taken; its `hold` says by whom.
            Gone: a path was removed meanwhile.
            NotPermitted, BadHold, BadObject: see there.
            ClientError, OSError: the server or a path cannot be reached.
        """
        return self._run(
            calls.place(paths, flags=flags, claim=claim, holder=holder, reason=reason, until_unmount=until_unmount)
        )

    def end(self, holds: Iterable[Hold]) -> None:
        """Releases holds of one's own; one that has ended already is as good.

        Raises:
            ClientError: the server cannot be reached; those that were bound to this connection end by themselves.
        """
        self._run(calls.end(holds))

    def release(
        self, hold: Hold | str | None = None, *, path: Path | None = None, break_it: bool = False
    ) -> tuple[Hold, ...]:
        """Releases a hold (or the hold with this id), or with `path` every hold of the caller on it.

        Args:
            hold: the hold or its id.
            path: what to let go of, if no hold is named.
            break_it: somebody else's too; root, the mount's owner and the holder's own user may do that.

        Returns:
            The holds that were released.

        Raises:
            NoSuchHold, NotPermitted, BadObject: see there.
            ClientError, OSError: the server or the path cannot be reached.
        """
        return self._run(calls.release(hold, path, break_it=break_it))

    def holds(self, path: Path | None = None, *, holder: str | None = None) -> tuple[Hold, ...]:
        """Every hold on `path`, or without it of the whole mount; of one holder, if one is named. Oldest first."""
        return self._run(calls.list_holds(path, holder))

    def why(self, path: Path) -> WhyReply:
        """Why a removal of `path` is refused; not `blocked`, if nothing here refuses it."""
        return self._run(calls.explain(path))

    def status(self) -> Status:
        """What the server says of itself."""
        return self._run(calls.ask_status())

    def wait_until_closed(self) -> None:
        """Returns when the server has closed the connection: its mount has ended."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLRDHUP)
        poll.poll()

    def fileno(self) -> int:
        """The descriptor of the connection, for poll(2); -1 once it is closed."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes the connection, which ends the holds that are bound to it."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes the connection."""
        self.close()

    def _run(self, operation: Operation[Result]) -> Result:
        try:
            request = next(operation)
            while True:
                try:
                    reply = self._ask(request)
                except Exception as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _ask(self, request: Request[Any]) -> Any:
        exchange = calls.Exchange(self.mountpoint, request)
        self._still_open()
        with Descriptors(request.paths) as descriptors, self._one_at_a_time:
            self._still_open()
            try:
                self._send(exchange.message, descriptors)
                while (message := exchange.feed(self._connection.recv(_CHUNK))) is None:
                    pass
            except TimeoutError as error:
                seconds = self._connection.gettimeout() or 0
                self.close()
                raise NoAnswer(self.mountpoint, seconds) from error
            except OSError as error:
                self.close()
                raise Disconnected(self.mountpoint, (error.strerror or str(error)).lower()) from error
            except BaseException:
                self.close()
                raise
        return exchange.result(message)

    def _send(self, message: bytes, descriptors: Descriptors) -> None:
        # A server that turns the connection away has said why before it closed it: that is still there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sent = self._connection.sendmsg([message], descriptors.ancillary)
            self._connection.sendall(message[sent:])

    def _still_open(self) -> None:
        # Asked before the lock is taken, too: in a forked child a thread that is no more may have it.
        if self.closed:
            raise Disconnected(self.mountpoint, "it was closed here, or is the parent process's")
