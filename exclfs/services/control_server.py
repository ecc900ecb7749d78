"""The control socket: Varlink on a Unix socket, one task for each connection.

The rules that this module owns. A client is who the kernel says it is. Its calls are answered in their order, one at a
time, so that a client which floods or does not read delays nobody but itself; one that breaks the protocol gets one
error and is hung up on. When its connection ends, or the process that opened it dies, so do the holds that end with it;
what a client is answered is what it could have found out itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import evolve, field, frozen

from exclfs.holds.errors import BadHold, HoldError, NoSuchHold, NotPermitted
from exclfs.holds.holder import Holder
from exclfs.holds.lifetime import Connection, Unmount
from exclfs.host.names import quoted
from exclfs.services.connections import Attendance, Peer, PeerGone
from exclfs.services.descriptors import Allowance, Descriptors
from exclfs.wire import description
from exclfs.wire.errors import MethodNotImplemented, VarlinkError, error_to_json
from exclfs.wire.framing import Decoder, ProtocolError, encode
from exclfs.wire.messages import (
    Call,
    GetInfoCall,
    GetInterfaceDescriptionCall,
    HoldCall,
    HoldReply,
    HoldsCall,
    HoldsReply,
    ReleaseCall,
    ReleaseReply,
    StatusCall,
    StatusReply,
    WhyCall,
    WhyReply,
    read_call,
    write_reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exclfs.holds.hold import Hold
    from exclfs.keeper import Keeper
    from exclfs.services.objects import Found, Objects
    from exclfs.wire.framing import JsonObject
    from exclfs.wire.messages import Cause, Incoming, Object, Status

PATIENCE: Final = 10.0
"""Seconds that a client has to finish a message that it has begun, and to read a reply."""
MOST_OBJECTS: Final = 1024
"""How many objects one call may name, and how many descriptors may come with it."""

_log = logging.getLogger("exclfs.control")


@frozen
class ControlServer:
    """Answers the clients of one mount."""

    keeper: Keeper
    objects: Objects
    status: Callable[[], Status]
    """What the server says of itself now. Must not block."""
    why: Callable[[str, Sequence[Hold]], Sequence[Cause]]
    """The causes that the holds of this path are (exclfs.diagnosis.why)."""
    patience: float = PATIENCE
    _attendance: Attendance = field(factory=Attendance)
    _allowance: Allowance = field(factory=Allowance)
    _numbers: itertools.count[int] = field(factory=lambda: itertools.count(1))

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
        uid = conversation.peer.uid
        obstacle = self._attendance.obstacle(uid)
        if obstacle is not None:
            await conversation.refuse(NotPermitted(obstacle))
            return
        self._attendance.enter(uid)
        try:
            await conversation.hold()
        finally:
            self._attendance.leave(uid)


class _Conversation:
    """One connection of one client."""

    def __init__(self, server: ControlServer, connection: trio.socket.SocketType, peer: Peer) -> None:
        self.peer = peer
        self._server = server
        self._keeper = server.keeper
        self._objects = server.objects
        self._connection = connection
        self._number = next(server._numbers)
        self._descriptors = Descriptors(server._allowance, peer.uid)
        self._after_the_call = ExitStack()

    async def refuse(self, error: Exception) -> None:
        """Says why, once, and hangs up."""
        with suppress(OSError):
            await self._send(error_to_json(error))
        self._hang_up()

    async def hold(self) -> None:
        """Answers calls until either side ends the connection; then its holds end."""
        self._keeper.connections[self._number] = self.peer
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_the_process, nursery.cancel_scope)
                await self._converse()
                nursery.cancel_scope.cancel()
        finally:
            self._descriptors.close()
            with trio.CancelScope(shield=True):
                await self._keeper.end_connection(self._number)
            del self._keeper.connections[self._number]

    async def _end_with_the_process(self, scope: trio.CancelScope) -> None:
        await self.peer.died()
        scope.cancel()

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
                messages = decoder.feed(arrival.data)
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
            if len(pending) > MOST_OBJECTS:
                raise ProtocolError(f"more than {MOST_OBJECTS} descriptors came with one call")
            if complete:
                deadline = float("inf")
            elif messages or deadline == float("inf"):
                deadline = trio.current_time() + self._server.patience

    async def _answer(self, message: JsonObject, passed: Sequence[int]) -> None:
        """Answers one call, and closes what came with it."""
        with ExitStack() as self._after_the_call:
            self._after_the_call.callback(self._descriptors.close, passed)
            incoming = read_call(message)
            reply = await self._reply_to(incoming, passed)
            if not incoming.oneway:
                await self._send(reply)

    async def _reply_to(self, incoming: Incoming, passed: Sequence[int]) -> JsonObject:
        try:
            return write_reply(await self._do(incoming.typed(), passed))
        except (HoldError, VarlinkError) as error:
            return error_to_json(error)
        except Exception as error:
            _log.exception("the call %s of pid %d failed", quoted(incoming.method), self.peer.pid)
            raise ProtocolError("the server failed at this call; its log says how") from error

    async def _send(self, message: JsonObject) -> None:
        data = memoryview(encode(message))
        with trio.move_on_after(self._server.patience) as scope:
            while data:
                data = data[await self._connection.send(data) :]
        if scope.cancelled_caught:
            raise TimeoutError(f"a reply was not read within {self._server.patience:g} seconds")

    def _hang_up(self) -> None:
        """Ends the connection so that the client reads the last reply and then its end.

        A Unix socket that is closed with anything unread gives the other end ECONNRESET (unix_release_sock() in
        net/unix/af_unix.c), so it is read to the end; after shutdown(2) nothing more can come.
        """
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
            while os.read(self._connection.fileno(), 65536):
                pass

    # --- the methods --------------------------------------------------------------------------------------------------

    async def _do(self, call: Call[Any], passed: Sequence[int]) -> object:
        match call:
            case HoldCall():
                return HoldReply(await self._hold(call, passed))
            case ReleaseCall():
                return ReleaseReply(await self._release(call, passed))
            case HoldsCall():
                return HoldsReply(await self._holds(call, passed))
            case WhyCall():
                return await self._why(call, passed)
            case StatusCall():
                return StatusReply(self._status())
            case GetInfoCall():
                return description.info()
            case GetInterfaceDescriptionCall():
                return description.describe(call.interface)
        raise MethodNotImplemented(call.method)

    async def _hold(self, call: HoldCall, passed: Sequence[int]) -> tuple[Hold, ...]:
        if not call.objects:
            raise BadHold("no object is named")
        if len(call.objects) > MOST_OBJECTS:
            raise BadHold(f"{len(call.objects)} objects are named; at most {MOST_OBJECTS} are held by one call")
        found = [await self._find(named, passed) for named in call.objects]
        requester = self.peer.describe()
        return await self._keeper.trylock(
            [(one.inode, one.path) for one in found],
            flags=call.flags,
            holder=Holder(call.holder, requester),
            reason=call.reason,
            ends=(Unmount() if call.until_unmount else Connection(self._number),),
            requester=requester,
        )

    async def _release(self, call: ReleaseCall, passed: Sequence[int]) -> tuple[Hold, ...]:
        requester = self.peer.describe()
        if call.object is None:
            assert call.id is not None
            return (await self._keeper.unlock(call.id, requester=requester, break_it=call.break_it),)
        found = await self._find(call.object, passed)
        holds = self._keeper.registry.on(found.inode)
        own = [hold for hold in holds if self._keeper.is_own(hold, requester)]
        # Where none is the caller's, the keeper says of the first why not.
        chosen = holds if call.break_it else own or holds[:1]
        released: list[Hold] = []
        refused: NotPermitted | None = None
        for hold in chosen:
            try:
                released.append(await self._keeper.unlock(hold.id, requester=requester, break_it=call.break_it))
            except NoSuchHold:
                continue  # it has ended meanwhile
            except NotPermitted as error:
                refused = error
        if refused is not None and not released:
            raise refused
        return tuple(released)

    async def _holds(self, call: HoldsCall, passed: Sequence[int]) -> tuple[Hold, ...]:
        if call.object is not None:
            holds: Sequence[Hold] = self._keeper.registry.on((await self._find(call.object, passed)).inode)
        else:
            holds = await self._in_reach(self._keeper.registry.all())
        return tuple(hold for hold in holds if call.holder in (None, hold.holder.name))

    async def _why(self, call: WhyCall, passed: Sequence[int]) -> WhyReply:
        found = await self._find(call.object, passed)
        causes = tuple(self._server.why(found.path, self._keeper.registry.on(found.inode)))
        return WhyReply(found.path, blocked=any(cause.blocks for cause in causes), causes=causes)

    def _status(self) -> Status:
        """Of the refusals, others see those that they were part of: a path may be none of their business."""
        status = self._server.status()
        if self._sees_everything():
            return status
        theirs = tuple(
            refusal
            for refusal in status.last_refusals
            if self.peer.uid in (refusal.requester.uid, *(hold.holder.process.uid for hold in refusal.holds))
        )
        return evolve(status, last_refusals=theirs)

    async def _in_reach(self, holds: Sequence[Hold]) -> Sequence[Hold]:
        """Those that this client may know of: its own, and what lies where it could have looked."""
        if self._sees_everything():
            return holds
        others = [hold for hold in holds if hold.holder.process.uid != self.peer.uid]
        unknown = set(others) - set(await self._objects.reachable(others, self.peer))
        return [hold for hold in holds if hold not in unknown]

    def _sees_everything(self) -> bool:
        return self.peer.uid in (0, os.geteuid())

    async def _find(self, object: Object, passed: Sequence[int]) -> Found:
        return await self._objects.find(object, self.peer, passed, self._descriptors, self._after_the_call)
