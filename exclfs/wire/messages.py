"""The methods of the socket: their typed parameters and replies, and the messages that carry them.

The rule that this module owns: what leaves here has the types that org.exclfs.varlink promises, and what is read here
either has them or is an error that names the parameter. A class is named after its method; its fields are the
parameters (tests/wire/test_description.py compares the two). A server reads strictly; a client passes over fields that
it does not know, for the server may be newer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Final, Generic, TypeVar

from attrs import frozen

from exclfs.holds.errors import BadObject, UnknownFlag
from exclfs.holds.events import Refused
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Hold
from exclfs.wire.errors import InterfaceNotFound, InvalidParameter, MethodNotFound, error_from_json
from exclfs.wire.framing import JsonObject, ProtocolError
from exclfs.wire.primitives import BadShape
from exclfs.wire.shapes import VERSION, from_json, to_json

Reply = TypeVar("Reply")

MAX_OBJECTS: Final = 1024
"""The most objects of one call, so that none keeps a server busy. (Of descriptors 253 go along, SCM_MAX_FD.)"""


@frozen
class Object:
    """What a call is about: the index of an O_PATH descriptor that is passed along, or a path relative to the mount."""

    fd: int | None = None
    path: str | None = None

    def __attrs_post_init__(self) -> None:
        """Refuses what names nothing, or two things."""
        if (self.fd is None) == (self.path is None):
            raise BadObject("an object is named by one of fd and path")
        if self.fd is not None and self.fd < 0:
            raise BadObject(f"{self.fd} is not the index of a descriptor")


@frozen
class Cause:
    """One reason why a removal is refused."""

    kind: str
    text: str
    """A sentence, in words for whoever is staring at EBUSY."""
    blocks: tuple[str, ...]
    """The operations that fail because of it: rmdir, unlink, rename."""
    hold: Hold | None = None


@frozen(kw_only=True)
class Status:
    """What a server says of itself."""

    version: int = VERSION
    source: str
    mountpoint: str
    pid: int
    uid: int
    since: datetime
    log: str
    """Where the log goes."""
    passthrough: bool
    ask_always: bool
    holds: int
    holders: dict[str, int]
    """How many holds each holder has, by its name."""
    refusals: int
    last_refusals: tuple[Refused, ...]
    requests: dict[str, int]
    """How many requests of each kind the mirror has answered."""
    answered_without_a_decision: int
    verdicts_timed_out: int
    inodes: int
    descriptors: int
    connections: int


class Call(Generic[Reply]):
    """The parameters of a call. `method` is its full name, `reply` the class of what comes back."""

    method: ClassVar[str]
    reply: ClassVar[type]


@frozen
class HoldReply:
    """The holds that were placed, in the order of the objects."""

    holds: tuple[Hold, ...]


@frozen(kw_only=True)
class HoldCall(Call[HoldReply]):
    """Places one hold on each object, all or none."""

    method = "org.exclfs.Hold"
    reply = HoldReply
    objects: tuple[Object, ...]
    flags: Flags
    holder: str
    reason: str
    until_unmount: bool

    def __attrs_post_init__(self) -> None:
        """Refuses what is more than one call may ask."""
        if len(self.objects) > MAX_OBJECTS:
            raise BadObject(f"{len(self.objects)} objects in one call; at most {MAX_OBJECTS} are allowed")


@frozen
class ReleaseReply:
    """The holds that were released."""

    released: tuple[Hold, ...]


@frozen(kw_only=True)
class ReleaseCall(Call[ReleaseReply]):
    """Releases the hold with this id, or every hold of the caller on this object; break_it: somebody else's, too."""

    method = "org.exclfs.Release"
    reply = ReleaseReply
    id: str | None = None
    object: Object | None = None
    break_it: bool

    def __attrs_post_init__(self) -> None:
        """Refuses what names nothing, or two things."""
        if (self.id is None) == (self.object is None):
            raise BadObject("what to release is named by one of id and object")


@frozen
class HoldsReply:
    """The holds that there are, oldest first."""

    holds: tuple[Hold, ...]


@frozen
class HoldsCall(Call[HoldsReply]):
    """Asks for every hold on this object, or of the whole mount; of one holder, if one is named."""

    method = "org.exclfs.Holds"
    reply = HoldsReply
    object: Object | None = None
    holder: str | None = None


