"""What was refused: the last refusals, and how many of which operation and to whom.

The rules that this module owns. Repeats are one refusal with a count (exclfs.holds.folding), so that one culler that
tries all the time does not push out what was refused to others. Every refusal is counted exactly once, and what counts
and keeps them stays small: of many requesters those are told apart who were refused most.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.holds.folding import folded, key
from exclfs.keeper.past import weight

if TYPE_CHECKING:
    from collections.abc import Hashable

    from exclfs.holds.events import Refused
    from exclfs.holds.flags import Operation

KEPT: Final = 100
"""How many of the last refusals are kept, repeats as one."""
BYTES: Final = 4 << 20
"""How much memory they may take together: each may name ten thousand holds. The last one is kept in any case."""
TOLD_APART: Final = 1000
"""How many requesters are counted for themselves; when there are more, the half of them that was refused least is not
told apart any more."""


@frozen
class Requester:
    """A program of a user: the processes that removals are refused to, whichever they are."""

    comm: str | None
    uid: int
    user: str | None


class Refusals:
    """The refusals of one mount, enforced or not."""

    def __init__(self) -> None:
        self.by_operation: Counter[Operation] = Counter()
        self.by_requester: Counter[Requester] = Counter()
        self.by_others = 0
        """Those of requesters that are not told apart any more."""
        self._last: dict[Hashable, tuple[Refused, int]] = {}
        """Each with its weight."""
        self._bytes = 0

    @property
    def last(self) -> tuple[Refused, ...]:
        """The last ones, by when each was last repeated: the latest at the end."""
        return tuple(refused for refused, _ in self._last.values())

    def add(self, refused: Refused) -> None:
        """A removal was refused, or would have been."""
        self._keep(refused)
        self.by_operation[refused.operation] += 1
        asked = refused.requester
        self.by_requester[Requester(asked.comm, asked.uid, asked.user)] += 1
        if len(self.by_requester) > TOLD_APART:
            self._tell_fewer_apart()

    def _keep(self, refused: Refused) -> None:
        place = key(refused)
        if place in self._last:
            refused = folded(self._drop(place), refused)
        bytes_ = weight(refused)
        self._last[place] = refused, bytes_
        self._bytes += bytes_
        while len(self._last) > KEPT or (self._bytes > BYTES and len(self._last) > 1):
            self._drop(next(iter(self._last)))

    def _drop(self, place: Hashable) -> Refused:
        refused, bytes_ = self._last.pop(place)
        self._bytes -= bytes_
        return refused

    def _tell_fewer_apart(self) -> None:
        kept = Counter(dict(self.by_requester.most_common(TOLD_APART // 2)))
        self.by_others += self.by_requester.total() - kept.total()
        self.by_requester = kept
