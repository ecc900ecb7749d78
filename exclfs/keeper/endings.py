"""Endings: what is done when a hold ends, and whether one has.

The rule that this module owns: a hold ends once. It leaves the registry; then the words are lowered, and only then is
it told, and whoever waits is served. Nobody is refused because of a holder that is dead or of a time that is over: the
kernel and the clock are asked in the moment in which it matters.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from exclfs.holds.errors import NoSuchHold
from exclfs.holds.events import Expired, Reaped
from exclfs.holds.lifetime import OF_A_PROCESS, Connection, Exit, Time
from exclfs.keeper.deadlines import time_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from exclfs.holds.events import Event
    from exclfs.holds.hold import Hold
    from exclfs.holds.registry import Registry
    from exclfs.keeper.clock import Clock
    from exclfs.keeper.words import Words


class Liveness(Protocol):
    """One connection of the control socket, or one process that a hold is bound to."""

    def is_alive(self) -> bool:
        """Whether it is still there, asked of the kernel now."""


@frozen
class Endings:
    """The ends of the holds of one mount."""

    registry: Registry
    words: Words
    clock: Clock
    present: Mapping[Connection | Exit, Liveness]
    """What holds are bound to and is still there. A connection or process that is not here is gone."""
    tell: Callable[[Event], None]
    serve: Callable[[Hold], None]
    """Serves whoever waits for this one."""
    forget_soon: Callable[[Hold], None]
    """Has the store forget one that ended by itself."""

    def current(self, hold: Hold) -> Hold | None:
        """The hold as it is now, for it may have been renewed; None if it has ended."""
        with suppress(NoSuchHold):
            return self.registry.get(hold.id)
        return None

    def stands(self, hold: Hold) -> bool:
        """Whether it has not ended."""
        return self.current(hold) is not None

    def leave(self, hold: Hold, event: Event | None = None) -> bool:
        """Ends a hold, and tells of it; whether nothing else had ended it before."""
        if not self.stands(hold):
            return False
        pinned = self.registry.pinned(hold)
        self.registry.unlock(hold.id)
        for inode in (hold.inode, *pinned):
            self.words.lower(inode)
        if event is not None:
            self.tell(event)
        self.serve(hold)
        return True

    def leave_all(self, holds: Sequence[Hold]) -> None:
        """Ends holds that nobody has heard of yet."""
        for hold in reversed(holds):
            self.leave(hold)

    def end(self, hold: Hold, event: Event) -> None:
        """Ends a hold without anybody having asked for it."""
        if self.leave(hold, event):
            self.forget_soon(hold)

    def reap(self, holds: Iterable[Hold]) -> bool:
        """Ends those that are over; whether there were any."""
        over = [hold for hold in holds if self.is_over(hold)]
        for hold in over:
            end = time_of(hold)
            expired = end is not None and self.clock.has_come(end)
            at = self.clock.now()
            self.end(hold, Expired(at, hold) if expired else Reaped(at, hold))
        return bool(over)

    def is_over(self, hold: Hold) -> bool:
        """Whether what ends it has come."""
        return any(self._has_come(end) for end in hold.ends)

    def _has_come(self, end: object) -> bool:
        if isinstance(end, OF_A_PROCESS):
            there = self.present.get(end)
            return there is None or not there.is_alive()
        return isinstance(end, Time) and self.clock.has_come(end)
