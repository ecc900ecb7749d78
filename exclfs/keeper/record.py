"""The record: what has happened, kept as far as there is room, counted, and told to whoever wants to hear it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from exclfs.holds.events import Refused
from exclfs.keeper.past import Past
from exclfs.keeper.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.holds.events import Event

WOULD_REFUSE: Final = "would_refuse"
"""What refusals that are not enforced are counted as."""


class Record:
    """The record of one mount."""

    def __init__(self) -> None:
        self.past = Past()
        self.refusals = Refusals()
        self.counts: Counter[str] = Counter()
        """How many events of each name there were; of `refused` those that were enforced, of `would_refuse` others."""
        self._subscribers: dict[object, Callable[[Event], None]] = {}

    def subscribe(self, tell: Callable[[Event], None]) -> Callable[[], None]:
        """Has every event told to `tell`, in order, once the past has it. It must neither block nor raise.

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
        self.past.add(event)
        name = event.name
        if isinstance(event, Refused):
            self.refusals.add(event)
            name = event.name if event.enforced else WOULD_REFUSE
        self.counts[name] += 1
        for tell in tuple(self._subscribers.values()):
            tell(event)
