"""What happened: one list for log, socket, CLI and tests."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from attrs import frozen

from exclfs.holds.flags import Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Process


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


# expired, orphaned and mode_changed come with the lifetimes and modes that cause them.
