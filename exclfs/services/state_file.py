"""The state file: the holds that outlive their server.

The rules that this module owns:

- What a client was told to be held is on the disk, and what it was told to be released is not any more: a transaction
  is committed before the answer.
- After a restart a hold is back on the very inode that was held, or not at all; and only if none of its ends has come
  meanwhile. What is not back is logged, and not guessed.

The file itself is of state_database.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol, Self

import trio
from attrs import evolve, frozen

from exclfs.holds.errors import Gone, NotKept
from exclfs.holds.lifetime import Connection, Exit, Time, Unmount
from exclfs.host.names import quoted
from exclfs.host.processes import boot_id
from exclfs.services.state_database import Kept, StateFileError, holds_in, open_database, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.lifetime import End
    from exclfs.keeper import Keeper
    from exclfs.mirror import Identity
    from exclfs.services.reaper import Reaper

_ADD: Final = """
    INSERT INTO hold (id, document, digest) VALUES (?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET document = excluded.document, digest = excluded.digest
"""
_REMOVE: Final = "DELETE FROM hold WHERE id = ?"
_NUMBERED: Final = re.compile(r"h(\d+)")

_log = logging.getLogger("exclfs.state")


class Finder(Protocol):
    """What is asked of the mirror."""

    def restore(self, identity: Identity, /) -> Inode:
        """That very inode, known until `release`. Raises Gone; OSError: the backing filesystem failed."""

    def release(self, inode: Inode, /) -> None:
        """Ends what `restore` began."""


@frozen
class Report:
    """What has become of the holds in the file."""

    restored: tuple[Hold, ...]
    gone: tuple[Hold, ...]
    """Their inodes are not in the tree any more."""
    over: tuple[Hold, ...]
    """One of their ends has come meanwhile."""


class StateFile:
    """The open state file of one server: a `Store` of the keeper. Made by `open`."""

    def __init__(
        self,
        path: str,
        database: sqlite3.Connection,
        found: Sequence[Kept],
        identity: Callable[[Inode], Identity],
        mountpoint: str,
    ) -> None:
        self.path = path
        self._database = database
        self._found = found
        """What is to be restored."""
        numbers = (_NUMBERED.fullmatch(kept.hold.id) for kept in found)
        self._next_number = 1 + max((int(number[1]) for number in numbers if number), default=0)
        self._identity = identity
        self._mountpoint = mountpoint
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._in_use = threading.Lock()

    @classmethod
    def open(cls, path: str, root: Identity, identity: Callable[[Inode], Identity], mountpoint: str) -> Self:
        """Opens the file, or makes it if there is none.

        Args:
            path: of the file. It must not lie in the mount.
            root: of the root of the tree, which the file remembers.
            identity: tells an inode from every other (Mirror.identity); called in a thread. Raises Gone, OSError.
            mountpoint: where the tree is mounted now.

        Raises:
            StateFileError: it is not the state file of this tree, or another server has it. It is left as it is.
        """
        database, found = open_database(path, root)
        return cls(path, database, found, identity, mountpoint)

    def close(self) -> None:
        """Lets another server have it, when what is under way is done."""
        with self._in_use:
            self._database.close()

    def next_number(self) -> int:
        """From which number on no id (h1, h2, …) was in the file when it was opened."""
        return self._next_number

    # --- the keeper's store -------------------------------------------------------------------------------------------

    async def add(self, holds: Sequence[Hold]) -> None:
        """Writes these holds, or writes them anew, all or none. They are on the disk when this returns.

        Raises:
            Gone: the inode of one is not there any more.
            NotKept: they could not be written.
        """
        await trio.to_thread.run_sync(self._add, tuple(holds), limiter=self._one_at_a_time)

    async def remove(self, ids: Sequence[str]) -> None:
        """Removes these holds, all or none; those that are not there are removed already.

        Raises:
            NotKept: that could not be written.
        """
        await trio.to_thread.run_sync(self._remove, tuple(ids), limiter=self._one_at_a_time)

    async def forget_unmounted(self) -> None:
        """Removes the holds that end at unmount: for a server that ends in good order. If it has not even restored what
        was in the file, nothing was mounted, and all of it stays.

        Raises:
            NotKept: that could not be written.
        """
        await trio.to_thread.run_sync(self._forget_unmounted, limiter=self._one_at_a_time)

    def _add(self, holds: Sequence[Hold]) -> None:
        with self._transaction():
            self._database.executemany(_ADD, [self._row(hold) for hold in holds])

    def _remove(self, ids: Sequence[str]) -> None:
        with self._transaction():
            self._database.executemany(_REMOVE, [(one,) for one in ids])

    def _forget_unmounted(self) -> None:
        if self._found:
            return
        with self._transaction():
            unmounted = [kept.hold for kept in holds_in(self._database) if Unmount() in kept.hold.ends]
            self._database.executemany(_REMOVE, [(hold.id,) for hold in unmounted])

    def _row(self, hold: Hold) -> tuple[str, str, bytes]:
        relative = evolve(hold, path=hold.path.removeprefix(self._mountpoint).lstrip("/"))
        return (hold.id, *sealed(Kept(relative, self._identity(hold.inode), boot_id())))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._in_use:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._database.execute("COMMIT")
                finally:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            _log.warning("the state file %s could not be written: %s", quoted(self.path), error)
            raise NotKept(f"{quoted(self.path)}: {error}") from error

    # --- after a restart ----------------------------------------------------------------------------------------------

    async def restore(self, keeper: Keeper, mirror: Finder, reaper: Reaper) -> Report:
        """Gives the keeper the holds that were in the file when it was opened; to be called once, before it serves.

        Those that are gone or over are removed from the file, and logged.

        Raises:
            StateFileError: whether an inode is still there cannot be told. The file still has all holds.
        """
        restored, gone, over = [], [], []
        for kept in self._found:
            hold = self._as_of_now(kept)
            try:
                restored.append(await _put_back(hold, kept.identity, keeper, mirror, reaper))
            except _Over as error:
                over.append(hold)
                _log.info("%s was not restored: %s", _named(hold), error)
            except Gone:
                gone.append(hold)
                _log.warning("%s was not restored: its inode is not in the tree any more", _named(hold))
            except OSError as error:
                raise StateFileError(self.path, f"has {_named(hold)}; looking for it: {error.strerror}") from error
        with suppress(NotKept):  # they will not be restored the next time either
            await self.remove([hold.id for hold in (*gone, *over)])
        self._found = ()
        return Report(tuple(restored), tuple(gone), tuple(over))

    def _as_of_now(self, kept: Kept) -> Hold:
        """The hold with its path in the mount as it is mounted now, and its deadline on the clock of this boot."""
        ends = kept.hold.ends if kept.boot == boot_id() else tuple(_on_this_clock(end) for end in kept.hold.ends)
        path = os.path.join(self._mountpoint, kept.hold.path) if kept.hold.path else self._mountpoint
        return evolve(kept.hold, path=path, ends=ends)


class _Over(Exception):
    """An end of a hold has come; says which."""


async def _put_back(hold: Hold, identity: Identity, keeper: Keeper, mirror: Finder, reaper: Reaper) -> Hold:
    """Raises _Over; Gone; OSError: it cannot be told."""
    with ExitStack() as afterwards:
        for end in hold.ends:
            match end:
                case Connection():
                    raise _Over("its connection has ended with the server")
                case Time() if end.deadline <= time.clock_gettime(time.CLOCK_BOOTTIME):
                    raise _Over(f"its time was over at {end.at:%Y-%m-%d %H:%M:%SZ}")
                case Exit():
                    if not reaper.watch_again(end, hold.holder.process.uid):
                        raise _Over(f"process {end.pid} has exited")
                    afterwards.callback(reaper.settle, end)
        inode = mirror.restore(identity)
        afterwards.callback(mirror.release, inode)
        restored = evolve(hold, inode=inode)
        await keeper.restore(restored)
        return restored


def _on_this_clock(end: End) -> End:
    if not isinstance(end, Time):
        return end
    left = (end.at - datetime.now(UTC)).total_seconds()
    return evolve(end, deadline=time.clock_gettime(time.CLOCK_BOOTTIME) + left)


def _named(hold: Hold) -> str:
    return f"hold {hold.id} of {quoted(hold.holder.name)} (pid {hold.holder.process.pid}) on {quoted(hold.path)}"
