"""Real work: what people do with a tree, each as one row whose operation is the whole of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from rows import Row
from sources import CACHE, Unreachable, source_package, wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IN_ONE_DIRECTORY: Final = 1_000
TRANSACTIONS: Final = 200
SOURCE: Final = "python3.11"
"""Debian's largest that is still unpacked in seconds: 4,700 files."""
PROGRAM: Final = "lua5.4"
"""Small C that needs nothing but a compiler."""
WHEEL: Final = "pygments"
QUICK: Final = ("make of a C program", "sqlite, per transaction")
"""Those of a quick run."""


def rows(files: int) -> Iterator[Row]:
    """Those whose ingredients can be had; the others are told.

    Args:
        files: how many `find` and `rm -rf` meet.
    """
    for make in (_source_rows, _program_rows, _wheel_rows):
        try:
            yield from make()
        except (Unreachable, OSError, subprocess.CalledProcessError) as reason:
            print(f"bench: {make.__name__} left out: {reason}", file=sys.stderr)
    yield Row("sqlite, per transaction", TRANSACTIONS, _nothing, _insert)
    yield Row(
        f"find in {files:,} files, per file",
        files,
        _many,
        lambda _: _run("find", ".", "-type", "f", "-newer", "/proc/self/stat"),
    )
    yield Row(f"rm -rf of {files:,} files, per file", files, _many, lambda _: _run("rm", "-rf", "many"))


def _source_rows() -> Iterator[Row]:
    tree, archive, repository = _unpacked(SOURCE), _plain_archive(SOURCE), _repository(SOURCE)
    yield _work("unpack a tarball", _nothing, lambda: _run("tar", "-xf", archive))
    yield _work("rm -rf of a source tree", _unpack(archive), lambda: _run("rm", "-rf", "source"))
    yield _work("git clone", _nothing, lambda: _run("git", "clone", "--quiet", "--no-hardlinks", repository, "clone"))
    yield _work("git status", _clone(repository), lambda: _run("git", "-C", "clone", "status", "--short"))
    yield _work("rsync -a", _nothing, lambda: _run("rsync", "-a", tree + "/", "copy"))


def _program_rows() -> Iterator[Row]:
    archive = _plain_archive(PROGRAM)
    make = ("make", "--silent", f"-j{os.cpu_count()}", "-C", "source/src", "a")
    yield _work("make of a C program", _unpack(archive), lambda: _run(*make))


def _wheel_rows() -> Iterator[Row]:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", "here")
    package = wheel(WHEEL)
    yield _work("pip install", _nothing, lambda: _run(*pip, package))


def _work(name: str, prepare: Callable[[str, int], None], work: Callable[[], None]) -> Row:
    return Row(name, 1, prepare, lambda _: work())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# --- ingredients, made once -------------------------------------------------------------------------------------------


def _unpacked(name: str) -> str:
    """The source tree, as the directory `source` of one in .bench/."""
    into = os.path.join(CACHE, f"{name}.tree")
    if not os.path.isdir(into):
        shutil.rmtree(into + ".new", ignore_errors=True)
        os.makedirs(into + ".new/source")
        _run("tar", "-xf", source_package(name), "-C", into + ".new/source", "--strip-components=1")
        os.rename(into + ".new", into)
    return os.path.join(into, "source")


def _plain_archive(name: str) -> str:
    """The same as an archive without compression: what is measured is the filesystem."""
    archive = os.path.join(CACHE, f"{name}.tar")
    if not os.path.exists(archive):
        tree = _unpacked(name)
        _run("tar", "-cf", archive + ".new", "-C", os.path.dirname(tree), "source")
        os.rename(archive + ".new", archive)
    return archive


def _repository(name: str) -> str:
    """The same as a git repository of one commit."""
    repository = os.path.join(CACHE, f"{name}.git")
    if not os.path.isdir(repository):
        shutil.rmtree(repository + ".new", ignore_errors=True)
        git = ("git", "--git-dir", repository + ".new", "--work-tree", _unpacked(name))
        _run(*git, "init", "--quiet")
        _run(*git, "add", "--force", "--all")
        _run(*git, "-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "--quiet", "-m", "all")
        _run(*git, "config", "--unset", "core.worktree")
        _run(*git, "config", "core.bare", "true")
        os.rename(repository + ".new", repository)
    return repository


# --- what lies there before -------------------------------------------------------------------------------------------


def _nothing(_behind: str, _count: int) -> None:
    pass


def _unpack(archive: str) -> Callable[[str, int], None]:
    return lambda behind, _: _run("tar", "-xf", archive, "-C", behind)


def _clone(repository: str) -> Callable[[str, int], None]:
    return lambda behind, _: _run("git", "clone", "--quiet", "--no-hardlinks", repository, f"{behind}/clone")


def _many(behind: str, count: int) -> None:
    for number in range(count):
        if number % IN_ONE_DIRECTORY == 0:
            directory = f"{behind}/many/{number // IN_ONE_DIRECTORY}"
            os.makedirs(directory)
        os.mknod(f"{directory}/f{number}")


def _insert(count: int) -> None:
    connection = sqlite3.connect("database")
    connection.execute("create table t (n integer primary key, text)")
    for number in range(count):
        with connection:
            connection.execute("insert into t values (?, ?)", (number, "a row of some length" * 5))
    connection.close()
