"""The deadlines: which hold's time is over next.

The rule that this module owns: a hold is never dropped before its time, however often that was renewed, and finding
the next one that is over does not depend on how many holds there are. Nor does what is remembered grow with how often
they were renewed, or with how many have ended.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import NoSuchHold
from exclfs.holds.lifetime import Time

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold
    from exclfs.holds.registry import Registry

SLACK: Final = 1000
"""How many times that count no more may be remembered besides."""


class Deadlines:
    """The times of the holds of one registry, on the clock that decides."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._heap: list[tuple[float, str]] = []

    def note(self, hold: Hold) -> bool:
        """Takes in a hold that was placed or renewed; whether its time is the next that is over."""
        end = time_of(hold)
        if end is None:
            return False
        if len(self._heap) > 2 * len(self._registry) + SLACK:
            self._heap = list({one for one in self._heap if self._ended_by(*one)})
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (end.deadline, hold.id))
        return self._heap[0][0] == end.deadline

    def next(self) -> tuple[float, Hold] | None:
        """The next deadline, and the hold that it ends; None if no hold has one."""
        while self._heap:
            deadline, name = self._heap[0]
            hold = self._ended_by(deadline, name)
            if hold is not None:
                return deadline, hold
            heapq.heappop(self._heap)
        return None

    def _ended_by(self, deadline: float, name: str) -> Hold | None:
        try:
            hold = self._registry.get(name)
        except NoSuchHold:
            return None
        end = time_of(hold)
        return hold if end is not None and end.deadline == deadline else None  # else it was renewed


def time_of(hold: Hold) -> Time | None:
    """The time among the ends of a hold; None if there is none."""
    return next((end for end in hold.ends if isinstance(end, Time)), None)
