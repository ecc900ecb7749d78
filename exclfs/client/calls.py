"""What a client asks, and what the answers mean: the core that both clients share. No I/O.

An operation is a generator: it yields requests, is sent their replies, and returns its result; where a reply was an
error, it is thrown in. So an operation of several requests is written once, and a client needs only one loop that
carries requests to and fro (`Exchange` has the part of it that is not I/O).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from attrs import frozen

from exclfs.client.errors import BadAnswer, ClientError, Disconnected
from exclfs.client.sockets import MOST_DESCRIPTORS
from exclfs.holds.errors import BadHold, NoSuchHold
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.limits import MAX_NAME
from exclfs.wire.errors import VarlinkError
from exclfs.wire.framing import MAX_REPLY, Decoder, JsonObject, ProtocolError, encode
from exclfs.wire.messages import (
    Call,
    HoldCall,
    HoldsCall,
    Object,
    ReleaseCall,
    Status,
    StatusCall,
    WhyCall,
    WhyReply,
    read_reply,
    write_call,
)

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold

Path = str | os.PathLike[str]
Result = TypeVar("Result")
Reply = TypeVar("Reply")


@frozen
class Request(Generic[Reply]):
    """A call, and the paths whose descriptors go along with it: object number n is paths[n]."""

    call: Call[Reply]
    paths: tuple[str, ...] = ()


Operation = Generator[Request[Any], Any, Result]


class Exchange:
    """One request and its reply: bytes to send, then bytes that came until there is a result.

    Args:
        mountpoint: names the mount in errors.
        request: what is asked.
    """

    def __init__(self, mountpoint: str, request: Request[Reply]) -> None:
        self._mountpoint = mountpoint
        self._call = request.call
        self._decoder = Decoder(MAX_REPLY)
        self.message: Final = encode(write_call(request.call))
        """The bytes to send; the descriptors go with the first of them."""

    def feed(self, data: bytes) -> JsonObject | None:
        """Takes what came; b"" is the end of the connection. Returns the reply's message once it is whole.

        Raises:
            Disconnected: the connection ended before.
            BadAnswer: what came is no message.
        """
        if not data:
            raise Disconnected(self._mountpoint, "the server closed it")
        try:
            return next(iter(self._decoder.feed(data)), None)
        except ProtocolError as error:
            raise BadAnswer(self._mountpoint, error.why) from error

    def result(self, message: JsonObject) -> Any:
        """What the reply says.

        Raises:
            HoldError: the server's refusal.
            BadAnswer: it is no reply to this call, or the server did not understand the call.
        """
        try:
            return read_reply(message, self._call)
        except (ProtocolError, VarlinkError) as error:
            raise BadAnswer(self._mountpoint, str(error)) from error


# --- the operations --------------------------------------------------------------------------------------------------


def place(
    paths: Path | Iterable[Path],
    *,
    flags: Flags | None,
    claim: bool,
    holder: str | None,
    reason: str,
    until_unmount: bool,
) -> Operation[tuple[Hold, ...]]:
    """Places one hold on each path, all or none.

    One call carries MOST_DESCRIPTORS objects; of more, those that were placed are released again if a later one fails.
    """
    wanted = _flags(flags, claim=claim)
    name = default_holder() if holder is None else holder
    placed: list[Hold] = []
    try:
        for batch in _batches(_several(paths)):
            objects = tuple(Object(fd=index) for index in range(len(batch)))
            reply = yield Request(
                HoldCall(objects=objects, flags=wanted, holder=name, reason=reason, until_unmount=until_unmount), batch
            )
            placed += reply.holds
    except Exception:
        with contextlib.suppress(ClientError):
            yield from end(placed)
        raise
    return tuple(placed)


def end(holds: Iterable[Hold]) -> Operation[None]:
    """Releases the caller's own holds; one that has ended already is as good."""
    for hold in holds:
        with contextlib.suppress(NoSuchHold):
            yield Request(ReleaseCall(id=hold.id, break_it=False))


def release(hold: Hold | str | None, path: Path | None, *, break_it: bool) -> Operation[tuple[Hold, ...]]:
    """Releases one hold, or every hold of the caller on a path."""
    if hold is not None:
        reply = yield Request(ReleaseCall(id=hold if isinstance(hold, str) else hold.id, break_it=break_it))
    elif path is not None:
        reply = yield Request(ReleaseCall(object=Object(fd=0), break_it=break_it), (os.fspath(path),))
    else:
        raise TypeError("release() needs a hold or a path")
    released: tuple[Hold, ...] = reply.released
    return released


def list_holds(path: Path | None, holder: str | None) -> Operation[tuple[Hold, ...]]:
    """Every hold on a path, or of the whole mount."""
    if path is None:
        reply = yield Request(HoldsCall(holder=holder))
    else:
        reply = yield Request(HoldsCall(object=Object(fd=0), holder=holder), (os.fspath(path),))
    listed: tuple[Hold, ...] = reply.holds
    return listed


def explain(path: Path) -> Operation[WhyReply]:
    """Why a removal of the path is refused."""
    reply: WhyReply = yield Request(WhyCall(object=Object(fd=0)), (os.fspath(path),))
    return reply


def ask_status() -> Operation[Status]:
    """What the server says of itself."""
    reply = yield Request(StatusCall())
    status: Status = reply.status
    return status


# --- their arguments -------------------------------------------------------------------------------------------------


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


def _several(paths: Path | Iterable[Path]) -> tuple[str, ...]:
    if isinstance(paths, str | os.PathLike):
        return (os.fspath(paths),)
    several = tuple(os.fspath(path) for path in paths)
    if not several:
        raise BadHold("there is nothing to hold: no path was given")
    return several


def _batches(paths: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(paths), MOST_DESCRIPTORS):
        yield paths[start : start + MOST_DESCRIPTORS]