@frozen
class WhyReply:
    """Why a removal of the object is refused; not blocked, if nothing here refuses it."""

    path: str
    blocked: bool
    causes: tuple[Cause, ...]


@frozen
class WhyCall(Call[WhyReply]):
    """Asks why a removal of this object is refused."""

    method = "org.exclfs.Why"
    reply = WhyReply
    object: Object


@frozen
class StatusReply:
    """What the server says of itself."""

    status: Status


@frozen
class StatusCall(Call[StatusReply]):
    """Asks the server about itself."""

    method = "org.exclfs.Status"
    reply = StatusReply


@frozen
class GetInfoReply:
    """Who made the server, and the interfaces that it has."""

    vendor: str
    product: str
    version: str
    url: str
    interfaces: tuple[str, ...]


@frozen
class GetInfoCall(Call[GetInfoReply]):
    """Asks who made the server, and for the interfaces that it has."""

    method = "org.varlink.service.GetInfo"
    reply = GetInfoReply


@frozen
class GetInterfaceDescriptionReply:
    """The text of an interface."""

    description: str


@frozen
class GetInterfaceDescriptionCall(Call[GetInterfaceDescriptionReply]):
    """Asks for the text of an interface."""

    method = "org.varlink.service.GetInterfaceDescription"
    reply = GetInterfaceDescriptionReply
    interface: str


METHODS: Final[dict[str, type[Call[Any]]]] = {
    call.method: call
    for call in (HoldCall, ReleaseCall, HoldsCall, WhyCall, StatusCall, GetInfoCall, GetInterfaceDescriptionCall)
}
"""Every method, by its full name."""

_INTERFACES: Final = {method.rpartition(".")[0] for method in METHODS}


@frozen
class Incoming:
    """A call as it came, before its method and parameters are looked at."""

    method: str
    parameters: dict[str, Any] | None = None
    more: bool | None = None
    """The caller would take several replies. One is always enough here."""
    oneway: bool | None = None
    """The caller wants no reply at all, not even an error."""
    upgrade: bool | None = None
    """The caller wants to speak another protocol after this call. No method here has one."""

    def typed(self) -> Call[Any]:
        """The call of this method with these parameters.

        Raises:
            InterfaceNotFound, MethodNotFound: there is no such method.
            InvalidParameter: a parameter is missing, unknown or of the wrong type, or `upgrade` is asked for.
            UnknownFlag, BadObject: the parameters are of the right type, but name what does not exist.
        """
        interface, _, _ = self.method.rpartition(".")
        if interface not in _INTERFACES:
            raise InterfaceNotFound(interface)
        if self.method not in METHODS:
            raise MethodNotFound(self.method)
        if self.upgrade:
            raise InvalidParameter("upgrade")
        try:
            return from_json(self.parameters or {}, METHODS[self.method], strict=True)
        except BadShape as error:
            raise InvalidParameter(error.field) from error


def write_call(call: Call[Any], *, oneway: bool = False) -> JsonObject:
    """The message that makes this call.

    Raises:
        ValueError: a string has surrogates that os.fsdecode() does not make.
    """
    message: JsonObject = {"method": call.method, "parameters": to_json(call)}
    return message | {"oneway": True} if oneway else message


def read_call(message: JsonObject) -> Incoming:
    """What this message calls.

    Raises:
        ProtocolError: it is not a call.
    """
    try:
        return from_json(message, Incoming, strict=True)
    except BadShape as error:
        raise ProtocolError(f"a message is not a call: {error}") from error


def write_reply(reply: object) -> JsonObject:
    """The message that carries this reply. (error_to_json() in exclfs.wire.errors makes that of an error.)"""
    return {"parameters": to_json(reply)}


def read_reply(message: JsonObject, call: Call[Reply]) -> Reply:
    """The reply to this call.

    Raises:
        HoldError, VarlinkError: the error that the server answered with.
        ProtocolError: the message is not a reply, or not one to this call.
    """
    parameters = message.get("parameters") or {}
    name = message.get("error")
    if not isinstance(parameters, dict) or not isinstance(name, str | None):
        raise ProtocolError("a message is not a reply")
    if name is not None:
        raise error_from_json(name, parameters)
    try:
        reply: Reply = from_json(parameters, call.reply)
    except (BadShape, UnknownFlag) as error:
        raise ProtocolError(f"the reply to {call.method} is not as it should be: {error}") from error
    return reply
