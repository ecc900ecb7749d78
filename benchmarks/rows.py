"""What is measured: each row is one kind of operation, done many times in a directory of its own."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen
from clients import alone, together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SMALL: Final = b"x" * 4096


@frozen
class Row:
    """One kind of operation.

    Args:
        name: what the table calls it.
        count: operations of one client in one round.
        prepare: makes what the operation needs, behind the mount, so that the mount meets it for the first time.
        run: does the operations in the current directory.
        disk: whether it is about the disk behind, where one is: a few operations take long there.
    """

    name: str
    count: int
    prepare: Callable[[str, int], None]
    run: Callable[[int], None]
    disk: bool = False

    def measure(self, behind: str, seen: str, clients: int = 1) -> float:
        """Seconds per operation of one round; `seen` is where the mount shows what lies at `behind`."""
        os.mkdir(behind)
        if clients == 1:
            self.prepare(behind, self.count)
            return alone(seen, lambda: self.run(self.count)) / self.count
        names = [f"client{number}" for number in range(clients)]
        for name in names:
            os.mkdir(f"{behind}/{name}")
            self.prepare(f"{behind}/{name}", self.count)
        seconds = together([f"{seen}/{name}" for name in names], lambda: self.run(self.count))
        return seconds / (self.count * clients)

    def shorter(self, by: int) -> Row:
        """The same with fewer operations."""
        return evolve(self, count=max(self.count // by, 1))


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
        file.write(os.urandom(1 << 20) * (LARGE >> 20))


# --- metadata ---------------------------------------------------------------------------------------------------------


@frozen
class Each:
    """One operation after the other, each on its own name; `one` does the operation of that number."""

    one: Callable[[int], object]

    def __call__(self, count: int) -> None:
        """All of them."""
        one = self.one
        for number in range(count):
            one(number)


def _create(number: int) -> None:
    os.close(os.open(f"n{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _read(number: int) -> None:
    file = os.open(f"f{number}", os.O_RDONLY)
    os.read(file, 4096)
    os.close(file)


def _open(number: int) -> None:
    os.close(os.open(f"f{number}", os.O_RDONLY))


def _write(number: int) -> None:
    file = os.open(f"f{number}", os.O_WRONLY)
    os.write(file, SMALL)
    os.close(file)


def _readdir(count: int) -> None:
    assert len(os.listdir(".")) == count


def _readdir_stat(count: int) -> None:
    with os.scandir(".") as entries:
        assert sum(1 for entry in entries if entry.stat(follow_symlinks=False)) == count


def _files_with_xattr(behind: str, count: int) -> None:
    _files(behind, count)
    for number in range(count):
        os.setxattr(f"{behind}/f{number}", "user.bench", b"value")


# --- data -------------------------------------------------------------------------------------------------------------

LARGE: Final = 64 << 20
BLOCK: Final = 4096


def _positions(count: int) -> Iterator[int]:
    """Offsets of blocks in the large file, the same in every run."""
    position = 1
    for _ in range(count):
        position = (position * 1103515245 + 12345) % (1 << 31)
        yield position // 7 % (LARGE // BLOCK) * BLOCK


def _random(writes: bool, flags: int) -> Callable[[int], None]:
    def run(count: int) -> None:
        file = os.open("large", (os.O_WRONLY if writes else os.O_RDONLY) | flags)
        buffer = mmap.mmap(-1, BLOCK)  # aligned, as O_DIRECT wants it
        move = os.pwritev if writes else os.preadv
        for position in _positions(count):
            move(file, [buffer], position)
        buffer.close()
        os.close(file)

    return run


def _sequential_writes(size: int) -> Callable[[int], None]:
    block = b"x" * size

    def run(count: int) -> None:
        file = os.open("out", os.O_CREAT | os.O_WRONLY, 0o644)
        for _ in range(count):
            os.write(file, block)
        os.close(file)

    return run


def _sequential_reads(size: int) -> Callable[[int], None]:
    def run(count: int) -> None:
        file = os.open("large", os.O_RDONLY)
        buffer = bytearray(size)
        for number in range(count):
            os.preadv(file, [buffer], number * size % LARGE)
        os.close(file)

    return run


def _mapped(count: int) -> None:
    file = os.open("large", os.O_RDWR)
    with mmap.mmap(file, LARGE) as mapped:
        for position in _positions(count):
            mapped[position] = mapped[position + 1]
    os.close(file)


def _appends(count: int) -> None:
    file = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    for _ in range(count):
        os.write(file, b"a line of a log, of about the usual length, and then its end\n")
        os.fsync(file)
    os.close(file)


METADATA: Final = (
    Row("stat, first time", 1000, _files, Each(lambda number: os.stat(f"f{number}"))),
    Row("stat, again", 5000, lambda behind, _: _files(behind, 100), Each(lambda number: os.stat(f"f{number % 100}"))),
    Row("create", 1000, _nothing, Each(_create)),
    Row("open and close", 1000, _files, Each(_open)),
    Row("read a small file", 1000, _files, Each(_read)),
    Row("write a small file", 1000, _files, Each(_write)),
    Row("rename", 1000, _files, Each(lambda number: os.rename(f"f{number}", f"g{number}"))),
    Row("unlink", 1000, _files, Each(lambda number: os.unlink(f"f{number}"))),
    Row("mkdir", 1000, _nothing, Each(lambda number: os.mkdir(f"n{number}"))),
    Row("rmdir", 1000, _directories, Each(lambda number: os.rmdir(f"d{number}"))),
    Row("symlink", 1000, _nothing, Each(lambda number: os.symlink("target", f"s{number}"))),
    Row("chmod", 1000, _files, Each(lambda number: os.chmod(f"f{number}", 0o600))),
    Row("get xattr", 1000, _files_with_xattr, Each(lambda number: os.getxattr(f"f{number}", "user.bench"))),
    Row("set xattr", 1000, _files, Each(lambda number: os.setxattr(f"f{number}", "user.bench", b"value"))),
    Row("list, per entry", 2000, _files, _readdir),
    Row("list and stat, per entry", 2000, _files, _readdir_stat),
)
DATA: Final = (
    Row("random read 4k", 5000, _one_large, _random(False, 0)),
    Row("random read 4k, direct", 3000, _one_large, _random(False, os.O_DIRECT), disk=True),
    Row("random write 4k", 3000, _one_large, _random(True, 0)),
    Row("random write 4k, direct", 3000, _one_large, _random(True, os.O_DIRECT), disk=True),
    Row("read 128k", 400, _one_large, _sequential_reads(128 << 10)),
    Row("read 1M", 60, _one_large, _sequential_reads(1 << 20)),
    Row("write 128k", 400, _nothing, _sequential_writes(128 << 10)),
    Row("write 1M", 60, _nothing, _sequential_writes(1 << 20)),
    Row("touch a mapping", 5000, _one_large, _mapped),
    Row("append and fsync", 500, _nothing, _appends, disk=True),
)
