"""Listings: whole while others create and delete, in any order of telldir and seekdir, with types that are right."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import loops
from harness import start
from program import document
from twins import ALICE, Twins, as_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

MANY = 20_000
LIBC = ctypes.CDLL(None, use_errno=True)


class Dirent(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


LIBC.opendir.restype = ctypes.c_void_p
LIBC.opendir.argtypes = [ctypes.c_char_p]
LIBC.readdir.restype = ctypes.POINTER(Dirent)
LIBC.readdir.argtypes = [ctypes.c_void_p]
LIBC.telldir.restype = ctypes.c_long
LIBC.telldir.argtypes = [ctypes.c_void_p]
LIBC.seekdir.restype = None
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
LIBC.rewinddir.restype = None
LIBC.rewinddir.argtypes = [ctypes.c_void_p]
LIBC.closedir.argtypes = [ctypes.c_void_p]

CHURN = """
import os, sys
number = 0
while True:
    name = f"{sys.argv[1]}/churn{number % 500}"
    try: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError: os.unlink(name)
    number += 1
"""


def entries(directory: Path) -> list[tuple[bytes, int]]:
    """Every entry with the position after it."""
    stream = LIBC.opendir(os.fsencode(directory))
    assert stream
    found = []
    try:
        while entry := LIBC.readdir(stream):
            found.append((entry.contents.name, LIBC.telldir(stream)))
        return found
    finally:
        LIBC.closedir(stream)


def test_each_stable_entry_is_seen_once_while_others_come_and_go(twins: Twins) -> None:
    crowd = twins.behind / "crowd"
    crowd.mkdir()
    for number in range(MANY):
        os.close(os.open(crowd / f"stable{number:05d}", os.O_CREAT | os.O_WRONLY))
    stable = sorted(os.listdir(crowd))
    churning = [subprocess.Popen([sys.executable, "-c", CHURN, str(place)]) for place in (twins.mount / "crowd", crowd)]
    try:
        for _ in range(5):
            listed = [name for name in os.listdir(twins.mount / "crowd") if name.startswith("stable")]
            assert sorted(listed) == stable
    finally:
        for process in churning:
            process.kill()
            process.wait()


def test_every_entry_of_a_large_directory_can_be_used_and_removed(twins: Twins) -> None:
    def use() -> tuple[int, int, list[str]]:
        os.mkdir("crowd")
        for number in range(2000):
            os.close(os.open(f"crowd/{number}", os.O_CREAT | os.O_WRONLY))
        sizes = [entry.stat().st_size for entry in os.scandir("crowd")]
        removed = 0
        with os.scandir("crowd") as listing:  # removing while listing, as rm -r does
            for entry in listing:
                os.unlink(entry.path)
                removed += 1
        return len(sizes), removed, os.listdir("crowd")

    assert twins.succeed(use, ALICE) == (2000, 2000, [])


def test_telldir_and_seekdir_go_back_to_where_they_were(twins: Twins) -> None:
    directory = twins.mount / "directory"
    (twins.behind / "directory").mkdir()
    for number in range(1500):
        (twins.behind / "directory" / f"entry{number}").touch()
    found = entries(directory)
    assert len({name for name, _ in found}) == len(found) == 1502
    stream = LIBC.opendir(os.fsencode(directory))
    try:
        for position in (0, 1, 700, 3, 1400, 1499, 2):
            LIBC.seekdir(stream, found[position][1])
            assert LIBC.readdir(stream).contents.name == found[position + 1][0]
        LIBC.seekdir(stream, found[-1][1])
        assert not LIBC.readdir(stream)
        LIBC.rewinddir(stream)
        assert LIBC.readdir(stream).contents.name == found[0][0]
    finally:
        LIBC.closedir(stream)


def test_a_listing_that_was_begun_again_shows_what_is_new(twins: Twins) -> None:
    (twins.behind / "directory").mkdir()
    stream = LIBC.opendir(os.fsencode(twins.mount / "directory"))
    try:
        while LIBC.readdir(stream):
            pass
        (twins.mount / "directory/new").touch()
        LIBC.rewinddir(stream)
        seen = set()
        while entry := LIBC.readdir(stream):
            seen.add(entry.contents.name)
        assert seen == {b".", b"..", b"new"}
    finally:
        LIBC.closedir(stream)


def test_the_type_of_every_entry_is_right(twins: Twins) -> None:
    def make() -> None:
        Path("file").touch()
        os.mkdir("directory")
        os.symlink("nowhere", "symlink")
        os.mkfifo("fifo")
        os.mknod("socket", stat.S_IFSOCK | 0o600)
        os.mknod("character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(259, 5))

    def types() -> dict[bytes, int]:
        stream = LIBC.opendir(b".")
        seen = {}
        while entry := LIBC.readdir(stream):
            seen[entry.contents.name] = entry.contents.type
        LIBC.closedir(stream)
        return seen

    twins.setup(make)
    seen = twins.succeed(types, ALICE)
    assert len(seen) == 9
    for name, kind in seen.items():
        assert stat.S_IFMT(os.lstat(twins.behind / os.fsdecode(name)).st_mode) == kind << 12


def test_links_of_directories_count_what_is_below(twins: Twins) -> None:
    def use() -> list[int]:
        seen = [os.stat(".").st_nlink]
        for number in range(3):
            os.makedirs(f"one/{number}")
            seen += [os.stat("one").st_nlink, os.stat(".").st_nlink]
        os.rename("one/0", "zero")
        os.rmdir("one/1")
        return [*seen, os.stat("one").st_nlink, os.stat(".").st_nlink]

    twins.succeed(use, ALICE)
    twins.must_be_equal()


def test_many_readers_of_one_directory_stream_and_of_many(twins: Twins) -> None:
    (twins.behind / "directory").mkdir()
    for number in range(3000):
        (twins.behind / "directory" / f"{number}").touch()
    fd = os.open(twins.mount / "directory", os.O_RDONLY)
    try:
        assert all(len(os.listdir(fd)) == 3000 for _ in range(3))
    finally:
        os.close(fd)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", "import os, sys; print(len(os.listdir(sys.argv[1])))", twins.mount / "directory"],
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    assert [int(reader.communicate()[0]) for reader in readers] == [3000] * 4
    assert as_user(ALICE, lambda: len(os.listdir("directory")), cwd=twins.mount) == 3000


# --- how much of a listing is looked up -------------------------------------------------------------------------------


def directory_of(directory: Path, files: int = 300) -> str:
    directory.mkdir()
    for number in range(files):
        (directory / f"file{number}").touch()
    return directory.name


def test_a_listing_that_begins_short_is_whole(twins: Twins) -> None:
    for files in (*range(13, 20), 40):
        directory = twins.mount / directory_of(twins.behind / f"of {files}", files)
        expected = sorted(f"file{number}" for number in range(files))
        assert sorted(os.listdir(directory)) == expected
        with os.scandir(directory) as found:
            assert sorted(entry.name for entry in found if entry.stat()) == expected


def lookups(mounted: Mounted) -> int:
    requests = document("status", mounted.root)["requests"]
    assert isinstance(requests, dict)
    return int(requests["lookup"])


def test_as_much_is_looked_up_as_is_asked_for(mount: Callable[..., Mounted]) -> None:
    mounted = mount()  # it has no habits yet
    names, stats = (directory_of(mounted.backing / name) for name in ("names", "stats"))
    assert len(os.listdir(mounted.root / names)) == 300
    assert inodes(mounted) < 30  # names alone

    with os.scandir(mounted.root / stats) as found:  # a few by a request each, all others along with the listing
        assert all(entry.stat(follow_symlinks=False).st_size == 0 for entry in found)
    assert lookups(mounted) < 30

    spared = []  # who reads all names before asking is found out
    for name in ("after", "again"):
        directory = mounted.root / directory_of(mounted.backing / name)
        before = lookups(mounted)
        for one in os.listdir(directory):
            (directory / one).stat()
        spared.append(300 - (lookups(mounted) - before))
    assert spared[0] < 30
    assert spared[1] > 100


def test_a_directory_that_got_the_number_of_a_listed_one_is_another(tmp_path: Path) -> None:
    """ext4 gives the inode number of a removed directory to the next one at once. (Without a journal, only within the
    second: recently_deleted() in fs/ext4/ialloc.c.)
    """
    with (
        loops.filesystem(tmp_path / "ext4", "ext4") as filesystem,
        start(tmp_path, source=filesystem, entry_timeout=0.0) as mounted,
    ):
        listed = filesystem / directory_of(filesystem / "listed")
        number = listed.stat().st_ino
        assert len(os.listdir(mounted.root / "listed")) == 300  # begun short
        for one in listed.iterdir():
            one.unlink()
        (mounted.root / "listed").rmdir()
        while inodes(mounted) > 1:  # the root; the kernel forgets the directory soon
            time.sleep(0.001)
        other = filesystem / directory_of(filesystem / "other")
        assert other.stat().st_ino == number
        for one in os.listdir(other):
            (mounted.root / "other" / one).stat()  # nobody has listed that one
        known = inodes(mounted)
        assert len(os.listdir(mounted.root / directory_of(filesystem / "names"))) == 300
        assert inodes(mounted) - known < 30


def inodes(mounted: Mounted) -> int:
    number = document("status", mounted.root)["inodes"]
    assert isinstance(number, int)
    return number
