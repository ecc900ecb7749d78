"""What clears setuid, setgid and file capabilities: the same writes, truncations and changes of owner as elsewhere."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twins import ALICE, BOB, CAROL, LIBC, ROOT, SHARED, Twins, User, check, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective
PUNCH_HOLE = 0x03


def with_descriptor(use: Callable[[int], object], flags: int = os.O_RDWR) -> None:
    fd = os.open("file", flags)
    try:
        use(fd)
    finally:
        os.close(fd)


def copy_into(fd: int) -> None:
    source = os.open("source", os.O_RDONLY)
    try:
        os.copy_file_range(source, fd, 4)
    finally:
        os.close(source)


def write_to_a_mapping(fd: int) -> None:
    with mmap.mmap(fd, 4) as mapping:
        mapping[0:2] = b"no"


def write_twice(fd: int) -> None:
    os.write(fd, b"one")
    os.fchmod(fd, 0o6777) if os.fstat(fd).st_uid == os.geteuid() else None
    os.write(fd, b"two")


WAYS: dict[str, Callable[[], object]] = {
    "write": lambda: with_descriptor(lambda fd: os.write(fd, b"new")),
    "write-nothing": lambda: with_descriptor(lambda fd: os.write(fd, b"")),
    "pwrite": lambda: with_descriptor(lambda fd: os.pwrite(fd, b"new", 100)),
    "writev": lambda: with_descriptor(lambda fd: os.writev(fd, [b"n", b"ew"])),
    "append": lambda: with_descriptor(lambda fd: os.write(fd, b"new"), os.O_WRONLY | os.O_APPEND),
    "write-twice": lambda: with_descriptor(write_twice),
    "open": lambda: with_descriptor(lambda fd: None),
    "open-truncating": lambda: with_descriptor(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate("file", 2),
    "truncate-same": lambda: os.truncate("file", 4),
    "ftruncate": lambda: with_descriptor(lambda fd: os.ftruncate(fd, 8)),
    "fallocate": lambda: with_descriptor(lambda fd: fallocate(fd, 0, 0, 64)),
    "punch-hole": lambda: with_descriptor(lambda fd: fallocate(fd, PUNCH_HOLE, 0, 2)),
    "copy-file-range": lambda: with_descriptor(copy_into),
    "mmap": lambda: with_descriptor(write_to_a_mapping),
    "chown-to-itself": lambda: os.chown("file", -1, -1),
    "chown": lambda: os.chown("file", ALICE.uid, -1),
    "chgrp": lambda: os.chown("file", -1, SHARED),
    "chmod": lambda: os.chmod("file", 0o6755),
    "utime": lambda: os.utime("file"),
    "link": lambda: os.link("file", "link"),
    "rename": lambda: os.rename("file", "renamed"),
    "setxattr": lambda: os.setxattr("file", "user.test", b"value"),
    "sync": lambda: with_descriptor(os.fsync),
}


def privileged_file(mode: int, group: int) -> None:
    Path("source").write_text("copied")
    Path("file").write_text("text")
    os.chown("file", ALICE.uid, group)
    os.chmod("file", mode)
    os.setxattr("file", "security.capability", CAPABILITY)


@pytest.mark.parametrize("user", [ROOT, ALICE, BOB, CAROL], ids=lambda user: user.name)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_clears_what_it_clears_on_the_backing_tree(twins: Twins, way: str, user: User) -> None:
    os.setxattr(twins.shadow, "security.capability", b"") if False else None
    for mode in (0o6777, 0o2676, 0o4666):
        twins.setup(lambda: privileged_file(mode, SHARED))  # noqa: B023
        twins.both(WAYS[way], user)
        twins.must_be_equal()


@pytest.mark.parametrize("way", ["write", "truncate", "fallocate", "copy-file-range", "chmod"])
def test_a_strangers_write_clears_while_root_has_the_file_open(twins: Twins, way: str) -> None:
    """And root's does not while a stranger has: with passthrough both write through one backing file."""
    for first, second in ((ROOT, CAROL), (CAROL, ROOT)):
        twins.setup(lambda: privileged_file(0o6777, SHARED))

        def use(second: User = second) -> None:
            with_descriptor(lambda _: twins.both(WAYS[way], second))

        for directory in (twins.mount, twins.shadow):
            pass
        twins.both(use, first) if False else nested(twins, first, second, WAYS[way])
        twins.must_be_equal()


def nested(twins: Twins, first: User, second: User, work: Callable[[], object]) -> None:
    """The second does it in each directory while the first has the file there open for writing."""
    from twins import as_user

    for directory in (twins.mount, twins.shadow):
        fd = as_user(first, lambda: os.open("file", os.O_RDWR), cwd=directory)
        try:
            as_user(second, work, cwd=directory) if work is not WAYS["chmod"] else None
            as_user(second, lambda: os.stat("file"), cwd=directory)
            as_user(first, lambda: os.pwrite(fd, b"first", 1), cwd=directory)  # noqa: B023
        finally:
            os.close(fd)


def test_the_right_to_keep_setuid_bits_is_the_writers(twins: Twins) -> None:
    """A descriptor that root opened and a stranger writes to."""
    twins.setup(lambda: privileged_file(0o6777, SHARED))

    def hand_over() -> None:
        check(LIBC.prctl(36, ctypes.c_ulong(0), 0, 0, 0))
        with_descriptor(lambda fd: os.write(fd, b"new"))

    twins.succeed(hand_over, CAROL)
    twins.must_be_equal()
