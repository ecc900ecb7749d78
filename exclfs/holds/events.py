"""What happened: one list for log, socket, CLI and tests."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Final

from attrs import frozen

from exclfs.holds.flags import Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Process
from exclfs.holds.mode import Mode


@frozen
class Event:
    """Something that happened to a hold, or because of one."""

    name: ClassVar[str]
    at: datetime


@frozen
class Locked(Event):
    """A hold was placed."""

    name = "locked"
    hold: Hold


@frozen
class LockFailed(Event):
    """A trylock met a conflicting hold."""

    name = "lock_failed"
    path: str
    inode: Inode
    requester: Process
    conflict: Hold


@frozen
class Unlocked(Event):
    """A hold was released by its holder, or with its connection."""

    name = "unlocked"
    hold: Hold


@frozen
class UnlockBad(Event):
    """Somebody tried to release what is not there, or not theirs."""

    name = "unlock_bad"
    id: str
    requester: Process
    why: str


@frozen
class Refused(Event):
    """A removal was refused, with both sides of it."""

    name = "refused"
    operation: Operation
    path: str
    inode: Inode
    requester: Process
    holds: tuple[Hold, ...]
    enforced: bool = True
    """False in mode warn: it was recorded, and let happen."""
    count: int = 1
    """How many it stands for: repeats are told as one (exclfs.holds.folding)."""
    until: datetime | None = None
    """When the last of several was, where `at` is the first; None if it stands for itself alone."""


@frozen
class Reaped(Event):
    """A hold was dropped because its holder is provably gone."""

    name = "reaped"
    hold: Hold


@frozen
class Broken(Event):
    """A privileged, audited release of somebody else's hold."""

    name = "broken"
    hold: Hold
    requester: Process
    reason: str = ""
    """Why it was broken, in the words of who did."""


@frozen
class Expired(Event):
    """A hold's time was over."""

    name = "expired"
    hold: Hold


@frozen
class Orphaned(Event):
    """A held inode has been removed behind the mount, and the hold with it."""

    name = "orphaned"
    hold: Hold


@frozen
class ModeChanged(Event):
    """Refusing was switched on or off."""

    name = "mode_changed"
    before: Mode
    after: Mode
    requester: Process


EVENTS: Final[tuple[type[Event], ...]] = (
    Locked,
    LockFailed,
    Unlocked,
    UnlockBad,
    Refused,
    Reaped,
    Expired,
    Broken,
    Orphaned,
    ModeChanged,
)
"""All of them."""
