"""Situations in which something is to be removed or renamed, each made for real by root: see predicted.answer().

Those among names of the kernel are in kernel_situations.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from predicted import MS_BIND, MS_RDONLY, MS_REMOUNT, idmapped, mount, run
from twins import ALICE, BOB, LIBC, acl, acl_for, check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Make = Callable[[Path], AbstractContextManager[Path]]

SITUATIONS: dict[str, tuple[Make, tuple[str, ...]]] = {}
"""Each by its name: what makes it in a directory that everybody may write, and the kinds that root is told of it."""


def situation(*kinds: str) -> Callable[[Callable[[Path], Iterator[Path]]], Callable[[Path], Iterator[Path]]]:
    """One more."""

    def register(make: Callable[[Path], Iterator[Path]]) -> Callable[[Path], Iterator[Path]]:
        SITUATIONS[make.__name__] = (contextmanager(make), kinds)
        return make

    return register


def new_file(path: Path) -> Path:
    path.write_text("text")
    return path


def new_directory(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def filled(path: Path) -> Path:
    new_file(new_directory(path) / "inside")
    return path


@contextmanager
def attribute(letter: str, path: Path) -> Iterator[Path]:
    """chattr(1), until the end, whatever it is called then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        run("chattr", f"+{letter}", path)
        yield path
    finally:
        where = os.readlink(f"/proc/self/fd/{descriptor}")
        if not where.endswith(" (deleted)"):
            run("chattr", f"-{letter}", where)
        os.close(descriptor)


@situation()
def plain_file(here: Path) -> Iterator[Path]:
    yield new_file(here / "thing")


@situation()
def plain_directory(here: Path) -> Iterator[Path]:
    yield new_directory(here / "thing")


@situation()
def with_a_strange_name(here: Path) -> Iterator[Path]:
    yield new_directory(here / "a \n'\"\\ \x1b[1m\udcff")


@situation("not empty")
def not_empty(here: Path) -> Iterator[Path]:
    yield filled(here / "thing")


@situation()
def unreadable(here: Path) -> Iterator[Path]:
    yield new_directory(here / "thing", 0o700)


@situation("immutable")
def immutable_file(here: Path) -> Iterator[Path]:
    with attribute("i", new_file(here / "thing")) as thing:
        yield thing


@situation("append-only")
def append_only_file(here: Path) -> Iterator[Path]:
    with attribute("a", new_file(here / "thing")) as thing:
        yield thing


@situation("immutable", "not empty")
def immutable_and_not_empty(here: Path) -> Iterator[Path]:
    with attribute("i", filled(here / "thing")) as thing:
        yield thing


@situation("append-only")
def append_only(here: Path) -> Iterator[Path]:
    with attribute("a", new_directory(here / "thing")) as thing:
        yield thing


