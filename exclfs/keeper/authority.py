"""Who may do what with holds (DESIGN, section 6).

The rule that this module owns: a hold is placed by who could keep the inode from being removed anyway: root, its
owner, or who may remove it. By that last right only where no name elsewhere makes another's file one's own: a
directory, or a file with one link. Nobody is limited in ending their own.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from exclfs.holds.errors import BadHold, BadObject, Gone, NotPermitted
from exclfs.holds.flags import OF_DIRECTORIES, Flags
from exclfs.holds.lifetime import Connection
from exclfs.holds.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Credentials, Process
    from exclfs.keeper.words import Mirror


@frozen
class Authority:
    """The rights of everybody on one mount."""

    mirror: Mirror
    owner: int
    """The uid of the mount's owner."""
    holders_group: int | None = None
    """The gid whose members may place NO_REMOVE on what they can read (-o holders=GROUP)."""
    limits: Limits = field(factory=Limits)

    def is_unlimited(self, uid: int) -> bool:
        """Whether this user may have as many holds as they like, for as long as they like."""
        return uid in (0, self.owner)

    def may_have(self, uid: int, number: int) -> None:
        """Accepts that this user has so many holds.

        Raises:
            NotPermitted: that is more than the limit.
        """
        if not self.is_unlimited(uid) and number > self.limits.holds:
            raise NotPermitted(
                f"uid {uid} would have {number} holds, and the limit is {self.limits.holds}; release some of them"
            )

    def may_last(self, uid: int, ttl: float) -> None:
        """Accepts that this user places or renews a hold for so many seconds.

        Raises:
            NotPermitted: that is more than the limit.
        """
        if not self.is_unlimited(uid) and ttl > self.limits.ttl:
            raise NotPermitted(f"a hold may last {self.limits.ttl:g} s at most, not {ttl:g} s; renew it before it ends")

    async def may_place(self, inode: Inode, path: str, flags: Flags, who: Credentials) -> None:
        """Accepts that this user places a hold with these flags; of PIN_PATH see `may_pin`. May wait for a disk.

        Raises:
            NotPermitted: they may not.
            BadHold: what the flags want has to be a directory.
            BadObject: the disk does not say whose it is.
            Gone: the inode is not there any more.
        """
        try:
            await self._may_place(inode, path, flags, who)
        except OSError as error:
            raise BadObject(f"{path}: {error.strerror}") from error

    async def _may_place(self, inode: Inode, path: str, flags: Flags, who: Credentials) -> None:
        attributes = self.mirror.attributes(inode)
        if attributes.nlink == 0:
            raise Gone(inode)  # before anybody asks who claims the place where it was
        if flags & OF_DIRECTORIES and not stat.S_ISDIR(attributes.mode):
            raise BadHold(f"{path} is not a directory, which {', '.join((flags & OF_DIRECTORIES).names)} needs")
        if who.uid not in (0, attributes.uid):
            await trio.to_thread.run_sync(partial(self._by_right_or_group, inode, path, flags, who))

    async def may_pin(self, above: Sequence[Inode], path: str, who: Credentials) -> None:
        """Accepts that this user pins a path: they may rename every directory on it. May wait for a disk.

        Args:
            above: the directories on it, the root last, which nobody can rename.
            path: for what is said.
            who: asks.

        Raises:
            NotPermitted: they may not.
            BadObject: the disk does not say whose they are.
            Gone: one of them is not there any more.
        """
        if who.uid == 0:
            return
        for directory in above[:-1]:
            try:
                may = await trio.to_thread.run_sync(self._may_remove, directory, who)
            except OSError as error:
                raise BadObject(f"{path}: {error.strerror}") from error
            if not may:
                raise NotPermitted(f"PIN_PATH on {path} needs the right to rename every directory above it")

    def _by_right_or_group(self, inode: Inode, path: str, flags: Flags, who: Credentials) -> None:
        attributes = self.mirror.attributes(inode)
        unambiguous = stat.S_ISDIR(attributes.mode) or attributes.nlink == 1
        if unambiguous and self._may_remove(inode, who):
            return
        if self.holders_group in (who.gid, *who.groups) and flags == Flags.NO_REMOVE:
            if self.mirror.access(inode, who, os.R_OK):
                return
            raise NotPermitted(f"{path} can be held by who can read it, and you cannot")
        raise NotPermitted(f"only root, the owner of {path} and who may remove it may hold it")

    def _may_remove(self, inode: Inode, who: Credentials) -> bool:
        """Write and search on the parent, and the sticky rule (unlink(2), EPERM)."""
        above = self.mirror.ancestors(inode)
        if not above or not self.mirror.access(above[0], who, os.W_OK | os.X_OK):
            return False
        parent = self.mirror.attributes(above[0])
        if not parent.mode & stat.S_ISVTX:
            return True
        return who.uid in (parent.uid, self.mirror.attributes(inode).uid)

    def is_own(self, hold: Hold, requester: Process) -> bool:
        """Whether the requester is the holder. Of a hold that outlives the process that placed it, that is the user."""
        holder = hold.holder.process
        if holder.uid != requester.uid:
            return False
        if not any(isinstance(end, Connection) for end in hold.ends):
            return True
        # Two of whom nothing more is known, from a foreign pid namespace, are their user.
        return (holder.pid, holder.start_time) == (requester.pid, requester.start_time)

    def may_end(self, hold: Hold, requester: Process, *, break_it: bool) -> None:
        """Accepts that the requester ends this hold: their own; or, with `break_it`, somebody else's.

        Raises:
            NotPermitted: it is somebody else's; `why` says whose, and who may break it.
        """
        if self.is_own(hold, requester):
            return
        whose = f"hold {hold.id} is {hold.holder.name}'s"
        if not self._may_break(hold, requester):
            raise NotPermitted(
                f"{whose}, and only root, the owner of the mount, the owner of the directory it is in and the holder's "
                "own user may break it"
            )
        if not break_it:
            raise NotPermitted(f"{whose} (pid {hold.holder.process.pid}), not yours; --break ends it")

    def _may_break(self, hold: Hold, requester: Process) -> bool:
        if requester.uid in (0, self.owner, hold.holder.process.uid):
            return True
        try:
            attributes = self.mirror.attributes(hold.inode)
            # A link in a directory of one's own gives no right over another's file.
            if not stat.S_ISDIR(attributes.mode) and attributes.nlink != 1:
                return False
            above = self.mirror.ancestors(hold.inode)
            return bool(above) and self.mirror.attributes(above[0]).uid == requester.uid
        except (Gone, OSError):
            return False
