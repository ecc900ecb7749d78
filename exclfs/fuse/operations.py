"""The operations of which a decision is needed, as pyfuse3 handlers.

Nothing here touches the backing tree. A handler that returns has said PROCEED, and the mirror does it; one that
raises FUSEError has refused. Where FUSE has the parent's nodeid and a name, a question has what a decision needs: the
nodeid of the inode that the name leads to (0 if to none), and as its name PARENT/PATH, the nodeid of the directory that
has the name and the path below the root (exclfs/mirror/questions.c).
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import pyfuse3
from attrs import define, evolve

from exclfs.fuse import errnos, xattrs
from exclfs.holds.errors import HoldError
from exclfs.holds.flags import Operation
from exclfs.holds.holder import Credentials, Process
from exclfs.host.processes import groups_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from exclfs.fuse.xattrs import Xattrs
    from exclfs.holds.hold import Inode
    from exclfs.keeper import Keeper
    from exclfs.mirror import Mirror

RENAME_EXCHANGE: Final = 1 << 1
RENAME_WHITEOUT: Final = 1 << 2

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)


def answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Gives every error of a handler its errno. Without this, one exception would end the mount for everybody."""

    @functools.wraps(handler)
    async def answering(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return await handler(*arguments, **keywords)
        except pyfuse3.FUSEError:
            raise
        except HoldError as error:
            raise pyfuse3.FUSEError(errnos.of(error)) from error
        except Exception:
            log.exception("a handler failed")
            raise pyfuse3.FUSEError(errnos.UNEXPECTED) from None

    return answering


@define
class Policy(pyfuse3.Operations):
    """The policy of one mount.

    Args:
        keeper: gives the verdicts.
        xattrs: answers about inodes.
        mirror: knows the inodes.
        mountpoint: absolute; begins every path that is told.
        describe: a process by its pid (which may be a thread's) and uid (exclfs.host.processes.describe).
    """

    keeper: Keeper
    xattrs: Xattrs
    mirror: Mirror
    mountpoint: str
    describe: Callable[..., Process]

    @answered
    async def unlink(self, inode: int, name: bytes, ctx: Any) -> None:
        """Decides on unlink(2)."""
        self._decide([(Operation.UNLINK, inode, name)], ctx)

    @answered
    async def rmdir(self, inode: int, name: bytes, ctx: Any) -> None:
        """Decides on rmdir(2)."""
        self._decide([(Operation.RMDIR, inode, name)], ctx)

    @answered
    async def rename(self, inode: int, name: bytes, target: int, target_name: bytes, flags: int, ctx: Any) -> None:
        """Decides on renameat2(2): what moves, and what it would replace or change places with."""
        if flags & RENAME_EXCHANGE:
            moves = replaced = Operation.EXCHANGE
        else:
            moves = Operation.WHITEOUT if flags & RENAME_WHITEOUT else Operation.RENAME
            replaced = Operation.REPLACE
        self._decide([(moves, inode, name), (replaced, target, target_name)], ctx)

    def _decide(self, removals: Sequence[tuple[Operation, int, bytes]], ctx: Any) -> None:
        requester = functools.cache(lambda: self._requester(ctx))
        refused = False
        for operation, nodeid, name in removals:
            if nodeid == 0:
                continue
            parent, _, path = name.partition(b"/")
            refused |= bool(
                self.keeper.verdict(
                    operation,
                    self.mirror.identify(nodeid),
                    self._absolute(path),
                    requester,
                    self.mirror.identify(int(parent)),
                )
            )
        if refused:
            raise pyfuse3.FUSEError(errnos.REFUSED)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        """Answers an xattr of exclfs."""
        subject, path = self._subject(inode)
        value = await self.xattrs.get(name, subject, path, ctx.uid, ctx.pid)
        if value is None:
            raise pyfuse3.FUSEError(errnos.NO_ATTRIBUTE)
        return value

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        """Places a hold, if it is exclfs.hold that is set."""
        _only_hold(name)
        subject, path = self._subject(inode)
        requester, who = self._requester(ctx), Credentials(ctx.uid, ctx.gid, groups_of(ctx.pid))
        self._check_is_awaited(ctx)
        await self.xattrs.set_hold(value, subject, path, requester, who)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        """Releases what was placed so."""
        _only_hold(name)
        subject, _ = self._subject(inode)
        requester = self._requester(ctx)
        self._check_is_awaited(ctx)
        await self.xattrs.remove_hold(subject, requester)

    def _subject(self, nodeid: int) -> tuple[Inode, str]:
        inode = self.mirror.identify(nodeid)
        # By this nodeid: what is reached by several mounts has several, each with a path of its own.
        return inode, self._absolute(self.mirror.path(evolve(inode, nodeid=nodeid)))

    def _requester(self, ctx: Any) -> Process:
        seen = self.describe(ctx.pid, uid=ctx.uid)
        if self.mirror.awaits(ctx.pid):
            return seen
        # It was answered without us (decision_timeout) and may have ended: who has the pid now may be somebody else.
        return Process(ctx.pid or None, ctx.uid, user=seen.user)

    def _check_is_awaited(self, ctx: Any) -> None:
        """Accepts a request that is not answered yet. Who has been told no (decision_timeout) must not be obeyed later.

        To be called once all is known of who asks: it had its pid until then, for it was still waiting. A thread that
        has asked for something else meanwhile is not told from one that still waits: FUSE's number of the request is
        not among what pyfuse3 tells.
        """
        if not self.mirror.awaits(ctx.pid):
            raise pyfuse3.FUSEError(errnos.REFUSED)

    def _absolute(self, path: bytes) -> str:
        return os.path.join(self.mountpoint, os.fsdecode(path)) if path else self.mountpoint


def _only_hold(name: bytes) -> None:
    if not xattrs.is_hold(name):
        raise pyfuse3.FUSEError(errnos.READ_ONLY)
