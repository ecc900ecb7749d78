"""Descriptors whose names have gone, or that never had one: usable until they are closed, as everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from twins import ALICE, CAROL, ROOT, Twins, link_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]


def opened(use: Callable[[int], Any], name: str = "file", flags: int = os.O_RDWR | os.O_CREAT) -> Any:
    fd = os.open(name, flags, 0o644)
    try:
        return use(fd)
    finally:
        os.close(fd)


def all_uses(fd: int) -> tuple[Any, ...]:
    """Everything that one can do to an open file, and what it looks like then."""
    os.write(fd, b"more")
    os.ftruncate(fd, 100)
    os.fchmod(fd, 0o600)
    os.fchown(fd, -1, os.getegid())
    os.utime(fd, ns=(5, 7))
    os.setxattr(fd, "user.test", b"value")
    os.fsync(fd)
    status = os.fstat(fd)
    return (
        status.st_nlink,
        status.st_size,
        oct(status.st_mode),
        status.st_uid,
        status.st_mtime_ns,
        os.getxattr(fd, "user.test"),
        os.pread(fd, 200, 0),
    )


def test_a_file_is_usable_after_its_last_name_has_gone(twins: Twins) -> None:
    def use(fd: int) -> tuple[Any, ...]:
        os.write(fd, b"before")
        os.unlink("file")
        return all_uses(fd)

    assert twins.succeed(lambda: opened(use), ALICE)[0] == 0
    twins.must_be_equal()


def test_a_file_is_usable_after_another_has_replaced_it(twins: Twins) -> None:
    def use(fd: int) -> tuple[Any, ...]:
        Path("new").write_text("new")
        os.rename("new", "file")
        return *all_uses(fd), Path("file").read_text()

    assert twins.succeed(lambda: opened(use), ALICE)[0] == 0
    twins.must_be_equal()


def test_a_file_is_usable_after_one_of_its_names_has_gone(twins: Twins) -> None:
    def use(fd: int) -> tuple[Any, ...]:
        os.link("file", "second")
        os.unlink("file")
        seen = all_uses(fd)
        os.mkdir("below")
        os.rename("second", "below/third")
        return *seen, os.fstat(fd).st_nlink, os.stat("below/third").st_ino == os.fstat(fd).st_ino

    assert twins.succeed(lambda: opened(use), ALICE)[0] == 1
    twins.must_be_equal()


def test_a_file_without_a_name_can_be_used_and_named(twins: Twins) -> None:
    def use(fd: int) -> tuple[Any, ...]:
        seen = all_uses(fd)
        link_descriptor(fd, "named")
        os.link("named", "named twice")
        return *seen, os.fstat(fd).st_nlink, os.stat("named").st_ino == os.fstat(fd).st_ino

    assert twins.succeed(lambda: opened(use, ".", os.O_TMPFILE | os.O_RDWR), ALICE)[0] == 0
    twins.must_be_equal()
    for attempt in (
        lambda: opened(lambda fd: link_descriptor(fd, "never"), ".", os.O_TMPFILE | os.O_EXCL | os.O_RDWR),
        lambda: opened(lambda fd: link_descriptor(fd, "named"), ".", os.O_TMPFILE | os.O_RDWR),
        lambda: opened(os.fstat, ".", os.O_TMPFILE | os.O_RDONLY),
        lambda: opened(os.fstat, "none", os.O_TMPFILE | os.O_RDWR),
    ):
        assert twins.both(attempt, ALICE) in {"ENOENT", "EEXIST", "EINVAL"}
    twins.must_be_equal()


def test_a_file_with_no_name_left_cannot_be_named_again(twins: Twins) -> None:
    def use(fd: int) -> None:
        os.unlink("file")
        link_descriptor(fd, "again")

    assert twins.both(lambda: opened(use), ALICE) == "ENOENT"
    twins.must_be_equal()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_a_path_descriptor_outlives_the_name(twins: Twins, kind: str) -> None:
    makers: dict[str, Callable[[], None]] = {
        "file": lambda: Path("it").write_text("text") and None,
        "directory": lambda: os.mkdir("it"),
        "symlink": lambda: os.symlink("nowhere", "it"),
        "fifo": lambda: os.mkfifo("it"),
    }

    def use(fd: int) -> tuple[Any, ...]:
        before = os.fstat(fd)
        os.rmdir("it") if kind == "directory" else os.unlink("it")
        after = os.fstat(fd)
        return before.st_ino == after.st_ino, after.st_nlink, oct(after.st_mode), after.st_size if kind == "file" else 0

    def work() -> Any:
        makers[kind]()
        return opened(use, "it", os.O_PATH | os.O_NOFOLLOW)

    assert twins.succeed(work, ALICE)[:2] == (True, 0)


def test_a_removed_working_directory(twins: Twins) -> None:
    def work() -> list[Any]:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
        seen: list[Any] = [os.listdir("."), os.stat(".").st_nlink]
        for attempt in (
            os.getcwd,
            lambda: os.mkdir("new"),
            lambda: Path("new").touch(),
            lambda: os.symlink("nowhere", "new"),
            lambda: os.stat("new"),
            lambda: os.stat("..").st_uid,
            lambda: os.rename("../other", "new"),
        ):
            try:
                seen.append(attempt())
            except OSError as error:
                seen.append(error.errno)
        return seen

    twins.succeed(work, ALICE)
    twins.must_be_equal()


def test_a_directory_that_is_open_while_it_is_emptied_and_removed(twins: Twins) -> None:
    def work() -> list[Any]:
        os.mkdir("directory")
        for name in "abc":
            Path("directory", name).touch()
        fd = os.open("directory", os.O_RDONLY)
        try:
            seen: list[Any] = [sorted(os.listdir(fd))]
            for name in "abc":
                os.unlink(name, dir_fd=fd)
            os.rmdir("directory")
            seen += [os.listdir(fd), os.fstat(fd).st_nlink]
            os.fsync(fd)
            return seen
        finally:
            os.close(fd)

    assert twins.succeed(work, ALICE) == [["a", "b", "c"], [], 0]


def test_open_files_below_a_directory_that_is_renamed(twins: Twins) -> None:
    def work() -> tuple[Any, ...]:
        os.makedirs("one/two")
        with open("one/two/file", "w+") as file:
            os.rename("one", "moved")
            file.write("after the move")
            file.flush()
            os.rename("moved/two", "two")
            os.fsync(file.fileno())
            os.ftruncate(file.fileno(), 5)
            return os.fstat(file.fileno()).st_size, Path("two/file").read_text(), os.path.exists("one")

    assert twins.succeed(work, CAROL) == (5, "after", False)
    twins.must_be_equal()


@pytest.mark.parametrize("user", [ROOT, ALICE], ids=lambda user: user.name)
def test_the_same_file_open_many_times_in_every_way(twins: Twins, user: Any) -> None:
    """With passthrough and without, and with both users: an inode is open one way or the other, never both."""
    twins.setup(lambda: Path("file").write_text("text"))
    twins.setup(lambda: os.chmod("file", 0o666))

    def work() -> list[bytes]:
        ways = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_SYNC, os.O_PATH]
        fds = [os.open("file", way) for way in ways]
        try:
            os.write(fds[1], b"T")
            os.write(fds[3], b"!")
            os.pwrite(fds[4], b"x", 2)
            return [os.pread(fd, 10, 0) for fd in (fds[0], fds[2], fds[3])]
        finally:
            for fd in fds:
                os.close(fd)

    assert twins.succeed(work, user) == [b"Text!"] * 3
    twins.must_be_equal()
