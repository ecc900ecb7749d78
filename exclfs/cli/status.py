"""`exclfs status`: what a server says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from exclfs import durations
from exclfs.cli import advice
from exclfs.cli.output import asker, say, say_json, shown, table, when, who
from exclfs.client import sync_client
from exclfs.holds.mode import OpenFiles
from exclfs.wire.shapes import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exclfs.holds.events import Refused
    from exclfs.wire.messages import RefusedRequester, Status

MOST_HOLDERS: Final = 20
"""How many holders are named to people; --json names all."""

_OPEN_FILES: Final = {
    OpenFiles.NONE: "not held",
    OpenFiles.OWN: "held, if opened by their owner or root",
    OpenFiles.ALL: "held",
}


def status(mnt: str, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show how the mount at MNT does: its server, its holders, its verdicts, its last refusals.

    Parameters
    ----------
    mnt
        Any path in an exclfs mount.
    as_json
        As JSON.
    """
    with sync_client.connect(mnt) as client:
        told = client.status()
    if as_json:
        document: dict[str, Any] = to_json(told)
        say_json(**document)
        return advice.OK
    table((), [[name, fact] for name, fact in _facts(told).items()])
    if told.last_refusals:
        say("")
        headings = ["LAST REFUSED", "OPERATION", "TIMES", "PATH", "TO", "HELD BY"]
        table(headings, [_refusal(one) for one in told.last_refusals])
    return advice.OK


def _facts(told: Status) -> dict[str, str]:
    return {
        "mountpoint": told.mountpoint,
        "source": told.source,
        "server": f"pid {told.pid}, uid {told.uid}, since {when(told.since)}, for {durations.spelled(told.uptime)}",
        "log": told.log,
        "state file": told.state or "none",
        "mode": told.mode.value,
        "open files": _OPEN_FILES[told.hold_open],
        "passthrough": "yes" if told.passthrough else "no",
        "idle polling": "while it is busy" if told.idle_poll else "no",
        "asks": "always" if told.ask_always else "where something is held",
        "holds": f"{told.holds}{_of_which(_most(told.holders))}",
        "oldest hold": _oldest(told),
        "waiting": f"{told.waiting} for a claim",
        "refusals": str(told.refusals),
        "let happen": f"{told.would_have_refused} in mode warn",
        "refused": _listed(told.refusals_by_operation) or "nothing",
        "refused to": _requesters(told.refusals_by_requester, told.refusals_by_others) or "nobody",
        "requests": _listed(dict(sorted(told.requests.items()))),
        "without a decision": f"{told.answered_without_a_decision} of these",
        "verdicts": f"{told.verdicts}{_latency(told)}, {told.verdicts_timed_out} timed out",
        "inodes": f"{told.inodes}, with {told.descriptors} descriptors; {told.descriptor_budget} may be kept",
        "connections": str(told.connections),
    }


def _most(holders: Mapping[str, int]) -> str:
    ranked = sorted(holders.items(), key=lambda held: (-held[1], held[0]))
    named = [f"{shown(name)} ({count})" for name, count in ranked[:MOST_HOLDERS]]
    others = len(ranked) - len(named)
    return ", ".join([*named, f"{others} others"] if others else named)


def _of_which(named: str) -> str:
    return f": {named}" if named else ""


def _oldest(told: Status) -> str:
    hold = told.oldest_hold
    return "none" if hold is None else f"{hold.id} on {hold.path}, held by {who(hold)} since {when(hold.since)}"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count)


def _requesters(requesters: tuple[RefusedRequester, ...], others: int) -> str:
    named = [f"{one.comm or '?'} of {one.user or one.uid} {one.refusals}" for one in requesters]
    return ", ".join([*named, f"others {others}"] if others else named)


def _latency(told: Status) -> str:
    if told.verdicts_p50_us is None:
        return ""
    return f", half of them within {told.verdicts_p50_us} µs, 99 % within {told.verdicts_p99_us} µs"


def _refusal(refused: Refused) -> list[str]:
    operation = refused.operation.value if refused.enforced else f"{refused.operation.value}, happened"
    held_by = ", ".join(hold.holder.name for hold in refused.holds)
    at = when(refused.until or refused.at)
    return [at, operation, str(refused.count), refused.path, asker(refused.requester), held_by]
