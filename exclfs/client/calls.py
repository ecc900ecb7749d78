"""What a client asks, and what the answers mean: the core that both clients share. No I/O.

An operation is a generator: it yields requests and errands, is sent their results, and returns its own; where one
failed, the error is thrown in. So an operation of several requests is written once, and a client needs only one loop
that carries them out (`Exchange` has the part of it that is not I/O).
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from attrs import frozen

from exclfs.client.errors import BadAnswer, Disconnected
from exclfs.client.locations import locate
from exclfs.client.sockets import MOST_DESCRIPTORS, Ancillary, Descriptors
from exclfs.holds.errors import BadHold, BadObject, NoSuchHold
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.hold import Hold
from exclfs.holds.limits import MAX_NAME
from exclfs.wire.envelope import read_reply, write_call
from exclfs.wire.errors import VarlinkError
from exclfs.wire.framing import MAX_MESSAGE, MAX_REPLY, Decoder, JsonObject, ProtocolError, encode
from exclfs.wire.messages import (
    FOR_EVER,
    MAX_OBJECTS,
    Call,
    EventsCall,
    EventsReply,
    HoldCall,
    HoldsCall,
    Lifetime,
    ModeCall,
    Object,
    ReleaseCall,
    RenewCall,
    Status,
    StatusCall,
    WhyCall,
    WhyReply,
)

if TYPE_CHECKING:
    from datetime import datetime

    from exclfs.client.discovery import Server
    from exclfs.holds.mode import Mode

TIMEOUT: Final = 30.0
"""Seconds that the server may take to answer unless the caller says otherwise."""

Path = str | os.PathLike[str]
Named = Hold | str
"""A hold, or its id."""
Result = TypeVar("Result")
Reply = TypeVar("Reply")


@frozen
class Request(Generic[Reply]):
    """A call, and what goes along with it."""

    call: Call[Reply]
    ancillary: Ancillary = ()
    wait: float = 0.0
    """Seconds that the server has been asked to wait before it answers; infinity for ever."""
    more: bool = False
    """The answer is a stream of replies: the request's result is the first of them, and the Exchange for the others."""


@frozen
class Errand(Generic[Result]):
    """What may have to wait for a filesystem. A client that has an event loop has a thread do it."""

    do: Callable[[], Result]


Operation = Generator[Request[Any] | Errand[Any], Any, Result]


class Exchange(Generic[Reply]):
    """One request and its replies: bytes to send, then bytes that came until there is a reply.

    Args:
        mountpoint: names the mount in errors.
        request: what is asked.

    Raises:
        BadObject: it is more than a server reads.
    """

    def __init__(self, mountpoint: str, request: Request[Reply]) -> None:
        self._mountpoint = mountpoint
        self._call = request.call
        self._decoder = Decoder(MAX_REPLY)
        self._replies: deque[JsonObject] = deque()
        self.ended = False
        """Whether the last reply has been taken."""
        self.message: Final = encode(write_call(request.call, more=request.more))
        """The bytes to send; the descriptors go with the first of them."""
        if len(self.message) - 1 > MAX_MESSAGE:  # without its NUL
            raise BadObject(
                f"a call of {len(self.message)} bytes; at most {MAX_MESSAGE} are allowed: name fewer at once"
            )

    @property
    def answered(self) -> bool:
        """Whether a whole reply has come."""
        return bool(self._replies)

    def feed(self, data: bytes) -> None:
        """Takes what came; b"" is the end of the connection.

        Raises:
            Disconnected: the connection ended before the reply did.
            BadAnswer: what came is no message.
        """
        if not data:
            raise Disconnected(self._mountpoint, "the server closed it")
        try:
            self._replies += self._decoder.feed(data)
        except ProtocolError as error:
            raise BadAnswer(self._mountpoint, error.why) from error

    def reply(self) -> Reply:
        """What the next reply says that has come.

        Raises:
            HoldError: the server's refusal.
            BadAnswer: it is no reply to this call, or the server did not understand the call.
        """
        message = self._replies.popleft()
        self.ended = message.get("continues") is not True
        try:
            return read_reply(message, self._call)
        except (ProtocolError, VarlinkError) as error:
            raise BadAnswer(self._mountpoint, str(error)) from error


Stream = tuple[EventsReply, Exchange[EventsReply]]
"""The first reply of a stream of events, and the exchange that has the others."""


# --- the operations --------------------------------------------------------------------------------------------------


def place(
    server: Server,
    paths: Path | Iterable[Path],
    *,
    holder: str | None,
    reason: str,
    claim: bool,
    flags: Flags | None,
    timeout: float | None,
    pid: int | None,
    ttl: float | None,
    until_unmount: bool,
    persistent: bool,
    connection: bool | None,
) -> Operation[tuple[Hold, ...]]:
    """Places one hold on each path, all or none: by descriptors as long as they go along with one message."""
    wanted = _flags(flags, claim=claim)
    passed = several(paths)
    by_path: tuple[Object, ...] = ()
    if len(passed) + (pid is not None) > MOST_DESCRIPTORS:
        by_path = yield Errand(partial(locate, passed, server))
        passed = ()
    lifetime = _lifetime(
        connection=connection,
        pidfd=None if pid is None else len(passed),
        ttl=ttl,
        unmount=until_unmount or None,
        persistent=persistent or None,
    )
    with (yield Errand(partial(Descriptors, passed, pid))) as descriptors:
        call = HoldCall(
            objects=by_path or tuple(Object(fd=index) for index in range(len(passed))),
            flags=wanted,
            holder=default_holder() if holder is None else holder,
            reason=reason,
            lifetime=lifetime,
            wait=FOR_EVER if timeout is None else timeout,
        )
        reply = yield Request(call, descriptors.ancillary, wait=math.inf if timeout is None else timeout)
    placed: tuple[Hold, ...] = reply.holds
    return placed


