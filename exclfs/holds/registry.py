"""Which holds there are, and what they refuse.

The rule that this module owns: a hold stands from the return of `trylock` to the return of `unlock`. On one inode
there is at most one claim, and any number of other holds; where a claim is on a whole subtree, nobody else has one
above or below. Nothing here waits, reads a clock or knows the filesystem: who asks brings the directories above an
inode, and makes sure that the mirror's words agree (`exclfs.keeper`). Every question about one inode costs the same
however many holds there are on others.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve

from exclfs.holds.errors import Held, NoSuchHold
from exclfs.holds.flags import BARE, CLAIMS, NOTHING, PINNED, Flags, Operation, Place, conflicts, refuses
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.lifetime import OF_A_PROCESS, Time

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from datetime import datetime

    from exclfs.holds.holder import Holder
    from exclfs.holds.lifetime import Connection, End, Exit

Key = TypeVar("Key")
Index = dict[Key, dict[str, Hold]]
"""Holds by a key, each by its id. Dictionaries keep the order of placing, and forget a hold in constant time."""


class Registry:
    """All holds of one mount.

    Args:
        new_id: makes the id of the next hold. It must never repeat itself. Without it they are h1, h2, h3, …
    """

    def __init__(self, new_id: Callable[[], str] | None = None) -> None:
        numbers = itertools.count(1)
        self.new_id = new_id or (lambda: f"h{next(numbers)}")
        self._by_id: dict[str, Hold] = {}
        self._by_inode: Index[Inode] = {}
        self._by_end: Index[Connection | Exit] = {}
        self._by_user: Index[int] = {}
        self._claims: Index[Inode] = {}
        self._subtrees: Index[Inode] = {}
        self._below: Index[Inode] = {}
        """Those with NO_REMOVE_BELOW."""
        self._pins: Index[Inode] = {}
        """Those with PIN_PATH, by each directory above them."""
        self._above: dict[str, tuple[Inode, ...]] = {}
        """The directories that a hold with PIN_PATH pins, by its id."""

    def __len__(self) -> int:
        """How many holds there are."""
        return len(self._by_id)

    # --- placing and ending -------------------------------------------------------------------------------------------

    def trylock(
        self,
        inode: Inode,
        *,
        path: str,
        flags: Flags,
        holder: Holder,
        reason: str,
        since: datetime,
        ends: tuple[End, ...],
        above: Sequence[Inode] = (),
        below: Iterable[Inode] = (),
    ) -> Hold:
        """Places a hold at once or not at all, as inode_excl_inuse_trylock() of the RFC of 31 January 2022 does.

        Args:
            inode: what is held.
            path: the name by which it was found, absolute in the mount.
            flags: what the hold forbids.
            holder: who holds.
            reason: why, in the holder's words; may be empty.
            since: now, aware, UTC.
            ends: what will end it; at least one.
            above: the directories above the inode, its parent first; wanted where `needs_above` says so.
            below: which of the inodes that `may_lie_below` names do lie below it.

        Raises:
            Held: a hold with a claim is in the way of this claim; the error carries it.
        """
        conflict = self.conflict(inode, flags, holder, above, below)
        if conflict is not None:
            raise Held(conflict)
        hold = Hold(
            id=self.new_id(),
            inode=inode,
            path=path,
            flags=flags,
            holder=holder,
            reason=reason,
            since=since,
            ends=ends,
        )
        self.restore(hold, above)
        return hold

    def restore(self, hold: Hold, above: Sequence[Inode] = ()) -> None:
        """Takes in a hold that was placed before, as it was: its conflicts were settled then.

        Raises:
            ValueError: there is a hold with this id.
        """
        if hold.id in self._by_id:
            raise ValueError(f"the id {hold.id} was given twice")
        if Flags.PIN_PATH in hold.flags:
            self._above[hold.id] = tuple(above)
        for index, key in self._places(hold):
            index.setdefault(key, {})[hold.id] = hold
        self._by_id[hold.id] = hold

    def unlock(self, id: str) -> Hold:
        """Ends the hold with this id, and returns what it was.

        Raises:
            NoSuchHold: there is none, or none any more.
        """
        hold = self.get(id)
        del self._by_id[id]
        for index, key in self._places(hold):
            _forget(index, key, id)
        self._above.pop(id, None)
        return hold

    def renew(self, id: str, until: Time) -> Hold:
        """Gives a hold another time at which it ends, and returns it as it is now. It keeps its place in every order.

        Raises:
            NoSuchHold: there is none, or none any more.
        """
        before = self.get(id)
        hold = evolve(before, ends=(*(end for end in before.ends if not isinstance(end, Time)), until))
        for index, key in self._places(hold):
            index[key][id] = hold
        self._by_id[id] = hold
        return hold

    def pin(self, hold: Hold, above: Sequence[Inode]) -> None:
        """Has a hold with PIN_PATH pin these directories in place of those that it did: it is found below them now."""
        for directory in self._above[hold.id]:
            _forget(self._pins, directory, hold.id)
        self._above[hold.id] = tuple(above)
        for directory in above:
            self._pins.setdefault(directory, {})[hold.id] = hold

    def _places(self, hold: Hold) -> Iterator[tuple[dict[Any, dict[str, Hold]], Hashable]]:
        """Every index that this hold belongs in, with the key under which it does."""
        yield self._by_inode, hold.inode
        yield self._by_user, hold.holder.process.uid
        for end in hold.ends:
            if isinstance(end, OF_A_PROCESS):
                yield self._by_end, end
        for directory in self._above.get(hold.id, ()):
            yield self._pins, directory
        if hold.flags & CLAIMS:
            yield self._claims, hold.inode
        if Flags.EXCL_SUBTREE in hold.flags:
            yield self._subtrees, hold.inode
        if Flags.NO_REMOVE_BELOW in hold.flags:
            yield self._below, hold.inode

    # --- conflicts ----------------------------------------------------------------------------------------------------

    def needs_above(self, flags: Flags) -> bool:
        """Whether a hold with these flags can only be placed by who knows the directories above its inode."""
        if Flags.PIN_PATH in flags:
            return True
        return bool(flags & CLAIMS and (self._subtrees or (Flags.EXCL_SUBTREE in flags and self._claims)))

    def may_lie_below(self, flags: Flags) -> tuple[Inode, ...]:
        """The inodes whose claims would be in the way of a hold with these flags on a directory above them."""
        if not flags & CLAIMS:
            return ()
        return tuple(self._claims if Flags.EXCL_SUBTREE in flags else self._subtrees)

    def conflict(
        self, inode: Inode, flags: Flags, holder: Holder, above: Iterable[Inode] = (), below: Iterable[Inode] = ()
    ) -> Hold | None:
        """The oldest hold nearest to the inode that keeps such a hold out; None if there is none.

        A holder is kept out of an inode by its own claim on it, but not by its own above and below.
        """
        for hold in self._claims.get(inode, {}).values():
            if conflicts(hold.flags, flags):
                return hold
        for inodes, place in ((above, Place.BELOW), (below, Place.ABOVE)):
            for other in inodes:
                for hold in self._claims.get(other, {}).values():
                    if conflicts(hold.flags, flags, place) and not hold.holder.is_same(holder):
                        return hold
        return None

    # --- what there is ------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Hold:
        """The hold with this id.

        Raises:
            NoSuchHold: there is none, or none any more.
        """
        try:
            return self._by_id[id]
        except KeyError:
            raise NoSuchHold(id) from None

    def all(self) -> tuple[Hold, ...]:
        """Every hold, oldest first."""
        return tuple(self._by_id.values())

    def on(self, inode: Inode) -> tuple[Hold, ...]:
        """The holds on this inode, oldest first."""
        return tuple(self._by_inode.get(inode, {}).values())

    def ending_with(self, end: Connection | Exit) -> tuple[Hold, ...]:
        """The holds that this ends, oldest first."""
        return tuple(self._by_end.get(end, {}).values())

    def number_of(self, uid: int) -> int:
        """How many holds the processes of this user have."""
        return len(self._by_user.get(uid, {}))

    def flags(self, inode: Inode) -> Flags:
        """The flags of all holds on this inode together."""
        flags = NOTHING
        for hold in self._by_inode.get(inode, {}).values():
            flags |= hold.flags
        return flags

    def word(self, inode: Inode) -> int:
        """What the mirror's flags word of this inode must be: never 0 while a hold is on it, or pins it from below."""
        flags = self.flags(inode).value
        if not flags and inode in self._by_inode:
            flags = BARE
        return flags | (PINNED if inode in self._pins else 0)

    # --- what they refuse ---------------------------------------------------------------------------------------------

    @property
    def reaches_below(self) -> bool:
        """Whether any hold refuses what is below its inode, so that a verdict needs the directories above."""
        return bool(self._below)

    @property
    def covers_below(self) -> bool:
        """Whether any hold says something about what is below its inode."""
        return bool(self._below or self._subtrees)

    def pinned(self, hold: Hold) -> tuple[Inode, ...]:
        """The directories above that a hold with PIN_PATH pins, its parent first; none for another."""
        return self._above.get(hold.id, ())

    def refusing(self, inode: Inode, operation: Operation, above: Iterable[Inode] = ()) -> tuple[Hold, ...]:
        """The holds that refuse this operation on this inode, oldest first. If there are none it may go on.

        Args:
            inode: what would be removed or renamed.
            operation: what would happen to it.
            above: the directories above the name that it would happen to, its parent first.
        """
        found = {hold.id: hold for hold in self.on(inode) if refuses(hold.flags, operation)}
        for place, holds in ((Place.ABOVE, self._pins.get(inode, {})), *self._from_above(above)):
            found |= {hold.id: hold for hold in holds.values() if refuses(hold.flags, operation, place)}
        return self._in_order(found)

    def covering(self, inode: Inode, above: Iterable[Inode] = ()) -> tuple[Hold, ...]:
        """Every hold that says something about this inode: those on it, on its subtree from above, and its pins."""
        found = {hold.id: hold for hold in self.on(inode)} | self._pins.get(inode, {})
        for directory in above:
            found |= self._below.get(directory, {}) | self._subtrees.get(directory, {})
        return self._in_order(found)

    def _from_above(self, above: Iterable[Inode]) -> Iterator[tuple[Place, dict[str, Hold]]]:
        return ((Place.BELOW, self._below.get(directory, {})) for directory in above)

    def _in_order(self, found: dict[str, Hold]) -> tuple[Hold, ...]:
        return tuple(sorted(found.values(), key=lambda hold: hold.since))


def _forget(index: Index[Key], key: Key, id: str) -> None:
    """Takes a hold out of an index, and the key with its last hold, so that nothing is left of what is not held."""
    del index[key][id]
    if not index[key]:
        del index[key]
