"""The reaper: what ends by itself ends without anybody asking: with a process, with its time, with its inode.

The rules that this module owns. A process is known by a pidfd that its caller has passed or that was opened here, and
what is read of it in /proc counts only if it has not exited afterwards: never the bare pid. There is one descriptor for
each process, however many holds end with it, and none for a process with which no hold ends. Whatever goes wrong with
one hold is logged, and the rest goes on.

Nobody waits for the reaper: who is about to be refused has the keeper look at the pidfd first (`Watched.is_alive`).
"""

from __future__ import annotations

import logging
import math
import os
import select
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from exclfs.holds.errors import BadHold, NotPermitted
from exclfs.holds.events import Broken, Expired, Orphaned, Reaped, Unlocked
from exclfs.holds.lifetime import Exit
from exclfs.host import processes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from exclfs.holds.events import Event
    from exclfs.holds.holder import Process
    from exclfs.keeper import Keeper

MOST_OF_A_USER: Final = 1024
"""How many processes one user may have watched at one time."""
SWEEP_EVERY: Final = 30.0
"""Seconds between two looks for inodes that were removed behind the mount."""
LONGEST_SLEEP: Final = 30.0
"""Seconds after which the next deadline is asked for again. Those of a hold go on while the machine is suspended, those
of the event loop do not (CLOCK_BOOTTIME and CLOCK_MONOTONIC, clock_gettime(2))."""
SHORTEST_SLEEP: Final = 0.01
"""Seconds between two looks for what is over, however near the next deadline is."""
AFTER_A_FAILURE: Final = 1.0
"""Seconds until what has failed is tried again."""

_ENDED: Final = (Unlocked, Reaped, Broken, Expired, Orphaned)

_log = logging.getLogger("exclfs.reaper")


@define(eq=False)
class Watched:
    """A process with which holds end."""

    exit: Exit
    pidfd: int
    uid: int
    """Who had it watched."""
    callers: int = 0
    """How many have had it watched and have not settled it."""

    def is_alive(self) -> bool:
        """Whether it has not exited. Asks the kernel now."""
        return self.pidfd >= 0 and not processes.has_exited(self.pidfd)