def end(holds: Sequence[Hold]) -> Operation[None]:
    """Releases the caller's own holds; one that has ended already is as good."""
    half = len(holds) // 2
    if len(holds) <= MAX_OBJECTS:
        try:
            yield from release(holds, None, break_it=False, reason="")
        except NoSuchHold:
            if not half:
                return
        else:
            return
    yield from end(holds[:half])
    yield from end(holds[half:])


def release(
    holds: Named | Iterable[Named] | None, path: Path | None, *, break_it: bool, reason: str
) -> Operation[tuple[Hold, ...]]:
    """Releases holds, all or none, or every hold of the caller on a path."""
    call = partial(ReleaseCall, break_it=break_it, reason=reason)
    if path is not None and holds is None:
        reply = yield from _about(path, call)
    elif holds is not None and path is None:
        ids = _ids(holds)
        if not ids:
            return ()
        reply = yield Request(call(ids=ids))
    else:
        raise TypeError("release() takes either holds or a path")
    released: tuple[Hold, ...] = reply.released
    return released


def renew(holds: Named | Iterable[Named], ttl: float) -> Operation[tuple[Hold, ...]]:
    """Gives each hold so many seconds from now, all or none."""
    ids = _ids(holds)
    if not ids:
        return ()
    reply = yield Request(RenewCall(ids=ids, ttl=ttl))
    renewed: tuple[Hold, ...] = reply.holds
    return renewed


def list_holds(path: Path | None, holder: str | None) -> Operation[tuple[Hold, ...]]:
    """Every hold that covers a path, or of the whole mount."""
    if path is None:
        reply = yield Request(HoldsCall(holder=holder))
    else:
        reply = yield from _about(path, partial(HoldsCall, holder=holder))
    listed: tuple[Hold, ...] = reply.holds
    return listed


def explain(path: Path) -> Operation[WhyReply]:
    """Why a removal of the path is refused."""
    reply: WhyReply = yield from _about(path, WhyCall)
    return reply


def ask_status() -> Operation[Status]:
    """What the server says of itself."""
    reply = yield Request(StatusCall())
    status: Status = reply.status
    return status


def switch(mode: Mode | None) -> Operation[Mode]:
    """Switches the mode of the mount, or asks which it is."""
    reply = yield Request(ModeCall(mode))
    now: Mode = reply.mode
    return now


def listen(path: Path | None, *, own: bool, since: datetime | None, follow: bool) -> Operation[Stream]:
    """Asks for events. Once its first reply is there, nothing is missed."""
    opened = () if path is None else (os.fspath(path),)
    named = None if path is None else Object(fd=0)
    with (yield Errand(partial(Descriptors, opened))) as descriptors:
        call = EventsCall(named, own, since, follow)
        stream: Stream = yield Request(call, descriptors.ancillary, more=True)
    return stream


def _about(path: Path, call: Callable[..., Call[Any]]) -> Operation[Any]:
    """Makes a call about one object."""
    with (yield Errand(partial(Descriptors, (os.fspath(path),)))) as descriptors:
        reply = yield Request(call(object=Object(fd=0)), descriptors.ancillary)
    return reply


# --- their arguments -------------------------------------------------------------------------------------------------


def several(paths: Path | Iterable[Path]) -> tuple[str, ...]:
    """One path or several, as a tuple.

    Raises:
        BadHold: there is none.
    """
    if isinstance(paths, str | os.PathLike):
        return (os.fspath(paths),)
    named = tuple(os.fspath(path) for path in paths)
    if not named:
        raise BadHold("there is nothing to hold: no path was given")
    return named


def default_holder() -> str:
    """The name of a holder who did not give one: that of the running program, or of its process."""
    program = sys.argv[0] if sys.argv else ""
    name = os.path.basename(program)
    if name == "__main__.py":
        name = os.path.basename(os.path.dirname(program))
    if name in {"", "-c", "-m", "-"}:
        with open("/proc/self/comm", encoding="utf-8", errors="replace") as comm:
            name = comm.read()
    harmless = "".join(character if character.isprintable() else "?" for character in name.strip())
    return harmless.encode(errors="replace")[:MAX_NAME].decode(errors="ignore")


def _flags(flags: Flags | None, *, claim: bool) -> Flags:
    if flags is None:
        return DEFAULT if claim else Flags.NO_REMOVE
    if not claim:
        raise BadHold("flags= and claim=False are two answers to one question; give one of them")
    return flags


def _lifetime(**ends: Any) -> Lifetime | None:
    named = {name: end for name, end in ends.items() if end is not None}
    if named == {"connection": False}:
        raise BadHold("connection=False leaves nothing that ends the hold: give pid, ttl, until_unmount or persistent")
    return Lifetime(**named) if named else None


def _ids(holds: Named | Iterable[Named]) -> tuple[str, ...]:
    named = (holds,) if isinstance(holds, Hold | str) else holds
    return tuple(hold if isinstance(hold, str) else hold.id for hold in named)
