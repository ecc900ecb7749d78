"""What calls are made on, in which directories, by whom: the rows of the table beside its calls.

A case is made in a directory of its own. `d` is of one of the kinds of directories and has one victim; `w` is for
everybody to write in, and has what a call needs besides.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING, Final

import attrs

from twins import ALICE, BOB, CAROL, ROOT, SHARED, User, acl, acl_for

if TYPE_CHECKING:
    from collections.abc import Callable

USERS: Final = {"root": ROOT, "owner": ALICE, "member": BOB, "stranger": CAROL}
"""The victim is the owner's and of a group that the member has beside its own."""
WRONG_GROUP = 4242


def write(name: str, data: bytes = b"text", mode: int = 0o644) -> None:
    """A file."""
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(fd, data)
        os.fchown(fd, ALICE.uid, SHARED)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def directory(name: str, mode: int = 0o755, *, inside: bool = False) -> None:
    """A directory, with something in it if so wished."""
    os.mkdir(name)
    if inside:
        write(f"{name}/x")
        os.mkdir(f"{name}/y")
    given(name, mode)


def given(name: str, mode: int | None = None) -> None:
    """To the owner."""
    os.lchown(name, ALICE.uid, SHARED)
    if mode is not None:
        os.chmod(name, mode)


def node(name: str, kind: int, device: int = 0, mode: int = 0o666) -> None:
    """What mknod(2) makes."""
    os.mknod(name, kind | 0o600, device)
    given(name, mode)


def link(name: str, target: str) -> None:
    """A symlink."""
    os.symlink(target, name)
    given(name)


