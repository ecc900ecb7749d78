"""Names: any bytes, any length, every kind of file behind them, and links of both sorts."""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from twins import ALICE, ROOT, Twins, as_user

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]

NAMES = {
    "one": b"x",
    "255": b"x" * 255,
    "255-of-two-bytes": "é".encode() * 127 + b"x",
    "not-utf-8": bytes(range(0x80, 0x100)),
    "control": bytes(byte for byte in range(1, 0x20)),
    "newline": b"one\ntwo",
    "dots": b"...",
    "hidden": b".x",
    "blank": b" ",
    "dash": b"-rf",
    "quotes": b"'\"\\$(x)`",
    "like-ours": b"user.exclfs.hold",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_of_any_bytes(twins: Twins, name: bytes) -> None:
    def use() -> list[bytes]:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        os.mkdir(b"directory")
        os.link(name, b"directory/" + name)
        os.rename(name, b"moved")
        os.rename(b"moved", name)
        os.symlink(name, b"symlink")
        os.setxattr(name, "user.test", b"value")
        listed = sorted(os.listdir(b"."))
        os.stat(b"symlink")
        return listed

    assert name in twins.succeed(use, ALICE)
    twins.must_be_equal()
    twins.succeed(lambda: os.unlink(name), ALICE)
    twins.must_be_equal()


@pytest.mark.parametrize("length", [255, 256, 257, 1023, 1024, 1025, 4094, 4095, 4096, 5000])
def test_names_that_are_too_long(twins: Twins, length: int) -> None:
    twins.setup(lambda: Path("file").touch())
    name = "x" * length
    for attempt in (
        lambda: os.lstat(name),
        lambda: os.mkdir(name),
        lambda: os.rmdir(name),
        lambda: os.close(os.open(name, os.O_CREAT | os.O_WRONLY)),
        lambda: os.unlink(name),
        lambda: os.mkfifo(name),
        lambda: os.symlink("nowhere", name),
        lambda: os.unlink(name),
        lambda: os.link("file", name),
        lambda: os.rename("file", name),
        lambda: os.unlink(name),
    ):
        twins.both(attempt, ALICE)
        twins.must_be_equal()


def test_paths_of_path_max(twins: Twins) -> None:
    def deep() -> int:
        for _ in range(17):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("file").write_text("deep")
        os.rename("file", "renamed")
        return os.stat("renamed").st_size

    assert twins.succeed(deep, ALICE) == 4
    path = "/".join(["d" * 250] * 16)
    assert len(path) < 4096 < len(path + "/" + "d" * 250)
    assert twins.both(lambda: len(os.listdir(path)), ALICE) == 1
    assert twins.both(lambda: os.stat(f"{path}/{'d' * 250}"), ALICE) == "ENAMETOOLONG"


@pytest.mark.parametrize("target", ["nowhere", "/", "..", "x" * 4095, "x" * 4096, "", "a//b/../c/", "loop"])
def test_targets_of_symlinks(twins: Twins, target: str) -> None:
    twins.both(lambda: os.symlink(target, "link"), ALICE)
    twins.both(lambda: os.readlink("link"), ALICE)
    twins.both(lambda: os.lstat("link").st_size, ALICE)
    twins.both(lambda: os.path.isdir("link"), ALICE)


def test_loops_of_symlinks(twins: Twins) -> None:
    def make() -> None:
        os.symlink("two", "one")
        os.symlink("one", "two")
        os.symlink("self/self", "self")
        Path("file").write_text("text")
        for number in range(45):
            os.symlink(f"chain{number - 1}" if number else "file", f"chain{number}")

    twins.setup(make)
    for attempt in (
        lambda: os.stat("one"),
        lambda: os.stat("self"),
        lambda: os.stat("chain39").st_size,
        lambda: os.stat("chain40").st_size,
        lambda: os.close(os.open("one", os.O_CREAT | os.O_WRONLY)),
        lambda: os.close(os.open("chain3", os.O_RDONLY | os.O_NOFOLLOW)),
        lambda: os.mkdir("one/below"),
        lambda: os.unlink("one"),
    ):
        twins.both(attempt, ALICE)
    twins.must_be_equal()


def read(name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY)
    try:
        return os.read(fd, 1)
    finally:
        os.close(fd)


WRONG: dict[str, Callable[[], Any]] = {
    "unlink-directory": lambda: os.unlink("directory"),
    "rmdir-file": lambda: os.rmdir("file"),
    "rmdir-full": lambda: os.rmdir("full"),
    "rmdir-dot": lambda: os.rmdir("directory/."),
    "rmdir-dotdot": lambda: os.rmdir("full/below/.."),
    "rmdir-symlink": lambda: os.rmdir("symlink"),
    "mkdir-there": lambda: os.mkdir("file"),
    "mkdir-dangling": lambda: os.mkdir("dangling"),
    "create-there": lambda: os.open("file", os.O_CREAT | os.O_EXCL),
    "create-dangling": lambda: os.open("dangling", os.O_CREAT | os.O_EXCL),
    "open-directory": lambda: os.open("directory", os.O_WRONLY),
    "create-directory": lambda: os.open("directory", os.O_CREAT),
    "create-trailing-slash": lambda: os.open("new/", os.O_CREAT | os.O_WRONLY),
    "open-not-directory": lambda: os.open("file", os.O_RDONLY | os.O_DIRECTORY),
    "below-file": lambda: os.stat("file/below"),
    "file-slash": lambda: os.stat("file/"),
    "empty": lambda: os.stat(""),
    "none": lambda: os.unlink("none"),
    "below-none": lambda: os.mkdir("none/below"),
    "link-directory": lambda: os.link("directory", "link"),
    "link-there": lambda: os.link("file", "directory"),
    "link-none": lambda: os.link("none", "link"),
    "rename-none": lambda: os.rename("none", "new"),
    "rename-into-itself": lambda: os.rename("full", "full/below/new"),
    "rename-over-full": lambda: os.rename("directory", "full"),
    "rename-file-over-directory": lambda: os.rename("file", "directory"),
    "rename-directory-over-file": lambda: os.rename("directory", "file"),
    "rename-dot": lambda: os.rename("directory/.", "new"),
    "readlink-file": lambda: os.readlink("file"),
    "truncate-directory": lambda: os.truncate("directory", 0),
    "truncate-fifo": lambda: os.truncate("fifo", 0),
    "open-socket": lambda: os.open("socket", os.O_RDWR),
    "open-fifo": lambda: os.open("fifo", os.O_WRONLY | os.O_NONBLOCK),
    "read-directory": lambda: read("directory"),
}


@pytest.mark.parametrize("way", WRONG)
def test_what_cannot_be_done_has_the_errno_of_the_backing_filesystem(twins: Twins, way: str) -> None:
    def make() -> None:
        Path("file").write_text("text")
        os.makedirs("full/below")
        os.mkdir("directory")
        os.symlink("file", "symlink")
        os.symlink("none", "dangling")
        os.mkfifo("fifo")
        os.mknod("socket", stat.S_IFSOCK | 0o666)

    twins.setup(make)
    assert isinstance(twins.both(WRONG[way], ROOT), str)
    twins.must_be_equal()


def test_a_fifo_carries_data(twins: Twins) -> None:
    def use() -> bytes:
        os.mkfifo("fifo")
        writer = threading.Thread(target=lambda: Path(here, "fifo").write_bytes(b"through the fifo"))
        here = os.readlink("/proc/thread-self/cwd")
        writer.start()
        data = Path("fifo").read_bytes()
        writer.join()
        return data

    assert twins.succeed(use, ROOT) == b"through the fifo"


def test_a_socket_can_be_bound_connected_and_removed(twins: Twins) -> None:
    def use() -> bytes:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind("socket")
            listener.listen()
            client.connect("socket")
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"through the socket")
                assert select.select([accepted], [], [], 10)[0]
                data = accepted.recv(100)
            os.rename("socket", "renamed")
            os.unlink("renamed")
            return data

    assert twins.succeed(use, ALICE) == b"through the socket"


