"""The methods of the socket: their typed parameters and replies.

The rule that this module owns: what leaves here has the types that org.exclfs.varlink promises, and what is read here
either has them or is an error that names the parameter. A class is named after its method; its fields are the
parameters (tests/wire/test_description.py compares the two). A server reads strictly; a client passes over fields that
it does not know, for the server may be newer.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, TypeVar

from attrs import field, frozen

from exclfs.holds.errors import BadHold, BadObject
from exclfs.holds.events import Event, Refused
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Hold
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.wire.causes import Cause
from exclfs.wire.shapes import VERSION

Reply = TypeVar("Reply")

MAX_OBJECTS: Final = 10_000
"""The most objects, or ids of holds, of one call, so that none keeps a server busy."""
MAX_DESCRIPTORS: Final = 1024
"""The most descriptors that are passed along with one call. (The kernel passes 253 at once, SCM_MAX_FD.)"""
FOR_EVER: Final = 1e9
"""Seconds. JSON has no infinity: who waits so long waits for ever."""


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


@frozen(kw_only=True)
class Lifetime:
    """What is to end a hold: every end that is wanted. With none it is the connection."""

    connection: bool | None = None
    """The connection closes, or the process that opened it dies."""
    pidfd: int | None = None
    """The process dies of which a pidfd is passed along: its index."""
    pid: int | None = None
    """This process dies; in the pid namespace of the server, and for a caller that is in it."""
    ttl: float | None = None
    """So many seconds have passed, unless it is renewed."""
    unmount: bool | None = None
    """The mount ends."""
    persistent: bool | None = None
    """None but a release: the hold is kept in the server's state file."""

    def __attrs_post_init__(self) -> None:
        """Refuses what cannot end anything."""
        if self.pidfd is not None and self.pid is not None:
            raise BadHold("the process is named by one of pidfd and pid")
        if self.pidfd is not None and self.pidfd < 0:
            raise BadHold(f"{self.pidfd} is not the index of a descriptor")
        if self.pid is not None and self.pid <= 0:
            raise BadHold(f"{self.pid} is not the id of a process")
        if self.ttl is not None:
            _check_ttl(self.ttl)


@frozen(kw_only=True)
class RefusedRequester:
    """A program of a user that removals were refused to: its processes, whichever they were."""

    comm: str | None = None
    uid: int
    user: str | None = None
    refusals: int


@frozen(kw_only=True)
class Status:
    """What a server says of itself."""

    version: int = VERSION
    source: str
    mountpoint: str
    pid: int
    uid: int
    since: datetime
    uptime: float
    """Seconds for which the server has been there, those in which the machine slept among them."""
    log: str
    """Where the log goes."""
    passthrough: bool
    idle_poll: bool
    """Whether processors are kept from halting while requests come one after the other."""
    ask_always: bool
    mode: Mode
    hold_open: OpenFiles
    state: str | None = None
    """The path of the state file; None without one."""
    holds: int
    holders: dict[str, int]
    """How many holds each holder has, by its name."""
    oldest_hold: Hold | None = None
    """The one that has stood longest; for others than root and the owner of the mount, of their own."""
    refusals: int
    would_have_refused: int
    """How many removals were recorded and let happen, in mode warn."""
    refusals_by_operation: dict[str, int]
    """How many of both there were of each operation."""
    refusals_by_requester: tuple[RefusedRequester, ...]
    """To whom most of both went, at most 20; for others than root and the owner of the mount, programs of their own."""
    refusals_by_others: int
    """How many of both went to all others."""
    last_refusals: tuple[Refused, ...]
    """Repeats as one, the latest at the end."""
    requests: dict[str, int]
    """How many requests of each kind the mirror has answered."""
    answered_without_a_decision: int
    verdicts: int
    """How many removals were put to the policy and decided in time."""
    verdicts_timed_out: int
    """How many questions found no answer in time; what was asked for failed."""
    verdicts_p50_us: int | None = None
    """Microseconds that half of the verdicts took at most, rounded up by at most a quarter; None before the first."""
    verdicts_p99_us: int | None = None
    """The same of 99 in 100."""
    inodes: int
    """How many the mirror knows."""
    descriptors: int
    """How many it has open for them."""
    descriptor_budget: int
    """How many of these it keeps only because they may be used again; what it cannot do without comes on top."""
    connections: int
    waiting: int
    """How many calls queue for a claim."""


def _check_ttl(ttl: float) -> None:
    if not 0 < ttl < math.inf:
        raise BadHold(f"a hold cannot end after {ttl:g} seconds")


