"""What a client means by an object: a descriptor that it passes, or a path in the mount.

The rule that this module owns: the client's rights find the object, never the server's. A descriptor proves that its
owner could open it; a path is looked up in the backing tree, beneath its root, as the client's user. And the event loop
asks nothing of a foreign filesystem: a descriptor is known by its handle alone.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio
from attrs import field, frozen

from exclfs.holds.errors import BadObject, Gone
from exclfs.host import mounts
from exclfs.host.names import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack

    from exclfs.holds.hold import Hold, Inode
    from exclfs.services.connections import Peer
    from exclfs.services.descriptors import Descriptors
    from exclfs.wire.messages import Object

MOST_LOOKUPS: Final = 8
"""How many paths may be looked up at one time; the backing tree may be slow, and threads are few."""

_REMOVED: Final = " (deleted)"
"""What the kernel adds to a name that has been removed (proc_pid_fd(5)); a file may be called so, too."""

Answer = TypeVar("Answer")


class Mirror(Protocol):
    """What is asked of the mirror."""

    def identify(self, nodeid: int, /) -> Inode:
        """The inode that the kernel knows by this number. Raises Gone."""

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int], /) -> Inode:
        """The inode that this user finds by this path, relative to the root. Raises OSError. May wait for a disk."""

    def release(self, inode: Inode, /) -> None:
        """Ends what `resolve` began: the mirror may forget the inode."""

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

    async def find(
        self, object: Object, peer: Peer, passed: Sequence[int], descriptors: Descriptors, after: ExitStack
    ) -> Found:
        """The object that a client names.

        Args:
            object: as in the call.
            peer: who calls.
            passed: the descriptors that came with the call. While they are open the mirror knows their inodes.
            descriptors: their owner, who is told which lie on this mount.
            after: is left what is to be done when the call is over.

        Raises:
            BadObject: it is none, or none that this client can reach.
            Gone: it has no name any more.
        """
        if object.path is not None:
            return await self._by_path(object.path, peer, after)
        index = object.fd or 0
        if index >= len(passed):
            raise BadObject(f"there is no descriptor {index}: {len(passed)} came with the call")
        return self._by_descriptor(index, passed[index], descriptors)

    async def reachable(self, holds: Iterable[Hold], peer: Peer) -> tuple[Hold, ...]:
        """Those of the holds on whose inodes this client could come by their paths."""
        return await self._look_up(lambda: tuple(hold for hold in holds if self._reaches(peer, hold.inode)))

    def _by_descriptor(self, index: int, descriptor: int, descriptors: Descriptors) -> Found:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH:
            raise BadObject(f"descriptor {index} was not opened with O_PATH")
        try:
            st_dev, nodeid, _ = self.fuse_handle(descriptor)
        except OSError:
            st_dev = None
        if st_dev != self.st_dev:
            raise BadObject(f"descriptor {index} is not of the mount {quoted(self.mountpoint)}{_whose(descriptor)}")
        descriptors.lies_on_our_mount(descriptor)
        # The descriptor keeps the number from being given to another inode, for as long as the call is worked on.
        inode = self.mirror.identify(nodeid)
        return Found(inode, self._opened_as(descriptor) or self._absolute(self.mirror.path(inode)))

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

    async def _by_path(self, path: str, peer: Peer, after: ExitStack) -> Found:
        if "\0" in path:
            raise BadObject("a path cannot hold a NUL byte")
        relative = os.fsencode(path).lstrip(b"/") or b"."
        try:
            inode = await self._look_up(lambda: self.mirror.resolve(relative, peer.uid, peer.gid, peer.groups))
        except OSError as error:
            raise BadObject(f"{quoted(self._absolute(relative))}: {os.strerror(error.errno or 0)}") from error
        after.callback(self.mirror.release, inode)
        return Found(inode, self._absolute(relative))  # there was no symlink on the way, so the text can be shortened

    async def _look_up(self, ask: Callable[[], Answer]) -> Answer:
        # Not to be abandoned: what is found has to be released again.
        return await trio.to_thread.run_sync(ask, limiter=self._lookups)

    def _reaches(self, peer: Peer, inode: Inode) -> bool:
        try:
            found = self.mirror.resolve(self.mirror.path(inode) or b".", peer.uid, peer.gid, peer.groups)
        except (OSError, Gone):
            return False
        self.mirror.release(found)
        return found == inode

    def _absolute(self, relative: bytes) -> str:
        return os.path.normpath(os.path.join(self.mountpoint, os.fsdecode(relative.lstrip(b"/"))))


def _whose(descriptor: int) -> str:
    """Where the descriptor does lie, as far as the kernel can say without asking its filesystem."""
    try:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
    return f": it is {quoted(path)}, on another one"
