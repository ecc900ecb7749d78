"""Filesystems that are full or read-only: what root may still do there, and that nobody else may through the mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import loops
from harness import start
from twins import ALICE, CAROL, LIBC, ROOT, Twins, as_user, check, fallocate, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]

MIB = 1 << 20
MANY = 80
"""So often that a filesystem has no block left that it had set aside."""


@pytest.fixture(params=[True, False], ids=["passthrough", "nopassthrough"])
def full(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """On an ext4 whose second half is root's, of which a stranger has used up all that was free."""
    with loops.filesystem(tmp_path / "filesystem", "ext4", make=("-m", "50")) as filesystem:
        for name in ("tree", "shadow"):
            (filesystem / name).mkdir()
            (filesystem / name).chmod(0o777)
        with start(tmp_path, source=filesystem / "tree", passthrough=request.param) as mounted:
            twins = Twins(mounted.path, mounted.backing, filesystem / "shadow")
            twins.setup(prepare)
            as_user(CAROL, use_up, cwd=filesystem / "shadow")
            yield twins


def prepare() -> None:
    Path("file").write_bytes(b"x" * 4096)
    os.chmod("file", 0o666)
    os.mkdir("directory")
    os.chmod("directory", 0o777)
    os.mkdir("files")
    os.chmod("files", 0o777)
    for number in range(MANY):
        Path(f"files/{number}").touch()
        os.chmod(f"files/{number}", 0o666)
    Path("source").touch()


def use_up() -> None:
    """Every block: what the filesystem has set aside for a delayed write it gives back when that is done."""
    with open("filler", "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 4096, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                os.fsync(file.fileno())


def with_file(use: Callable[[int], Any]) -> Any:
    fd = os.open("file", os.O_RDWR)
    try:
        return use(fd)
    finally:
        os.close(fd)


def copied(fd: int) -> int:
    return os.copy_file_range(fd, fd, 4096, 0, 64 * 4096)


WAYS: dict[str, Callable[[], Any]] = {
    "write": lambda: with_file(lambda fd: os.pwrite(fd, bytes(4096), 8 * 4096)),
    "fallocate": lambda: with_file(lambda fd: fallocate(fd, 0, MIB, 4096)),
    "copy-file-range": lambda: with_file(copied),
    "mkdir": lambda: [os.mkdir(f"directory/{number}") for number in range(MANY)],
    "long-symlink": lambda: [os.symlink("x" * 3000, f"directory/link{number}") for number in range(MANY)],
    "setxattr": lambda: [os.setxattr(f"files/{number}", "user.test", b"v" * 3000) for number in range(MANY)],
    "link": lambda: [os.link(f"files/{number}", f"directory/{'x' * 240}{number}") for number in range(MANY)],
    "rename": lambda: [os.rename(f"files/{number}", f"files/{'x' * 240}{number}") for number in range(MANY)],
    "truncate": lambda: os.truncate("file", 2 * MIB),
    "unlink": lambda: os.unlink("source"),
}
WITHIN_WHAT_IS_THERE = {"truncate", "unlink"}


def test_the_reserve_is_roots(full: Twins) -> None:
    outcomes = {way: full.both(work, ALICE) for way, work in WAYS.items()}
    assert {way for way, outcome in outcomes.items() if outcome != "ENOSPC"} == WITHIN_WHAT_IS_THERE
    shutil.rmtree(full.mount / "directory")
    shutil.rmtree(full.mount / "files")
    as_user(ROOT, prepare, cwd=full.mount)
    assert not {way for way, work in WAYS.items() if outcome_of(ROOT, work, full.mount) in errno.errorcode.values()}


@pytest.mark.parametrize("first", [ROOT, ALICE], ids=lambda user: user.name)
def test_each_writes_with_its_own_rights_to_a_file_that_both_have_open(full: Twins, first: Any) -> None:
    second = ALICE if first is ROOT else ROOT
    fds = {user: as_user(user, lambda: os.open("file", os.O_RDWR), cwd=full.mount) for user in (first, second)}
    try:
        as_user(ROOT, lambda: os.pwrite(fds[ROOT], bytes(MIB), MIB))
        os.fsync(fds[ROOT])
        with pytest.raises(OSError, match="No space left"):
            as_user(ALICE, lambda: os.pwrite(fds[ALICE], bytes(MIB), 3 * MIB))
        as_user(ALICE, lambda: os.pwrite(fds[ALICE], b"there", MIB))
        assert os.pread(fds[ROOT], 5, MIB) == b"there"
    finally:
        for fd in fds.values():
            os.close(fd)


CHANGES: dict[str, Callable[[], Any]] = {
    "create": lambda: Path("new").write_text("new"),
    "write": lambda: Path("file").write_text("new"),
    "append": lambda: os.close(os.open("file", os.O_WRONLY | os.O_APPEND)),
    "truncate": lambda: os.truncate("file", 0),
    "mkdir": lambda: os.mkdir("new"),
    "symlink": lambda: os.symlink("nowhere", "new"),
    "link": lambda: os.link("file", "new"),
    "unlink": lambda: os.unlink("file"),
    "rmdir": lambda: os.rmdir("directory"),
    "rename": lambda: os.rename("file", "new"),
    "chmod": lambda: os.chmod("file", 0o600),
    "chown": lambda: os.chown("file", 5, 5),
    "utime": lambda: os.utime("file"),
    "setxattr": lambda: os.setxattr("file", "user.test", b"value"),
    "removexattr": lambda: os.removexattr("file", "user.test"),
    "tmpfile": lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)),
    "access": lambda: os.access("file", os.W_OK),
    "read": lambda: Path("file").read_bytes(),
    "list": lambda: sorted(os.listdir(".")),
    "mkdir-there": lambda: os.mkdir("directory"),
    "unlink-none": lambda: os.unlink("none"),
}


