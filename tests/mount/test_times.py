"""Timestamps: which operation touches which, values of any year to the nanosecond, and the time of birth."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from twins import ALICE, AT_FDCWD, CAROL, EXCHANGE, LIBC, ROOT, Twins, check, fallocate, rename2

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]

YEAR = 31_556_952
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_long))


def utimensat(name: str, access: tuple[int, int], modification: tuple[int, int]) -> None:
    times = (Timespec * 2)(Timespec(*access), Timespec(*modification))
    check(LIBC.utimensat(AT_FDCWD, os.fsencode(name), times, 0x100))


def with_file(use: Callable[[int], object], flags: int = os.O_RDWR) -> None:
    fd = os.open("directory/file", flags)
    try:
        use(fd)
    finally:
        os.close(fd)


def write_to_a_mapping(fd: int) -> None:
    with mmap.mmap(fd, 4) as mapping:
        mapping[0:2] = b"no"
        mapping.flush()


FILE, DIRECTORY, OTHER = "directory/file", "directory", "other"
WAYS: dict[str, Callable[[], object]] = {
    "stat": lambda: os.stat(FILE),
    "write": lambda: with_file(lambda fd: os.write(fd, b"new")),
    "write-nothing": lambda: with_file(lambda fd: os.write(fd, b"")),
    "write-to-a-mapping": lambda: with_file(write_to_a_mapping),
    "read": lambda: with_file(lambda fd: os.read(fd, 4), os.O_RDONLY),
    "read-quietly": lambda: with_file(lambda fd: os.read(fd, 4), os.O_RDONLY | os.O_NOATIME),
    "open-truncating": lambda: with_file(lambda fd: None, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate(FILE, 1),
    "truncate-same": lambda: os.truncate(FILE, 4),
    "ftruncate-same": lambda: with_file(lambda fd: os.ftruncate(fd, 4)),
    "fallocate": lambda: with_file(lambda fd: fallocate(fd, 0, 0, 4096)),
    "fallocate-beyond": lambda: with_file(lambda fd: fallocate(fd, 1, 4096, 4096)),
    "chmod": lambda: os.chmod(FILE, 0o600),
    "chmod-same": lambda: os.chmod(FILE, 0o666),
    "chown": lambda: os.chown(FILE, ALICE.uid, -1),
    "link": lambda: os.link(FILE, "directory/link"),
    "link-elsewhere": lambda: os.link(FILE, "other/link"),
    "unlink": lambda: os.unlink("directory/second"),
    "rename": lambda: os.rename("directory/second", "directory/renamed"),
    "rename-elsewhere": lambda: os.rename("directory/second", "other/renamed"),
    "rename-directory": lambda: os.rename("directory/below", "other/below"),
    "replace": lambda: os.rename("directory/third", "directory/second"),
    "exchange": lambda: rename2("directory/third", "directory/below", EXCHANGE),
    "create": lambda: os.close(os.open("directory/new", os.O_CREAT | os.O_WRONLY)),
    "mkdir": lambda: os.mkdir("directory/new"),
    "rmdir": lambda: os.rmdir("directory/below"),
    "symlink": lambda: os.symlink("nowhere", "directory/new"),
    "mkfifo": lambda: os.mkfifo("directory/new"),
    "list": lambda: os.listdir(DIRECTORY),
    "readlink": lambda: os.readlink("directory/symlink"),
    "setxattr": lambda: os.setxattr(FILE, "user.test", b"value"),
    "removexattr": lambda: os.removexattr(FILE, "user.there"),
    "getxattr": lambda: os.getxattr(FILE, "user.there"),
    "now": lambda: utimensat(FILE, (0, UTIME_NOW), (0, UTIME_NOW)),
    "access-now": lambda: utimensat(FILE, (0, UTIME_NOW), (0, UTIME_OMIT)),
    "modification-now": lambda: utimensat(FILE, (0, UTIME_OMIT), (0, UTIME_NOW)),
    "omit-both": lambda: utimensat(FILE, (0, UTIME_OMIT), (0, UTIME_OMIT)),
    "failed-unlink": lambda: Path("directory/none").unlink(missing_ok=True),
}


def prepare() -> None:
    os.mkdir("directory")
    os.mkdir("other")
    os.chmod("directory", 0o777)
    os.chmod("other", 0o777)
    os.mkdir("directory/below")
    os.symlink("nowhere", "directory/symlink")
    for name in ("file", "second", "third"):
        Path("directory", name).write_text("text")
        os.chmod(f"directory/{name}", 0o666)
    os.link("directory/second", "directory/link of second")
    os.setxattr(FILE, "user.there", b"value")
    for name in (FILE, DIRECTORY, "directory/symlink"):
        os.utime(name, ns=(10**18, 10**18), follow_symlinks=False)  # long ago: relatime touches the next access


KEPT = ["directory", "other", FILE, "directory/link of second", "directory/symlink", "."]


@pytest.mark.parametrize("way", WAYS)
def test_each_operation_touches_what_it_touches_on_the_backing_tree(twins: Twins, way: str) -> None:
    twins.setup(prepare)
    twins.touched(WAYS[way], KEPT)


def test_the_table_above_does_touch_something(twins: Twins) -> None:
    twins.setup(prepare)
    assert (FILE, "st_mtime_ns") in twins.touched(WAYS["write"], KEPT)
    assert (FILE, "st_ctime_ns") in twins.touched(WAYS["chmod"], KEPT)
    assert ("directory", "st_mtime_ns") in twins.touched(WAYS["create"], KEPT)
    assert twins.touched(WAYS["stat"], KEPT) == set()


@pytest.mark.parametrize("seconds", [-1, 0, 1, -30 * YEAR, -68 * YEAR, 69 * YEAR, 300 * YEAR, 2**33, 2**40, -(2**40)])
def test_times_of_any_year_to_the_nanosecond(twins: Twins, seconds: int) -> None:
    def set_and_show() -> list[tuple[int, int]]:
        shown = []
        for name in ("directory", FILE, "directory/symlink"):
            for nanoseconds in (0, 1, 123_456_789, 999_999_999):
                utimensat(name, (seconds, nanoseconds), (seconds + 1, 999_999_999 - nanoseconds))
                status = os.lstat(name)
                shown.append((status.st_atime_ns, status.st_mtime_ns))
        return shown

    twins.setup(prepare)
    twins.succeed(set_and_show)
    for name in (FILE, "directory"):
        assert os.stat(twins.behind / name).st_mtime_ns == os.stat(twins.mount / name).st_mtime_ns


@pytest.mark.parametrize("user", [ROOT, ALICE, CAROL], ids=lambda user: user.name)
def test_who_may_set_times(twins: Twins, user: object) -> None:
    """To any value the owner; to now also whoever may write; root always."""

    def owned() -> None:
        prepare()
        os.chown(FILE, ALICE.uid, ALICE.gid)
        Path("closed").write_text("text")

    twins.setup(owned)
    for name in (FILE, "closed"):
        for times in (
            ((5, 6), (7, 8)),
            ((0, UTIME_NOW), (0, UTIME_NOW)),
            ((0, UTIME_NOW), (0, UTIME_OMIT)),
            ((0, UTIME_OMIT), (7, 8)),
            ((0, UTIME_OMIT), (0, UTIME_OMIT)),
            ((0, 10**9), (0, 0)),
        ):
            twins.both(lambda: utimensat(name, *times), user)  # type: ignore[arg-type]  # noqa: B023


def test_the_time_of_birth_is_the_backing_files(twins: Twins) -> None:
    twins.setup(prepare)
    for name in (FILE, "directory", "directory/symlink"):
        assert birth(twins.mount / name) == birth(twins.behind / name) != 0
    before = birth(twins.mount / FILE)
    with open(twins.mount / FILE, "a") as file:
        file.write("more")
    os.rename(twins.mount / FILE, twins.mount / "moved")
    assert birth(twins.mount / "moved") == before


def birth(path: Path) -> int:
    """Nanoseconds, by statx(2); 0 where the filesystem does not say."""
    buffer = ctypes.create_string_buffer(256)
    check(LIBC.statx(AT_FDCWD, os.fsencode(path), 0x100, 0x800, buffer))
    mask = int.from_bytes(buffer.raw[:4], "little")
    if not mask & 0x800:
        return 0
    seconds = int.from_bytes(buffer.raw[80:88], "little", signed=True)
    return seconds * 10**9 + int.from_bytes(buffer.raw[88:92], "little")
