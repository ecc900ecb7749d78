"""The keeper: the one place where the registry, the flags words and the events move together.

wishes     what a trylock wants, and how it comes into the registry
words      what the mirror is told of the registry
authority  who may do what
queue      who waits for a claim
clock      what time it is
deadlines  which hold's time is over next
endings    what is done when a hold ends
orphans    held inodes that have been removed behind the mount
shelf      what is to outlive the server
view       what says something about an inode
open_files files that are open, as the holds that they are
record     what has happened, and who is told

Its rules: holds are placed all or none, and are told of when they stand. Nothing is refused because of a holder that
is already dead, or of a time that is over: what is about to be named is looked at first. What is to outlive the server
is in the state file before anybody hears yes, and out of it before anybody hears that it is released.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from exclfs.holds.errors import BadHold, Held, NoSuchHold, NotPermitted
from exclfs.holds.events import (
    Broken,
    Expired,
    Locked,
    LockFailed,
    ModeChanged,
    Orphaned,
    Reaped,
    Refused,
    UnlockBad,
    Unlocked,
)
from exclfs.holds.flags import CLAIMS, Flags
from exclfs.holds.hold import Hold
from exclfs.holds.holder import Credentials
from exclfs.holds.lifetime import Connection, Time
from exclfs.holds.limits import Limits, check_hold, check_reason
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.host import processes
from exclfs.keeper import orphans
from exclfs.keeper.authority import Authority
from exclfs.keeper.clock import Clock, boottime
from exclfs.keeper.deadlines import Deadlines, time_of
from exclfs.keeper.endings import Endings, Liveness
from exclfs.keeper.open_files import check_releasable, opened_by
from exclfs.keeper.queue import Queue, Waiter
from exclfs.keeper.record import Record
from exclfs.keeper.shelf import Shelf, Store
from exclfs.keeper.view import View
from exclfs.keeper.wishes import Entrance, Wish
from exclfs.keeper.words import Mirror, Words

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from exclfs.holds.flags import Operation
    from exclfs.holds.hold import Inode
    from exclfs.holds.holder import Holder, Process
    from exclfs.holds.lifetime import End, Exit
    from exclfs.holds.registry import Registry

__all__ = ["Keeper", "Liveness", "Mirror", "Store"]

AT_A_TIME: Final = 100
"""How many holds are placed, renewed or released before others have a turn."""


class Keeper:
    """Places and ends holds, and gives the verdict on removals.

    Args:
        registry: the holds.
        mirror: the inodes.
        mountpoint: absolute; begins every path that is told.
        owner: the uid of the mount's owner, who may break holds and has no limits.
        limits: what one user may have.
        holders_group: the gid whose members may place NO_REMOVE on what they can read.
        mode: whether holds are enforced.
        open_files: whose open files are held against other processes.
        store: keeps holds that survive the server; None if there is no state file.
        describe: a process by its pid, as it is now.
        is_alive: whether a process that was described still runs.
        now: the time; aware, UTC.
        clock: seconds on the clock that decides when a time is over.
    """

    def __init__(
        self,
        registry: Registry,
        mirror: Mirror,
        *,
        mountpoint: str = "/",
        owner: int = 0,
        limits: Limits | None = None,
        holders_group: int | None = None,
        mode: Mode = Mode.ENFORCE,
        open_files: OpenFiles = OpenFiles.NONE,
        store: Store | None = None,
        describe: Callable[..., Process] = processes.describe,
        is_alive: Callable[[Process], bool] = processes.is_alive,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.registry = registry
        self.present: dict[Connection | Exit, Liveness] = {}
        """What holds are bound to and is still there. A connection or process that is not here is gone."""
        self.mode = mode
        self.open_files = open_files
        self.deadlines_changed = trio.Event()
        """Set, and replaced by another, when a time may end earlier than `expire` said."""
        self.authority = Authority(mirror, owner, holders_group, limits or Limits())
        self.record = Record()
        """What has happened."""
        self.subscribe = self.record.subscribe
        self._tell = self.record.tell
        self._mirror = mirror
        self._clock = Clock(now, clock)
        self._words = Words(registry, mirror, mountpoint)
        self._view = View(registry, mirror, mountpoint, open_files, describe, is_alive)
        self._shelf = Shelf(store, lambda hold: self._endings.stands(hold))
        self._queue = Queue(lambda holds: self._endings.leave_all(holds))
        self._endings = Endings(
            registry, self._words, self._clock, self.present, self._tell, self._queue.serve, self._shelf.forget_soon
        )
        self._entrance = Entrance(
            registry, mirror, lambda: self.mode, self._may_enter, self._endings.reap, self._tell, now
        )
        self._deadlines = Deadlines(registry)
        self._switching = trio.Lock()
        mirror.barrier(enforcing=mode is Mode.ENFORCE)

    @property
    def limits(self) -> Limits:
        """What one user may have."""
        return self.authority.limits

    @property
    def owner(self) -> int:
        """The uid of the mount's owner."""
        return self.authority.owner

    @property
    def store(self) -> Store | None:
        """What keeps holds that survive the server; None if there is no state file."""
        return self._shelf.store

    @property
    def waiting(self) -> int:
        """How many calls wait for a claim."""
        return len(self._queue)

    @property
    def refusals(self) -> Sequence[Refused]:
        """The last refusals, repeats as one, the latest at the end."""
        return self.record.refusals.last

    @property
    def counts(self) -> Counter[str]:
        """How many events of each name there were (Record.counts)."""
        return self.record.counts

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
        credentials: Credentials | None = None,
        timeout: float = 0.0,  # noqa: ASYNC109 - the clients' word: it is not about how long this may take
    ) -> tuple[Hold, ...]:
        """Places one hold on each object, all or none.

        Args:
            objects: the inodes, each with the path it was named by.
            flags: what each hold forbids.
            holder: who will hold.
            reason: why.
            ends: what will end them.
            requester: who asks (exclfs.keeper.authority has who may).
            credentials: as whom, with groups; without them, as a user without any.
            timeout: seconds to queue for claims that are taken; 0 does not wait, math.inf waits for ever.

        Raises:
            Held: a claim is in the way; told as an event, too.
            Gone: the last link of an inode has been removed.
            NotPermitted: the requester may not hold one of them, or not as many or for as long.
            BadHold: that is no hold.
            BadObject: the disk does not say whose one of them is.
            NoSuchHold: one has ended before anybody could rely on it: it was broken, or what ends it has come.
            NotKept: it could not be written to the state file.
        """
        check_hold(flags, holder.name, reason, ends, self.limits)
        self._shelf.check(ends)
        who = credentials or Credentials(requester.uid, requester.uid)
        above: dict[tuple[Inode, str], tuple[Inode, ...]] = {}
        for index, (inode, path) in enumerate(objects):
            await self.authority.may_place(inode, path, flags, who)
            if Flags.PIN_PATH in flags:
                above[inode, path] = await self._words.above(inode, path)
                await self.authority.may_pin(above[inode, path], path, who)
            await _turn(index)
        if flags & CLAIMS and len({inode for inode, _ in objects}) < len(objects):
            raise BadHold("one object is named twice, and has only one claim to give")
        wish = Wish(objects, flags, holder, reason, ends, requester, above)
        placed: tuple[Hold, ...] = ()
        try:
            placed = await self._enter_or_wait(wish, timeout)
            for index, hold in enumerate(placed):
                await self._words.raise_for(hold)
                await self.authority.may_pin(self.registry.pinned(hold), hold.path, who)
                await _turn(index)
            await self._shelf.put(placed)
            self._must_stand(placed)
        except Held as error:
            inode, path = self._kept_out(wish, error.hold)
            self._tell(LockFailed(self._clock.now(), path, inode, requester, error.hold))
            raise
        except BaseException:
            self._endings.leave_all(placed)
            for hold in placed:
                self._shelf.forget_soon(hold)
            with trio.CancelScope(shield=True):
                await self._shelf.forget_now()
            raise
        for hold in placed:
            self._note_deadline(hold)
            self._tell(Locked(self._clock.now(), hold))
        return placed

    async def _enter_or_wait(self, wish: Wish, patience: float) -> tuple[Hold, ...]:
        asked = self._clock.seconds()

        def enter() -> tuple[Hold, ...]:
            # Of the time that is among its ends none passes while it waits.
            ends = (self.time_in(end.deadline - asked) if isinstance(end, Time) else end for end in wish.ends)
            return self._entrance.enter(evolve(wish, ends=tuple(ends)))

        if patience > 0 and wish.flags & CLAIMS:
            return await self._queue.wait(Waiter(wish.inodes, enter), patience)
        return enter()

    def _may_enter(self, wish: Wish) -> None:
        uid = wish.requester.uid
        self.authority.may_have(uid, self.registry.number_of(uid) + len(wish.objects))

    def _kept_out(self, wish: Wish, rival: Hold) -> tuple[Inode, str]:
        """Which of the objects this hold is in the way of: the one that it is on, above or below."""
        way = {rival.inode, *self._view.above(rival.inode)}
        for inode, path in wish.objects:
            if inode in way or rival.inode in self._view.above(inode):
                return inode, path
        return wish.objects[0]

    def _must_stand(self, holds: Sequence[Hold]) -> None:
        """Accepts that none of these, which were placed together, has ended before anybody heard of it.

        Raises:
            NoSuchHold: one has.
        """
        if holds and self._endings.is_over(holds[0]):
            self._endings.reap(holds)
        for hold in holds:
            self.registry.get(hold.id)

    async def restore(self, hold: Hold) -> None:
        """Takes in a hold that was placed before the server was started, as it was.

        Raises:
            Gone: its inode is not there any more, or its path is another.
        """
        above = await self._words.above(hold.inode, hold.path) if Flags.PIN_PATH in hold.flags else ()
        self.registry.restore(hold, above)
        try:
            await self._words.raise_for(hold)
        except BaseException:
            self._endings.leave(hold)
            raise
        self._note_deadline(hold)

    # --- times --------------------------------------------------------------------------------------------------------

    def until(self, ttl: float, requester: Process) -> Time:
        """The end of a hold that is to last so many seconds from now.

        Raises:
            BadHold: that is no time.
            NotPermitted: it is longer than this user may hold.
        """
        if not (math.isfinite(ttl) and ttl > 0):
            raise BadHold(f"a hold cannot last {ttl:g} seconds")
        self.authority.may_last(requester.uid, ttl)
        return self.time_in(ttl)

    def time_in(self, seconds: float) -> Time:
        """The end that comes in so many seconds; the farthest that a clock can show at most.

        Raises:
            BadHold: no clock goes that far.
        """
        return self._clock.time_in(seconds)

    async def renew(self, ids: Sequence[str], ttl: float, *, requester: Process) -> tuple[Hold, ...]:
        """Has holds end so many seconds from now, all or none. Only those that have a time, and have not ended.

        Raises:
            NoSuchHold: one of them has ended.
            NotPermitted: one is somebody else's, or that is too long.
            BadHold: one does not end with a time.
            NotKept: it could not be written to the state file.
        """
        until = self.until(ttl, requester)
        before = [self.registry.get(name) for name in ids]
        for hold in before:
            if self._endings.is_over(hold):
                raise NoSuchHold(hold.id)
            if not (self.authority.is_own(hold, requester) or requester.uid == 0):
                raise NotPermitted(f"hold {hold.id} is {hold.holder.name}'s, not yours")
            if time_of(hold) is None:
                raise BadHold(f"hold {hold.id} does not end with a time, so there is nothing to renew")
        renewed = [self._renew(hold, until) for hold in before]
        try:
            await self._shelf.put(renewed)
        except BaseException:
            for earlier, hold in zip(before, renewed, strict=True):
                # Another call may have renewed it meanwhile.
                if self._endings.current(hold) is hold:
                    self._renew(earlier, time_of(earlier) or until)
            raise
        return tuple(renewed)

    def _renew(self, hold: Hold, until: Time) -> Hold:
        renewed = self.registry.renew(hold.id, until)
        self._note_deadline(renewed)
        return renewed

    def _note_deadline(self, hold: Hold) -> None:
        if self._deadlines.note(hold):
            self.deadlines_changed.set()
            self.deadlines_changed = trio.Event()

    async def expire(self) -> float | None:
        """Ends the holds whose time is over; the seconds until the next one's, None if there is none."""
        ended = 0
        while (upcoming := self._deadlines.next()) is not None:
            deadline, hold = upcoming
            left = deadline - self._clock.seconds()
            if left > 0:
                break
            self._endings.end(hold, Expired(self._clock.now(), hold))
            ended += 1
            await _turn(ended)
        await self._shelf.forget_now()
        return None if upcoming is None else left

    # --- ending -------------------------------------------------------------------------------------------------------

    async def unlock(
        self, ids: Sequence[str], *, requester: Process, break_it: bool = False, reason: str = ""
    ) -> tuple[Hold, ...]:
        """Ends holds, all or none.

        Args:
            ids: of the holds.
            requester: who asks (exclfs.keeper.authority has who may).
            break_it: release somebody else's, on the record.
            reason: why they are broken, for the record and for their holders.

        Raises:
            BadHold: the reason is none.
            NoSuchHold: there is none with one of these ids.
            NotPermitted: one is somebody else's, or a file that is open.
            NotKept: it could not be taken out of the state file.
        """
        await trio.lowlevel.checkpoint()
        check_reason(reason, self.limits.reason)
        holds: list[Hold] = []
        for name in dict.fromkeys(ids):
            try:
                check_releasable(name)
                hold = self.registry.get(name)
                self.authority.may_end(hold, requester, break_it=break_it)
            except (NoSuchHold, NotPermitted) as error:
                self._tell(UnlockBad(self._clock.now(), name, requester, str(error)))
                raise
            holds.append(hold)
        await self._shelf.take(holds)
        for index, hold in enumerate(holds):
            own = self.authority.is_own(hold, requester)
            at = self._clock.now()
            self._endings.leave(hold, Unlocked(at, hold) if own else Broken(at, hold, requester, reason))
            await _turn(index)
        return tuple(holds)

    def is_own(self, hold: Hold, requester: Process) -> bool:
        """Whether the requester is the holder, who may release it without breaking it."""
        return self.authority.is_own(hold, requester)

    async def end(self, end: Connection | Exit) -> None:
        """Ends the holds that this end ends: the connection was closed, or the process has exited."""
        event = Unlocked if isinstance(end, Connection) else Reaped
        for index, hold in enumerate(self.registry.ending_with(end)):
            self._endings.end(hold, event(self._clock.now(), hold))
            await _turn(index)
        await self._shelf.forget_now()

    async def sweep(self) -> None:
        """Ends the holds on inodes that have been removed behind the mount."""
        inodes = tuple(dict.fromkeys(hold.inode for hold in self.registry.all()))
        for inode in await orphans.among(inodes, self._mirror):
            if not self._words.is_set(inode):
                continue  # it went through the mount before a hold on it stood: who places that is told so
            for hold in self.registry.on(inode):
                self._endings.end(hold, Orphaned(self._clock.now(), hold))
        await self._shelf.forget_now()

    # --- what there is ------------------------------------------------------------------------------------------------

    def on(self, inode: Inode) -> tuple[Hold, ...]:
        """The holds on this inode, its open files among them, oldest first."""
        return self._view.on(inode)

    def covering(self, inode: Inode) -> tuple[Hold, ...]:
        """Every hold that says something about this inode, from above too; oldest first, open files last."""
        return self._view.covering(inode)

    # --- refusing -----------------------------------------------------------------------------------------------------

    async def set_mode(self, mode: Mode, *, requester: Process) -> None:
        """Switches refusing on or off. A removal that begins after the return is treated accordingly.

        Raises:
            NotPermitted: the requester is neither root nor the owner of the mount.
        """
        if requester.uid not in (0, self.owner):
            raise NotPermitted("only root and the owner of the mount may switch its mode")
        async with self._switching:
            before, self.mode = self.mode, mode
            # What was let happen before and is still in flight has to have happened.
            await trio.to_thread.run_sync(partial(self._mirror.barrier, enforcing=mode is Mode.ENFORCE))
            self._queue.serve()  # what was in the way may not be any more
            if before is not mode:
                self._tell(ModeChanged(self._clock.now(), before, mode, requester))

    def verdict(
        self,
        operation: Operation,
        inode: Inode,
        path: str,
        requester: Callable[[], Process],
        parent: Inode | None = None,
    ) -> tuple[Hold, ...]:
        """The holds that refuse this removal, oldest first; none if it may go on. A refusal is told as an event.

        Args:
            operation: what would happen to the inode.
            inode: what the name leads to.
            path: the name, absolute in the mount.
            requester: finds out who asks for the removal; called only where somebody may be refused, for it costs more
                than a verdict.
            parent: the directory that has the name.
        """
        if self.mode is Mode.OFF:
            return ()
        above: tuple[Inode, ...] = ()
        if parent is not None and self.registry.reaches_below:
            above = (parent, *self._view.above(parent))
        refusing = self.registry.refusing(inode, operation, above)
        if refusing and self._endings.reap(refusing):
            refusing = self.registry.refusing(inode, operation, above)
        opened = self._view.openings(inode)
        refusing += tuple(hold for hold in opened if not opened_by(hold, requester()))
        if not refusing:
            return ()
        enforced = self.mode is Mode.ENFORCE
        refused = Refused(self._clock.now(), operation, path, inode, requester(), refusing, enforced)
        self._tell(refused)
        return refusing if enforced else ()


async def _turn(index: int) -> None:
    """Lets others have a turn now and then."""
    if index % AT_A_TIME == AT_A_TIME - 1:
        await trio.lowlevel.checkpoint()