@situation("immutable directory")
def in_an_immutable_directory(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory")
    thing = new_file(directory / "thing")
    with attribute("i", directory):
        yield thing


@situation("append-only directory")
def in_an_append_only_directory(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory", 0o777)
    thing = new_directory(directory / "thing")
    with attribute("a", directory):
        yield thing


@situation()
def sticky(here: Path) -> Iterator[Path]:
    here.chmod(0o1777)
    yield new_file(here / "thing")


@situation("not empty")
def sticky_and_not_empty(here: Path) -> Iterator[Path]:
    here.chmod(0o1777)
    yield filled(here / "thing")


@situation()
def sticky_and_ones_own(here: Path) -> Iterator[Path]:
    here.chmod(0o1777)
    thing = new_file(here / "thing")
    os.chown(thing, ALICE.uid, ALICE.gid)
    yield thing


@situation()
def sticky_in_ones_own_directory(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory", 0o1755)
    os.chown(directory, ALICE.uid, ALICE.gid)
    thing = new_directory(directory / "thing")
    os.chown(thing, BOB.uid, BOB.gid)
    yield thing


@situation()
def no_write(here: Path) -> Iterator[Path]:
    yield new_file(new_directory(here / "directory") / "thing")


@situation("not empty")
def no_write_and_not_empty(here: Path) -> Iterator[Path]:
    yield filled(new_directory(here / "directory") / "thing")


@situation()
def no_search(here: Path) -> Iterator[Path]:
    yield new_file(new_directory(here / "directory", 0o666) / "thing")


@situation()
def no_search_above(here: Path) -> Iterator[Path]:
    closed = new_directory(here / "closed", 0o700)
    yield new_directory(new_directory(closed / "directory", 0o777) / "thing")


@situation()
def no_search_behind_a_symlink(here: Path) -> Iterator[Path]:
    closed = new_directory(here / "closed", 0o700)
    new_file(new_directory(closed / "directory", 0o777) / "thing")
    (here / "link").symlink_to("closed/directory")
    yield here / "link" / "thing"


@situation()
def an_acl_grants(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory")
    os.setxattr(directory, "system.posix_acl_access", acl_for(ALICE.uid, 7))
    directory.chmod(0o775)
    yield new_file(directory / "thing")


@situation()
def an_acl_denies(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory")
    nobody = 0xFFFFFFFF
    everything_but = acl((1, 7, nobody), (2, 5, ALICE.uid), (4, 7, nobody), (0x10, 7, nobody), (0x20, 7, nobody))
    os.setxattr(directory, "system.posix_acl_access", everything_but)
    yield new_file(directory / "thing")


@situation("read-only")
def on_a_read_only_mount(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory", 0o777)
    thing = new_file(directory / "thing")
    mount(str(directory), directory, flags=MS_BIND)
    mount("none", directory, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    yield thing


@situation("read-only", "not empty")
def on_a_read_only_filesystem_and_not_empty(here: Path) -> Iterator[Path]:
    mount("none", new_directory(here / "directory"), "tmpfs")
    (here / "directory").chmod(0o777)
    thing = filled(here / "directory" / "thing")
    mount("none", here / "directory", flags=MS_REMOUNT | MS_RDONLY)
    yield thing


@situation("swap")
def swap_file(here: Path) -> Iterator[Path]:
    thing = here / "thing"
    with open(thing, "wb") as file:
        file.write(bytes(1 << 20))
    thing.chmod(0o600)
    run("mkswap", thing)
    run("swapon", thing)
    try:
        yield thing
    finally:
        run("swapoff", thing)


@situation("loop")
def backing_file_of_a_loop_device(here: Path) -> Iterator[Path]:
    thing = here / "thing"
    with open(thing, "wb") as file:
        file.truncate(1 << 20)
    device = run("losetup", "--find", "--show", thing)
    try:
        yield thing
    finally:
        run("losetup", "--detach", device)


@situation("mountpoint")
def mountpoint(here: Path) -> Iterator[Path]:
    mount("none", new_directory(here / "thing"), "tmpfs")
    yield here / "thing"


@situation("mountpoint")
def bound_file(here: Path) -> Iterator[Path]:
    mount(str(new_file(here / "other")), new_file(here / "thing"), flags=MS_BIND)
    yield here / "thing"


@situation("mountpoint")
def mountpoint_by_another_name(here: Path) -> Iterator[Path]:
    new_directory(new_directory(here / "directory", 0o777) / "thing")
    mount(str(here / "directory"), new_directory(here / "bound"), flags=MS_BIND)
    mount("none", here / "directory" / "thing", "tmpfs")
    yield here / "bound" / "thing"


@situation("mountpoint", "immutable")
def immutable_mountpoint(here: Path) -> Iterator[Path]:
    with attribute("i", new_directory(here / "thing")) as thing:
        mount("none", thing, "tmpfs")
        yield thing
        check(LIBC.umount2(os.fsencode(thing), 2))


@situation("mountpoint")
def mountpoint_with_contents_above_an_empty_directory(here: Path) -> Iterator[Path]:
    mount("none", new_directory(here / "thing"), "tmpfs")
    new_file(here / "thing" / "inside")
    yield here / "thing"


@situation("mountpoint", "read-only")
def mountpoint_on_a_read_only_mount(here: Path) -> Iterator[Path]:
    new_directory(new_directory(here / "directory", 0o777) / "thing")
    mount(str(here / "directory"), here / "directory", flags=MS_BIND)
    mount("none", here / "directory" / "thing", "tmpfs")
    mount("none", here / "directory", flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    yield here / "directory" / "thing"


@situation()
def with_a_read_only_mount_on_the_way(here: Path) -> Iterator[Path]:
    directory = new_directory(here / "directory", 0o777)
    mount(str(directory), directory, flags=MS_BIND)
    mount("none", directory, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    mount("none", here, "tmpfs", options="mode=0777")  # it covers what is read-only
    yield new_directory(here / "thing")


@situation()
def upper_of_an_overlay(here: Path) -> Iterator[Path]:
    for name in ("thing", "work", "lower", "merged"):
        new_directory(here / name)
    options = f"lowerdir={here}/lower,upperdir={here}/thing,workdir={here}/work"
    mount("overlay", here / "merged", "overlay", options=options)
    yield here / "thing"
    check(LIBC.umount2(os.fsencode(here / "merged"), 2))


@situation("not empty")
def in_an_overlay(here: Path) -> Iterator[Path]:
    for name in ("upper", "work", "lower", "merged"):
        new_directory(here / name, 0o777)
    filled(here / "lower" / "thing")
    options = f"lowerdir={here}/lower,upperdir={here}/upper,workdir={here}/work"
    mount("overlay", here / "merged", "overlay", options=options)
    yield here / "merged" / "thing"


@situation("unmapped owner")
def owner_not_mapped_on_the_mount(here: Path) -> Iterator[Path]:
    new_file(new_directory(here / "directory", 0o777) / "thing")
    os.chown(here / "directory", 61500, 61500)
    with idmapped(here / "directory", new_directory(here / "bound"), {61500: ALICE.uid, 0: 0, 61501: BOB.uid}):
        os.chown(here / "directory" / "thing", 61999, 61999)
        yield here / "bound" / "thing"


@situation()
def symlink(here: Path) -> Iterator[Path]:
    (here / "thing").symlink_to(filled(here / "directory"))
    yield here / "thing"


@situation()
def symlink_to_nothing(here: Path) -> Iterator[Path]:
    (here / "thing").symlink_to("nothing")
    yield here / "thing"


@situation()
def fifo(here: Path) -> Iterator[Path]:
    os.mkfifo(here / "thing")
    yield here / "thing"


@situation()
def character_device(here: Path) -> Iterator[Path]:
    os.mknod(here / "thing", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield here / "thing"


@situation("block device")
def block_device(here: Path) -> Iterator[Path]:
    os.mknod(here / "thing", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    yield here / "thing"


@situation()
def unix_socket(here: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(here / "thing"))
        yield here / "thing"


@situation()
def open_and_locked(here: Path) -> Iterator[Path]:
    with open(new_file(here / "thing"), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield here / "thing"


@situation()
def running(here: Path) -> Iterator[Path]:
    (here / "thing").write_bytes(Path("/bin/sleep").read_bytes())
    (here / "thing").chmod(0o755)
    with subprocess.Popen([here / "thing", "infinity"]) as sleeper:
        try:
            yield here / "thing"
        finally:
            sleeper.kill()


@situation()
def somebodys_working_directory(here: Path) -> Iterator[Path]:
    with subprocess.Popen(["sleep", "infinity"], cwd=new_directory(here / "thing")) as sleeper:
        try:
            yield here / "thing"
        finally:
            sleeper.kill()
