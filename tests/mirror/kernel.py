"""Both neighbours of a mirror, played by a test: the kernel at one socket pair, the policy at the other.

/dev/fuse and a SOCK_SEQPACKET socket read and write alike, one message at a time. So a mirror can be driven without a
mount, without root and without a program whose system call would wait: each step happens when the test says so.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from exclfs.mirror import ROOT, Mirror

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exclfs.holds.hold import Inode

PATIENCE: Final = 10.0
"""Seconds after which a test that still waits has failed."""


class Op(IntEnum):
    """enum fuse_opcode of <linux/fuse.h>."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


HEADER: Final = struct.Struct("=IIQQIIIHH")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
REPLY: Final = struct.Struct("=IiQ")
"""struct fuse_out_header: len, error, unique."""
ATTR: Final = struct.Struct("=6Q10I")
"""struct fuse_attr: ino, size, blocks, three times, their nanoseconds, mode, nlink, uid, gid, rdev, blksize, flags."""
ENTRY: Final = struct.Struct("=4Q2I")
"""struct fuse_entry_out up to its fuse_attr."""
INIT: Final = struct.Struct("=5I44x")
"""struct fuse_init_in: major, minor, max_readahead, flags, flags2, unused."""


def message(
    op: int,
    nodeid: int = ROOT,
    body: bytes = b"",
    *,
    unique: int = 1,
    extensions: int = 0,
    pid: int = 0,
    uid: int | None = None,
) -> bytes:
    """A request as read(2) on /dev/fuse gives it; `extensions` of its bytes are at its end, in units of eight."""
    size = HEADER.size + len(body)
    uid = os.geteuid() if uid is None else uid
    return HEADER.pack(size, op, unique, nodeid, uid, os.getegid(), pid, extensions, 0) + body


@frozen
class Entry:
    """struct fuse_entry_out, as far as tests look."""

    nodeid: int
    generation: int
    ino: int
    nlink: int


class Kernel:
    """Asks the mirror for things, and hears its replies in whatever order they come."""

    def __init__(self, device: socket.socket) -> None:
        self._device = device
        self._last = 0
        self._replies: dict[int, tuple[int, bytes]] = {}

    def ask(self, op: int, nodeid: int = ROOT, body: bytes = b"", *, pid: int = 0, uid: int | None = None) -> int:
        """Sends a request without waiting for its reply; gives the number that the reply will have.

        It is the request of this thread and this user; of nobody that could be named, and of the test's own user.
        """
        self._last += 2  # as the kernel counts
        self._device.send(message(op, nodeid, body, unique=self._last, pid=pid, uid=uid))
        return self._last

    def reply(self, unique: int) -> bytes:
        """Waits for the reply.

        Raises:
            OSError: that was the reply.
        """
        while unique not in self._replies:
            packet = self._device.recv(1 << 21)
            size, error, to = REPLY.unpack_from(packet)
            assert size == len(packet), "the kernel would refuse this reply"
            assert -512 < error <= 0, "the kernel would refuse this error"
            assert to not in self._replies, "a request was answered twice"
            self._replies[to] = (error, packet[REPLY.size :])
        error, body = self._replies.pop(unique)
        if error:
            raise OSError(-error, os.strerror(-error))
        return body

    def call(self, op: int, nodeid: int = ROOT, body: bytes = b"") -> bytes:
        """Asks, and waits for the reply."""
        return self.reply(self.ask(op, nodeid, body))

    def answered(self) -> bool:
        """Whether some reply is there that nobody has waited for."""
        return bool(self._replies) or _is_readable(self._device)

    def init(self, minor: int = 41, flags: int = 0) -> bytes:
        """INIT, the first request on every mount."""
        return self.call(Op.INIT, 0, INIT.pack(7, minor, 131072, flags, 0))

    def lookup(self, name: str, parent: int = ROOT) -> Entry:
        """LOOKUP: afterwards the mirror knows the inode until `forget`."""
        body = self.call(Op.LOOKUP, parent, name.encode() + b"\0")
        nodeid, generation, _, _, _, _ = ENTRY.unpack_from(body)
        attributes = ATTR.unpack_from(body, ENTRY.size)
        return Entry(nodeid, generation, attributes[0], attributes[10])

    def forget(self, nodeid: int, lookups: int = 1) -> None:
        """FORGET, which has no reply; returns when the mirror has done it."""
        self._device.send(message(Op.FORGET, nodeid, struct.pack("=Q", lookups), unique=0))
        self.getattr()  # rigs have one worker unless they ask for more, so requests are done in order

    def getattr(self, nodeid: int = ROOT) -> tuple[int, ...]:
        """GETATTR: the fields of struct fuse_attr."""
        return ATTR.unpack_from(self.call(Op.GETATTR, nodeid, bytes(16)), 16)


