"""`exclfs status`: what a server says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import asker, say, say_json, shown, table, when
from exclfs.client import sync_client
from exclfs.holds.mode import OpenFiles
from exclfs.wire.shapes import to_json

if TYPE_CHECKING:
    from exclfs.holds.events import Refused
    from exclfs.wire.messages import Status

_OPEN_FILES: Final = {
    OpenFiles.NONE: "not held",
    OpenFiles.OWN: "held, if opened by their owner or root",
    OpenFiles.ALL: "held",
}


def status(mnt: str, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Show how the mount at MNT does: its server, its holders, its last refusals.

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
    table((), _facts(told))
    if told.last_refusals:
        say("")
        table(["REFUSED AT", "OPERATION", "PATH", "TO", "HELD BY"], [_refusal(one) for one in told.last_refusals])
    return advice.OK


def _facts(told: Status) -> list[list[str]]:
    holders = ", ".join(f"{shown(name)} ({count})" for name, count in sorted(told.holders.items()))
    requests = ", ".join(f"{name} {count}" for name, count in sorted(told.requests.items()) if count)
    facts = {
        "mountpoint": told.mountpoint,
        "source": told.source,
        "server": f"pid {told.pid}, uid {told.uid}, since {when(told.since)}",
        "log": told.log,
        "state file": told.state or "none",
        "mode": told.mode.value,
        "open files": _OPEN_FILES[told.hold_open],
        "passthrough": "yes" if told.passthrough else "no",
        "asks": "always" if told.ask_always else "where something is held",
        "holds": f"{told.holds}{': ' if holders else ''}{holders}",
        "waiting": f"{told.waiting} for a claim",
        "refusals": str(told.refusals),
        "let happen": f"{told.would_have_refused} in mode warn",
        "requests": requests,
        "without a decision": f"{told.answered_without_a_decision} answered, {told.verdicts_timed_out} timed out",
        "kept": f"{told.inodes} inodes, {told.descriptors} descriptors, {told.connections} connections",
    }
    return [[name, fact] for name, fact in facts.items()]


def _refusal(refused: Refused) -> list[str]:
    operation = refused.operation.value if refused.enforced else f"{refused.operation.value}, happened"
    held_by = ", ".join(hold.holder.name for hold in refused.holds)
    return [when(refused.at), operation, refused.path, asker(refused.requester), held_by]
