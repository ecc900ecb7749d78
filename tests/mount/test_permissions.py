"""Who may do what: the kernel checks on the mount as it does on the backing tree, for owner, group, others and root."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twins import ALICE, BOB, CAROL, ROOT, SHARED, Twins, User, acl_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]

USERS = [ROOT, ALICE, BOB, CAROL]
MODES = [0o000, 0o400, 0o040, 0o004, 0o200, 0o111, 0o660, 0o646, 0o750, 0o777]


def everybody(twins: Twins, work: Callable[[], object]) -> None:
    for user in USERS:
        twins.both(work, user)
    twins.must_be_equal()


def opened(name: str, flags: int) -> None:
    os.close(os.open(name, flags | os.O_NOFOLLOW))


def owned_files() -> None:
    for mode in MODES:
        name = f"file{mode:o}"
        Path(name).write_text("text")
        os.chown(name, ALICE.uid, SHARED)
        os.chmod(name, mode)


def owned_directories() -> None:
    for mode in MODES:
        name = f"directory{mode:o}"
        os.mkdir(name)
        Path(name, "inside").write_text("text")
        os.chmod(f"{name}/inside", 0o666)
        os.chown(name, ALICE.uid, SHARED)
        os.chmod(name, mode)


@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_access_and_open_of_files(twins: Twins, mode: int) -> None:
    twins.setup(owned_files)
    name = f"file{mode:o}"
    for wanted in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
        everybody(twins, lambda: os.access(name, wanted))  # noqa: B023
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_NOATIME, os.O_WRONLY | os.O_TRUNC):
        everybody(twins, lambda: opened(name, flags))  # noqa: B023
    everybody(twins, lambda: os.truncate(name, 2))


@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_use_of_directories(twins: Twins, mode: int) -> None:
    twins.setup(owned_directories)
    name = f"directory{mode:o}"
    for work in (
        lambda: sorted(os.listdir(name)),
        lambda: os.stat(f"{name}/inside").st_size,
        lambda: Path(name, "inside").read_text(),
        lambda: os.close(os.open(f"{name}/new", os.O_CREAT | os.O_WRONLY)),
        lambda: os.link(f"{name}/inside", f"{name}/link"),
        lambda: os.rename(f"{name}/new", f"{name}/renamed"),
        lambda: os.unlink(f"{name}/link"),
        lambda: os.rmdir(f"{name}/none"),
        lambda: os.mkdir(f"{name}/below"),
        lambda: os.close(os.open(name, os.O_TMPFILE | os.O_RDWR)),
    ):
        everybody(twins, work)


@pytest.mark.parametrize("mode", [0o640, 0o2755, 0o6771, 0o1777], ids=oct)
@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_chmod_and_chown(twins: Twins, user: User, mode: int) -> None:
    def prepare() -> None:
        for name in ("file", "directory"):
            Path(name).write_text("text") if name == "file" else os.mkdir(name)
            os.chown(name, ALICE.uid, SHARED)
            os.chmod(name, mode)
        os.symlink("nowhere", "symlink")
        os.lchown("symlink", ALICE.uid, ALICE.gid)

    twins.setup(prepare)
    for name in ("file", "directory"):
        for wish in (0o2770, 0o4711, 0o600, 0o1777, mode):
            twins.both(lambda: os.chmod(name, wish), user)  # noqa: B023
            twins.must_be_equal()
    for name in ("file", "directory", "symlink"):
        for owner, group in ((-1, CAROL.gid), (-1, SHARED), (-1, ALICE.gid), (BOB.uid, -1), (ALICE.uid, 7)):
            twins.both(lambda: os.lchown(name, owner, group), user)  # noqa: B023
            twins.must_be_equal()


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_the_sticky_bit_guards_the_files_of_others(twins: Twins, user: User) -> None:
    def prepare() -> None:
        os.mkdir("sticky")
        os.chmod("sticky", 0o1777)
        for owner in (ALICE, BOB):
            for name in (f"sticky/{owner.name}", f"sticky/{owner.name}2"):
                Path(name).write_text("text")
                os.chown(name, owner.uid, owner.gid)

    twins.setup(prepare)
    for work in (
        lambda: os.rename("sticky/bob", "sticky/taken"),
        lambda: os.rename("sticky/alice2", "sticky/bob2"),
        lambda: os.unlink("sticky/alice"),
        lambda: os.link("sticky/bob2", "sticky/bobs"),
        lambda: os.unlink("sticky/bob2"),
    ):
        twins.both(work, user)
        twins.must_be_equal()


@pytest.mark.parametrize("permissions", [0, 1, 4, 6, 7])
def test_acls_are_honoured(twins: Twins, permissions: int) -> None:
    def prepare() -> None:
        Path("file").write_text("text")
        os.mkdir("directory")
        Path("directory/inside").write_text("text")
        for name in ("file", "directory"):
            os.setxattr(name, "system.posix_acl_access", acl_for(CAROL.uid, permissions))

    twins.setup(prepare)
    for work in (
        lambda: [os.access("file", wanted) for wanted in (os.R_OK, os.W_OK, os.X_OK)],
        lambda: Path("file").read_text(),
        lambda: Path("file").write_text("new"),
        lambda: os.listdir("directory"),
        lambda: Path("directory/inside").read_text(),
        lambda: Path("directory/mine").write_text("mine"),
        lambda: os.unlink("directory/inside"),
    ):
        everybody(twins, work)


def test_a_chmod_changes_the_mask_of_an_acl(twins: Twins) -> None:
    twins.setup(lambda: Path("file").write_text("text"))
    twins.setup(lambda: os.setxattr("file", "system.posix_acl_access", acl_for(CAROL.uid, 6)))
    assert twins.both(lambda: Path("file").write_text("new"), CAROL) == 3
    twins.setup(lambda: os.chmod("file", 0o700))
    assert twins.both(lambda: Path("file").write_text("new"), CAROL) == "EACCES"
    twins.must_be_equal()


@pytest.mark.parametrize("user", USERS, ids=lambda user: user.name)
def test_devices_need_the_right_to_make_them(twins: Twins, user: User) -> None:
    twins.both(lambda: os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)), user)
    twins.both(lambda: os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(259, 1048575)), user)
    twins.both(lambda: os.mknod("whiteout", stat.S_IFCHR, 0), user)
    twins.must_be_equal()


def test_a_descriptor_keeps_the_rights_it_was_opened_with(twins: Twins) -> None:
    """A file that may not be read any more can still be read, written and truncated through an old descriptor."""

    def use() -> bytes:
        fd = os.open("file", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.fchmod(fd, 0)
            os.write(fd, b"written")
            os.ftruncate(fd, 5)
            os.fsync(fd)
            return os.pread(fd, 10, 0)
        finally:
            os.close(fd)

    assert twins.both(use, CAROL) == b"writt"
    twins.must_be_equal()


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o444, 0o600], ids=oct)
def test_a_new_file_can_be_used_whatever_its_mode(twins: Twins, mode: int) -> None:
    def make() -> bytes:
        fd = os.open("file", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        try:
            os.write(fd, b"text")
            return os.pread(fd, 10, 0)
        finally:
            os.close(fd)

    assert twins.both(make, CAROL) == b"text"
    twins.must_be_equal()