@frozen
class Question:
    """What the mirror asks the policy: a FUSE request, in which a removal names the victims."""

    unique: int
    op: int
    nodeid: int
    body: bytes

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths below the root."""
        return tuple(os.fsdecode(path) for _, path in self._names())

    @property
    def parents(self) -> tuple[int, ...]:
        """The nodeids of the directories that have the names."""
        return tuple(int(parent) for parent, _ in self._names())

    def _names(self) -> list[tuple[bytes, bytes]]:
        names = self.body[16:] if self.op == Op.RENAME2 else self.body
        return [(name.partition(b"/")[0], name.partition(b"/")[2]) for name in names.removesuffix(b"\0").split(b"\0")]

    @property
    def second_nodeid(self) -> int:
        """Of a rename: what is at the new name, 0 for nothing."""
        return int(struct.unpack_from("=Q", self.body)[0])


class Policy:
    """Hears questions and answers them, when the test says so."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel

    def greeting(self) -> Question:
        """The INIT that libfuse must hear before anything else."""
        return self.question()

    def question(self) -> Question:
        """Waits for the next question."""
        packet = self.channel.recv(1 << 21)
        size, op, unique, nodeid, *_ = HEADER.unpack_from(packet)
        assert size == len(packet)
        return Question(unique, op, nodeid, packet[HEADER.size :])

    def answer(self, question: Question, error: int = 0, body: bytes = b"") -> None:
        """The verdict: an errno, or PROCEED."""
        self.channel.send(REPLY.pack(REPLY.size + len(body), -error, question.unique) + body)

    proceed = answer

    def refuse(self, question: Question) -> None:
        """The verdict of a hold."""
        self.answer(question, errno.EBUSY)

    def was_asked(self) -> bool:
        """Whether a question is there that nobody has taken."""
        return _is_readable(self.channel)


def _is_readable(end: socket.socket) -> bool:
    return bool(select.select([end], [], [], 0)[0])


@frozen
class Rig:
    """A mirror that serves, with both of its neighbours."""

    tree: Path
    mirror: Mirror
    kernel: Kernel
    policy: Policy
    device: socket.socket
    """The kernel's end; closing it is an unmount."""

    def file(self, name: str = "file") -> tuple[Path, Inode]:
        """A new file that the kernel knows."""
        path = self.tree / name
        path.write_text("content")
        return path, self.mirror.identify(self.kernel.lookup(name).nodeid)

    def unlink(self, path: Path) -> int:
        """Sends UNLINK, without waiting for the reply."""
        return self.kernel.ask(Op.UNLINK, ROOT, os.fsencode(path.name) + b"\0")


@contextmanager
def rig(tree: Path, *, start: bool = True, **settings: Any) -> Iterator[Rig]:
    """Makes a mirror of a tree; nothing of it is left when the block ends."""
    before = sorted(os.listdir("/proc/self/fd"))
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    device, device_of_mirror = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, channel_of_mirror = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wanted = {
        "entry_timeout": 1.0,
        "attr_timeout": 1.0,
        "negative_timeout": 0.0,
        "decision_timeout": PATIENCE * 2,
        "threads": 1,
        "descriptors": 64,
        "passthrough": False,
        "ask_always": False,
        "privileged": os.geteuid() == 0,
    }
    with device, device_of_mirror, channel, channel_of_mirror:
        device.settimeout(PATIENCE)
        channel.settimeout(PATIENCE)
        mirror = Mirror(
            source=source,
            device=device_of_mirror.fileno(),
            channel=channel_of_mirror.fileno(),
            **{**wanted, **settings},
        )
        try:
            made = Rig(tree, mirror, Kernel(device), Policy(channel), device)
            if start:
                mirror.start()
                assert made.policy.greeting().op == Op.INIT
                made.kernel.init()
            yield made
        finally:
            device.close()  # an unmount, before the server goes
            mirror.stop()
            os.close(source)
    assert sorted(os.listdir("/proc/self/fd")) == before, "the mirror left a descriptor open"
