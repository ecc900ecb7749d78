"""A server of holds on ordinary files: the real rules and the real wire, and no mount."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from exclfs.client.discovery import Server
from exclfs.client.sockets import MOST_DESCRIPTORS
from exclfs.holds.errors import BadHold, Gone, Held, HoldError
from exclfs.holds.events import Event, Locked, Unlocked
from exclfs.holds.flags import NOTHING
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, End, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode
from exclfs.holds.registry import Registry
from exclfs.host import mounts
from exclfs.wire.envelope import Incoming, read_call, write_reply
from exclfs.wire.errors import MethodNotFound, VarlinkError, error_to_json
from exclfs.wire.framing import Decoder, encode
from exclfs.wire.messages import (
    Call,
    Cause,
    EventsCall,
    EventsReply,
    HoldCall,
    HoldReply,
    HoldsCall,
    HoldsReply,
    Lifetime,
    ModeCall,
    ModeReply,
    Object,
    ReleaseCall,
    ReleaseReply,
    RenewCall,
    RenewReply,
    WhyCall,
    WhyReply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class HoldServer:
    """Serves the filesystem that `directory` is on, as if all of it were a mount."""

    def __init__(self, path: str, directory: Path) -> None:
        self.where = Server("/mnt", path, os.getuid(), whole=True, st_dev=directory.lstat().st_dev)
        self.registry = Registry()
        self.mode = Mode.ENFORCE
        self.calls: list[Call[Any]] = []
        self.waits = threading.Semaphore(0)
        """Released each time when a call begins to wait for a claim."""
        self.ended = threading.Semaphore(0)
        """Released each time when a connection has ended."""
        self.answer: Callable[[socket.socket], None] | None = None
        """What is done instead of answering a call."""
        self.greet: Callable[[socket.socket], None] | None = None
        """What is done instead of reading calls."""
        self._mount = mounts.mount_of(directory)
        self._subscribers: dict[int, socket.socket] = {}
        self._changed = threading.Condition(threading.RLock())
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def called(self, kind: type[Call[Any]]) -> list[Any]:
        """The calls of one kind that came so far."""
        return [call for call in self.calls if isinstance(call, kind)]

    def tell(self, *events: Event) -> None:
        """Sends events to all who asked for any."""
        for event in events:
            self._send_to_all(write_reply(EventsReply(event), continues=True))

    def lose(self, number: int) -> None:
        """Tells all who asked for events that so many are lost."""
        self._send_to_all(write_reply(EventsReply(missed=number), continues=True))

    def end_streams(self) -> None:
        """Tells all who asked for events that there are no more; their connections stay."""
        self._send_to_all(write_reply(EventsReply()))

    def hang_up(self) -> None:
        """Ends the connections of all who asked for events."""
        with self._changed:
            for connection in self._subscribers.values():
                connection.shutdown(socket.SHUT_RDWR)

    def _send_to_all(self, message: dict[str, Any]) -> None:
        with self._changed:
            for connection in self._subscribers.values():
                connection.sendall(encode(message))

    def _accept(self) -> None:
        for number in range(1, 1000):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, number))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(ConnectionError):
            if self.greet is not None:
                self.greet(connection)
            else:
                self._converse(connection, number)
        with self._changed:
            self._subscribers.pop(number, None)
            self._unlock([hold.id for hold in self.registry.ending_with(Connection(number))])
        self.ended.release()

    def _converse(self, connection: socket.socket, number: int) -> None:
        decoder, passed = Decoder(), []
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
        while True:
            data, ancillary, _, _ = connection.recvmsg(65536, room)
            if not data:
                return
            for _, _, content in ancillary:
                passed += array.array("i", content)
            for message in decoder.feed(data):
                if self.answer is not None:
                    self.answer(connection)
                    return
                incoming = read_call(message)
                reply = encode(self._reply(incoming, passed, number))
                with self._changed if incoming.more else contextlib.nullcontext():
                    connection.sendall(reply)
                    if incoming.more:
                        self._subscribers[number] = connection
                while passed:
                    os.close(passed.pop())

    def _reply(self, incoming: Incoming, passed: Sequence[int], number: int) -> dict[str, Any]:
        try:
            call = incoming.typed()
            self.calls.append(call)
            return write_reply(self._do(call, passed, number), continues=bool(incoming.more))
        except (HoldError, VarlinkError) as error:
            return error_to_json(error)

    def _do(self, call: Call[Any], passed: Sequence[int], number: int) -> object:
        match call:
            case HoldCall():
                return HoldReply(self._lock_all(call, passed, number))
            case ReleaseCall(ids=tuple(ids)):
                return ReleaseReply(self._unlock(ids))
            case ReleaseCall(object=Object() as named):
                return ReleaseReply(self._unlock([hold.id for hold in self._on(named, passed)]))
            case RenewCall():
                until = Time(datetime.now(UTC) + timedelta(seconds=call.ttl))
                return RenewReply(tuple(self.registry.renew(named, until) for named in call.ids))
            case HoldsCall():
                holds = self._on(call.object, passed) if call.object else self.registry.all()
                return HoldsReply(tuple(hold for hold in holds if call.holder in {None, hold.holder.name}))
            case WhyCall():
                holds = self._on(call.object, passed)
                causes = tuple(
                    Cause("hold", f"{hold.holder.name} holds it", ("unlink",), (), (), hold=hold) for hold in holds
                )
                return WhyReply(self._find(call.object, passed)[1], bool(holds), causes)
            case ModeCall():
                self.mode = call.mode or self.mode
                return ModeReply(self.mode)
            case EventsCall():
                return EventsReply()
        raise MethodNotFound(call.method)

    def _lock_all(self, call: HoldCall, passed: Sequence[int], number: int) -> tuple[Hold, ...]:
        found = [self._find(named, passed) for named in call.objects]
        ends = ends_of(call.lifetime, passed, number)
        with self._changed:
            while True:
                try:
                    return self._try_all(call, found, ends)
                except Held:
                    self.waits.release()
                    if not call.wait or self._closed or not self._changed.wait(call.wait):
                        raise

    def _try_all(self, call: HoldCall, found: Sequence[tuple[Inode, str]], ends: tuple[End, ...]) -> tuple[Hold, ...]:
        placed: list[Hold] = []
        holder = Holder(call.holder, Process(os.getpid(), os.getuid()))
        try:
            for inode, path in found:
                hold = self.registry.trylock(
                    inode,
                    path=path,
                    flags=call.flags or NOTHING,
                    holder=holder,
                    reason=call.reason,
                    since=datetime.now(UTC),
                    ends=ends,
                )
                placed.append(hold)
        except HoldError:
            for hold in placed:
                self.registry.unlock(hold.id)
            raise
        self.tell(*(Locked(hold.since, hold) for hold in placed))
        return tuple(placed)

    def _unlock(self, ids: Sequence[str]) -> tuple[Hold, ...]:
        with self._changed:
            for named in ids:
                self.registry.get(named)
            released = tuple(self.registry.unlock(named) for named in ids)
            self._changed.notify_all()
        self.tell(*(Unlocked(datetime.now(UTC), hold) for hold in released))
        return released

    def _on(self, named: Object, passed: Sequence[int]) -> tuple[Hold, ...]:
        return self.registry.on(self._find(named, passed)[0])

    def _find(self, named: Object, passed: Sequence[int]) -> tuple[Inode, str]:
        if named.fd is not None:
            status, path = os.fstat(passed[named.fd]), os.readlink(f"/proc/self/fd/{passed[named.fd]}")
        else:
            path = self._absolute(named.path or "")
            status = os.lstat(path)
        if status.st_nlink == 0:
            raise Gone
        return Inode(status.st_dev, status.st_ino), path

    def _absolute(self, relative: str) -> str:
        """The path in the filesystem as it is seen through the mount that the directory is on."""
        inside = os.path.relpath("/" + relative, os.fsdecode(self._mount.root))
        return os.path.normpath(os.path.join(os.fsdecode(self._mount.mountpoint), inside))


def ends_of(lifetime: Lifetime | None, passed: Sequence[int], number: int) -> tuple[End, ...]:
    """The ends that a call names; its connection, if it names none."""
    if lifetime is None:
        return (Connection(number),)
    ends: list[End] = [Connection(number)] if lifetime.connection else []
    if lifetime.pidfd is not None:
        ends.append(Exit(process_of(passed[lifetime.pidfd])))
    if lifetime.ttl is not None:
        ends.append(Time(datetime.now(UTC) + timedelta(seconds=lifetime.ttl)))
    if lifetime.unmount:
        ends.append(Unmount())
    if lifetime.persistent:
        ends.append(StateFile())
    if not ends:
        raise BadHold("a hold must say what ends it")
    return tuple(ends)


def process_of(pidfd: int) -> int:
    """The process that a pidfd is of."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
