"""What is in files: holes, allocation, copies, appending, mappings and direct I/O give the same bytes as elsewhere."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import needs
from twins import ALICE, LIBC, ROOT, Twins, as_user, check, fallocate, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE, WRITE_ZEROES = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40, 0x80


def on_file(use: Callable[[int], Any], flags: int = os.O_RDWR | os.O_CREAT) -> Any:
    fd = os.open("file", flags, 0o666)
    try:
        return use(fd)
    finally:
        os.close(fd)


def sought(fd: int, position: int, whence: int) -> int | str:
    try:
        return os.lseek(fd, position, whence)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_holes_are_found_where_they_are(twins: Twins) -> None:
    def use(fd: int) -> list[int | str]:
        os.ftruncate(fd, 40 * BLOCK)
        os.pwrite(fd, b"x" * BLOCK, 8 * BLOCK)
        os.pwrite(fd, b"x", 30 * BLOCK)
        os.fsync(fd)
        return [
            sought(fd, position, whence)
            for position in (0, 5, 8 * BLOCK, 9 * BLOCK, 31 * BLOCK, 40 * BLOCK, 41 * BLOCK, -1)
            for whence in (os.SEEK_DATA, os.SEEK_HOLE, os.SEEK_SET, os.SEEK_END)
        ]

    found = twins.succeed(lambda: on_file(use), ALICE)
    assert 8 * BLOCK in found
    assert "ENXIO" in found


@pytest.mark.parametrize(
    "mode",
    [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE, ZERO, ZERO | KEEP_SIZE, 0x100],
    ids=hex,
)
@pytest.mark.parametrize("place", [(0, BLOCK), (4 * BLOCK, 8 * BLOCK), (100, 200), (60 * BLOCK, 8 * BLOCK), (0, 0)])
def test_fallocate(twins: Twins, mode: int, place: tuple[int, int]) -> None:
    def use(fd: int) -> tuple[int, int]:
        os.write(fd, random.Random(1).randbytes(64 * BLOCK))
        fallocate(fd, mode, *place)
        os.fsync(fd)
        return os.fstat(fd).st_size, os.fstat(fd).st_blocks

    twins.both(lambda: on_file(use), ALICE)
    twins.must_be_equal()


@pytest.mark.parametrize("mode", [COLLAPSE, INSERT, UNSHARE, WRITE_ZEROES], ids=hex)
def test_ranges_cannot_be_taken_out_or_put_in_or_made_ones_own(twins: Twins, mode: int) -> None:
    """FUSE does not know these modes (limits.md)."""
    (twins.behind / "file").write_bytes(b"x" * 4 * BLOCK)
    with open(twins.mount / "file", "r+b") as file, pytest.raises(OSError, match="not supported"):
        fallocate(file.fileno(), mode, 0, BLOCK)


def test_a_file_that_is_open_for_reading_only_is_not_written(twins: Twins) -> None:
    twins.setup(lambda: Path("file").write_text("text"))
    for use in (
        lambda fd: os.write(fd, b"no"),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: fallocate(fd, 0, 0, 10),
        lambda fd: mmap.mmap(fd, 4),
        lambda fd: os.copy_file_range(fd, fd, 2, 0, 10),
    ):
        twins.both(lambda: on_file(use, os.O_RDONLY))  # noqa: B023
        twins.both(lambda: on_file(lambda fd: os.read(fd, 1), os.O_WRONLY))
    twins.must_be_equal()


@pytest.mark.parametrize("offsets", [(0, 0), (BLOCK, 3), (7, 100 * BLOCK), (10**9, 0)])
def test_copy_file_range(twins: Twins, offsets: tuple[int, int]) -> None:
    def use(fd: int) -> tuple[int, bytes]:
        source = os.open("source", os.O_RDONLY)
        try:
            done = os.copy_file_range(source, fd, 10 * BLOCK, *offsets)
            os.lseek(source, 2, os.SEEK_SET)
            done += os.copy_file_range(source, fd, 10)
            return done, os.pread(fd, 64, 0)
        finally:
            os.close(source)

    twins.setup(lambda: Path("source").write_bytes(random.Random(2).randbytes(20 * BLOCK)))
    twins.succeed(lambda: on_file(use), ALICE)
    twins.must_be_equal()


def test_copy_file_range_to_and_from_the_outside(twins: Twins) -> None:
    """Between two filesystems: the kernel's own copying, or EXDEV, as between any two."""
    Path(twins.shadow, "outside").write_bytes(b"outside" * 1000)

    def copy() -> bytes:
        source = os.open(twins.shadow / "outside", os.O_RDONLY)
        try:
            on_file(lambda fd: os.copy_file_range(source, fd, 7000))
        finally:
            os.close(source)
        return Path("file").read_bytes()

    assert outcome_of(ROOT, copy, twins.mount) in ("EXDEV", b"outside" * 1000)