def _check_number(what: str, number: int, most: int = MAX_OBJECTS) -> None:
    if number > most:
        raise BadObject(f"{number} {what} in one call; at most {most} are allowed")


def _no_longer_than_for_ever(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, FOR_EVER)


class Call(Generic[Reply]):
    """The parameters of a call. `method` is its full name, `reply` the class of what comes back."""

    method: ClassVar[str]
    reply: ClassVar[type]
    streams: ClassVar[bool] = False
    """Whether the answer is a stream of replies, which the caller has to ask for ("more")."""

    @property
    def lasts(self) -> bool:
        """Whether the answer may come late, so that the end of the connection is looked for meanwhile."""
        return False


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
    lifetime: Lifetime | None = None
    wait: float | None = field(default=None, converter=_no_longer_than_for_ever)
    """Seconds to queue for a claim that is taken; None and 0: it is an error at once."""

    def __attrs_post_init__(self) -> None:
        """Refuses what is more than one call may ask."""
        _check_number("objects", len(self.objects))
        _check_number("descriptors", sum(each.fd is not None for each in self.objects), MAX_DESCRIPTORS)
        if self.wait is not None and not self.wait >= 0:
            raise BadHold(f"{self.wait:g} seconds cannot be waited")

    @property
    def lasts(self) -> bool:
        """If it queues for a claim."""
        return bool(self.wait)


@frozen
class ReleaseReply:
    """The holds that were released."""

    released: tuple[Hold, ...]


@frozen(kw_only=True)
class ReleaseCall(Call[ReleaseReply]):
    """Releases the holds with these ids, all or none, or all of the caller on this object; break_it: others', too."""

    method = "org.exclfs.Release"
    reply = ReleaseReply
    ids: tuple[str, ...] | None = None
    object: Object | None = None
    break_it: bool | None = None
    reason: str | None = None
    """Why they are broken, for the record."""

    def __attrs_post_init__(self) -> None:
        """Refuses what names nothing, or two things, or too many."""
        if (self.ids is None) == (self.object is None):
            raise BadObject("what to release is named by one of ids and object")
        _check_number("ids", len(self.ids or ()))


@frozen
class RenewReply:
    """The holds as they are now, in the order of the ids."""

    holds: tuple[Hold, ...]


@frozen(kw_only=True)
class RenewCall(Call[RenewReply]):
    """Gives each of these holds so many seconds from now, all or none."""

    method = "org.exclfs.Renew"
    reply = RenewReply
    ids: tuple[str, ...]
    ttl: float

    def __attrs_post_init__(self) -> None:
        """Refuses what is more than one call may ask."""
        _check_number("ids", len(self.ids))
        _check_ttl(self.ttl)


@frozen
class HoldsReply:
    """The holds that there are, oldest first."""

    holds: tuple[Hold, ...]


@frozen
class HoldsCall(Call[HoldsReply]):
    """Asks for every hold that covers this object, or of the whole mount; of one holder, if one is named."""

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
class ModeReply:
    """The mode as it is now."""

    mode: Mode


@frozen
class ModeCall(Call[ModeReply]):
    """Switches the mode, or asks which it is."""

    method = "org.exclfs.Mode"
    reply = ModeReply
    mode: Mode | None = None


@frozen
class EventsReply:
    """One event; none in the first reply, which says that from here on nothing is missed, and in the last."""

    event: Event | None = None
    missed: int = 0
    """How many events come in between that are no longer kept: in the first reply before those that follow, in a later
    one, which has no event either, because the stream was read too slowly."""


@frozen
class EventsCall(Call[EventsReply]):
    """Asks for events in a stream: of one inode, or of the caller's own holds, or all."""

    method = "org.exclfs.Events"
    reply = EventsReply
    streams = True
    object: Object | None = None
    own: bool | None = None
    """Only what concerns the holds that were placed on this connection, or whose holder is this process."""
    since: datetime | None = None
    """What is kept of those that happened then or later; None: nothing, or without `follow` all that is kept."""
    follow: bool | None = None
    """Whether to go on with those from now on, which is so if it is None; else the stream ends after the past."""


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
    for call in (
        HoldCall,
        ReleaseCall,
        RenewCall,
        HoldsCall,
        WhyCall,
        StatusCall,
        ModeCall,
        EventsCall,
        GetInfoCall,
        GetInterfaceDescriptionCall,
    )
}
"""Every method of org.exclfs and org.varlink.service, by its full name."""
