"""What the line of an event says: its keys and values, in their order.

The rule that this module owns: a line has both sides. Whoever asked and whoever holds are each told by pid, comm, exe,
uid, user and container, a hold with its reason, since when it is there and what ends it. What is not known is None; a
key that stands for an exception (own_uid, container, inodes, requesters) is there only where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from exclfs.holds.events import (
    Broken,
    Expired,
    Locked,
    LockFailed,
    ModeChanged,
    Orphaned,
    Reaped,
    Refused,
    UnlockBad,
    Unlocked,
)
from exclfs.holds.lifetime import Exit, Time
from exclfs.wire.shapes import KINDS, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.events import Event
    from exclfs.holds.folding import Fold
    from exclfs.holds.hold import Hold
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import End

MOST_HOLDERS: Final = 100
"""How many holds one line names; `holders` counts them all."""

Fields = dict[str, Any]


def of_event(event: Event) -> Fields:
    """The keys and values of an event's line, but for its name and time."""
    match event:
        case Refused():
            return {
                "op": event.operation.value,
                "path": event.path,
                "inode": event.inode.ino,
                "dev": event.inode.dev,
                "enforced": event.enforced,
                "count": event.count,
                "until": event.until or event.at,
                **_process("requester", event.requester),
                "holders": len(event.holds),
                **_holders(event.holds),
            }
        case LockFailed():
            return {
                "path": event.path,
                "inode": event.inode.ino,
                "dev": event.inode.dev,
                **_process("requester", event.requester),
                **_holders([event.conflict]),
            }
        case UnlockBad():
            return {"id": event.id, "why": event.why, **_process("requester", event.requester)}
        case Broken():
            return {**_hold(event.hold), **_process("requester", event.requester), "reason": event.reason}
        case ModeChanged():
            return {
                "before": event.before.value,
                "after": event.after.value,
                **_process("requester", event.requester),
            }
        case Locked() | Unlocked() | Reaped() | Expired() | Orphaned():
            return _hold(event.hold)
    raise TypeError(f"no line is known for {event!r}")


def of_fold(fold: Fold) -> Fields:
    """Those of refusals that are told as one; `inodes` and `requesters` say of how many, where it is not of one."""
    several = {"inodes": fold.inodes, "requesters": fold.requesters}
    return {**of_event(fold.refused), **{key: number for key, number in several.items() if number > 1}}


def _hold(hold: Hold) -> Fields:
    return {
        "path": hold.path,
        "inode": hold.inode.ino,
        "dev": hold.inode.dev,
        "flags": hold.flags.names,
        **_holders([hold]),
    }


def _holders(holds: Sequence[Hold]) -> Fields:
    """holder, holder_pid, … for the first; holder2, holder2_pid, … for the second, and so on."""
    fields: Fields = {}
    for number, hold in enumerate(holds[:MOST_HOLDERS], 1):
        key = "holder" if number == 1 else f"holder{number}"
        fields[key] = hold.holder.name
        fields |= _process(key, hold.holder.process)
        fields |= {
            f"{key}_reason": hold.reason,
            f"{key}_since": hold.since,
            f"{key}_id": hold.id,
            f"{key}_ends": tuple(map(_end, hold.ends)),
        }
    return fields


def _process(key: str, process: Process) -> Fields:
    fields: Fields = {
        f"{key}_pid": process.pid,
        f"{key}_comm": process.comm,
        f"{key}_exe": process.exe,
        f"{key}_uid": process.uid,
        f"{key}_user": process.user,
    }
    if process.own_uid is not None:
        fields[f"{key}_own_uid"] = process.own_uid
    if process.container is not None:
        fields[f"{key}_container"] = process.container
    return fields


def _end(end: End) -> str:
    """connection, unmount, …; process:PID; time:WHEN."""
    kind = KINDS[type(end)].replace(" ", "-")
    match end:
        case Exit():
            return f"{kind}:{end.pid}"
        case Time():
            return f"{kind}:{to_json(end.at)}"
    return kind
