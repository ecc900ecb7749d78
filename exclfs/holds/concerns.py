"""Whom and what an event concerns: who took part in it, which holds it tells of, which inode it happened to."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import Connection


def concerns_user(event: Event, uid: int) -> bool:
    """Whether a process of this user asked for it, or has one of the holds."""
    requester = requester_of(event)
    if requester is not None and requester.uid == uid:
        return True
    return any(hold.holder.process.uid == uid for hold in holds_of(event))


def concerns_holder(event: Event, connection: Connection, process: Process) -> bool:
    """Whether one of the holds was placed on this connection, or its holder is this process."""
    return any(connection in hold.ends or hold.holder.process.is_same(process) for hold in holds_of(event))


def concerns_inode(event: Event, inode: Inode) -> bool:
    """Whether it happened to this inode, or to a hold on it."""
    if isinstance(event, (Refused, LockFailed)) and event.inode == inode:
        return True
    return any(hold.inode == inode for hold in holds_of(event))


def holds_of(event: Event) -> tuple[Hold, ...]:
    """The holds that an event tells of."""
    match event:
        case Refused():
            return event.holds
        case LockFailed():
            return (event.conflict,)
        case Locked() | Unlocked() | Reaped() | Expired() | Broken() | Orphaned():
            return (event.hold,)
    return ()


def requester_of(event: Event) -> Process | None:
    """Who asked for what an event tells of; None if it came by itself."""
    match event:
        case Refused() | LockFailed() | UnlockBad() | Broken() | ModeChanged():
            return event.requester
    return None
