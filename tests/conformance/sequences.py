"""Sequences of calls by several users in one small tree, where each finds what the others have done.

A step is data: who, what, and with which names, numbers and descriptors; so a sequence is done on the mount and beside
it, and hypothesis can make it shorter. Names are few, so that they meet.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

import attrs
from hypothesis import strategies as st

from twins import (
    ALICE,
    BOB,
    CAROL,
    EXCHANGE,
    NOREPLACE,
    ROOT,
    SHARED,
    WHITEOUT,
    acl_for,
    fallocate,
    link_descriptor,
    rename2,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ACTING: Final = {"alice": ALICE, "bob": BOB, "root": ROOT}
THERE: Final = ("a", "d", "d/b", "d/e")
"""From the beginning."""
NAMES: Final = (*THERE * 3, "b", "e", "d/a", "d/e/a", "d/e/d", "e/a", "../a", "../d", ".", "s", "s/a")
MODES: Final = (0o000, 0o600, 0o666, 0o700, 0o755, 0o777, 0o1777, 0o2775, 0o4755, 0o6777)
"""Without setgid where the group may not execute: limits.md."""
PLACES: Final = (0, 1, 5, 4095, 4096, 10_000, 70_000)
FLAGS: Final = tuple(
    how | more
    for how in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
    for more in (0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_APPEND | os.O_CREAT)
)
XATTRS: Final = ("user.one", "user.two", "trusted.one")


@attrs.define
class Hands:
    """What a user has in one place: a few descriptors."""

    held: dict[int, int] = attrs.field(factory=dict)

    def take(self, slot: int, fd: int) -> None:
        """In place of the one before."""
        self.drop(slot)
        self.held[slot] = fd

    def drop(self, slot: int) -> None:
        """Closes it, if there is one."""
        if slot in self.held:
            os.close(self.held.pop(slot))

    def empty(self) -> None:
        """Closes all."""
        for slot in list(self.held):
            self.drop(slot)


def opened(hands: Hands, slot: int, name: str, flags: int) -> None:
    hands.take(slot, os.open(name, flags | os.O_NONBLOCK, 0o666))


def unnamed(hands: Hands, slot: int, name: str) -> None:
    hands.take(slot, os.open(name, os.O_TMPFILE | os.O_RDWR, 0o666))


def written(hands: Hands, slot: int, place: int, size: int) -> int:
    return os.pwrite(hands.held[slot], bytes([65 + slot]) * min(size, 9000), place)


# A step does not both read and write one file: whether the next read touches it (relatime, mount(8)) would depend on
# which of the two times is the later one, by less than a tick of the clock.
def mapped(hands: Hands, slot: int, place: int) -> bytes:
    fd = hands.held[slot]
    with mmap.mmap(fd, place + 3) as mapping:
        mapping[place : place + 3] = b"map"
        mapping.flush()
        return mapping[max(place - 5, 0) : place + 3]


def copied(hands: Hands, slot: int, other: int, place: int, size: int) -> int:
    if os.path.sameopenfile(hands.held[slot], hands.held[other]):
        return 0
    return os.copy_file_range(hands.held[slot], hands.held[other], size, 0, place)


def told(hands: Hands, slot: int) -> tuple[int, ...]:
    status = os.fstat(hands.held[slot])
    size = status.st_size if not os.path.isdir(f"/proc/self/fd/{hands.held[slot]}") else 0
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size


def seen(hands: Hands, name: str) -> tuple[int, ...]:
    status = os.lstat(name)
    return status.st_mode, status.st_nlink, status.st_uid, status.st_gid


SLOT = st.integers(0, 2)
NAME = st.sampled_from(NAMES)
MODE = st.sampled_from(MODES)
PLACE = st.sampled_from(PLACES)
XATTR = st.sampled_from(XATTRS)
GROUP = st.sampled_from((SHARED, ALICE.gid, BOB.gid, 0))
TIME = st.sampled_from((5, -(10**9), 10**18 + 7, 2**33 * 10**9))
DOING: Final[dict[str, tuple[Callable[..., Any], tuple[st.SearchStrategy[Any], ...]]]] = {
    "open": (opened, (SLOT, NAME, st.sampled_from(FLAGS))),
    "unnamed": (unnamed, (SLOT, NAME)),
    "close": (lambda hands, slot: hands.drop(slot), (SLOT,)),
    "write": (written, (SLOT, PLACE, PLACE)),
    "read": (lambda hands, slot, place: os.pread(hands.held[slot], 5000, place), (SLOT, PLACE)),
    "ftruncate": (lambda hands, slot, size: os.ftruncate(hands.held[slot], size), (SLOT, PLACE)),
    "fallocate": (
        lambda hands, slot, mode, place, size: fallocate(hands.held[slot], mode, place, size),
        (SLOT, st.sampled_from((0, 1, 3, 0x10, 0x11)), PLACE, PLACE),
    ),
    "map": (mapped, (SLOT, PLACE)),
    "copy": (copied, (SLOT, SLOT, PLACE, PLACE)),
    "fsync": (lambda hands, slot: os.fsync(hands.held[slot]), (SLOT,)),
    "fstat": (told, (SLOT,)),
    "fchmod": (lambda hands, slot, mode: os.fchmod(hands.held[slot], mode), (SLOT, MODE)),
    "fchown": (lambda hands, slot, group: os.fchown(hands.held[slot], -1, group), (SLOT, GROUP)),
    "fsetxattr": (lambda hands, slot, name: os.setxattr(hands.held[slot], name, b"of fd"), (SLOT, XATTR)),
    "futimens": (lambda hands, slot, when: os.utime(hands.held[slot], ns=(when, when + 1)), (SLOT, TIME)),
    "give a name": (lambda hands, slot, name: link_descriptor(hands.held[slot], name), (SLOT, NAME)),
    "mkdir": (lambda hands, name, mode: os.mkdir(name, mode), (NAME, MODE)),
    "rmdir": (lambda hands, name: os.rmdir(name), (NAME,)),
    "unlink": (lambda hands, name: os.unlink(name), (NAME,)),
    "link": (lambda hands, name, other: os.link(name, other, follow_symlinks=False), (NAME, NAME)),
    "symlink": (lambda hands, name, other: os.symlink(name, other), (NAME, st.sampled_from(("s", "e/s", "d/b")))),
    "rename": (
        lambda hands, name, other, flags: rename2(name, other, flags),
        (NAME, NAME, st.sampled_from((0, 0, 0, NOREPLACE, EXCHANGE, WHITEOUT))),
    ),
    "truncate": (lambda hands, name, size: os.truncate(name, size), (NAME, PLACE)),
    "chmod": (lambda hands, name, mode: os.chmod(name, mode), (NAME, MODE)),
    "chown": (
        lambda hands, name, owner, group: os.lchown(name, owner, group),
        (NAME, st.sampled_from((-1, ALICE.uid, BOB.uid)), GROUP),
    ),
    "setxattr": (lambda hands, name, xattr: os.setxattr(name, xattr, b"value"), (NAME, XATTR)),
    "removexattr": (lambda hands, name, xattr: os.removexattr(name, xattr), (NAME, XATTR)),
    "acl": (
        lambda hands, name, kind, may: os.setxattr(name, f"system.posix_acl_{kind}", acl_for(CAROL.uid, may)),
        (NAME, st.sampled_from(("access", "default")), st.sampled_from((0, 5, 7))),
    ),
    "utimens": (
        lambda hands, name, when: os.utime(name, ns=(when, when + 1), follow_symlinks=False),
        (NAME, TIME),
    ),
    "stat": (seen, (NAME,)),
    "list": (lambda hands, name: sorted(os.listdir(name)), (NAME,)),
    "readlink": (lambda hands, name: os.readlink(name), (NAME,)),
    "chdir": (lambda hands, name: os.chdir(name), (NAME,)),
}


@attrs.frozen
class Step:
    """Who does what with what."""

    user: str
    doing: str
    arguments: tuple[Any, ...]

    def take(self, hands: Hands) -> Any:
        """Does it, as whoever calls, where that one is."""
        return DOING[self.doing][0](hands, *self.arguments)


STEPS: Final = st.one_of(
    st.builds(Step, st.sampled_from(tuple(ACTING)), st.just(doing), st.tuples(*arguments))
    for doing, (_, arguments) in DOING.items()
)
"""Any step."""
