"""The methods of the interface org.exclfs.gates.

The rule that this module owns: who can stop everybody's requests is root or the owner of the mount, who could do so by
stopping the server.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import AttrsInstance, frozen

from exclfs.gating import BadSelection, Selection
from exclfs.holds.errors import NotPermitted
from exclfs.services.gates import Fault
from exclfs.wire.gate_messages import (
    BadGate,
    LetGoCall,
    LetGoReply,
    OpenCall,
    OpenReply,
    PlaceCall,
    PlaceReply,
    RemoveCall,
    StateCall,
    WaitCall,
    WaitReply,
)

if TYPE_CHECKING:
    from exclfs.holds.lifetime import Connection
    from exclfs.services.gates import Gates
    from exclfs.wire.gate_messages import SelectionRecord
    from exclfs.wire.messages import Call

LONGEST: float = 86400.0
"""Seconds that a wait or a delay may last."""


@frozen(kw_only=True)
class GateMethods:
    """The methods, for one connection."""

    gates: Gates
    owner: int
    uid: int
    connection: Connection

    async def answer(self, call: Call[Any]) -> AttrsInstance | None:
        """Does what is asked for, and returns the reply; None to a call that is not of this interface.

        Raises:
            NotPermitted: the caller is neither root nor the owner of the mount.
            GateProblem: what the caller is to be told instead.
        """
        if not isinstance(call, (PlaceCall, WaitCall, StateCall, OpenCall, LetGoCall, RemoveCall)):
            return None
        if self.uid not in (0, self.owner):
            raise NotPermitted("only root and the owner of the mount may have gates")
        match call:
            case PlaceCall():
                return PlaceReply(self.gates.place(_selection(call.selection), self.connection, _fault(call)))
            case WaitCall():
                return WaitReply(await self.gates.wait(call.gate, _seconds(call.timeout)))
            case StateCall():
                return self.gates.state(call.gate)
            case OpenCall():
                self.gates.open(call.gate)
                return OpenReply()
            case LetGoCall():
                return LetGoReply(self.gates.let_go(call.gate, call.number, call.answer))
            case RemoveCall():
                return self.gates.remove(call.gate)


def _selection(record: SelectionRecord) -> Selection:
    try:
        return Selection(
            operations=record.operations, pattern=record.pattern, when=record.when, pids=record.pids, nth=record.nth
        )
    except ValueError as error:
        why = str(error) if isinstance(error, BadSelection) else f"{record.when!r} is neither before nor after"
        raise BadGate(why) from None


def _fault(call: PlaceCall) -> Fault | None:
    if call.answer is None and call.delay is None:
        return None
    return Fault(call.answer, _seconds(call.delay or 0.0))


def _seconds(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise BadGate(f"{seconds:g} seconds cannot be waited")
    return min(seconds, LONGEST)
