"""Repeats of one refusal, told as one: a culler that tries a thousand times is one line, with a count and a span.

The rules that this module owns:

- A fold is what one requester was refused of one inode: the same process, operation, inode, and enforced or not. It is
  told as the last of them, with `at` of the first, `until` of the last, and their `count`.
- It is told when it has been quiet for QUIET seconds, LONGEST seconds after its first refusal, or as soon as anything
  else happens to its inode or to an inode whose holds refused it: what is told of one inode stays in order.
- A program (comm and uid, however many processes) has at most MOST_OF_PROGRAM folds in LONGEST seconds, and all
  programs together have MOST. What goes beyond is folded wider: by program and operation, and beyond MOST by operation
  alone. `inodes` and `requesters` say how many are in it. A fold that something else than time ended is not counted:
  there is that other event to pay for it.
- So no refusal is lost from the counts, and neither what is kept nor what is told of refusals grows with their number.

Time comes in as a value: seconds of a clock that is never set back. Nothing here looks anything up.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from attrs import Factory, define, evolve, frozen

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
    Unlocked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from exclfs.holds.hold import Inode
    from exclfs.holds.holder import Process

QUIET: Final = 1.0
"""Seconds without another one after which a fold is told."""
LONGEST: Final = 10.0
"""Seconds after its first refusal when a fold is told in any case."""
MOST_OF_PROGRAM: Final = 20
"""How many folds one program has in LONGEST seconds before the rest of its refusals is folded wider."""
MOST: Final = 200
"""How many folds all programs together have in that time."""
MOST_TOLD_APART: Final = 1000
"""How many inodes, and how many requesters, a wider fold tells apart: where it says so many there may be more."""


@frozen
class Fold:
    """Refusals that are told as one."""

    refused: Refused
    """The last of them, with the time of the first, and their count."""
    inodes: int = 1
    """Of how many inodes. If it is more than one, the path, the inode and the holds are those of the last."""
    requesters: int = 1
    """By how many processes. If it is more than one, the requester is the last."""


def key(refused: Refused) -> Hashable:
    """What the repeats of one refusal have in common."""
    return (_identity(refused.requester), refused.operation, refused.inode, refused.enforced)


def folded(earlier: Refused, later: Refused) -> Refused:
    """Both as one: what is told of the later, since the earlier."""
    return evolve(later, at=earlier.at, count=earlier.count + later.count, until=later.until or later.at)


class Folding:
    """The folds that are open. It is given every event, and gives back what is to be told, in order."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Open] = {}
        self._tally: Counter[Hashable] = Counter()
        """How many folds each program has had since `_since`, but for those that another event ended."""
        self._since = 0.0

    def __len__(self) -> int:
        """How many folds are open."""
        return len(self._open)

    def take(self, event: Event, now: float) -> list[Fold | Event]:
        """What is to be told because of this event: the folds that it ends, and then itself, unless it is folded."""
        if isinstance(event, Refused):
            self._fold(event, now)
            return []
        ended = self._ended_by(event)
        for fold in ended:
            self._pay_for(fold)
        return [*map(self._close, ended), event]

    def due(self, now: float) -> list[Fold]:
        """What is to be told because time has passed."""
        return self._close_all(lambda fold: now - fold.last >= QUIET or now - fold.began >= LONGEST)

    def rest(self) -> list[Fold]:
        """All that is left, to be told at the end."""
        return self._close_all(lambda _: True)

    def _fold(self, refused: Refused, now: float) -> None:
        place, program = self._place(refused, now)
        fold = self._open.get(place)
        if fold is None:
            self._open[place] = fold = _Open(place, program, refused, now, now)
        else:
            fold.refused, fold.last = folded(fold.refused, refused), now
        fold.tell_apart(refused)

    def _place(self, refused: Refused, now: float) -> tuple[Hashable, Hashable]:
        """The narrowest fold that this refusal may go into, and the program that it is counted for."""
        narrow = key(refused)
        program = (refused.requester.comm, refused.requester.uid)
        if narrow in self._open:
            return narrow, program
        if now - self._since >= LONGEST:
            self._since = now
            self._tally.clear()
        if self._tally[program] >= MOST_OF_PROGRAM:
            return (program, refused.operation, refused.enforced), None
        if self._tally.total() >= MOST:
            return (refused.operation, refused.enforced), None
        self._tally[program] += 1
        return narrow, program

    def _ended_by(self, event: Event) -> list[_Open]:
        match event:
            case ModeChanged():
                return list(self._open.values())
            case LockFailed():
                inode = event.inode
            case Locked() | Unlocked() | Reaped() | Broken() | Expired() | Orphaned():
                inode = event.hold.inode
            case _:
                return []
        return [fold for fold in self._open.values() if fold.concerns(inode)]

    def _pay_for(self, fold: _Open) -> None:
        if fold.program is not None and fold.began >= self._since:
            self._tally[fold.program] -= 1
            if not self._tally[fold.program]:
                del self._tally[fold.program]

    def _close_all(self, over: Callable[[_Open], bool]) -> list[Fold]:
        return [self._close(fold) for fold in tuple(self._open.values()) if over(fold)]

    def _close(self, fold: _Open) -> Fold:
        del self._open[fold.place]
        return Fold(fold.refused, len(fold.inodes), len(fold.requesters))


@define(eq=False)
class _Open:
    """A fold that more may come to."""

    place: Hashable
    program: Hashable
    """What it is counted for; None for a wider fold, which is not counted."""
    refused: Refused
    began: float
    last: float
    inodes: set[Hashable] = Factory(set)
    holding: set[Hashable] = Factory(set)
    """Those on which the holds are that refused."""
    requesters: set[Hashable] = Factory(set)

    def tell_apart(self, refused: Refused) -> None:
        """Remembers of whom and of what this one is, as far as there is room."""
        _remember(self.inodes, refused.inode)
        _remember(self.requesters, _identity(refused.requester))
        for hold in refused.holds[:MOST_TOLD_APART]:
            _remember(self.holding, hold.inode)

    def concerns(self, inode: Inode) -> bool:
        """Whether it may be of this inode, or because of a hold on it."""
        return any(inode in seen or len(seen) >= MOST_TOLD_APART for seen in (self.inodes, self.holding))


def _remember(seen: set[Hashable], one: Hashable) -> None:
    if len(seen) < MOST_TOLD_APART:
        seen.add(one)


def _identity(process: Process) -> Hashable:
    """The process with its start time, where that is known; and in any case what is told of it."""
    return (process.pid, process.start_time, process.uid, process.comm)
