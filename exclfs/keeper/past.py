"""The past: the last events, each under its number.

The rules that this module owns. The events of a mount are numbered 1, 2, 3, … without a gap: who reads them one after
another has missed none, and who comes too late knows how many. What is kept is bounded, by number and by bytes, however
many events there are and however large: so is what a reader costs who does not read, for all that it has is a number.
"""

from __future__ import annotations

from collections import deque
from sys import getsizeof
from typing import TYPE_CHECKING, Final

from attrs import astuple

from exclfs.holds.concerns import holds_of

if TYPE_CHECKING:
    from datetime import datetime

    from exclfs.holds.events import Event

KEPT: Final = 20_000
"""How many events are kept at most: one call may place ten thousand holds, and the next release them."""
BYTES: Final = 32 << 20
"""How much memory they may take together, by `weight`; the last event is kept in any case."""
OF_AN_OBJECT: Final = 1000
"""About how many bytes an event takes with its requester, or a hold with its holder, apart from their long texts."""


class Past:
    """The last events of one mount.

    Args:
        most: how many are kept.
        most_bytes: how much they may weigh together.
    """

    def __init__(self, most: int = KEPT, most_bytes: int = BYTES) -> None:
        self.next = 1
        """The number that the next event will have."""
        self._most = most
        self._most_bytes = most_bytes
        self._events: deque[Event] = deque()
        self._weights: deque[int] = deque()
        self._bytes = 0
        self._last_dropped: datetime | None = None
        """When the last event happened that is no longer kept."""

    @property
    def first(self) -> int:
        """The number of the oldest event that is kept; that of the next, if none is."""
        return self.next - len(self._events)

    def __getitem__(self, number: int) -> Event:
        """The event of this number, which must be from `first` on and before `next`."""
        return self._events[number - self.first]

    def add(self, event: Event) -> None:
        """Something has happened."""
        self._events.append(event)
        self._weights.append(weight(event))
        self._bytes += self._weights[-1]
        self.next += 1
        while len(self._events) > self._most or (self._bytes > self._most_bytes and len(self._events) > 1):
            self._last_dropped = self._events.popleft().at
            self._bytes -= self._weights.popleft()

    def since(self, time: datetime | None) -> tuple[int, int]:
        """Where whoever asks for what has happened since then has to begin; None: since the mount began.

        Returns:
            The number of the first event that is kept and happened then or later, and how many earlier ones are no
            longer kept; 0, if none of those was as late as that.
        """
        forgotten = self.first - 1
        if time is None:
            return self.first, forgotten
        # From the oldest on: after the clock was set back, too much is told rather than too little.
        later = (number for number, event in enumerate(self._events, self.first) if event.at >= time)
        missed = forgotten if self._last_dropped is not None and self._last_dropped >= time else 0
        return next(later, self.next), missed


def weight(event: Event) -> int:
    """About how many bytes an event takes if nothing else needs its holds any more."""
    texts = [value for value in astuple(event, recurse=False) if isinstance(value, str)]
    holds = holds_of(event)
    texts += [text for hold in holds for text in (hold.path, hold.reason)]
    return OF_AN_OBJECT * (1 + len(holds)) + sum(map(getsizeof, texts))