def test_a_device_is_the_device(twins: Twins) -> None:
    def use() -> bytes:
        os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        fd = os.open("zero", os.O_RDWR)
        try:
            os.write(fd, b"gone")
            return os.read(fd, 4)
        finally:
            os.close(fd)

    assert twins.succeed(use, ROOT) == bytes(4)
    twins.must_be_equal()


def test_hard_links_are_one_inode_at_once_under_every_name(twins: Twins) -> None:
    def use() -> list[tuple[int, int]]:
        seen = []
        Path("file").write_text("text")
        os.mkdir("below")
        names = ["file"]
        for number in range(5):
            os.link(names[-1], f"below/link{number}")
            names.append(f"below/link{number}")
            seen += [(os.stat(name).st_nlink, len({os.stat(other).st_ino for other in names})) for name in names]
        for _ in range(4):
            os.unlink(names.pop(0))
            seen += [(os.stat(name).st_nlink, 1) for name in names]
        return seen

    seen = twins.succeed(use, ALICE)
    assert max(seen) == (6, 1)
    twins.must_be_equal()


def test_inode_numbers_are_those_of_the_backing_tree(twins: Twins) -> None:
    twins.setup(lambda: os.makedirs("one/two"))
    twins.setup(lambda: Path("one/file").touch())
    for name in ("one", "one/two", "one/file"):
        assert os.stat(twins.mount / name).st_ino == os.stat(twins.behind / name).st_ino
    listed = as_user(ALICE, lambda: {entry.name: entry.inode() for entry in os.scandir("one")}, cwd=twins.mount)
    assert listed == {name: os.stat(twins.behind / "one" / name).st_ino for name in ("two", "file")}
