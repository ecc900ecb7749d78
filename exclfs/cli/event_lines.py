"""Events in words: one line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeGuard

from exclfs.cli.output import asker, shown, when, who
from exclfs.holds.events import (
    Broken,
    Event,
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

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold

    Over = Unlocked | Reaped | Broken | Expired | Orphaned

_OVER: Final = (Unlocked, Reaped, Broken, Expired, Orphaned)


def is_over(event: Event) -> TypeGuard[Over]:
    """Whether a hold has ended with this event."""
    return isinstance(event, _OVER)


def line(event: Event) -> str:
    """The event on one line: when, its name, and what there is to say."""
    return f"{when(event.at)} {event.name:<12} {_words(event)}"


def ending(event: Over) -> str | None:
    """How a hold was ended, for its holder; None if the end was the holder's own."""
    match event:
        case Broken():
            how = f"was broken by {asker(event.requester)}{_because(event.reason)}"
        case Expired():
            how = "has expired: its time was over, and nobody renewed it"
        case Orphaned():
            how = "has ended: what it held was removed behind the mount"
        case Unlocked():
            how = "was released by another process of the same user"
        case _:
            return None
    return f"hold {event.hold.id} on {shown(event.hold.path)} {how}"


def _words(event: Event) -> str:
    match event:
        case Locked():
            return f"{_one(event.hold)}: {','.join(event.hold.flags.names)}{_because(event.hold.reason)}"
        case LockFailed():
            return f"{shown(event.path)} was wanted by {asker(event.requester)}, held by {who(event.conflict)}"
        case UnlockBad():
            return f"{shown(event.id)} by {asker(event.requester)}: {shown(event.why)}"
        case Refused():
            held_by = " and by ".join(who(hold) for hold in event.holds)
            happened = "" if event.enforced else ", and happened"
            to = asker(event.requester)
            return f"{event.operation} of {shown(event.path)} by {to}, held by {held_by}{happened}"
        case Broken():
            return f"{_one(event.hold)}, by {asker(event.requester)}{_because(event.reason)}"
        case Unlocked() | Reaped() | Expired() | Orphaned():
            return _one(event.hold)
        case ModeChanged():
            return f"{event.before} to {event.after} by {asker(event.requester)}"
    return ""


def _one(hold: Hold) -> str:
    return f"{hold.id} on {shown(hold.path)}, held by {who(hold)}"


def _because(reason: str) -> str:
    return f": {shown(reason)}" if reason else ""
