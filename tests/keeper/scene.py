"""A keeper on a tree that is a table in memory: no mount, and no thread but the helper's.

What the table says is what a mirror would say of such a tree; a test that wants the tree changed, changes it.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import trio
import trio.testing
from attrs import define, evolve, field

from exclfs.holds.errors import Gone, HoldError, NotKept
from exclfs.holds.flags import DEFAULT, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Credentials, Holder, Process
from exclfs.holds.lifetime import Connection, End, Exit, Unmount
from exclfs.holds.registry import Registry
from exclfs.keeper import Keeper
from exclfs.mirror import Attributes, Opener

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.events import Event

ROOT: Final = Process(1, 0, "init", start_time=1)
ALICE: Final = Process(10, 1000, "alice-prog", start_time=5)
ALICE_AGAIN: Final = Process(11, 1000, "alice-shell", start_time=6)
BOB: Final = Process(20, 1001, "bob-prog", start_time=7)
OWNER: Final = Process(30, 500, "mounter", start_time=8)
"""A process of the mount's owner."""
MOUNTPOINT: Final = "/mnt"


@define
class Entry:
    """An inode, and the one name by which it was seen last."""

    parent: Inode | None
    name: str
    attributes: Attributes


class Tree:
    """A tree. Everything in it is Alice's, unless it is said to be somebody else's."""

    def __init__(self) -> None:
        self.root = Inode(7, 1, 1)
        self._numbers = itertools.count(100)
        self._entries = {self.root: Entry(None, "", Attributes(uid=0, gid=0, mode=stat.S_IFDIR | 0o755, nlink=2))}
        self._names: dict[tuple[Inode, str], Inode] = {}
        self.words: dict[Inode, int] = {}
        self.in_flight: dict[Inode, threading.Event] = {}
        """The inodes that a removal is at work on, and what ends it."""
        self._waited_for: dict[int, threading.Event] = {}
        """By the threads that wait."""
        self.in_trouble = False
        """Whether the disk does not answer."""
        self.openings: dict[Inode, list[Opener]] = {}
        self.barriers: list[bool] = []
        """Of each, whether it was to enforce."""

    # --- what happens to it -------------------------------------------------------------------------------------------

    def add(self, path: str, *, uid: int = 1000, gid: int = 1000, mode: int | None = None, links: int = 1) -> Inode:
        """Makes a directory (a path with a slash at its end) or a file, and returns it."""
        kind, usual = (stat.S_IFDIR, 0o755) if path.endswith("/") else (stat.S_IFREG, 0o644)
        parent, name = self._place(path.rstrip("/"))
        number = next(self._numbers)
        inode = Inode(7, number, number)
        attributes = Attributes(uid, gid, kind | (usual if mode is None else mode), links)
        self._entries[inode] = Entry(parent, name, attributes)
        self._names[parent, name] = inode
        return inode

    def change(self, inode: Inode, **attributes: int) -> None:
        """Gives it other attributes."""
        entry = self._entries[inode]
        entry.attributes = evolve(entry.attributes, **attributes)

    def link(self, inode: Inode, path: str) -> None:
        """Gives it one name more, by which nobody has seen it."""
        self._names[self._place(path)] = inode

    def move(self, inode: Inode, path: str) -> None:
        """Gives it another name instead of the one by which it was seen last."""
        entry = self._entries[inode]
        assert entry.parent is not None
        del self._names[entry.parent, entry.name]
        entry.parent, entry.name = self._place(path)
        self._names[entry.parent, entry.name] = inode

    def exchange(self, one: Inode, other: Inode) -> None:
        """Has the two change places."""
        first, second = self._entries[one], self._entries[other]
        first.parent, first.name, second.parent, second.name = second.parent, second.name, first.parent, first.name
        for inode, entry in ((one, first), (other, second)):
            assert entry.parent is not None
            self._names[entry.parent, entry.name] = inode

    def remove(self, inode: Inode) -> None:
        """Takes all its names away. Where it was seen last is still remembered, as the mirror does."""
        entry = self._entries[inode]
        entry.attributes = evolve(entry.attributes, nlink=0)
        self._names = {name: named for name, named in self._names.items() if named != inode}

    def forget(self, inode: Inode) -> None:
        """Nobody knows it any more."""
        del self._entries[inode]

    def open(self, inode: Inode, opener: Process, since: datetime) -> None:
        """That process opens it."""
        assert opener.pid is not None
        assert opener.start_time is not None
        self.openings.setdefault(inode, []).insert(0, Opener(opener.pid, opener.start_time, opener.uid, since))

    @property
    def stuck(self) -> int:
        """How many threads wait for a removal in flight."""
        return sum(not removal.is_set() for removal in tuple(self._waited_for.values()))

    def _happens(self, removal: threading.Event) -> None:
        self._waited_for[threading.get_ident()] = removal
        assert removal.wait(30), "the test has failed before it let the removal happen"
        del self._waited_for[threading.get_ident()]

    def _place(self, path: str) -> tuple[Inode, str]:
        above, _, name = path.rpartition("/")
        return self.way(above.encode())[0], name

    # --- exclfs.keeper.Mirror -----------------------------------------------------------------------------------------

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        if word & ~self.words.get(inode, 0):
            if inode in self.in_flight:
                if not wait:
                    raise BlockingIOError
                self._happens(self.in_flight[inode])
            if self.attributes(inode).nlink == 0:
                raise Gone(inode)
        self.words[inode] = word

    def barrier(self, *, enforcing: bool) -> None:
        for removal in tuple(self.in_flight.values()):
            self._happens(removal)
        self.barriers.append(enforcing)

    def attributes(self, inode: Inode) -> Attributes:
        if self.in_trouble:
            raise OSError(5, "Input/output error")
        return self._entry(inode).attributes

    def path(self, inode: Inode) -> bytes:
        inside = (inode, *self.ancestors(inode))
        return "/".join(self._entry(one).name for one in reversed(inside)).lstrip("/").encode()

    def ancestors(self, inode: Inode) -> tuple[Inode, ...]:
        above = []
        while (parent := self._entry(inode).parent) is not None:
            above.append(parent)
            inode = parent
        return tuple(above)

    def way(self, path: bytes) -> tuple[Inode, ...]:
        way = [self.root]
        for name in filter(None, path.decode().split("/")):
            if (way[0], name) not in self._names:
                return ()
            way.insert(0, self._names[way[0], name])
        return tuple(way)

    def below(self, directory: Inode, candidates: Sequence[Inode]) -> tuple[Inode, ...]:
        self._entry(directory)
        return tuple(one for one in candidates if one in self._entries and directory in self.ancestors(one))

    def openers(self, inode: Inode) -> tuple[Opener, ...]:
        self._entry(inode)
        return tuple(self.openings.get(inode, ()))

    def access(self, inode: Inode, credentials: Credentials, mask: int) -> bool:
        attributes = self.attributes(inode)
        if credentials.uid == attributes.uid:
            allowed = attributes.mode >> 6
        elif attributes.gid in (credentials.gid, *credentials.groups):
            allowed = attributes.mode >> 3
        else:
            allowed = attributes.mode
        return credentials.uid == 0 or mask & allowed & 7 == mask

    def _entry(self, inode: Inode) -> Entry:
        try:
            return self._entries[inode]
        except KeyError:
            raise Gone(inode) from None