class Reaper:
    """Watches the processes that holds end with, the next deadline, and the held inodes.

    Args:
        keeper: whose holds these are.
        most: how many processes one user may have watched; root and the owner of the mount as many as they like.
    """

    def __init__(self, keeper: Keeper, *, most: int = MOST_OF_A_USER) -> None:
        self._keeper = keeper
        self._most = most
        self._watched: dict[Exit, Watched] = {}
        self._by_pidfd: dict[int, Watched] = {}
        self._of_user: Counter[int] = Counter()
        self._epoll = select.epoll()
        self._end_subscription = keeper.subscribe(self._heed)

    def __len__(self) -> int:
        """How many processes are watched."""
        return len(self._watched)

    def close(self) -> None:
        """Lets go of every process. From now on they all count as gone."""
        self._end_subscription()
        for watched in tuple(self._watched.values()):
            self._drop(watched)
        self._epoll.close()

    # --- processes ----------------------------------------------------------------------------------------------------

    def watch(self, pidfd: int, requester_uid: int) -> tuple[Exit, Process]:
        """Watches a process, so that holds can end with it. The caller says `settle` when it has placed them, or not.

        Args:
            pidfd: of the process; stays the caller's to close.
            requester_uid: who asks: root, or the real user of the process.

        Returns:
            the end that is its exit, and the process, of the user to whom it really belongs.

        Raises:
            BadHold: it has exited, is not visible here, or the descriptor is not of a process.
            NotPermitted: the process is another user's, or the requester has too many watched.
        """
        end, process = _identify(pidfd, requester_uid)
        if end not in self._watched:
            self._may_watch_one_more(requester_uid)
            try:
                self._take(end, os.dup(pidfd), requester_uid)
            except OSError as error:
                raise NotPermitted(f"the server cannot watch process {end.pid}: {error.strerror}") from error
        self._watched[end].callers += 1
        return end, process

    def watch_again(self, exit: Exit, requester_uid: int) -> bool:
        """Watches a process that was watched before the server was started again; whether it is still there.

        If so the caller says `settle` afterwards. The start time and the boot are the proof that it is the same one.

        Raises:
            OSError: no descriptor is to be had (EMFILE, ENFILE, ENOMEM).
        """
        if exit not in self._watched:
            if exit.start_time is None or exit.boot != processes.boot_id():
                return False
            pidfd = processes.pidfd_of(exit.pid, exit.start_time)
            if pidfd is None:
                return False
            self._take(exit, pidfd, requester_uid)
        self._watched[exit].callers += 1
        return True

    def settle(self, exit: Exit) -> None:
        """What `watch` began is done: from now on the process is watched only while a hold ends with it."""
        watched = self._watched.get(exit)
        if watched is not None:  # it may have exited meanwhile
            watched.callers -= 1
            self._drop_if_unneeded(watched)

    def _may_watch_one_more(self, uid: int) -> None:
        if self._of_user[uid] >= self._most and not self._keeper.authority.is_unlimited(uid):
            raise NotPermitted(f"holds of uid {uid} end with {self._most} processes, which is the limit")

    def _take(self, exit: Exit, pidfd: int, uid: int) -> None:
        """Takes over the descriptor."""
        try:
            self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            os.close(pidfd)
            raise
        watched = Watched(exit, pidfd, uid)
        self._watched[exit] = self._by_pidfd[pidfd] = watched
        self._keeper.present[exit] = watched
        self._of_user[uid] += 1

    def _drop(self, watched: Watched) -> None:
        del self._watched[watched.exit]
        del self._by_pidfd[watched.pidfd]
        del self._keeper.present[watched.exit]
        self._of_user[watched.uid] -= 1
        if not self._of_user[watched.uid]:
            del self._of_user[watched.uid]
        # By name: closing does not take it out of the epoll while the client has a copy (epoll(7), Q6).
        self._epoll.unregister(watched.pidfd)
        os.close(watched.pidfd)
        watched.pidfd = -1

    def _drop_if_unneeded(self, watched: Watched) -> None:
        if not watched.callers and not self._keeper.registry.ending_with(watched.exit):
            self._drop(watched)

    def _heed(self, event: Event) -> None:
        if isinstance(event, _ENDED):
            for end in event.hold.ends:
                if isinstance(end, Exit) and end in self._watched:
                    self._drop_if_unneeded(self._watched[end])

    # --- what goes on all the time ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends what is over, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_again_and_again, self._end_with_the_next_exit)
            nursery.start_soon(_again_and_again, self._expire)
            nursery.start_soon(_again_and_again, self._sweep)

    async def _end_with_the_next_exit(self) -> None:
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        for pidfd, _ in self._epoll.poll(0, 1):
            watched = self._by_pidfd[pidfd]
            self._drop(watched)
            await self._keeper.end(watched.exit)

    async def _expire(self) -> None:
        # Fetched first: what is placed or renewed from here on sets this one.
        changed = self._keeper.deadlines_changed
        seconds = await self._keeper.expire()
        await trio.sleep(SHORTEST_SLEEP)
        with trio.move_on_after(min(math.inf if seconds is None else seconds, LONGEST_SLEEP)):
            await changed.wait()

    async def _sweep(self) -> None:
        await trio.sleep(SWEEP_EVERY)
        await self._keeper.sweep()


async def _again_and_again(turn: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await turn()
        except Exception:
            _log.exception("the reaper failed, and goes on")
            await trio.sleep(AFTER_A_FAILURE)


def _identify(pidfd: int, requester_uid: int) -> tuple[Exit, Process]:
    """Which process this is, and that the requester may have holds end with it. See Reaper.watch."""
    pid = _pid_of(pidfd)
    uid = processes.real_uid(pid)
    process = processes.describe(pid, uid=uid)
    if processes.has_exited(pidfd):
        # So it may have been of another process that all this was read.
        raise BadHold(f"process {pid} has exited; there is nothing left for the hold to end with")
    if process.pid != pid:
        raise BadHold(f"the descriptor is of thread {pid}; a hold ends with a process, which here is {process.pid}")
    if requester_uid not in (0, uid):
        whose = "the server cannot read whose it is" if uid is None else f"it is uid {uid}'s"
        raise NotPermitted(f"only root and its own user may have a hold end with process {pid}: {whose}")
    if process.start_time is None:
        raise BadHold(f"the server cannot read when process {pid} was started (/proc may be mounted with hidepid)")
    return Exit(pid, process.start_time, processes.boot_id()), process


def _pid_of(pidfd: int) -> int:
    try:
        pid = processes.pid_of(pidfd)
    except OSError:
        raise BadHold("the descriptor is not that of a process; pidfd_open(2) makes one") from None
    if pid < 0:
        raise BadHold("the process has exited; there is nothing left for the hold to end with")
    if pid == 0:
        raise BadHold("the process is not visible in the server's pid namespace, so that no hold can end with it")
    return pid
