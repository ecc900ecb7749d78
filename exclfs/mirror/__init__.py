"""The mirror: the mechanism, in C. It owns /dev/fuse and the inode table and makes every system call on the tree.

Its rule: **C may allow what no flag concerns; only Python refuses.** The C sources beside this file are one noun
each; mirror.h is the map. This module is their typed face, and the only one that imports the extension.
"""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from attrs import astuple, frozen

from exclfs.holds.errors import Gone
from exclfs.holds.hold import Inode
from exclfs.holds.mode import OpenFiles
from exclfs.mirror import _mirror
from exclfs.mirror.sightings import Sightings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.holder import Credentials

ROOT: Final = 1
"""The nodeid of the root of every mount (FUSE_ROOT_ID)."""


@frozen
class Attributes:
    """What a decision needs to know of an inode, read from the backing tree."""

    uid: int
    gid: int
    mode: int
    nlink: int


@frozen
class Opener:
    """A process that has an inode open, as it was when it opened it."""

    pid: int
    start_time: int
    """Clock ticks since boot (proc_pid_stat(5), field 22)."""
    uid: int
    since: datetime
    """Aware, UTC."""


@frozen
class Identity:
    """What tells an inode from every other, also after a restart. The path only says where to look first."""

    path: bytes
    """Below the root, where it was seen last."""
    ino: int
    birth_seconds: int
    """0 with birth_nanoseconds where the filesystem keeps no birth time."""
    birth_nanoseconds: int
    generation: int
    type: int
    """S_IFMT bits."""
    nested: bool
    """Whether it is on another device than the root."""
    handle_type: int
    handle: bytes
    """Of name_to_handle_at(2); empty if there is none."""


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
        negative_timeout: and that a name is not there.
        decision_timeout: seconds after which a question without an answer is EBUSY.
        threads: how many workers.
        descriptors: how many O_PATH descriptors the inode table may keep open; as many again of nameless inodes.
        passthrough: let the kernel read and write the backing files itself where it can.
        ask_always: put every removal to the policy, held or not.
        privileged: whether this is root: may act as the requester, may open by file handle.
        hold_open: whose open files count against removals by other processes.
        opens: how many descriptors open files and directories may have; 0 if only the system limits them.
        gates: requests can be stopped; see `sightings`.
        cpu_latency: descriptor of /dev/cpu_dma_latency, for writing: no processor halts while requests come one after
            the other. -1 for none. Stays the caller's.
        mounted: st_dev of the mount that is served, which is never entered: inside the tree it is a loop (ELOOP).

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
        negative_timeout: float,
        decision_timeout: float,
        threads: int,
        descriptors: int,
        passthrough: bool,
        ask_always: bool,
        privileged: bool,
        hold_open: OpenFiles = OpenFiles.NONE,
        opens: int = 0,
        gates: bool = False,
        mounted: int = 0,
        cpu_latency: int = -1,
    ) -> None:
        self.descriptor_budget: Final = descriptors
        self._mirror = _mirror.Mirror(
            source,
            device,
            channel,
            entry_timeout=entry_timeout,
            attr_timeout=attr_timeout,
            negative_timeout=negative_timeout,
            decision_timeout=decision_timeout,
            threads=threads,
            descriptors=descriptors,
            passthrough=passthrough,
            ask_always=ask_always,
            privileged=privileged,
            hold_open=list(OpenFiles).index(hold_open),
            opens=opens,
            gates=gates,
            mounted=mounted,
            cpu_latency=cpu_latency,
        )
        self.sightings: Final = Sightings(self._mirror)

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

    def barrier(self, *, enforcing: bool) -> None:
        """Waits for every removal in flight; a verdict that was given before is asked for again. May wait.

        Args:
            enforcing: whether a verdict may be no from now on. Where none is, PROCEED is not asked for again because
                of what came meanwhile.
        """
        self._mirror.barrier(enforcing)

    def ancestors(self, inode: Inode) -> tuple[Inode, ...]:
        """The directories above, the parent first and the root last: by where the inode was seen last.

        After the root come those by other ways, where a directory is reached by several mounts.

        Raises:
            Gone: nobody knows the inode any more.
        """
        try:
            return tuple(_inode(one) for one in self._mirror.ancestors(inode.nodeid))
        except OSError as error:
            raise _typed(error, inode) from None

    def way(self, path: bytes) -> tuple[Inode, ...]:
        """What this path below the root leads to, its parent, and so on to the root, each looked up anew.

        May wait for a disk. Nothing if nothing is there.

        Raises:
            OSError: the backing filesystem failed.
        """
        return tuple(_inode(one) for one in self._mirror.way(path))

    def below(self, directory: Inode, candidates: Sequence[Inode]) -> tuple[Inode, ...]:
        """Those of the candidates that lie below the directory, by the places where they were seen last.

        What is reached by several mounts lies below every directory above each of them.

        Raises:
            Gone: nobody knows the directory any more.
        """
        by_nodeid = {inode.nodeid: inode for inode in candidates}
        try:
            return tuple(by_nodeid[found] for found in self._mirror.below(directory.nodeid, tuple(by_nodeid)))
        except OSError as error:
            raise _typed(error, directory) from None

    def openers(self, inode: Inode) -> tuple[Opener, ...]:
        """Who has the inode open, the last first, once for each open; none if open files do not count.

        Raises:
            Gone: nobody knows the inode any more.
        """
        try:
            found = self._mirror.openers(inode.nodeid)
        except OSError as error:
            raise _typed(error, inode) from None
        return tuple(
            Opener(pid, start_time, uid, datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000))
            for pid, start_time, uid, seconds, nanoseconds in found
        )

    def identity(self, inode: Inode) -> Identity:
        """What tells this inode from every other.

        Raises:
            Gone: nobody knows it any more.
        """
        try:
            found = self._mirror.identity(inode.nodeid)
        except OSError as error:
            raise _typed(error, inode) from None
        try:
            path = self.path(inode)
        except Gone:
            path = b""  # it was restored, and nobody has looked it up since
        return Identity(path, *found)

    def restore(self, identity: Identity) -> Inode:
        """Finds that very inode again. It stays known until `release` is called for it. May wait for a disk.

        Raises:
            Gone: it is not in this tree any more.
            OSError: the backing filesystem failed.
        """
        path, *rest = astuple(identity)
        try:
            return _inode(self._mirror.restore(path, *rest))
        except OSError as error:
            raise _typed(error) from None

    def access(self, inode: Inode, credentials: Credentials, mask: int) -> bool:
        """Whether this user may do this to the inode, by faccessat2(2) as that user. May wait for a disk.

        Args:
            inode: as the backing tree has it; the directories above do not matter.
            credentials: as whom.
            mask: os.R_OK, os.W_OK and os.X_OK.

        Raises:
            Gone: it is not there any more.
            OSError: the backing filesystem failed.
        """
        try:
            return self._mirror.access(inode.nodeid, credentials.uid, credentials.gid, credentials.groups, mask)
        except OSError as error:
            raise _typed(error, inode) from None

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int]) -> Inode:
        """The inode at a path below the root, looked up in the backing tree with this user's rights (openat2(2)).

        It stays known until `release` is called for it.

        Raises:
            OSError: what the lookup said (ENOENT, EACCES, ELOOP for a symlink on the way, EXDEV outside the tree).
        """
        return _inode(self._mirror.resolve(path, uid, gid, tuple(groups)))

    def keep(self, inode: Inode) -> None:
        """Has the inode stay known until `release` is called for it, whatever the kernel forgets.

        Raises:
            Gone: nobody knows it any more.
        """
        try:
            self._mirror.keep(inode.nodeid)
        except OSError as error:
            raise _typed(error, inode) from None

    def release(self, inode: Inode) -> None:
        """Ends what `resolve`, `restore` or `keep` began."""
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

    def latencies(self) -> tuple[int, ...]:
        """How many verdicts took how long, in the buckets of exclfs.mirror.latencies; those that came in time."""
        return self._mirror.latencies()

    def awaits(self, pid: int) -> bool:
        """Whether this process or thread waits for a verdict: then it has not ended, and the number is still its own.

        After decision_timeout the mirror has answered by itself, and whoever asked may be gone.
        """
        return self._mirror.awaits(pid)


def fuse_handle(fd: int) -> FuseHandle:
    """What a descriptor of any FUSE mount leads to, without asking that mount's server (which may be this one).

    Source: fuse_encode_fh() in fs/fuse/inode.c; statx(AT_STATX_DONT_SYNC) for the device.

    Raises:
        OSError: it is not of a FUSE filesystem (EOPNOTSUPP, EINVAL).
    """
    return FuseHandle(*_mirror.fuse_handle(fd))


def _inode(known: tuple[int, int, int, int]) -> Inode:
    nodeid, dev, ino, generation = known
    return Inode(dev, ino, nodeid, generation)


def _typed(error: OSError, inode: Inode | None = None) -> Exception:
    return Gone(inode) if error.errno == errno.ESTALE else error
