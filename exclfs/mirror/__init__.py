"""The mirror: the mechanism, in C. It owns /dev/fuse and the inode table and makes every system call on the tree.

Its rule: **C may allow what no flag concerns; only Python refuses.** The C sources beside this file are one noun
each; mirror.h is the map. This module is their typed face, and the only one that imports the extension.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import frozen

from exclfs.holds.errors import Gone
from exclfs.holds.hold import Inode
from exclfs.mirror import _mirror

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = 1
"""The nodeid of the root of every mount (FUSE_ROOT_ID)."""


@frozen
class Attributes:
    """What a decision needs to know of an inode, read from the backing tree."""

    uid: int
    gid: int
    mode: int
    nlink: int


class FuseHandle(NamedTuple):
    """A FUSE inode as its own kernel names it."""

    dev: int
    """st_dev of the mount that it is of."""
    nodeid: int
    generation: int


class Mirror:
    """One mount's mechanism. Its threads run until the mount ends or `stop` is called.

    Args:
        source: descriptor of the root of the backing tree, O_RDONLY | O_DIRECTORY. Stays the caller's.
        device: descriptor of /dev/fuse, mounted. Stays the caller's.
        channel: the mirror's end of the socket pair whose other end pyfuse3 serves. Stays the caller's.
        entry_timeout, attr_timeout: seconds for which the kernel may believe names and attributes.
        decision_timeout: seconds after which a question without an answer is EBUSY.
        threads: how many workers.
        descriptors: how many O_PATH descriptors the inode table may keep open.
        passthrough: let the kernel read and write the backing files itself where it can.
        ask_always: put every removal to the policy, held or not.
        privileged: whether this is root: may act as the requester, may open by file handle.

    Raises:
        OSError: the system refused what the mirror needs.
    """

    def __init__(
        self,
        *,
        source: int,
        device: int,
        channel: int,
        entry_timeout: float,
        attr_timeout: float,
        decision_timeout: float,
        threads: int,
        descriptors: int,
        passthrough: bool,
        ask_always: bool,
        privileged: bool,
    ) -> None:
        self._mirror = _mirror.Mirror(
            source,
            device,
            channel,
            entry_timeout=entry_timeout,
            attr_timeout=attr_timeout,
            decision_timeout=decision_timeout,
            threads=threads,
            descriptors=descriptors,
            passthrough=passthrough,
            ask_always=ask_always,
            privileged=privileged,
        )

    def start(self) -> None:
        """Begins to serve. The process must have opened all it will need: other threads run from here on."""
        self._mirror.start()

    def stop(self) -> None:
        """Ends the threads and frees the table; a second call does nothing. The mount should be gone by then."""
        self._mirror.stop()

    @property
    def finished(self) -> int:
        """An eventfd that becomes readable when the mount has ended."""
        return self._mirror.finished()

    def identify(self, nodeid: int) -> Inode:
        """The inode that the kernel calls this.

        Raises:
            Gone: there is none (any more).
        """
        try:
            return _inode(self._mirror.identify(nodeid))
        except OSError as error:
            raise _typed(error) from None

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        """Sets the flags word. Adding a bit waits for every removal of the inode that is in flight.

        Raises:
            Gone: the last link of the inode has been removed; tested under the lock. The word is as it was.
            BlockingIOError: `wait` is False and a removal is in flight.
        """
        try:
            self._mirror.set_word(inode.nodeid, word, wait)
        except OSError as error:
            raise _typed(error, inode) from None

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int]) -> Inode:
        """The inode at a path below the root, looked up in the backing tree with this user's rights (openat2(2)).

        It stays known until `release` is called for it.

        Raises:
            OSError: what the lookup said (ENOENT, EACCES, ELOOP for a symlink on the way, EXDEV outside the tree).
        """
        return _inode(self._mirror.resolve(path, uid, gid, tuple(groups)))

    def release(self, inode: Inode) -> None:
        """Ends what `resolve` began."""
        self._mirror.release(inode.nodeid)

    def path(self, inode: Inode) -> bytes:
        """Where the inode was seen last, below the root, without a leading slash; empty for the root.

        Raises:
            Gone: nobody knows it any more.
        """
        try:
            return self._mirror.path(inode.nodeid)
        except OSError as error:
            raise _typed(error, inode) from None

    def attributes(self, inode: Inode) -> Attributes:
        """Owner, group, mode and number of links, as they are on the backing tree now.

        Raises:
            Gone: the inode is not there any more.
            OSError: the backing filesystem failed.
        """
        try:
            return Attributes(*self._mirror.attributes(inode.nodeid))
        except OSError as error:
            raise _typed(error, inode) from None

    def counters(self) -> dict[str, int]:
        """How often each kind of request came, and what the mirror holds; for `status`."""
        return self._mirror.counters()


def fuse_handle(fd: int) -> FuseHandle:
    """What a descriptor of any FUSE mount leads to, without asking that mount's server (which may be this one).

    Source: fuse_encode_fh() in fs/fuse/inode.c; statx(AT_STATX_DONT_SYNC) for the device.

    Raises:
        OSError: it is not of a FUSE filesystem (EOPNOTSUPP, EINVAL).
    """
    return FuseHandle(*_mirror.fuse_handle(fd))


def _inode(known: tuple[int, int, int, int]) -> Inode:
    nodeid, dev, ino, _generation = known
    return Inode(dev, ino, nodeid)


def _typed(error: OSError, inode: Inode | None = None) -> Exception:
    return Gone(inode) if error.errno == errno.ESTALE else error
