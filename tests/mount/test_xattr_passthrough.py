"""Extended attributes: every namespace, every size, for every kind of file and user, as on the backing tree."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from twins import ALICE, CAROL, LIBC, ROOT, Twins, User, acl_for, check

pytestmark = [pytest.mark.mount, pytest.mark.root]

NAMES = [
    "user.test",
    "user.",
    "user." + "x" * 250,
    "user." + "x" * 251,
    "trusted.test",
    "trusted.overlay.opaque",
    "security.test",
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "nothing.test",
    "plain",
    "",
]
KINDS = ["file", "directory", "symlink", "fifo", "closed", "sticky"]
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def make() -> None:
    Path("file").write_text("text")
    os.chmod("file", 0o666)
    os.mkdir("directory")
    os.chmod("directory", 0o777)
    os.symlink("file", "symlink")
    os.mkfifo("fifo", 0o666)
    Path("closed").write_text("text")
    os.chmod("closed", 0o600)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)


def value_of(name: str) -> bytes:
    if name.startswith("system.posix_acl"):
        return acl_for(CAROL.uid, 6, base=0o777)
    return CAPABILITY if name == "security.capability" else b"value"


@pytest.mark.parametrize("user", [ROOT, CAROL], ids=lambda user: user.name)
@pytest.mark.parametrize("kind", KINDS)
def test_set_get_list_and_remove(twins: Twins, kind: str, user: User) -> None:
    twins.setup(make)
    for name in NAMES:
        for work in (
            lambda: os.getxattr(kind, name, follow_symlinks=False),  # noqa: B023
            lambda: os.setxattr(kind, name, value_of(name), os.XATTR_REPLACE, follow_symlinks=False),  # noqa: B023
            lambda: os.setxattr(kind, name, value_of(name), os.XATTR_CREATE, follow_symlinks=False),  # noqa: B023
            lambda: os.setxattr(kind, name, value_of(name), os.XATTR_CREATE, follow_symlinks=False),  # noqa: B023
            lambda: os.getxattr(kind, name, follow_symlinks=False),  # noqa: B023
            lambda: sorted(os.listxattr(kind, follow_symlinks=False)),
        ):
            twins.both(work, user)
    twins.must_be_equal()
    for name in NAMES:
        twins.both(lambda: os.removexattr(kind, name, follow_symlinks=False), user)  # noqa: B023
        twins.both(lambda: os.removexattr(kind, name, follow_symlinks=False), user)  # noqa: B023
    twins.must_be_equal()


@pytest.mark.parametrize("user", [ALICE, CAROL], ids=lambda user: user.name)
def test_names_that_only_root_is_shown_are_not_shown_to_others(twins: Twins, user: User) -> None:
    def prepare() -> None:
        make()
        for name in ("trusted.secret", "user.open", "security.test"):
            os.setxattr("file", name, b"value")

    twins.setup(prepare)
    names = twins.succeed(lambda: sorted(os.listxattr("file")), user)
    assert "user.open" in names
    assert ("trusted.secret" in names) == (type_of_filesystem(twins.behind) == "btrfs")  # which shows them to everybody
    assert "trusted.secret" in twins.succeed(lambda: os.listxattr("file"))
    size = sum(len(name) + 1 for name in names)
    assert twins.both(lambda: listed_into(size), user) == size
    assert twins.both(lambda: listed_into(size - 1), user) == "ERANGE"
    assert twins.both(lambda: os.getxattr("file", "trusted.secret"), user) == "ENODATA"


def type_of_filesystem(path: Path) -> str:
    said = subprocess.run(["stat", "-f", "-c", "%T", path], check=True, capture_output=True, text=True)
    return said.stdout.strip()


def listed_into(room: int) -> int:
    buffer = ctypes.create_string_buffer(max(room, 1))
    return check(LIBC.listxattr(b"file", buffer, ctypes.c_size_t(room)))


def got_into(room: int) -> int:
    buffer = ctypes.create_string_buffer(max(room, 1))
    return check(LIBC.getxattr(b"file", b"user.test", buffer, ctypes.c_size_t(room)))


@pytest.mark.parametrize("size", [0, 1, 100, 3000, 4096, 65535, 65536, 65537])
def test_values_of_any_size(twins: Twins, size: int) -> None:
    twins.setup(make)
    for work in (
        lambda: os.setxattr("file", "user.test", os.fsencode("v" * size)),
        lambda: os.getxattr("file", "user.test"),
        lambda: os.listxattr("file"),
        lambda: os.removexattr("file", "user.test"),
    ):
        twins.both(work, ALICE)
        twins.must_be_equal()


def test_a_buffer_that_is_too_small_is_told_so(twins: Twins) -> None:
    twins.setup(make)
    twins.setup(lambda: os.setxattr("file", "user.test", b"0123456789"))
    outcomes: list[Any] = []
    for room in (0, 1, 9, 10, 11, 100, 65536, 1 << 20):
        outcomes.append(twins.both(lambda: got_into(room), ALICE))  # noqa: B023
        outcomes.append(twins.both(lambda: listed_into(room), ALICE))  # noqa: B023
    assert outcomes.count("ERANGE") == 4
    assert errno.errorcode[errno.ERANGE] == "ERANGE"


def test_many_names_are_listed_in_full(twins: Twins) -> None:
    twins.setup(make)

    def fill() -> list[str]:
        for number in range(60):
            os.setxattr("file", f"user.{'n' * 30}{number}", b"v")
        return sorted(os.listxattr("file"))

    assert len(twins.succeed(fill, ALICE)) == 60
    twins.must_be_equal()


def test_xattrs_of_descriptors(twins: Twins) -> None:
    def use() -> tuple[bytes, list[str]]:
        fd = os.open("file", os.O_RDONLY)
        try:
            os.setxattr(fd, "user.test", b"value")
            return os.getxattr(fd, "user.test"), os.listxattr(fd)
        finally:
            os.close(fd)

    twins.setup(make)
    assert twins.succeed(use, ALICE) == (b"value", ["user.test"])


@pytest.mark.parametrize("name", ["system.nfs4_acl", "system.richacl", "system.test"])
def test_other_names_of_the_system_cannot_be_set(twins: Twins, name: str) -> None:
    """The kernel leaves these to the filesystem: the server's privilege must not set one for a stranger."""
    twins.setup(make)
    assert twins.both(lambda: os.setxattr("file", name, b"value"), ALICE) == "ENOTSUP"
    assert twins.both(lambda: os.removexattr("file", name), ALICE) == "ENOTSUP"
    twins.must_be_equal()


def test_a_setgid_bit_goes_with_an_acl_of_somebody_outside_the_group(twins: Twins) -> None:
    def prepare() -> None:
        Path("file").write_text("text")
        os.chown("file", ALICE.uid, 4242)
        os.chmod("file", 0o2755)

    twins.setup(prepare)
    twins.succeed(lambda: os.setxattr("file", "system.posix_acl_access", acl_for(CAROL.uid, 7)), ALICE)
    twins.must_be_equal()
    assert not os.stat(twins.mount / "file").st_mode & 0o2000
