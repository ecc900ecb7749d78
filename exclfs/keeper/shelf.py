"""The shelf: the holds that are to outlive the server, as far as the store has them.

The rule that this module owns: what has ended never comes back. A hold that somebody releases is out of the store
before it is released; one that ends by itself is taken out soon after, and if the store fails at that, with the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from exclfs.holds.errors import BadHold, NotKept
from exclfs.holds.lifetime import StateFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exclfs.holds.hold import Hold
    from exclfs.holds.lifetime import End


class Store(Protocol):
    """Where holds are kept that survive a restart of the server."""

    async def add(self, holds: Sequence[Hold]) -> None:
        """Writes holds, all or none, in place of older ones with their ids. Raises NotKept."""

    async def remove(self, ids: Sequence[str]) -> None:
        """Takes holds out again. Raises NotKept."""


class Shelf:
    """What the store of one mount is told.

    Args:
        store: None if there is no state file.
        stands: whether a hold has not ended.
    """

    def __init__(self, store: Store | None, stands: Callable[[Hold], bool]) -> None:
        self.store = store
        self._stands = stands
        self._to_be_removed: list[str] = []
        """Of holds that ended without anybody waiting for it: still in the store."""

    def check(self, ends: Iterable[End]) -> None:
        """Accepts ends that can be kept.

        Raises:
            BadHold: there is no store for them.
        """
        if StateFile() in ends and self.store is None:
            raise BadHold("this mount has no state file; mount it with --state FILE")

    async def put(self, holds: Iterable[Hold]) -> None:
        """Has the store keep those of the holds that it is to keep, and that have not ended when it has them.

        Raises:
            NotKept: it could not write them.
        """
        kept = [hold for hold in holds if StateFile() in hold.ends]
        if kept and self.store is not None:
            await self.store.add(kept)
            for hold in kept:
                if not self._stands(hold):
                    self.forget_soon(hold)
            await self.forget_now()

    async def take(self, holds: Iterable[Hold]) -> None:
        """Takes out holds that are about to be released.

        Raises:
            NotKept: it could not; they are still there.
        """
        kept = [hold.id for hold in holds if StateFile() in hold.ends]
        if kept and self.store is not None:
            await self.store.remove(kept)

    def forget_soon(self, hold: Hold) -> None:
        """Remembers that this one has ended."""
        if StateFile() in hold.ends:
            self._to_be_removed.append(hold.id)

    async def forget_now(self) -> None:
        """Takes what has ended by itself out of the store. A hold that is over does not come back in any case."""
        if self._to_be_removed and self.store is not None:
            ids, self._to_be_removed = self._to_be_removed, []
            try:
                await self.store.remove(ids)
            except NotKept:
                self._to_be_removed += ids  # the store has said so; it is tried again with the next
