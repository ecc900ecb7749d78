"""What clears setuid, setgid and file capabilities: the same writes, truncations and changes of owner as elsewhere."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twins import ALICE, BOB, CAROL, ROOT, SHARED, Twins, User, as_user, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective
PUNCH_HOLE = 0x03
MEMBERS = (ALICE, BOB)
"""Of the file's group, by a supplementary group of theirs."""


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
    if os.fstat(fd).st_uid == os.geteuid():
        os.fchmod(fd, 0o6777)
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
def test_each_way_clears_what_it_clears_on_the_backing_tree(
    twins: Twins, way: str, user: User, request: pytest.FixtureRequest
) -> None:
    modes = [0o6777, 0o4666] if user in MEMBERS else [0o6777, 0o4666, 0o2666]
    for mode in modes:
        twins.setup(lambda: privileged_file(mode, SHARED))  # noqa: B023
        twins.both(WAYS[way], user)
        if way == "mmap" and "nopassthrough" in request.node.name:
            # The server writes what the kernel has collected: a write takes the capabilities, a mapping does not.
            os.removexattr(twins.shadow / "file", "security.capability")
        twins.must_be_equal()


@pytest.mark.parametrize(("first", "second"), [(ROOT, CAROL), (CAROL, ROOT)], ids=["root-first", "stranger-first"])
def test_each_writer_has_its_own_rights_while_both_have_the_file_open(twins: Twins, first: User, second: User) -> None:
    """With passthrough one backing file serves both, and the kernel writes to it with the rights of the first."""
    order = [(first, "write"), (second, "write"), (second, "fallocate"), (first, "append"), (second, "truncate")]
    twins.setup(lambda: privileged_file(0o6777, SHARED))
    with ExitStack() as open_files:
        descriptors = [
            {user: as_user(user, lambda: os.open("file", os.O_RDWR), cwd=directory) for user in (first, second)}
            for directory in (twins.mount, twins.shadow)
        ]
        for of_one in descriptors:
            for fd in of_one.values():
                open_files.callback(os.close, fd)
        for number, (user, way) in enumerate(order):
            for of_one in descriptors:
                as_user(user, lambda: os.pwrite(of_one[user], b"%d" % number, number))  # noqa: B023
            twins.must_be_equal()
            twins.succeed(WAYS[way], user)
            twins.must_be_equal()
            twins.setup(lambda: os.chmod("file", 0o6777))


def test_a_change_of_owner_to_nobody_is_not_passed_on(twins: Twins) -> None:
    """chown(path, -1, -1) clears setuid bits elsewhere; FUSE does not tell its server of it (limits.md)."""
    twins.setup(lambda: privileged_file(0o6777, SHARED))
    as_user(ALICE, lambda: os.chown("file", -1, -1), cwd=twins.mount)
    assert os.stat(twins.mount / "file").st_mode == os.stat(twins.behind / "file").st_mode == 0o106777


@pytest.mark.parametrize("group", [SHARED, BOB.gid], ids=["supplementary", "own"])
def test_a_setgid_bit_without_group_execute_goes_even_when_a_member_writes(
    twins: Twins, any_mount: Mounted, group: int
) -> None:
    """It stays elsewhere; FUSE tells its server of one group of the requester only (limits.md).

    With passthrough the kernel writes as nobody, who is in no group at all.
    """
    twins.setup(lambda: privileged_file(0o2666, group))
    as_user(BOB, WAYS["write"], cwd=twins.mount)
    stays = group == BOB.gid and "nopassthrough" in str(any_mount.root)
    expected = 0o102666 if stays else 0o100666
    assert os.stat(twins.mount / "file").st_mode == os.stat(twins.behind / "file").st_mode == expected