def unix_socket(name: str) -> None:
    """One that nobody listens to any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
    given(name, 0o666)


def linked(name: str) -> None:
    """A file with two names."""
    write(name, mode=0o666)
    os.link(name, "w/twin")


def with_acl(name: str) -> None:
    """A file whose ACL lets the stranger read and write."""
    write(name, mode=0o640)
    os.setxattr(name, "system.posix_acl_access", acl_for(CAROL.uid, 6, base=0o640))


def with_xattrs(name: str) -> None:
    """A file with xattrs."""
    write(name, mode=0o666)
    os.setxattr(name, "user.there", b"value")
    os.setxattr(name, "trusted.there", b"value")


def sparse(name: str) -> None:
    """A file with a hole."""
    write(name, mode=0o666)
    fd = os.open(name, os.O_WRONLY)
    try:
        os.pwrite(fd, b"end", 1 << 20)
    finally:
        os.close(fd)


@attrs.frozen
class Victim:
    """How it is made (by root, below `d`), and the name that the calls get."""

    make: Callable[[], object] = lambda: None
    name: str = "d/v"


def made(make: Callable[[str], object], name: str = "d/v") -> Victim:
    """What is called `v`."""
    return Victim(lambda: make("d/v"), name)


LONG = "x" * 255
VICTIMS: Final[dict[str, Victim]] = {
    "none": Victim(),
    "file": made(write),
    "private": made(lambda v: write(v, mode=0o600)),
    "open": made(lambda v: write(v, mode=0o666)),
    "no rights": made(lambda v: write(v, mode=0)),
    "empty file": made(lambda v: write(v, b"", 0o664)),
    "setuid": made(lambda v: write(v, mode=0o4777)),
    "setgid": made(lambda v: write(v, mode=0o6775)),
    "two names": made(linked),
    "acl": made(with_acl),
    "xattrs": made(with_xattrs),
    "sparse": made(sparse),
    "empty": made(directory),
    "full": made(lambda v: directory(v, inside=True)),
    "setgid directory": made(lambda v: directory(v, 0o2777)),
    "sticky directory": made(lambda v: directory(v, 0o1777, inside=True)),
    "closed directory": made(lambda v: directory(v, 0o700, inside=True)),
    "symlink": made(lambda v: link(v, "../w/file")),
    "dangling": made(lambda v: link(v, "nowhere")),
    "to directory": made(lambda v: link(v, "../w/empty")),
    "loop": made(lambda v: link(v, "v")),
    "fifo": made(lambda v: node(v, stat.S_IFIFO)),
    "socket": made(unix_socket),
    "null": made(lambda v: node(v, stat.S_IFCHR, os.makedev(1, 3))),
    "whiteout": made(lambda v: node(v, stat.S_IFCHR)),
    "block": made(lambda v: node(v, stat.S_IFBLK, os.makedev(259, 262143), 0o600)),
    "below file": made(lambda v: write(v, mode=0o666), "d/v/x"),
    "below none": Victim(name="d/none/x"),
    "below loop": made(lambda v: link(v, "v"), "d/v/x"),
    "below closed": made(lambda v: directory(v, 0o700, inside=True), "d/v/x"),
    "below symlink": made(lambda v: link(v, "../w"), "d/v/file"),
    "file/": made(write, "d/v/"),
    "directory/": made(directory, "d/v/"),
    "none/": Victim(name="d/v/"),
    "symlink/": made(lambda v: link(v, "../w/empty"), "d/v/"),
    "dangling/": made(lambda v: link(v, "nowhere"), "d/v/"),
    "dot": made(directory, "d/v/."),
    "dot dot": made(lambda v: directory(v, inside=True), "d/v/y/.."),
    "no name": Victim(name=""),
    "255 bytes": Victim(lambda: write(f"d/{LONG}", mode=0o666), f"d/{LONG}"),
    "255 bytes, none": Victim(name=f"d/{LONG}"),
    "256 bytes": Victim(name=f"d/{LONG}x"),
    "256 bytes in between": Victim(name=f"d/{LONG}x/v"),
    "path of 4095": Victim(lambda: write("d/v"), "./" * 2046 + "d/v"),
    "path of 4096": Victim(lambda: write("d/v"), "./" * 2046 + "d//v"),
    "not utf-8": Victim(lambda: write(os.fsdecode(b"d/\xff\xfe\x80")), os.fsdecode(b"d/\xff\xfe\x80")),
}


def kind(owner: User, group: int, mode: int, **xattrs: bytes) -> Callable[[], None]:
    """A kind of directory: whose `d` is, its mode, its ACLs."""

    def become() -> None:
        os.chown("d", owner.uid, group)
        os.chmod("d", mode)
        for name, value in xattrs.items():
            os.setxattr("d", f"system.posix_acl_{name}", value)

    return become


NOBODY = 0xFFFFFFFF
DIRECTORIES: Final[dict[str, Callable[[], None]]] = {
    "everybody's": kind(ROOT, 0, 0o777),
    "owner's": kind(ALICE, SHARED, 0o755),
    "group's": kind(ALICE, SHARED, 0o775),
    "stranger's": kind(CAROL, CAROL.gid, 0o755),
    "sticky": kind(ROOT, 0, 0o1777),
    "sticky, member's": kind(BOB, BOB.gid, 0o1777),
    "setgid": kind(ALICE, SHARED, 0o2777),
    "setgid of strangers": kind(ROOT, WRONG_GROUP, 0o3777),
    "default acl": kind(ROOT, 0, 0o777, default=acl_for(BOB.uid, 6)),
    "default acl, setgid": kind(ROOT, SHARED, 0o2777, default=acl_for(CAROL.uid, 7, base=0o770)),
    "acl": kind(ALICE, SHARED, 0o770, access=acl_for(CAROL.uid, 7, base=0o770)),
    "acl against": kind(
        ALICE,
        SHARED,
        0o777,
        access=acl(
            (1, 7, NOBODY), (2, 0, BOB.uid), (4, 7, NOBODY), (8, 5, CAROL.gid), (16, 7, NOBODY), (32, 7, NOBODY)
        ),
    ),
    "read-only": kind(ALICE, SHARED, 0o555),
    "not to be searched": kind(ALICE, SHARED, 0o666),
    "not to be read": kind(ALICE, SHARED, 0o333),
    "closed": kind(ALICE, SHARED, 0),
}
