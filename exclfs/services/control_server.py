"""The control socket: Varlink on a Unix socket, one task for each connection.

The rules that this module owns. A client is who the kernel says it is. Its calls are answered in their order, one at a
time, so that a client which floods or does not read delays nobody but itself; one that breaks the protocol gets one
error and is hung up on. When its connection ends, or the process that opened it dies, so do the holds that end with it;
what a client is answered is what it could have found out itself.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import AttrsInstance, Factory, astuple, field, frozen

from exclfs.holds.discretion import as_seen_by
from exclfs.holds.errors import Held, HoldError, NotPermitted
from exclfs.holds.lifetime import Connection
from exclfs.host.names import quoted
from exclfs.services.connections import Attendance, Peer, PeerGone
from exclfs.services.descriptors import Allowance, Descriptors, Passed
from exclfs.services.event_streams import EventStream
from exclfs.services.gate_methods import GateMethods
from exclfs.services.lifetimes import Lifetimes
from exclfs.services.methods import Methods
from exclfs.wire.envelope import read_call, write_reply
from exclfs.wire.errors import VarlinkError, error_to_json
from exclfs.wire.framing import Decoder, ProtocolError, encode
from exclfs.wire.gate_messages import GateProblem
from exclfs.wire.messages import MAX_DESCRIPTORS, EventsReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import Exit
    from exclfs.keeper import Keeper
    from exclfs.services.gates import Gates
    from exclfs.services.objects import Objects
    from exclfs.wire.causes import Cause
    from exclfs.wire.envelope import Incoming
    from exclfs.wire.framing import JsonObject
    from exclfs.wire.messages import Call, Status

PATIENCE: Final = 10.0
"""Seconds that a client has to finish a message that it has begun, and to read a reply."""
LARGE: Final = 65536
"""Bytes of a message that are read and written by a thread, for they would keep the event loop busy."""
MANY: Final = 100
"""Holds of a reply, or objects of a call, likewise."""

Result = TypeVar("Result")

_log = logging.getLogger("exclfs.control")


@frozen
class ControlServer:
    """Answers the clients of one mount."""

    keeper: Keeper
    objects: Objects
    status: Callable[[], Status]
    """What the server says of itself now. Must not block."""
    why: Callable[..., Sequence[Cause]]
    """The causes that these holds are of this path, which leads to this inode (exclfs.diagnosis.holding.why)."""
    watch: Callable[[int, int], tuple[Exit, Process]]
    """Has holds end with the process of a pidfd, for this uid (Reaper.watch)."""
    settle: Callable[[Exit], None]
    """Says that the holds are placed, or not, for which it was watched (Reaper.settle)."""
    gates: Gates | None = None
    """The mount's gates; without them there is no such interface."""
    patience: float = PATIENCE
    _allowance: Allowance = field(factory=Allowance, init=False)
    _attendance: Attendance = field(
        default=Factory(lambda self: Attendance(self.keeper.limits), takes_self=True), init=False
    )
    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1), init=False)
    _lifetimes: Lifetimes = field(
        default=Factory(lambda self: Lifetimes(self.keeper, self.watch, self.settle), takes_self=True), init=False
    )
    _large: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1), init=False)
    """One at a time: threads that make JSON take turns with the event loop."""

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answers whoever connects, until it is cancelled."""
        await trio.serve_listeners(self._attend, [listener])

    async def _attend(self, stream: trio.SocketStream) -> None:
        """One connection, from its beginning to its end. Whatever happens to it happens to it alone."""
        connection = stream.socket
        try:
            try:
                peer = Peer(connection)
            except PeerGone:
                return
            try:
                await self._admit(_Conversation(self, connection, peer))
            finally:
                peer.close()
        except OSError:
            pass  # it was broken off, which the client knows and nobody else needs to
        except Exception:
            _log.exception("a connection to the control socket failed")
        finally:
            connection.close()

    async def _admit(self, conversation: _Conversation) -> None:
        try:
            with self._attendance.connected(conversation.peer.uid):
                await conversation.hold()
        except NotPermitted as error:
            await conversation.refuse(error)

    async def apart(self, work: Callable[[], Result]) -> Result:
        """Does in a thread what would keep the event loop busy."""
        # Not to be abandoned: it reads from the decoder of its connection.
        return await trio.to_thread.run_sync(work, limiter=self._large)


class _Conversation:
    """One connection of one client."""

    def __init__(self, server: ControlServer, connection: trio.socket.SocketType, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._keeper = server.keeper
        self._connection = connection
        self._end = Connection(next(server._numbers))
        self._descriptors = Descriptors(server._allowance, peer.uid)
        self._methods = Methods(
            keeper=server.keeper,
            objects=server.objects,
            lifetimes=server._lifetimes,
            attendance=server._attendance,
            status=server.status,
            why=server.why,
            gates=self._gate_methods(),
            peer=peer,
            connection=self._end,
        )
        self._nursery: trio.Nursery
        """What goes on while the connection lasts; cancelled, it ends."""

    def _gate_methods(self) -> GateMethods | None:
        gates = self._server.gates
        if gates is None:
            return None
        return GateMethods(gates=gates, owner=self._keeper.owner, uid=self.peer.uid, connection=self._end)

    async def refuse(self, error: Exception) -> None:
        """Says why, once, and hangs up."""
        with suppress(OSError):
            await self._send(encode(error_to_json(error)))
        self._hang_up()

    async def hold(self) -> None:
        """Answers calls until either side ends the connection; then its holds end."""
        self._keeper.present[self._end] = self.peer
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._end_with_the_process)
                await self._converse()
                self._nursery.cancel_scope.cancel()
        finally:
            self._descriptors.close()
            if self._server.gates is not None:
                self._server.gates.end(self._end)
            with trio.CancelScope(shield=True):
                await self._keeper.end(self._end)
            del self._keeper.present[self._end]

    async def _end_with_the_process(self) -> None:
        await self.peer.died()
        self._nursery.cancel_scope.cancel()

    @contextmanager
    def _ending_when_hung_up(self) -> Iterator[None]:
        """For calls that last: while nothing is read, the end of the connection is looked for."""
        watching = trio.CancelScope()

        async def watch() -> None:
            with watching:
                await self.peer.hung_up()
                self._nursery.cancel_scope.cancel()

        self._nursery.start_soon(watch)
        try:
            yield
        finally:
            watching.cancel()

    async def _converse(self) -> None:
        try:
            await self._answer_calls()
        except ProtocolError as error:
            _log.warning("pid %d of uid %d was hung up on: %s", self.peer.pid, self.peer.uid, error)
            await self.refuse(error)
        except TimeoutError as error:
            _log.warning("pid %d of uid %d was dropped: %s", self.peer.pid, self.peer.uid, error)
        except OSError:
            pass  # the client has gone
        finally:
            self._hang_up()

    async def _answer_calls(self) -> None:
        """Reads messages and answers each before the next.

        Descriptors belong to the call with whose bytes they came; of several calls in one read to the last, for the
        kernel ends a read where descriptors are. So a client passes them with the first byte of their call, or later.
        """
        decoder = Decoder()
        pending: list[int] = []
        deadline = float("inf")
        while True:
            with trio.CancelScope(deadline=deadline) as scope:
                arrival = await self._descriptors.receive(self._connection)
            if scope.cancelled_caught:
                raise ProtocolError(f"a message was not finished within {self._server.patience:g} seconds")
            if arrival.lost:
                raise ProtocolError("more descriptors came than the server can take")
            if not arrival.data:
                decoder.eof()
                return
            broken: ProtocolError | None = None
            try:
                messages = await self._read(decoder, arrival.data)
            except ProtocolError as error:
                broken, messages = error, list(error.messages)
            # One parcel of descriptors for each message, and one for the message that has only begun.
            parcels = [pending, *([] for _ in messages)]
            complete = arrival.data.endswith(b"\0")
            parcels[-2 if complete and messages else -1].extend(arrival.descriptors)
            for message, parcel in zip(messages, parcels, strict=False):
                await self._answer(message, parcel)
            if broken is not None:
                raise broken
            pending = parcels[-1]
            if len(pending) > MAX_DESCRIPTORS:
                raise ProtocolError(f"more than {MAX_DESCRIPTORS} descriptors came with one call")
            if complete:
                deadline = float("inf")
            elif messages or deadline == float("inf"):
                deadline = trio.current_time() + self._server.patience

    async def _read(self, decoder: Decoder, data: bytes) -> list[JsonObject]:
        if decoder.begun + len(data) > LARGE and b"\0" in data:
            return await self._server.apart(partial(decoder.feed, data))
        return decoder.feed(data)

    async def _answer(self, message: JsonObject, descriptors: Sequence[int]) -> None:
        """Answers one call, and before that closes what came with it.

        Who has the answer may look for who has the object open, or unmount: neither is to find this server there.
        """
        with ExitStack() as after:
            after.callback(self._descriptors.close, descriptors)
            incoming = read_call(message)
            reply = await self._reply_to(incoming, Passed(self._descriptors, descriptors, after))
            if isinstance(reply, EventStream):
                reply = await self._tell(reply)
        if not incoming.oneway:
            await self._send(reply)

    async def _reply_to(self, incoming: Incoming, passed: Passed) -> bytes | EventStream:
        try:
            call = await self._typed(incoming)
            with self._ending_when_hung_up() if call.lasts else nullcontext():
                reply = await self._methods.answer(call, passed)
            return reply if isinstance(reply, EventStream) else await self._written(reply)
        except Held as error:
            return encode(error_to_json(Held(as_seen_by(self.peer.uid, error.hold))))
        except (HoldError, VarlinkError, GateProblem) as error:
            return encode(error_to_json(error))
        except Exception as error:
            _log.exception("the call %s of pid %d failed", quoted(incoming.method), self.peer.pid)
            raise ProtocolError("the server failed at this call; its log says how") from error

    async def _tell(self, stream: EventStream) -> bytes:
        """Tells events, however slowly they are read; gives the reply that ends the stream."""
        with self._ending_when_hung_up():
            reply: EventsReply | None = EventsReply(missed=stream.missed)
            while reply is not None:
                await self._send(await self._written(reply, continues=True), patience=math.inf)
                reply = await stream.next()
        return await self._written(EventsReply())

    async def _typed(self, incoming: Incoming) -> Call[Any]:
        if _longest((incoming.parameters or {}).values()) > MANY:
            return await self._server.apart(incoming.typed)
        return incoming.typed()

    async def _written(self, reply: AttrsInstance, *, continues: bool = False) -> bytes:
        reply = as_seen_by(self.peer.uid, reply)
        told = reply.event if isinstance(reply, EventsReply) and reply.event is not None else reply
        if _longest(astuple(told, recurse=False)) > MANY:
            return await self._server.apart(lambda: encode(write_reply(reply, continues=continues)))
        return encode(write_reply(reply, continues=continues))

    async def _send(self, message: bytes, *, patience: float | None = None) -> None:
        patience = patience or self._server.patience
        data = memoryview(message)
        with trio.move_on_after(patience) as scope:
            while data:
                data = data[await self._connection.send(data) :]
        if scope.cancelled_caught:
            raise TimeoutError(f"a reply was not read within {patience:g} seconds")

    def _hang_up(self) -> None:
        """Ends the connection so that the client reads the last reply and then its end.

        A Unix socket that is closed with anything unread gives the other end ECONNRESET (unix_release_sock() in
        net/unix/af_unix.c), so it is read to the end; after shutdown(2) nothing more can come.
        """
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
            while os.read(self._connection.fileno(), 65536):
                pass


def _longest(values: Iterable[object]) -> int:
    """The length of the longest array among these."""
    return max((len(value) for value in values if isinstance(value, (list, tuple))), default=0)