def test_several_writers_append_without_overwriting(twins: Twins) -> None:
    program = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for number in range(200): os.write(fd, b'%s %03d\\n' % (sys.argv[2].encode(), number))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(twins.mount / "file"), name]) for name in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = (twins.behind / "file").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {number:03d}" for name in "abcd" for number in range(200))
    assert (twins.mount / "file").read_text().splitlines() == lines


def test_appending_can_be_begun_with_an_open_descriptor(twins: Twins) -> None:
    def use(fd: int) -> bytes:
        os.write(fd, b"one")
        os.pwrite(fd, b"O", 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"two")
        os.pwrite(fd, b"three", 0)  # appends all the same (pwrite(2), BUGS)
        return os.pread(fd, 100, 0)

    assert twins.succeed(lambda: on_file(use), ALICE) == b"Onetwothree"
    twins.must_be_equal()


def test_appending_can_be_ended_with_an_open_descriptor(twins: Twins, any_mount: Mounted) -> None:
    """With passthrough it cannot: the kernel keeps how the backing file was opened (limits.md)."""

    def use(fd: int) -> bytes:
        os.write(fd, b"one")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"O", 0)
        return os.pread(fd, 100, 0)

    data = as_user(ALICE, lambda: on_file(use, os.O_RDWR | os.O_CREAT | os.O_APPEND), cwd=twins.mount)
    assert data == b"One" or (data == b"oneO" and "nopassthrough" not in str(any_mount.root))


def test_what_is_written_to_a_mapping_of_an_appending_descriptor_stays_in_its_place(twins: Twins) -> None:
    def use(fd: int) -> bytes:
        os.write(fd, b"." * BLOCK)
        with mmap.mmap(fd, BLOCK) as mapping:
            mapping[10:14] = b"here"
            mapping.flush()
        os.fsync(fd)
        return os.pread(fd, 2 * BLOCK, 0)

    data = twins.succeed(lambda: on_file(use, os.O_RDWR | os.O_CREAT | os.O_APPEND), ALICE)
    assert len(data) == BLOCK
    twins.must_be_equal()


@pytest.mark.parametrize("attribute", ["a", "i"])
def test_files_that_are_append_only_or_immutable_are(twins: Twins, attribute: str) -> None:
    """chattr(1) behind the mount, which has no ioctl of its own; the kernel above does not know of it."""

    def change(how: str) -> None:
        for directory in (twins.behind, twins.shadow):
            subprocess.run(["chattr", how + attribute, directory / "file"], check=True, capture_output=True)

    needs.programs("chattr")
    for directory in (twins.behind, twins.shadow):
        (directory / "file").write_text("one")
    try:
        change("+")
    except subprocess.CalledProcessError:
        pytest.skip("needs a filesystem that has attributes")
    try:
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND):
            for more in (0, os.O_TRUNC, os.O_CREAT):
                twins.both(lambda: on_file(appended, flags | more))  # noqa: B023
                twins.must_be_equal()
        for attempt in (
            lambda: os.truncate("file", 1),
            lambda: os.chmod("file", 0o600),
            lambda: os.rename("file", "new"),
            lambda: os.link("file", "new"),
            lambda: os.unlink("file"),
        ):
            assert twins.both(attempt) == "EPERM"
        twins.must_be_equal()
    finally:
        change("-")


def appended(fd: int) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        os.write(fd, b"more")
        os.fsync(fd)


