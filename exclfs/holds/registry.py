"""Which holds there are, and what they refuse.

The rule that this module owns: a hold stands from the return of `trylock` to the return of `unlock`, and between the
two its inode's word has its flags. On one inode there is at most one claim, and any number of other holds. Nothing
here waits, reads a clock or knows the filesystem: who calls makes sure that the mirror's word agrees (`exclfs.keeper`).
Every question about one inode costs the same however many holds there are on others.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeVar

from exclfs.holds.errors import Held, NoSuchHold
from exclfs.holds.flags import NOTHING, Flags, Operation, conflicts, refuses
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.lifetime import Connection
from exclfs.holds.limits import check_hold

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from exclfs.holds.holder import Holder
    from exclfs.holds.lifetime import End

Key = TypeVar("Key")


class Registry:
    """All holds of one mount.

    Args:
        new_id: makes the id of the next hold. It must never repeat itself. Without it they are h1, h2, h3, …
    """

    def __init__(self, new_id: Callable[[], str] | None = None) -> None:
        numbers = itertools.count(1)
        self._new_id = new_id or (lambda: f"h{next(numbers)}")
        # Dictionaries keep the order in which holds were placed, and forget one in constant time.
        self._by_id: dict[str, Hold] = {}
        self._by_inode: dict[Inode, dict[str, Hold]] = {}
        self._by_connection: dict[int, dict[str, Hold]] = {}

    def __len__(self) -> int:
        """How many holds there are."""
        return len(self._by_id)

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
    ) -> Hold:
        """Places a hold at once or not at all, as inode_excl_inuse_trylock() of the RFC of 31 January 2022 does.

        Args:
            inode: what is held.
            path: the name by which it was found, absolute in the mount.
            flags: what the hold forbids; at least one.
            holder: who holds.
            reason: why, in the holder's words; may be empty.
            since: now, aware, UTC.
            ends: what will end it; at least one.

        Raises:
            BadHold: this is no hold (see exclfs.holds.limits).
            Held: a hold with a claim is in the way of this claim; the error carries it.
        """
        check_hold(flags, holder.name, reason, ends)
        for hold in self.on(inode):
            if conflicts(hold.flags, flags):
                raise Held(hold)
        hold = Hold(
            id=self._new_id(),
            inode=inode,
            path=path,
            flags=flags,
            holder=holder,
            reason=reason,
            since=since,
            ends=ends,
        )
        if hold.id in self._by_id:
            raise ValueError(f"the id {hold.id} was given twice")
        self._by_id[hold.id] = hold
        self._by_inode.setdefault(inode, {})[hold.id] = hold
        for number in _connections(hold):
            self._by_connection.setdefault(number, {})[hold.id] = hold
        return hold

    def unlock(self, id: str) -> Hold:
        """Ends the hold with this id, and returns what it was.

        Raises:
            NoSuchHold: there is none, or none any more.
        """
        hold = self.get(id)
        del self._by_id[id]
        _forget(self._by_inode, hold.inode, id)
        for number in _connections(hold):
            _forget(self._by_connection, number, id)
        return hold

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

    def of_connection(self, number: int) -> tuple[Hold, ...]:
        """The holds that end with this connection, oldest first."""
        return tuple(self._by_connection.get(number, {}).values())

    def word(self, inode: Inode) -> Flags:
        """The flags of all holds on this inode together: what the mirror's flags word must be."""
        word = NOTHING
        for hold in self.on(inode):
            word |= hold.flags
        return word

    def refusing(self, inode: Inode, operation: Operation) -> tuple[Hold, ...]:
        """The holds that refuse this operation on this inode, oldest first. If there are none it may go on."""
        return tuple(hold for hold in self.on(inode) if refuses(hold.flags, operation))


def _connections(hold: Hold) -> set[int]:
    return {end.number for end in hold.ends if isinstance(end, Connection)}


def _forget(index: dict[Key, dict[str, Hold]], key: Key, id: str) -> None:
    """Takes a hold out of an index, and the key with its last hold, so that nothing is left of what is not held."""
    del index[key][id]
    if not index[key]:
        del index[key]
