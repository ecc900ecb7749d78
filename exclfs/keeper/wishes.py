"""Wishes: what a trylock wants, and how it comes into the registry.

The rule that this module owns: all of a wish or nothing of it, in one step that nobody comes between. A hold that is in
the way and over already is in nobody's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from exclfs.holds.errors import Held
from exclfs.holds.events import LockFailed
from exclfs.holds.flags import CLAIMS, Flags
from exclfs.holds.mode import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from exclfs.holds.events import Event
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Holder, Process
    from exclfs.holds.lifetime import End
    from exclfs.holds.registry import Registry
    from exclfs.keeper.words import Mirror


@frozen
class Wish:
    """One hold on each object, alike but for the object."""

    objects: Sequence[tuple[Inode, str]]
    """The inodes, each with the path it was named by."""
    flags: Flags
    holder: Holder
    reason: str
    ends: tuple[End, ...]
    requester: Process
    above: Mapping[tuple[Inode, str], tuple[Inode, ...]]
    """Of an object whose path is to be pinned the directories that the requester may pin."""

    @property
    def inodes(self) -> frozenset[Inode]:
        """Those that are to be held."""
        return frozenset(inode for inode, _ in self.objects)


@frozen
class Entrance:
    """The way into one registry."""

    registry: Registry
    mirror: Mirror
    mode: Callable[[], Mode]
    """Whether conflicts are enforced now."""
    may_enter: Callable[[Wish], None]
    """Accepts that its requester has as many holds more. Raises NotPermitted."""
    reap: Callable[[Iterable[Hold]], bool]
    """Drops those that are over; whether there were any."""
    tell: Callable[[Event], None]
    now: Callable[[], datetime]

    def enter(self, wish: Wish) -> tuple[Hold, ...]:
        """Places the holds of a wish, all or none. From now on removals are refused that ask.

        Raises:
            Held: a claim is in the way.
            NotPermitted: nothing is in the way, but these are too many.
            Gone: nobody knows an inode any more.
        """
        while self._reaped_what_is_in_the_way_of(wish):
            pass  # who waited for that has come in meanwhile, and may be over as well
        self.may_enter(wish)
        placed: list[Hold] = []
        try:
            for inode, path in wish.objects:
                placed.append(self._place(inode, path, wish))
        except BaseException:
            for hold in reversed(placed):
                self.registry.unlock(hold.id)
            raise
        return tuple(placed)

    def _reaped_what_is_in_the_way_of(self, wish: Wish) -> bool:
        """Drops what is over; whether there was any. Nothing is placed yet, which would be in others' way.

        Raises:
            Held: a claim is in the way that is not over.
        """
        reaped = False
        for inode, _ in wish.objects:
            above, below = self._around(inode, wish)
            conflict = self._conflict(inode, wish, above, below)
            if conflict is None:
                continue
            if self.reap([hold for one in (inode, *above, *below) for hold in self.registry.on(one)]):
                reaped = True
            elif self.mode() is Mode.ENFORCE:
                raise Held(conflict)
        return reaped

    def _place(self, inode: Inode, path: str, wish: Wish) -> Hold:
        above, below = self._around(inode, wish)
        above = wish.above.get((inode, path), above)
        flags = wish.flags
        if self.mode() is not Mode.ENFORCE:
            conflict = self._conflict(inode, wish, above, below)
            if conflict is not None:
                flags &= ~CLAIMS  # it is told, and is none
                if self.mode() is Mode.WARN:
                    self.tell(LockFailed(self.now(), path, inode, wish.requester, conflict))
        return self.registry.trylock(
            inode,
            path=path,
            flags=flags,
            holder=wish.holder,
            reason=wish.reason,
            since=self.now(),
            ends=wish.ends,
            above=above,
            below=below,
        )

    def _around(self, inode: Inode, wish: Wish) -> tuple[Sequence[Inode], Sequence[Inode]]:
        """The directories above the inode, and the claims below it, as far as they matter."""
        above = self.mirror.ancestors(inode) if self.registry.needs_above(wish.flags) else ()
        rivals = self.registry.may_lie_below(wish.flags)
        return above, self.mirror.below(inode, rivals) if rivals else ()

    def _conflict(self, inode: Inode, wish: Wish, above: Sequence[Inode], below: Sequence[Inode]) -> Hold | None:
        return self.registry.conflict(inode, wish.flags, wish.holder, above, below)