def test_a_program_that_runs_is_not_written(twins: Twins) -> None:
    """Also where it runs from the tree behind the mount."""
    for directory, run_from in ((twins.mount, twins.mount), (twins.mount, twins.behind), (twins.shadow, twins.shadow)):
        shutil.copy("/bin/sleep", run_from / "program")
        with subprocess.Popen([run_from / "program", "60"]) as running:
            try:
                for flags in (os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
                    with pytest.raises(OSError, match="Text file busy"):
                        os.close(os.open(directory / "program", flags))
                os.close(os.open(directory / "program", os.O_RDONLY))
            finally:
                running.kill()
        os.unlink(directory / "program")


def test_mappings_reads_and_writes_see_each_other(twins: Twins) -> None:
    def use(fd: int) -> list[bytes]:
        other = os.open("file", os.O_RDWR)
        seen = []
        try:
            os.write(fd, b"." * 3 * BLOCK)
            with mmap.mmap(fd, 3 * BLOCK) as one, mmap.mmap(other, 2 * BLOCK) as two:
                one[5:8] = b"one"
                seen.append(two[:10])
                seen.append(os.pread(other, 10, 0))
                os.pwrite(other, b"written", BLOCK)
                seen.append(one[BLOCK : BLOCK + 10])
                two[BLOCK : BLOCK + 3] = b"TWO"
                seen.append(os.pread(fd, 10, BLOCK))
                os.ftruncate(fd, BLOCK)
                os.ftruncate(fd, 3 * BLOCK)
                seen.append(one[BLOCK : BLOCK + 10])
            with mmap.mmap(fd, 3 * BLOCK, flags=mmap.MAP_PRIVATE) as private:
                private[0:3] = b"not"
            seen.append(os.pread(other, 10, 0))
            return seen
        finally:
            os.close(other)

    seen = twins.succeed(lambda: on_file(use), ALICE)
    assert seen[:2] == [b".....one.."] * 2
    twins.must_be_equal()


@pytest.mark.parametrize("flags", [os.O_DIRECT, os.O_SYNC, os.O_DSYNC, os.O_DIRECT | os.O_DSYNC | os.O_APPEND], ids=hex)
def test_direct_and_synchronous_writes(twins: Twins, flags: int) -> None:
    def use(fd: int) -> tuple[int, bytes]:
        buffer = mmap.mmap(-1, 4 * BLOCK)
        buffer[:] = random.Random(3).randbytes(4 * BLOCK)
        with buffer, memoryview(buffer) as whole:
            done = os.writev(fd, [whole])
            done += os.pwritev(fd, [whole[:BLOCK]], 8 * BLOCK)
            done += os.preadv(fd, [whole[BLOCK : 2 * BLOCK]], 0)
            return done, bytes(whole[: 2 * BLOCK])

    twins.succeed(lambda: on_file(use, os.O_RDWR | os.O_CREAT | flags), ALICE)
    twins.must_be_equal()


def test_ends_of_files(twins: Twins) -> None:
    """Reads over the end, writes behind it, sizes that no file can have."""

    def use(fd: int) -> list[Any]:
        os.write(fd, b"text")
        seen: list[Any] = [os.pread(fd, 10, 2), os.pread(fd, 10, 4), os.pread(fd, 10, 10**12)]
        for attempt in (
            lambda: os.ftruncate(fd, 2**63 - 1),
            lambda: os.ftruncate(fd, -1),
            lambda: os.pwrite(fd, b"x", 2**62),
            lambda: os.pwrite(fd, b"x", 2**40),
            lambda: os.truncate("file", 10**15),
        ):
            try:
                seen.append(attempt())
            except OSError as error:
                seen.append(errno.errorcode[error.errno or 0])
        os.ftruncate(fd, 100)
        return [*seen, os.pread(fd, 200, 0)]

    twins.succeed(lambda: on_file(use), ALICE)
    twins.must_be_equal()


def test_sync_of_every_kind(twins: Twins) -> None:
    def sync() -> None:
        on_file(lambda fd: (os.write(fd, b"text"), os.fsync(fd), os.fdatasync(fd)))
        for call in (os.fsync, os.fdatasync, LIBC.syncfs):
            directory = os.open(".", os.O_RDONLY)
            try:
                call(directory)
            finally:
                os.close(directory)
        check(on_file(lambda fd: LIBC.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(4), 7)))

    twins.succeed(sync, ALICE)
    twins.must_be_equal()


def test_statfs_is_that_of_the_backing_filesystem(twins: Twins) -> None:
    for directory in (twins.mount, twins.mount.parent):
        shown, behind = os.statvfs(directory), os.statvfs(twins.behind)
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
            assert getattr(shown, field) == getattr(behind, field), field
