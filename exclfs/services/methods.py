"""The methods of the control socket: what each call does, and what its caller may know of the answer.

The rule that this module owns: what a client is answered is what it could have found out itself. All it asks for is
done by the keeper, as whom the kernel says it is.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from attrs import AttrsInstance, evolve, frozen

from exclfs.holds.concerns import concerns_holder, concerns_inode, concerns_user
from exclfs.holds.errors import BadHold, NoSuchHold
from exclfs.holds.holder import Holder
from exclfs.holds.mode import Mode
from exclfs.services.event_streams import subscribed
from exclfs.wire import description
from exclfs.wire.errors import MethodNotImplemented
from exclfs.wire.messages import (
    FOR_EVER,
    Call,
    EventsCall,
    GetInfoCall,
    GetInterfaceDescriptionCall,
    HoldCall,
    HoldReply,
    HoldsCall,
    HoldsReply,
    Lifetime,
    ModeCall,
    ModeReply,
    ReleaseCall,
    ReleaseReply,
    RenewCall,
    RenewReply,
    StatusCall,
    StatusReply,
    WhyCall,
    WhyReply,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exclfs.holds.events import Event
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.lifetime import Connection
    from exclfs.keeper import Keeper
    from exclfs.services.connections import Attendance, Peer
    from exclfs.services.descriptors import Passed
    from exclfs.services.event_streams import EventStream
    from exclfs.services.gate_methods import GateMethods
    from exclfs.services.lifetimes import Lifetimes
    from exclfs.services.objects import Found, Objects
    from exclfs.wire.causes import Cause
    from exclfs.wire.messages import Object, Status


MOST_REQUESTERS: Final = 20
"""How many of those that removals were refused to are told in a status; those with most refusals."""


@frozen(kw_only=True)
class Methods:
    """The methods, for one connection."""

    keeper: Keeper
    objects: Objects
    lifetimes: Lifetimes
    attendance: Attendance
    status: Callable[[], Status]
    why: Callable[..., Sequence[Cause]]
    gates: GateMethods | None
    peer: Peer
    connection: Connection

    async def answer(self, call: Call[Any], passed: Passed) -> AttrsInstance | EventStream:
        """Does what is asked for, and returns the reply; to EventsCall a stream of what is to be replied.

        Raises:
            HoldError, VarlinkError, GateProblem: what the caller is to be told instead.
        """
        match call:
            case HoldCall():
                return HoldReply(await self._hold(call, passed))
            case ReleaseCall():
                return ReleaseReply(await self._release(call, passed))
            case RenewCall():
                return RenewReply(await self.keeper.renew(call.ids, call.ttl, requester=self.peer.describe()))
            case HoldsCall():
                return HoldsReply(await self._holds(call, passed))
            case WhyCall():
                return await self._why(call, passed)
            case StatusCall():
                return StatusReply(self._status())
            case ModeCall():
                return ModeReply(await self._mode(call))
            case EventsCall():
                return await self._events(call, passed)
            case GetInfoCall():
                return description.info()
            case GetInterfaceDescriptionCall():
                return description.describe(call.interface)
        answer = None if self.gates is None else await self.gates.answer(call)
        if answer is None:
            raise MethodNotImplemented(call.method)
        return answer

    async def _hold(self, call: HoldCall, passed: Passed) -> tuple[Hold, ...]:
        if not call.objects:
            raise BadHold("no object is named")
        requester = self.peer.describe()
        ends, holder = self.lifetimes.ends(call.lifetime or Lifetime(), requester, self.peer, self.connection, passed)
        wait = call.wait or 0.0
        with self.attendance.waiting(self.peer.uid) if wait else nullcontext():
            found = await self._find(call.objects, passed, lasting=bool(wait))
            return await self.keeper.trylock(
                [(one.inode, one.path) for one in found],
                flags=call.flags,
                holder=Holder(call.holder, holder),
                reason=call.reason,
                ends=ends,
                requester=requester,
                credentials=self.peer.credentials,
                timeout=math.inf if wait >= FOR_EVER else wait,
            )

    async def _release(self, call: ReleaseCall, passed: Passed) -> tuple[Hold, ...]:
        requester = self.peer.describe()
        break_it, reason = bool(call.break_it), call.reason or ""
        if call.object is None:
            return await self.keeper.unlock(call.ids or (), requester=requester, break_it=break_it, reason=reason)
        (found,) = await self._find([call.object], passed)
        while True:
            holds = self.keeper.registry.on(found.inode)
            own = [hold for hold in holds if self.keeper.is_own(hold, requester)]
            # Where none is the caller's, the keeper says of the first why not.
            ids = [hold.id for hold in (holds if break_it else own or holds[:1])]
            try:
                return await self.keeper.unlock(ids, requester=requester, break_it=break_it, reason=reason)
            except NoSuchHold:
                continue  # one of them has ended meanwhile

    async def _holds(self, call: HoldsCall, passed: Passed) -> tuple[Hold, ...]:
        if call.object is not None:
            (found,) = await self._find([call.object], passed)
            holds: Sequence[Hold] = self.keeper.covering(found.inode)
        else:
            holds = await self._in_reach(self.keeper.registry.all())
        return tuple(hold for hold in holds if call.holder in (None, hold.holder.name))

    async def _why(self, call: WhyCall, passed: Passed) -> WhyReply:
        (found,) = await self._find([call.object], passed)
        enforced = self.keeper.mode is Mode.ENFORCE
        causes = tuple(self.why(found.path, self.keeper.covering(found.inode), found.inode, enforced=enforced))
        return WhyReply(found.path, blocked=any(cause.blocks for cause in causes), causes=causes)

    async def _mode(self, call: ModeCall) -> Mode:
        if call.mode is not None:
            await self.keeper.set_mode(call.mode, requester=self.peer.describe())
        return self.keeper.mode

    async def _events(self, call: EventsCall, passed: Passed) -> EventStream:
        inode = None
        if call.object is not None:
            (found,) = await self._find([call.object], passed, lasting=True)
            inode = found.inode
        wanted = self._wants(inode, own=bool(call.own))
        follow = call.follow is not False
        return passed.after.enter_context(subscribed(self.keeper, wanted, since=call.since, follow=follow))

    def _wants(self, inode: Inode | None, *, own: bool) -> Callable[[Event], bool]:
        caller = self.peer.describe()
        everything = self._sees_everything()

        def wants(event: Event) -> bool:
            return (
                (everything or concerns_user(event, caller.uid))
                and (inode is None or concerns_inode(event, inode))
                and (not own or concerns_holder(event, self.connection, caller))
            )

        return wants

    def _status(self) -> Status:
        """Of refusals and holds, others see those that they are part of: a path may be none of their business."""
        status = self.status()
        requesters = status.refusals_by_requester
        if not self._sees_everything():
            uid = self.peer.uid
            requesters = tuple(requester for requester in requesters if requester.uid == uid)
            own = (hold for hold in self.keeper.registry.all() if hold.holder.process.uid == uid)
            status = evolve(
                status,
                oldest_hold=min(own, key=lambda hold: hold.since, default=None),
                last_refusals=tuple(refusal for refusal in status.last_refusals if concerns_user(refusal, uid)),
            )
        told = requesters[:MOST_REQUESTERS]
        refusals = sum(status.refusals_by_operation.values())
        others = refusals - sum(requester.refusals for requester in told)
        return evolve(status, refusals_by_requester=told, refusals_by_others=others)

    async def _in_reach(self, holds: Sequence[Hold]) -> Sequence[Hold]:
        """Those that this client may know of: its own, and what lies where it could have looked."""
        if self._sees_everything():
            return holds
        others = [hold for hold in holds if hold.holder.process.uid != self.peer.uid]
        reachable = await self.objects.reachable(others, self.peer.credentials)
        return [hold for hold in holds if hold.holder.process.uid == self.peer.uid or hold.id in reachable]

    def _sees_everything(self) -> bool:
        return self.peer.uid in (0, self.keeper.owner)

    async def _find(self, objects: Sequence[Object], passed: Passed, *, lasting: bool = False) -> list[Found]:
        """The objects that are named; of a call that may last, without leaving our mount busy meanwhile."""
        found = await self.objects.find(objects, self.peer.credentials, passed)
        if lasting:
            self.objects.keep(found, passed)
        return found
