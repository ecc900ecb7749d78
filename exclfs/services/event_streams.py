"""Streams of events for whoever asks the control socket for them.

The rules that this module owns. Who does not read delays nobody and fills no memory: its stream takes so many events,
and then ends with the number of those that were lost. What a stream tells is what its subscriber may know.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

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
from exclfs.wire.errors import EventsLost
from exclfs.wire.messages import MAX_OBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Process
    from exclfs.holds.lifetime import Connection
    from exclfs.keeper import Keeper

CAPACITY: Final = 2 * MAX_OBJECTS
"""How many events may wait for a subscriber: one call may make as many as it may name objects."""


class EventStream:
    """The events of one subscriber.

    Args:
        wanted: which events it gets. Must neither block nor raise.
        capacity: how many may wait.
    """

    def __init__(self, wanted: Callable[[Event], bool], capacity: int) -> None:
        self._wanted = wanted
        self._put, self._take = trio.open_memory_channel[Event](capacity)
        self._lost = 0

    def tell(self, event: Event) -> None:
        """Takes an event that has happened. Neither blocks nor raises: fit for Keeper.subscribe."""
        if not self._wanted(event):
            return
        try:
            self._put.send_nowait(event)
        except (trio.WouldBlock, trio.ClosedResourceError):
            self._lost += 1
            self._put.close()

    async def next(self) -> Event:
        """Waits for the next event.

        Raises:
            EventsLost: more happened than could wait; told after those that could.
        """
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            raise EventsLost(self._lost) from None


@contextmanager
def subscribed(keeper: Keeper, wanted: Callable[[Event], bool]) -> Iterator[EventStream]:
    """A stream of what happens from now on, while the context lasts."""
    stream = EventStream(wanted, CAPACITY)
    unsubscribe = keeper.subscribe(stream.tell)
    try:
        yield stream
    finally:
        unsubscribe()


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
