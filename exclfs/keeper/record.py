"""The record: what has happened, told to whoever wants to hear it, counted, and the last refusals kept."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from exclfs.holds.events import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.holds.events import Event

REFUSALS_KEPT: Final = 100
"""How many of the last refusals are kept for whoever asks afterwards."""
WOULD_REFUSE: Final = "would_refuse"
"""What refusals that are not enforced are counted as."""


class Record:
    """The record of one mount."""

    def __init__(self) -> None:
        self.refusals: deque[Refused] = deque(maxlen=REFUSALS_KEPT)
        self.counts: Counter[str] = Counter()
        self._subscribers: dict[object, Callable[[Event], None]] = {}

    def subscribe(self, tell: Callable[[Event], None]) -> Callable[[], None]:
        """Has every event told to `tell`, in order. It must neither block nor raise.

        Returns:
            What ends that.
        """
        key = object()
        self._subscribers[key] = tell

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def tell(self, event: Event) -> None:
        """Something has happened."""
        name = event.name
        if isinstance(event, Refused):
            self.refusals.append(event)
            name = event.name if event.enforced else WOULD_REFUSE
        self.counts[name] += 1
        for tell in tuple(self._subscribers.values()):
            tell(event)
