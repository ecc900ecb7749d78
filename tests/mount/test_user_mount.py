"""A mount of an ordinary user by fusermount3: the same for its owner, and closed to everybody else."""

from __future__ import annotations

import mmap
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from twins import BOB, EXCHANGE, NOREPLACE, ROOT, SHARED, Twins, acl_for, as_user, fallocate, rename2
from user_mounts import NOBODY, mounted_by_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]


@pytest.fixture(scope="module")
def users_mount() -> Iterator[Mounted]:
    directory = Path(tempfile.mkdtemp(prefix="exclfs-test-"))
    try:
        with mounted_by_nobody(directory) as mounted:
            yield mounted
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def users_twins(users_mount: Mounted, request: pytest.FixtureRequest) -> Twins:
    name = request.node.name.replace("/", "_")[:100]
    shadow = users_mount.root.parent / "shadow"
    for directory in (users_mount.backing, shadow):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY.uid, NOBODY.gid)
    return Twins(users_mount.root / name, users_mount.backing / name, shadow / name)


def with_file(use: Callable[[int], Any], flags: int = os.O_RDWR) -> Any:
    fd = os.open("file", flags, 0o640)
    try:
        return use(fd)
    finally:
        os.close(fd)


def unlinked(fd: int) -> tuple[int, bytes]:
    os.unlink("file")
    os.write(fd, b"still here")
    os.ftruncate(fd, 5)
    os.fchmod(fd, 0)
    return os.fstat(fd).st_nlink, os.pread(fd, 20, 0)


STEPS: dict[str, Callable[[], Any]] = {
    "create": lambda: Path("file").write_text("text"),
    "read": lambda: Path("file").read_text(),
    "chmod": lambda: os.chmod("file", 0o6755),
    "write": lambda: with_file(lambda fd: os.write(fd, b"new")),
    "append": lambda: with_file(lambda fd: os.write(fd, b"new"), os.O_WRONLY | os.O_APPEND),
    "chgrp": lambda: os.chown("file", -1, SHARED),
    "chgrp-other": lambda: os.chown("file", -1, 4242),
    "chown": lambda: os.chown("file", BOB.uid, -1),
    "utime": lambda: (os.utime("file", ns=(5, 7)), os.stat("file").st_mtime_ns),
    "truncate": lambda: os.truncate("file", 100),
    "fallocate": lambda: with_file(lambda fd: fallocate(fd, 3, 0, 10)),
    "setxattr": lambda: os.setxattr("file", "user.test", b"value"),
    "trusted": lambda: os.setxattr("file", "trusted.test", b"value"),
    "acl": lambda: os.setxattr("file", "system.posix_acl_access", acl_for(BOB.uid, 6)),
    "listxattr": lambda: os.listxattr("file"),
    "mkdir": lambda: os.makedirs("directory/below"),
    "setgid": lambda: (os.chown("directory", -1, SHARED), os.chmod("directory", 0o2775)),
    "default-acl": lambda: os.setxattr("directory", "system.posix_acl_default", acl_for(BOB.uid, 7)),
    "inherit": lambda: (Path("directory/file").touch(), os.mkdir("directory/new")),
    "symlink": lambda: os.symlink("file", "symlink"),
    "link": lambda: os.link("file", "link"),
    "link-symlink": lambda: os.link("symlink", "link of symlink", follow_symlinks=False),
    "fifo": lambda: os.mkfifo("fifo"),
    "device": lambda: os.mknod("null", 0o20666, os.makedev(1, 3)),
    "rename": lambda: os.rename("link", "directory/renamed"),
    "noreplace": lambda: rename2("file", "symlink", NOREPLACE),
    "exchange": lambda: rename2("symlink", "directory", EXCHANGE),
    "exchange-back": lambda: rename2("symlink", "directory", EXCHANGE),
    "readlink": lambda: os.readlink("symlink"),
    "list": lambda: sorted(os.listdir("directory")),
    "rmdir-full": lambda: os.rmdir("directory"),
    "closed": lambda: (os.chmod("directory", 0), os.listdir("directory")),
    "opened": lambda: os.chmod("directory", 0o755),
    "unreadable": lambda: (os.chmod("file", 0), Path("file").read_text()),
    "readable": lambda: os.chmod("file", 0o600),
    "rmdir": lambda: os.rmdir("directory/below"),
    "unlinked": lambda: with_file(unlinked),
    "unnamed": lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)),
    "fsync": lambda: with_file(lambda fd: (os.write(fd, b"x"), os.fsync(fd)), os.O_CREAT | os.O_RDWR),
}


def test_the_owner_sees_no_difference(users_twins: Twins) -> None:
    for step in STEPS.values():
        users_twins.both(step, NOBODY)
    for directory in (users_twins.behind, users_twins.shadow):
        assert sorted(os.listdir(directory)) == ["directory", "fifo", "file", "link of symlink", "symlink"]
    assert as_owner(users_twins.mount) == as_owner(users_twins.shadow) == as_owner(users_twins.behind)


def as_owner(directory: Path) -> dict[str, tuple[int, ...]]:
    """What the owner sees below: root may not enter."""

    def look() -> dict[str, tuple[int, ...]]:
        os.chdir(directory)
        found = {}
        for root, directories, files in os.walk("."):
            for name in (*directories, *files):
                status = os.lstat(os.path.join(root, name))
                found[os.path.join(root, name)] = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
        return found

    return as_user(NOBODY, look)


def test_a_store_to_a_mapping_takes_setuid_bits_as_nothing_does_behind_it(users_twins: Twins) -> None:
    """The server of a user writes what the kernel has collected, and has no right to leave the bits."""

    def store() -> int:
        Path("file").write_bytes(b"content")
        os.chmod("file", 0o6755)

        def write(fd: int) -> None:
            with mmap.mmap(fd, 7) as mapping:
                mapping[0:3] = b"new"
                mapping.flush()

        with_file(write)
        assert Path("file").read_bytes() == b"newtent"
        return stat.S_IMODE(os.stat("file").st_mode)

    assert as_user(NOBODY, store, cwd=users_twins.shadow) == 0o6755
    assert as_user(NOBODY, store, cwd=users_twins.mount) == 0o755


@pytest.mark.parametrize("user", [ROOT, BOB], ids=lambda user: user.name)
def test_nobody_else_may_enter(users_mount: Mounted, user: Any) -> None:
    with pytest.raises(PermissionError):
        as_user(user, lambda: os.listdir(users_mount.root))


def test_its_mount_is_nosuid_and_nodev(users_mount: Mounted) -> None:
    options = next(
        line.split()[5]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(users_mount.root) in line
    )
    assert {"nosuid", "nodev"} <= set(options.split(","))


def test_a_hold_refuses_its_owner_too(users_twins: Twins, users_mount: Mounted) -> None:
    users_mount.expect("refused")
    path = users_twins.mount / "directory"
    as_user(NOBODY, lambda: os.mkdir(path))
    as_user(NOBODY, lambda: os.setxattr(path, "user.exclfs.hold", b"nobody"))
    with pytest.raises(OSError, match="busy"):
        as_user(NOBODY, lambda: os.rmdir(path))
    as_user(NOBODY, lambda: os.removexattr(path, "user.exclfs.hold"))
    as_user(NOBODY, lambda: os.rmdir(path))
