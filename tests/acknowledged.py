"""Programs that make their work durable, each in its way, and say so when they have been told that it is.

Run as a program this is all of them at once in a directory, each a process; stdout gets a line, `way number`, for each
piece of work that the kernel has acknowledged. What was acknowledged must be there whatever happened afterwards.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD: Final = 64
PAGES: Final = 64


def record(number: int) -> bytes:
    return f"{number:08}".encode().ljust(RECORD - 1, b".") + b"\n"


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(name: str, data: bytes) -> None:
    with open(name, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# --- ways: each does its work number by number ------------------------------------------------------------------------


def append() -> Callable[[int], None]:
    """Appends to a log, and fsync."""
    fd = os.open("log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    sync_directory(".")

    def work(number: int) -> None:
        os.write(fd, record(number))
        os.fsync(fd)

    return work


def synchronous() -> Callable[[int], None]:
    """As append, by O_DSYNC instead of fsync."""
    fd = os.open("synchronous", os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_DSYNC)
    os.fsync(fd)
    sync_directory(".")

    def work(number: int) -> None:
        os.write(fd, record(number))

    return work


def mapping() -> Callable[[int], None]:
    """Stores to a mapping, and msync."""
    write_durably("mapping", bytes(PAGES * mmap.PAGESIZE))
    sync_directory(".")
    with open("mapping", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)

    def work(number: int) -> None:
        at = number % PAGES * mmap.PAGESIZE
        memory[at : at + RECORD] = record(number)
        memory.flush()

    return work


def create() -> Callable[[int], None]:
    """Creates a file, and fsync of it and of its directory."""
    os.mkdir("created")
    sync_directory(".")

    def work(number: int) -> None:
        write_durably(f"created/{number}", record(number))
        sync_directory("created")

    return work


def replace() -> Callable[[int], None]:
    """Writes a temporary file, fsync, renames it over the one that was there, and fsync of the directory."""
    os.mkdir("replaced")
    sync_directory(".")

    def work(number: int) -> None:
        write_durably("replaced/temporary", record(number) * 100)
        os.rename("replaced/temporary", "replaced/file")
        sync_directory("replaced")

    return work


def remove() -> Callable[[int], None]:
    """Removes one of two names of a file, and fsync of the directory."""
    os.mkdir("removed")
    sync_directory(".")

    def work(number: int) -> None:
        write_durably(f"removed/{number}", record(number))
        os.link(f"removed/{number}", f"removed/kept{number}")
        os.unlink(f"removed/{number}")
        sync_directory("removed")

    return work


def connected() -> sqlite3.Connection:
    connection = sqlite3.connect("database", timeout=60, isolation_level=None)
    connection.execute("pragma synchronous=full")
    return connection


def make_database() -> None:
    with closing(connected()) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table work (way text, number integer, data text)")


def database(name: str) -> Callable[[int], None]:
    """Commits to a database of sqlite with a write-ahead log, to which another process commits as well."""
    connection = connected()

    def work(number: int) -> None:
        connection.execute("insert into work values (?, ?, ?)", (name, number, "x" * 500))

    return work


WAYS: Final[dict[str, Callable[[], Callable[[int], None]]]] = {
    "append": append,
    "synchronous": synchronous,
    "mapping": mapping,
    "create": create,
    "replace": replace,
    "remove": remove,
    "database-one": lambda: database("one"),
    "database-other": lambda: database("other"),
}


# --- what must be there afterwards ------------------------------------------------------------------------------------


def lost(directory: Path, done: dict[str, int]) -> list[str]:
    """What is missing in the directory of that which was acknowledged: for each way up to this number."""
    missing = []
    for way, name in (("append", "log"), ("synchronous", "synchronous")):
        expected = b"".join(map(record, range(done[way] + 1)))
        if not (directory / name).read_bytes().startswith(expected):
            missing.append(way)
    memory = (directory / "mapping").read_bytes()
    for number in range(max(0, done["mapping"] + 1 - PAGES), done["mapping"] + 1):
        found = memory[number % PAGES * mmap.PAGESIZE :][:RECORD]
        if found[:8] < record(number)[:8]:
            missing.append(f"mapping {number}")
    for number in range(done["create"] + 1):
        path = directory / f"created/{number}"
        if not path.exists() or path.read_bytes() != record(number):
            missing.append(f"create {number}")
    replaced = (directory / "replaced/file").read_bytes()
    if replaced[:8] < record(done["replace"])[:8] or replaced != replaced[:RECORD] * 100:
        missing.append("replace")
    missing += [
        f"remove {number}"
        for number in range(done["remove"] + 1)
        if (directory / f"removed/{number}").exists() or not (directory / f"removed/kept{number}").exists()
    ]
    return missing + lost_of_database(directory, done)


def lost_of_database(directory: Path, done: dict[str, int]) -> list[str]:
    with closing(sqlite3.connect(directory / "database")) as connection:
        if connection.execute("pragma integrity_check").fetchall() != [("ok",)]:
            return ["database"]
        found = set(connection.execute("select way, number from work"))
    return [
        f"{way} {number}"
        for way in ("database-one", "database-other")
        for number in range(done[way] + 1)
        if (way.removeprefix("database-"), number) not in found
    ]


def main() -> None:
    """Does everything in the working directory until it is killed."""
    make_database()
    for way, prepare in WAYS.items():
        if os.fork() == 0:
            work, number = prepare(), 0
            while True:
                work(number)
                os.write(1, f"{way} {number}\n".encode())
                number += 1
    os.close(1)
    sys.stdin.read()


if __name__ == "__main__":
    main()