class Line:
    """A connection that can be cut, or a process that can be killed, without anybody being told."""

    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


class Shelf:
    """A store in memory. `full`: it can be written to no more. `slow`: writing takes until this is set."""

    def __init__(self) -> None:
        self.holds: dict[str, Hold] = {}
        self.full = False
        self.slow: trio.Event | None = None

    async def add(self, holds: Sequence[Hold]) -> None:
        await self._written()
        self.holds |= {hold.id: hold for hold in holds}

    async def remove(self, ids: Sequence[str]) -> None:
        await self._written()
        for name in ids:
            self.holds.pop(name, None)

    async def _written(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.slow is not None:
            with trio.CancelScope(shield=True):  # as a thread that is not abandoned
                await self.slow.wait()
        if self.full:
            raise NotKept("the disk is full")


@define(eq=False)
class Call:
    """A trylock that somebody waits for."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    holds: tuple[Hold, ...] | None = None
    error: HoldError | None = None

    @property
    def waits(self) -> bool:
        return self.holds is None and self.error is None and not self.scope.cancelled_caught


class Scene:
    """A tree with /one, /two, /three and /top/middle/leaf, its keeper, and what the keeper has told."""

    def __init__(self, **settings: Any) -> None:
        seconds = itertools.count()
        self.tree = Tree()
        self.one, self.two, self.three = (self.tree.add(name) for name in ("one", "two", "three"))
        self.top, self.middle = self.tree.add("top/"), self.tree.add("top/middle/")
        self.leaf = self.tree.add("top/middle/leaf")
        self.boottime = 1000.0
        """The clock that decides. Time passes only if a test says so; the wall clock runs on meanwhile."""
        self.processes = {process.pid: process for process in (ROOT, ALICE, ALICE_AGAIN, BOB, OWNER)}
        """What /proc says of whom."""
        self.alive = set(self.processes.values())
        self.keeper = Keeper(
            Registry(),
            self.tree,
            mountpoint=MOUNTPOINT,
            owner=OWNER.uid,
            describe=self._describe,
            is_alive=lambda process: process in self.alive,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(seconds)),
            clock=lambda: self.boottime,
            **settings,
        )
        self.events: list[Event] = []
        self.keeper.subscribe(self.events.append)

    def _describe(self, pid: int, *, uid: int) -> Process:
        return self.processes.get(pid, Process(pid, uid))

    @property
    def told(self) -> list[str]:
        """The names of the events so far."""
        return [event.name for event in self.events]

    def there(self, end: Connection | Exit) -> Line:
        """Has this connection or process be there."""
        line = self.keeper.present[end] = Line()
        return line

    async def trylock(
        self,
        *inodes: Inode,
        flags: Flags = DEFAULT,
        requester: Process = ALICE,
        holder: Process | None = None,
        ends: tuple[End, ...] = (Unmount(),),
        groups: tuple[int, ...] = (),
        timeout: float = 0.0,  # noqa: ASYNC109 - as the keeper has it
    ) -> tuple[Hold, ...]:
        who = holder or requester
        return await self.keeper.trylock(
            [(inode, self.path(inode)) for inode in inodes],
            flags=flags,
            holder=Holder(who.comm or "", who),
            reason="because",
            ends=ends,
            requester=requester,
            credentials=Credentials(requester.uid, requester.uid, groups),
            timeout=timeout,
        )

    async def hold(self, inode: Inode, **wish: Any) -> Hold:
        """One hold on one inode."""
        (hold,) = await self.trylock(inode, **wish)
        return hold

    async def begin(self, nursery: trio.Nursery, *inodes: Inode, **wish: Any) -> Call:
        """Begins a trylock, and returns once it waits or has ended."""
        call = Call()

        async def run() -> None:
            with call.scope:
                try:
                    call.holds = await self.trylock(*inodes, **wish)
                except HoldError as error:
                    call.error = error

        nursery.start_soon(run)
        await self.settle()
        return call

    async def unlock(self, *holds: Hold, requester: Process = ALICE, **how: Any) -> None:
        await self.keeper.unlock([hold.id for hold in holds], requester=requester, **how)
        await self.settle()

    async def settle(self) -> None:
        """Until nothing more happens by itself: every task waits, and every helper thread for a removal in flight."""
        threads = trio.to_thread.current_default_thread_limiter()
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if threads.borrowed_tokens == self.tree.stuck:
                return

    def path(self, inode: Inode) -> str:
        with suppress(Gone):
            return os.path.join(MOUNTPOINT, os.fsdecode(self.tree.path(inode)))
        return "/mnt/gone"

    def verdict(
        self,
        inode: Inode,
        operation: Operation = Operation.UNLINK,
        *,
        parent: Inode | None = None,
        requester: Process = BOB,
    ) -> tuple[Hold, ...]:
        return self.keeper.verdict(operation, inode, self.path(inode), lambda: requester, parent)

    @property
    def holds(self) -> tuple[Hold, ...]:
        return self.keeper.registry.all()

    def words(self) -> dict[Inode, int]:
        """The words that are not zero."""
        return {inode: word for inode, word in self.tree.words.items() if word}

    def must_be_as_if_nothing_had_happened(self) -> None:
        """Nothing is held, no word is left, and nobody waits."""
        assert self.holds == ()
        assert self.words() == {}
        assert self.keeper.waiting == 0
