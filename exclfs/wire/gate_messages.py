"""The methods of the interface org.exclfs.gates: their typed parameters and replies. See exclfs.wire.messages."""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen

from exclfs.wire.messages import Call


class GateProblem(Exception):
    """The base of what a caller is told of gates."""


class NoSuchGate(GateProblem):
    """There is no gate of this name (any more)."""

    def __init__(self, gate: str) -> None:
        super().__init__(f"there is no gate {gate}")
        self.gate = gate


class BadGate(GateProblem):
    """There can be no such gate, or nobody can be let go like that."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@frozen(kw_only=True)
class SelectionRecord:
    """The JSON of an exclfs.gating.Selection."""

    operations: tuple[str, ...]
    pattern: str
    when: str
    pids: tuple[int, ...] | None = None
    nth: int | None = None


@frozen(kw_only=True)
class StoppedRecord:
    """Who stands at a gate, and at what."""

    number: int
    operation: str
    path: str
    second_path: str | None = None
    pid: int
    comm: str
    when: str


@frozen(kw_only=True)
class HappenedRecord:
    """An operation that was done while a gate stood."""

    operation: str
    path: str
    second_path: str | None = None
    pid: int
    comm: str
    errno: int


@frozen
class PlaceReply:
    """The gate's name, for the other methods."""

    gate: str


@frozen(kw_only=True)
class PlaceCall(Call[PlaceReply]):
    """Places a gate, or with answer or delay a fault."""

    method = "org.exclfs.gates.Place"
    reply = PlaceReply
    selection: SelectionRecord
    answer: int | None = None
    delay: float | None = None


@frozen
class WaitReply:
    """Who stands there now; None: nobody came in time."""

    stopped: StoppedRecord | None = None


@frozen(kw_only=True)
class WaitCall(Call[WaitReply]):
    """Waits for the next that stands at the gate."""

    method = "org.exclfs.gates.Wait"
    reply = WaitReply
    gate: str
    timeout: float

    @property
    def lasts(self) -> bool:
        """It does."""
        return True


@frozen(kw_only=True)
class StateReply:
    """How it is with a gate."""

    reached: int
    waiting: tuple[StoppedRecord, ...]
    happened: tuple[HappenedRecord, ...]
    missed: int


@frozen
class StateCall(Call[StateReply]):
    """Asks how it is with a gate."""

    method = "org.exclfs.gates.State"
    reply = StateReply
    gate: str


@frozen
class OpenReply:
    """It is open."""


@frozen
class OpenCall(Call[OpenReply]):
    """Lets go of all that wait and all that come."""

    method = "org.exclfs.gates.Open"
    reply = OpenReply
    gate: str


@frozen
class LetGoReply:
    """Who was let go; None: nobody was there."""

    stopped: StoppedRecord | None = None


@frozen(kw_only=True)
class LetGoCall(Call[LetGoReply]):
    """Lets go of one."""

    method = "org.exclfs.gates.LetGo"
    reply = LetGoReply
    gate: str
    number: int | None = None
    answer: int | None = None


@frozen
class RemoveCall(Call[StateReply]):
    """Takes a gate away."""

    method = "org.exclfs.gates.Remove"
    reply = StateReply
    gate: str


GATE_METHODS: Final[dict[str, type[Call[Any]]]] = {
    call.method: call for call in (PlaceCall, WaitCall, StateCall, OpenCall, LetGoCall, RemoveCall)
}
"""Every method, by its full name."""
