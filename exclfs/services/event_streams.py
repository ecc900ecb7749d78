"""Streams of events for whoever asks the control socket for them.

The rules that this module owns. A stream is a place in the past (exclfs.keeper.past), from which it goes on event by
event into what happens now: between the two nothing is lost, and nothing is told twice. Who does not read delays nobody
and fills no memory; what is no longer kept when its turn comes is told as the number of events that were missed, and
the stream goes on. What a stream tells is what its subscriber may know.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from exclfs.wire.messages import EventsReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from exclfs.holds.events import Event
    from exclfs.keeper import Keeper
    from exclfs.keeper.past import Past

AT_A_TIME: Final = 100
"""How many events that are not wanted are passed over before others have a turn."""


class EventStream:
    """The events of one subscriber.

    Args:
        past: where they are read.
        wanted: which of them it gets. Must neither block nor raise.
        since: when they begin; None: now, or where the stream does not follow, with the first that is kept.
        follow: whether it goes on with what happens from now on; else it ends with what has happened.
    """

    def __init__(
        self, past: Past, wanted: Callable[[Event], bool], *, since: datetime | None = None, follow: bool = True
    ) -> None:
        self._past = past
        self._wanted = wanted
        self._next, self.missed = (past.next, 0) if follow and since is None else past.since(since)
        self._end = None if follow else past.next
        self._news: trio.Event | None = None
        """While it has told everything and waits."""

    def tell(self, event: Event) -> None:
        """Hears that an event has happened. Neither blocks nor raises: fit for Keeper.subscribe."""
        if self._news is None:
            return  # it is at work, and will come to it
        if self._wanted(event):
            self._news.set()
            self._news = None
        else:
            self._next = self._past.next

    async def next(self) -> EventsReply | None:
        """What is to be told next: an event, or how many were missed. Waits for it; None is the end of the stream."""
        passed_over = 0
        while self._end is None or self._next < self._end:
            if lost := self._forgotten():
                self._next += lost
                return EventsReply(missed=lost)
            if self._next == self._past.next:
                self._news = news = trio.Event()
                await news.wait()
                continue
            event = self._past[self._next]
            self._next += 1
            if self._wanted(event):
                return EventsReply(event)
            passed_over += 1
            if passed_over % AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
        return None

    def _forgotten(self) -> int:
        """How many events from the next one on are no longer kept."""
        kept = self._past.first if self._end is None else min(self._past.first, self._end)
        return max(0, kept - self._next)


@contextmanager
def subscribed(
    keeper: Keeper, wanted: Callable[[Event], bool], *, since: datetime | None, follow: bool
) -> Iterator[EventStream]:
    """A stream of what has happened since then, and while the context lasts."""
    stream = EventStream(keeper.record.past, wanted, since=since, follow=follow)
    unsubscribe = keeper.subscribe(stream.tell)
    try:
        yield stream
    finally:
        unsubscribe()
