"""What is measured: each row is one kind of operation, done many times in a directory of its own."""

from __future__ import annotations

import mmap
import os
import time
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: Final = b"x" * 4096


@frozen
class Row:
    """One kind of operation.

    Args:
        name: what the table calls it.
        count: operations in one round.
        prepare: makes what the operation needs, behind the mount, so that the mount meets it for the first time.
        run: does the operations in the current directory.
    """

    name: str
    count: int
    prepare: Callable[[str, int], None]
    run: Callable[[int], None]

    def measure(self, behind: str, seen: str) -> float:
        """Seconds per operation of one round; `seen` is where the mount shows what lies at `behind`."""
        os.mkdir(behind)
        self.prepare(behind, self.count)
        here = os.open(".", os.O_RDONLY)
        try:
            os.chdir(seen)
            began = time.perf_counter()
            self.run(self.count)
            return (time.perf_counter() - began) / self.count
        finally:
            os.fchdir(here)
            os.close(here)


def _nothing(_behind: str, _count: int) -> None:
    pass


def _files(behind: str, count: int) -> None:
    for number in range(count):
        with open(f"{behind}/f{number}", "wb") as file:
            file.write(SMALL)


def _directories(behind: str, count: int) -> None:
    for number in range(count):
        os.mkdir(f"{behind}/d{number}")


def _one_large(behind: str, _count: int) -> None:
    with open(f"{behind}/large", "wb") as file:
        file.write(os.urandom(1 << 20) * 64)


def _create(count: int) -> None:
    for number in range(count):
        os.close(os.open(f"n{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _stat(count: int) -> None:
    for number in range(count):
        os.stat(f"f{number}")


def _stat_warm(count: int) -> None:
    for number in range(count):
        os.stat(f"f{number % 100}")


def _read(count: int) -> None:
    for number in range(count):
        file = os.open(f"f{number}", os.O_RDONLY)
        os.read(file, 4096)
        os.close(file)


def _open(count: int) -> None:
    for number in range(count):
        os.close(os.open(f"f{number}", os.O_RDONLY))


def _write(count: int) -> None:
    for number in range(count):
        file = os.open(f"f{number}", os.O_WRONLY)
        os.write(file, SMALL)
        os.close(file)


def _rename(count: int) -> None:
    for number in range(count):
        os.rename(f"f{number}", f"g{number}")


def _unlink(count: int) -> None:
    for number in range(count):
        os.unlink(f"f{number}")


def _mkdir(count: int) -> None:
    for number in range(count):
        os.mkdir(f"n{number}")


def _rmdir(count: int) -> None:
    for number in range(count):
        os.rmdir(f"d{number}")


def _symlink(count: int) -> None:
    for number in range(count):
        os.symlink("target", f"s{number}")


def _chmod(count: int) -> None:
    for number in range(count):
        os.chmod(f"f{number}", 0o600)


def _readdir(count: int) -> None:
    assert len(os.listdir(".")) == count


def _readdir_stat(count: int) -> None:
    with os.scandir(".") as entries:
        assert sum(1 for entry in entries if entry.stat(follow_symlinks=False)) == count


def _set_xattr(count: int) -> None:
    for number in range(count):
        os.setxattr(f"f{number}", "user.bench", b"value")


def _random_reads(count: int) -> None:
    file = os.open("large", os.O_RDONLY)
    position = 1
    for _ in range(count):
        position = position * 1103515245 + 12345 & 0x3FFF
        os.pread(file, 4096, position * 4096)
    os.close(file)


def _direct_reads(count: int) -> None:
    file = os.open("large", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)  # aligned
    position = 1
    for _ in range(count):
        position = position * 1103515245 + 12345 & 0x3FFF
        os.preadv(file, [buffer], position * 4096)
    buffer.close()
    os.close(file)


def _sequential(size: int) -> Callable[[int], None]:
    block = b"x" * size

    def write(count: int) -> None:
        file = os.open("out", os.O_CREAT | os.O_WRONLY, 0o644)
        for _ in range(count):
            os.write(file, block)
        os.close(file)

    return write


METADATA: Final = (
    Row("stat, first time", 1000, _files, _stat),
    Row("stat, again", 5000, lambda behind, _: _files(behind, 100), _stat_warm),
    Row("create", 1000, _nothing, _create),
    Row("open and close", 1000, _files, _open),
    Row("read a small file", 1000, _files, _read),
    Row("write a small file", 1000, _files, _write),
    Row("rename", 1000, _files, _rename),
    Row("unlink", 1000, _files, _unlink),
    Row("mkdir", 1000, _nothing, _mkdir),
    Row("rmdir", 1000, _directories, _rmdir),
    Row("symlink", 1000, _nothing, _symlink),
    Row("chmod", 1000, _files, _chmod),
    Row("set xattr", 1000, _files, _set_xattr),
    Row("list, per entry", 2000, _files, _readdir),
    Row("list and stat, per entry", 2000, _files, _readdir_stat),
)
DATA: Final = (
    Row("random read 4k", 5000, _one_large, _random_reads),
    Row("random read 4k, direct", 3000, _one_large, _direct_reads),
    Row("write 128k", 400, _nothing, _sequential(128 << 10)),
    Row("write 1M", 60, _nothing, _sequential(1 << 20)),
)
