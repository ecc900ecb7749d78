"""Whose a new file is: owner, group and mode, for every kind of file, directory and user; from its first moment."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

import needs
from twins import ALICE, BOB, CAROL, ROOT, SHARED, Twins, User, acl_for, as_user, link_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.mount, pytest.mark.root]


def make_file(name: str, mode: int = 0o666) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def make_socket(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)


def make_unnamed(name: str) -> None:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666)
    try:
        link_descriptor(fd, name)
    finally:
        os.close(fd)


KINDS: dict[str, Callable[[str], None]] = {
    "file": make_file,
    "executable": lambda name: make_file(name, 0o777),
    "setgid": lambda name: make_file(name, 0o2775),
    "setuid": lambda name: make_file(name, 0o4755),
    "sticky": lambda name: make_file(name, 0o1644),
    "directory": lambda name: os.mkdir(name, 0o777),
    "setgid-directory": lambda name: os.mkdir(name, 0o2775),
    "fifo": lambda name: os.mkfifo(name, 0o666),
    "node": lambda name: os.mknod(name, stat.S_IFREG | 0o2666),
    "socket": make_socket,
    "symlink": lambda name: os.symlink("nowhere", name),
    "unnamed": make_unnamed,
}


def with_acl(*, mode: int = 0o777) -> None:
    os.mkdir("in", mode)
    os.chmod("in", mode)
    os.setxattr("in", "system.posix_acl_default", acl_for(BOB.uid, 6))


def owned(uid: int, gid: int, mode: int) -> None:
    os.mkdir("in")
    os.chown("in", uid, gid)
    os.chmod("in", mode)


DIRECTORIES: dict[str, Callable[[], None]] = {
    "plain": lambda: owned(0, 0, 0o777),
    "sticky": lambda: owned(ALICE.uid, ALICE.gid, 0o1777),
    "setgid": lambda: owned(0, SHARED, 0o2777),
    "setgid-of-others": lambda: owned(0, 4242, 0o2777),
    "default-acl": with_acl,
    "default-acl-setgid": lambda: with_acl(mode=0o2777),
    "closed": lambda: owned(0, SHARED, 0o775),
}


@pytest.mark.parametrize("user", [ROOT, ALICE, CAROL], ids=lambda user: user.name)
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_what_is_made_belongs_to_who_made_it(twins: Twins, directory: str, user: User) -> None:
    twins.setup(DIRECTORIES[directory])
    for umask in (0, 0o027, 0o777):
        for kind, make in KINDS.items():
            twins.both(lambda: make(f"in/{kind}{umask:o}"), attrs.evolve(user, umask=umask))  # noqa: B023
    twins.must_be_equal()


def test_default_acls_reach_what_is_made_below_what_is_made(twins: Twins) -> None:
    def below() -> None:
        os.makedirs("in/one/two")
        make_file("in/one/two/file")

    twins.setup(with_acl)
    twins.succeed(below, ALICE)
    twins.must_be_equal()
    assert b"\x02\x00" in os.getxattr(twins.mount / "in/one/two/file", "system.posix_acl_access")


def test_setfacl_gives_and_takes_rights(twins: Twins) -> None:
    needs.programs("setfacl")

    def facl(*arguments: str) -> None:
        subprocess.run(["setfacl", *arguments], check=True)

    def secret() -> None:
        make_file("secret")
        os.chmod("secret", 0o600)
        facl("-m", f"u:{CAROL.uid}:r", "secret")

    twins.setup(secret)
    assert twins.both(Path("secret").read_text, CAROL) == ""
    assert twins.both(Path("secret").read_text, BOB) == "EACCES"
    assert twins.both(lambda: Path("secret").write_text("no"), CAROL) == "EACCES"
    twins.must_be_equal()
    twins.setup(lambda: facl("-b", "secret"))
    assert twins.both(Path("secret").read_text, CAROL) == "EACCES"
    twins.must_be_equal()


@pytest.mark.parametrize("mode", [0o600, 0o2755, 0o644])
@pytest.mark.parametrize("user", [ALICE, CAROL], ids=lambda user: user.name)
def test_an_acl_that_takes_the_setgid_bit_takes_it(twins: Twins, user: User, mode: int) -> None:
    def prepare() -> None:
        make_file("file")
        os.chown("file", user.uid, SHARED)
        os.chmod("file", mode)

    twins.setup(prepare)
    twins.both(lambda: os.setxattr("file", "system.posix_acl_access", acl_for(BOB.uid, 7, base=0o755)), user)
    twins.must_be_equal()


def test_at_no_moment_does_a_new_file_belong_to_somebody_else(twins: Twins) -> None:
    strangers: set[tuple[str, int]] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            with os.scandir(twins.behind) as entries:
                for entry in entries:
                    try:
                        owner = entry.stat(follow_symlinks=False).st_uid
                    except FileNotFoundError:
                        continue
                    if owner != ALICE.uid:
                        strangers.add((entry.name, owner))

    def make() -> None:
        for _ in range(60):
            for kind in ("file", "directory", "symlink", "fifo", "unnamed"):
                KINDS[kind](kind)
            for kind in ("file", "symlink", "fifo", "unnamed"):
                os.unlink(kind)
            os.rmdir("directory")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        as_user(ALICE, make, cwd=twins.mount)
    finally:
        over.set()
        watcher.join()
    assert not strangers
