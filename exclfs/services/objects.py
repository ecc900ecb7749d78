"""What a client means by an object: a descriptor that it passes, or a path in the mount.

The rule that this module owns: the client's rights find the object, never the server's. A descriptor proves that its
owner could open it; a path is looked up in the backing tree, beneath its root, as the client's user. And the event loop
asks nothing of a foreign filesystem: a descriptor is known by its handle alone.
"""

from __future__ import annotations

import fcntl
import os
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio
from attrs import evolve, field, frozen

from exclfs.holds.errors import BadObject, Gone
from exclfs.host import mounts
from exclfs.host.names import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Credentials
    from exclfs.services.descriptors import Passed
    from exclfs.wire.messages import Object

MOST_LOOKUPS: Final = 8
"""How many calls may have their paths looked up at one time; the backing tree may be slow, and threads are few."""
TURN: Final = 100
"""After how many descriptors others have their turn."""

_REMOVED: Final = " (deleted)"
"""What the kernel adds to a name that has been removed (proc_pid_fd(5)); a file may be called so, too."""

Answer = TypeVar("Answer")


class Mirror(Protocol):
    """What is asked of the mirror."""

    def identify(self, nodeid: int, /) -> Inode:
        """The inode that the kernel knows by this number. Raises Gone."""

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int], /) -> Inode:
        """The inode that this user finds by this path, relative to the root. Raises OSError. May wait for a disk."""

    def keep(self, inode: Inode, /) -> None:
        """Has the mirror know the inode until `release`. Raises Gone."""

    def release(self, inode: Inode, /) -> None:
        """Ends what `resolve` or `keep` began: the mirror may forget the inode."""

    def path(self, inode: Inode, /) -> bytes:
        """A path of this inode, relative to the root. Raises Gone."""


@frozen
class Found:
    """An object of the mount."""

    inode: Inode
    path: str
    """Absolute, as it is seen where the server runs."""


@frozen
class Objects:
    """The objects of one mount."""

    mirror: Mirror
    fuse_handle: Callable[[int], tuple[int, int, int]]
    """st_dev, nodeid and generation of a descriptor, asking no filesystem. Raises OSError: it is not of FUSE."""
    mountpoint: str
    st_dev: int
    """Of the files in the mount."""
    mount_id: int | None = None
    """Of the mount at `mountpoint`; without it, descriptors have no paths of their own."""
    _lookups: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(MOST_LOOKUPS))

    async def find(self, objects: Sequence[Object], who: Credentials, passed: Passed) -> list[Found]:
        """The objects that a client names, in their order.

        Args:
            objects: as in the call.
            who: as whom it calls.
            passed: what came with the call. While the descriptors are open the mirror knows their inodes; those of
                paths it knows until the call is over.

        Raises:
            BadObject: one is none, or none that this client can reach.
            Gone: one has no name any more.
        """
        paths = [_relative(one.path) for one in objects if one.path is not None]
        ask = partial(self._by_path, paths, who, self._known(passed.after))
        by_path = iter(await self._look_up(ask) if paths else ())
        found = []
        for number, one in enumerate(objects, 1):
            found.append(next(by_path) if one.fd is None else self._by_descriptor(one.fd, passed))
            if not number % TURN:
                await trio.lowlevel.checkpoint()
        return found

    def keep(self, found: Iterable[Found], passed: Passed) -> None:
        """Has the mirror know these until the call is over, and closes the descriptors that came with it.

        A descriptor of our own mount would keep it busy (umount(2), EBUSY) for as long as the call lasts.

        Raises:
            Gone: one of them is not there any more.
        """
        known = self._known(passed.after)
        for one in found:
            self.mirror.keep(one.inode)
            known.append(one.inode)
        passed.close()

    async def reachable(self, holds: Iterable[Hold], who: Credentials) -> frozenset[str]:
        """The ids of those of the holds on whose inodes this client could come by their paths."""
        return await self._look_up(lambda: frozenset(hold.id for hold in holds if self._reaches(who, hold.inode)))

    def _by_descriptor(self, index: int, passed: Passed) -> Found:
        if index >= len(passed):
            raise BadObject(f"there is no descriptor {index}: {len(passed)} came with the call")
        descriptor = passed[index]
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH:
            raise BadObject(f"descriptor {index} was not opened with O_PATH")
        try:
            st_dev, nodeid, _ = self.fuse_handle(descriptor)
        except OSError:
            st_dev = None
        if st_dev != self.st_dev:
            raise BadObject(f"descriptor {index} is not of the mount {quoted(self.mountpoint)}{_whose(descriptor)}")
        passed.owner.is_harmless(descriptor)
        # The descriptor keeps the number from being given to another inode, for as long as the call is worked on.
        inode = self.mirror.identify(nodeid)
        return Found(inode, self._opened_as(descriptor) or self._path_of(inode, nodeid))

    def _path_of(self, inode: Inode, nodeid: int) -> str:
        """By this nodeid: an inode that is reached by several mounts has several, each with a path of its own."""
        return self._absolute(self.mirror.path(evolve(inode, nodeid=nodeid)))

    def _opened_as(self, descriptor: int) -> str | None:
        """The path by which it was opened: of several hard links the one that was meant. None if it cannot be told.

        The kernel knows it by itself. It is a path of ours only through our very mount: one of another namespace, or a
        bind mount of a directory in it, may have the same text.
        """
        try:
            if mounts.id_of(descriptor) != self.mount_id:
                return None
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return None
        inside = path == self.mountpoint or path.startswith(os.path.join(self.mountpoint, ""))
        return path if inside and not path.endswith(_REMOVED) else None

    async def _look_up(self, ask: Callable[[], Answer]) -> Answer:
        # Not to be abandoned: what is found has to be released again.
        return await trio.to_thread.run_sync(ask, limiter=self._lookups)

    def _by_path(self, paths: Iterable[bytes], who: Credentials, known: list[Inode]) -> list[Found]:
        found = []
        for path in paths:
            trio.from_thread.check_cancelled()
            absolute = self._absolute(path)  # there is no symlink on the way, so the text can be shortened
            try:
                inode = self.mirror.resolve(path, who.uid, who.gid, who.groups)
            except OSError as error:
                raise BadObject(f"{quoted(absolute)}: {os.strerror(error.errno or 0)}") from error
            known.append(inode)
            found.append(Found(inode, absolute))
        return found

    def _known(self, after: ExitStack) -> list[Inode]:
        """Whatever is put in here is released when the call is over."""
        known: list[Inode] = []
        after.callback(self._release, known)
        return known

    def _release(self, known: Iterable[Inode]) -> None:
        for inode in known:
            self.mirror.release(inode)

    def _reaches(self, who: Credentials, inode: Inode) -> bool:
        try:
            found = self.mirror.resolve(self.mirror.path(inode) or b".", who.uid, who.gid, who.groups)
        except (OSError, Gone):
            return False
        self.mirror.release(found)
        return found == inode

    def _absolute(self, relative: bytes) -> str:
        return os.path.normpath(os.path.join(self.mountpoint, os.fsdecode(relative.lstrip(b"/"))))


def _relative(path: str) -> bytes:
    if "\0" in path:
        raise BadObject("a path cannot hold a NUL byte")
    relative = os.fsencode(path).lstrip(b"/") or b"."
    if b".." in relative.split(b"/"):
        raise BadObject(f'{quoted(path)}: a path is named without ".."')
    return relative


def _whose(descriptor: int) -> str:
    """Where the descriptor does lie, as far as the kernel can say without asking its filesystem."""
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
    return f": it is {quoted(path)}, on another one"