LOOKED_AT_FIRST = {"access", "unlink-none"}
"""What the kernel answers by itself: it does not know that the tree behind the mount is read-only."""


@pytest.fixture
def read_only(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """A mount that is read-only, or the mount of a tree that is, beside a tree that is."""
    tree, shadow = tmp_path / "tree", tmp_path / "shadow"
    for directory in (tree, shadow):
        directory.mkdir()
        as_user(ROOT, prepare, cwd=directory)
    bound = [shadow] if request.param == "mount" else [shadow, tree]
    for directory in bound:
        subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
    try:
        flags = ("ro",) if request.param == "mount" else ()
        with start(tmp_path, kernel_flags=flags) as mounted:
            yield Twins(mounted.path, tree, shadow)
    finally:
        for directory in bound:
            subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize("read_only", ["mount"], indirect=True)
@pytest.mark.parametrize("user", [ROOT, ALICE], ids=lambda user: user.name)
def test_nothing_changes_where_all_is_read_only(read_only: Twins, user: Any) -> None:
    outcomes = {way: read_only.both(work, user) for way, work in CHANGES.items()}
    assert list(outcomes.values()).count("EROFS") > 12
    read_only.must_be_equal()


@pytest.mark.parametrize("read_only", ["tree"], indirect=True)
def test_a_read_only_tree_says_so_through_a_mount_that_is_not(read_only: Twins) -> None:
    outcomes = [read_only.both(work) for way, work in CHANGES.items() if way not in LOOKED_AT_FIRST]
    assert outcomes.count("EROFS") > 12
    read_only.must_be_equal()


def test_a_full_filesystem_says_so_at_every_height(full: Twins) -> None:
    """Also when the mount itself has used it up, and room that is freed can be used at once."""

    def again() -> int:
        with open("file", "r+b", buffering=0) as file:
            return file.write(bytes(4096) * 2)

    os.unlink(full.shadow / "filler")
    as_user(CAROL, use_up, cwd=full.mount)
    shown = os.statvfs(full.mount)
    assert shown.f_bavail < 16 < shown.f_bfree
    assert full.both(WAYS["write"], ALICE) == "ENOSPC"
    os.unlink(full.mount / "filler")
    fd = os.open(full.shadow, os.O_RDONLY)
    try:
        check(LIBC.syncfs(fd))  # ext4 gives a freed block to nobody before the journal has it
    finally:
        os.close(fd)
    assert full.succeed(again, ALICE) == 8192
