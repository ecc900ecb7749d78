"""The keeper: the one place where the registry, the flags words and the events move together.

Its rules:

- A hold enters the registry before its word is set, and leaves it before its word is lowered. So whatever a removal
  finds, the registry knows: a removal that meets the new word is refused, and one that still meets the old one asks
  and is told the truth.
- The loop only *tries* to set a word. Where a removal of that inode is in flight a helper thread waits for it, and
  verdicts go on meanwhile.
- Nothing is refused because of a holder that is already dead: who is about to be named is looked at first.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from exclfs.holds.errors import Gone, Held, NoSuchHold, NotPermitted
from exclfs.holds.events import Broken, Locked, LockFailed, Reaped, Refused, UnlockBad, Unlocked
from exclfs.holds.lifetime import Connection, Unmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from exclfs.holds.events import Event
    from exclfs.holds.flags import Flags, Operation
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Holder, Process
    from exclfs.holds.lifetime import End
    from exclfs.holds.registry import Registry
    from exclfs.mirror import Attributes

REFUSALS_KEPT: Final = 100
"""How many of the last refusals are kept for whoever asks afterwards."""


class Words(Protocol):
    """What the keeper needs of the mirror."""

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        """Sets a word. Raises Gone; BlockingIOError if it would have to wait and may not."""

    def attributes(self, inode: Inode) -> Attributes:
        """Owner and mode of an inode. Raises Gone."""


class Liveness(Protocol):
    """One connection of the control socket, and the process that opened it."""

    def is_alive(self) -> bool:
        """Whether both are still there, asked of the kernel now."""


class Keeper:
    """Places and ends holds, and gives the verdict on removals.

    Args:
        registry: the holds.
        words: the mirror.
        owner: the uid of the mount's owner, who may break holds.
        now: the clock; aware, UTC.
    """

    def __init__(
        self,
        registry: Registry,
        words: Words,
        *,
        owner: int = 0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.registry = registry
        self.connections: dict[int, Liveness] = {}
        """Every open connection by its number; a number that is not here is closed."""
        self.refusals: deque[Refused] = deque(maxlen=REFUSALS_KEPT)
        self.counts: Counter[str] = Counter()
        """How many events of each name there were."""
        self._words = words
        self._owner = owner
        self._now = now
        self._subscribers: list[Callable[[Event], None]] = []
        self._being_set: dict[Inode, trio.Event] = {}

    def subscribe(self, tell: Callable[[Event], None]) -> None:
        """Has every event told to `tell`, in order. It must neither block nor raise."""
        self._subscribers.append(tell)

    # --- placing ------------------------------------------------------------------------------------------------------

    async def trylock(
        self,
        objects: Sequence[tuple[Inode, str]],
        *,
        flags: Flags,
        holder: Holder,
        reason: str,
        ends: tuple[End, ...],
        requester: Process,
    ) -> tuple[Hold, ...]:
        """Places one hold on each object, all or none. Never waits for another holder.

        Args:
            objects: the inodes, each with the path it was named by.
            flags: what each hold forbids.
            holder: who will hold.
            reason: why.
            ends: what will end them.
            requester: who asks; root, or the owner of each inode.

        Raises:
            Held: a claim is in the way; told as an event, too.
            Gone: the last link of an inode has been removed.
            NotPermitted: the requester may not hold one of them.
            BadHold: that is no hold.
        """
        placed: list[Hold] = []
        try:
            for inode, path in objects:
                self._may_place(inode, path, requester)
                hold = self._enter(inode, path, flags, holder, reason, ends, requester)
                placed.append(hold)
                await self._raise_word(inode)
        except BaseException:
            for hold in reversed(placed):
                self._leave(hold)
            raise
        for hold in placed:
            self._tell(Locked(self._now(), hold))
        return tuple(placed)

    def _may_place(self, inode: Inode, path: str, requester: Process) -> None:
        if requester.uid == 0 or requester.uid == self._words.attributes(inode).uid:
            return
        raise NotPermitted(f"only root and the owner of {path} may hold it")

    def _enter(
        self,
        inode: Inode,
        path: str,
        flags: Flags,
        holder: Holder,
        reason: str,
        ends: tuple[End, ...],
        requester: Process,
    ) -> Hold:
        place = partial(
            self.registry.trylock,
            inode,
            path=path,
            flags=flags,
            holder=holder,
            reason=reason,
            since=self._now(),
            ends=ends,
        )
        try:
            return place()
        except Held as error:
            if not self._reap([error.hold]):
                self._tell(LockFailed(self._now(), path, inode, requester, error.hold))
                raise
        return place()

    async def _raise_word(self, inode: Inode) -> None:
        while inode in self._being_set:
            await self._being_set[inode].wait()
        word = self.registry.word(inode).value
        try:
            self._words.set_word(inode, word, wait=False)
        except BlockingIOError:
            await self._wait_and_set(inode, word)

    async def _wait_and_set(self, inode: Inode, word: int) -> None:
        done = self._being_set[inode] = trio.Event()
        try:
            # Not to be abandoned: the word would be set some time after nobody wants it any more.
            await trio.to_thread.run_sync(partial(self._words.set_word, inode, word, wait=True))
        finally:
            del self._being_set[inode]
            done.set()
            self._lower_word(inode, at_most=word)

    def _lower_word(self, inode: Inode, at_most: int = -1) -> None:
        """Clears what no hold wants any more. Clearing never waits."""
        if inode in self._being_set:
            return  # it is lowered when that is done
        with suppress(Gone):
            self._words.set_word(inode, self.registry.word(inode).value & at_most, wait=False)

    # --- ending -------------------------------------------------------------------------------------------------------

    async def unlock(self, id: str, *, requester: Process, break_it: bool = False) -> Hold:
        """Ends a hold.

        Args:
            id: of the hold.
            requester: its holder; or, with `break_it`, root, the owner of the mount or the holder's own user.
            break_it: release somebody else's, on the record.

        Raises:
            NoSuchHold: there is none with this id.
            NotPermitted: it is somebody else's.
        """
        await trio.lowlevel.checkpoint()
        try:
            hold = self.registry.get(id)
            own = self.is_own(hold, requester)
            if not own:
                self._may_break(hold, requester, break_it=break_it)
        except (NoSuchHold, NotPermitted) as error:
            self._tell(UnlockBad(self._now(), id, requester, str(error)))
            raise
        self._leave(hold)
        self._tell(Unlocked(self._now(), hold) if own else Broken(self._now(), hold, requester))
        return hold

    def is_own(self, hold: Hold, requester: Process) -> bool:
        """Whether the requester is the holder. Of a hold that outlives the process that placed it, that is the user."""
        process = hold.holder.process
        if process.uid != requester.uid:
            return False
        return Unmount() in hold.ends or (process.pid, process.start_time) == (requester.pid, requester.start_time)

    def _may_break(self, hold: Hold, requester: Process, *, break_it: bool) -> None:
        owner = hold.holder.process
        if requester.uid not in (0, self._owner, owner.uid):
            raise NotPermitted(f"hold {hold.id} is {hold.holder.name}'s, and only root may break it")
        if not break_it:
            raise NotPermitted(f"hold {hold.id} is {hold.holder.name}'s (pid {owner.pid}), not yours; --break ends it")

    async def end_connection(self, number: int) -> None:
        """Ends the holds that end with this connection."""
        await trio.lowlevel.checkpoint()
        for hold in self.registry.of_connection(number):
            self._leave(hold)
            self._tell(Unlocked(self._now(), hold))

    def _leave(self, hold: Hold) -> None:
        with suppress(NoSuchHold):
            self.registry.unlock(hold.id)
        self._lower_word(hold.inode)

    # --- refusing -----------------------------------------------------------------------------------------------------

    def verdict(
        self, operation: Operation, inode: Inode, path: str, requester: Callable[[], Process]
    ) -> tuple[Hold, ...]:
        """The holds that refuse this removal, oldest first; none if it may go on. A refusal is told as an event.

        Args:
            operation: what would happen to the inode.
            inode: what the name leads to.
            path: the name, absolute in the mount.
            requester: finds out who asks for the removal; called only for a refusal, for it costs more than a verdict.
        """
        refusing = self.registry.refusing(inode, operation)
        if refusing and self._reap(refusing):
            refusing = self.registry.refusing(inode, operation)
        if refusing:
            refused = Refused(self._now(), operation, path, inode, requester(), refusing)
            self.refusals.append(refused)
            self._tell(refused)
        return refusing

    def _reap(self, holds: Iterable[Hold]) -> bool:
        """Drops those whose holder is provably gone; whether there were any."""
        dead = [hold for hold in holds if not self._is_alive(hold)]
        for hold in dead:
            self._leave(hold)
            self._tell(Reaped(self._now(), hold))
        return bool(dead)

    def _is_alive(self, hold: Hold) -> bool:
        for end in hold.ends:
            if isinstance(end, Connection):
                connection = self.connections.get(end.number)
                if connection is None or not connection.is_alive():
                    return False
        return True

    def _tell(self, event: Event) -> None:
        self.counts[event.name] += 1
        for tell in self._subscribers:
            tell(event)
