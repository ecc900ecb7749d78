"""The words: what the mirror is told of the registry.

The rules that this module owns: a hold enters the registry before its word is set, and leaves it before its word is
lowered; so whatever a removal finds, the registry knows. The loop only *tries* to set a word: where a removal of that
inode is in flight a helper thread waits for it, and verdicts go on meanwhile. A hold with PIN_PATH stands once every
directory above it has its bit and its path has been looked up again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from exclfs.holds.errors import Gone
from exclfs.holds.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Credentials
    from exclfs.holds.registry import Registry
    from exclfs.mirror import Attributes, Opener

TRIES: Final = 8
"""How often a path is pinned again that was renamed meanwhile."""


class Mirror(Protocol):
    """What the keeper needs of the mirror. Each method raises Gone for an inode that is not there any more."""

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        """Sets a word. Raises BlockingIOError if it would have to wait and may not."""

    def barrier(self, *, enforcing: bool) -> None:
        """Waits for every removal in flight; a verdict that was given before is asked for again."""

    def attributes(self, inode: Inode) -> Attributes:
        """Owner, mode and links of an inode."""

    def path(self, inode: Inode) -> bytes:
        """Where it was seen last, below the root."""

    def ancestors(self, inode: Inode) -> tuple[Inode, ...]:
        """The directories above, the parent first, by where it was seen last; then those by other mounts."""

    def way(self, path: bytes) -> tuple[Inode, ...]:
        """What a path below the root leads to, its parent, and so on, looked up anew. May wait for a disk."""

    def below(self, directory: Inode, candidates: Sequence[Inode]) -> tuple[Inode, ...]:
        """Those of the candidates that lie below the directory."""

    def openers(self, inode: Inode) -> tuple[Opener, ...]:
        """Who has it open, where open files count."""

    def access(self, inode: Inode, credentials: Credentials, mask: int) -> bool:
        """Whether this user may do this to it (access(2))."""


class Words:
    """The words of one mount.

    Args:
        registry: what they are made of.
        mirror: has them.
        mountpoint: begins the path of every hold.
    """

    def __init__(self, registry: Registry, mirror: Mirror, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._registry = registry
        self._mirror = mirror
        self._being_set: dict[Inode, trio.Event] = {}

    async def raise_for(self, hold: Hold) -> None:
        """Gives the inode of this hold, which is in the registry, its bits, and those above it theirs.

        Raises:
            Gone: the last link of the inode has been removed, or its path cannot be pinned.
        """
        await self._raise(hold.inode)
        if Flags.PIN_PATH in hold.flags:
            await self._pin(hold)

    async def _pin(self, hold: Hold) -> None:
        for _ in range(TRIES):
            for directory in self._registry.pinned(hold):
                with suppress(Gone):  # then the way does not lead through it
                    await self._raise(directory)
            # Every bit is set: from here on no rename changes the way. One that was in flight may have.
            above = await self.above(hold.inode, hold.path)
            before = self._registry.pinned(hold)
            if above == before or not before:  # as it is once the hold has ended
                return
            self._registry.pin(hold, above)
            for directory in before:
                self.lower(directory)
        raise Gone(hold.inode)

    async def above(self, inode: Inode, path: str) -> tuple[Inode, ...]:
        """The directories on the path of this inode, its parent first, each looked up anew.

        Raises:
            Gone: the path does not lead to the inode any more.
        """
        name = os.fsencode(path.removeprefix(self._mountpoint).lstrip("/"))
        found, *above = await trio.to_thread.run_sync(self._mirror.way, name) or (None,)
        if found != inode:
            raise Gone(inode)
        return tuple(above)

    async def _raise(self, inode: Inode) -> None:
        while inode in self._being_set:
            await self._being_set[inode].wait()
        word = self._registry.word(inode)
        try:
            self._mirror.set_word(inode, word, wait=False)
        except BlockingIOError:
            await self._wait_and_set(inode, word)

    async def _wait_and_set(self, inode: Inode, word: int) -> None:
        done = self._being_set[inode] = trio.Event()
        try:
            # Not to be abandoned: the word would be set some time after nobody wants it any more.
            await trio.to_thread.run_sync(partial(self._mirror.set_word, inode, word, wait=True))
        finally:
            del self._being_set[inode]
            done.set()
            self.lower(inode)

    def is_set(self, inode: Inode) -> bool:
        """Whether the mirror has every bit that holds want of it.

        If not, a hold is still being placed, and a removal may have been first; the mirror sets no bit after that.
        """
        if inode in self._being_set:
            return False
        try:
            self._mirror.set_word(inode, self._registry.word(inode), wait=False)
        except (Gone, BlockingIOError):
            return False
        return True

    def lower(self, inode: Inode) -> None:
        """Clears what no hold wants any more. Clearing never waits."""
        if inode in self._being_set:
            return  # it is lowered when that is done
        # Where it would have to wait, a hold has entered whose bits are still to be set; this is done with them.
        with suppress(Gone, BlockingIOError):
            self._mirror.set_word(inode, self._registry.word(inode), wait=False)
