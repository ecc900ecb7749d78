"""What a hold refuses on a real mount: every operation, on every kind of object, by every hard link, for everybody."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from exclfs.holds.flags import OF_DIRECTORIES, Flags, Operation, refuses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount]

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def rename2(source: Path, target: Path, flags: int) -> None:
    """renameat2(2), which Python does not have."""
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(source))


def make_file(path: Path) -> None:
    path.write_text("content")


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.fchdir(here)
    os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "file": make_file,
    "directory": lambda path: path.mkdir(),
    "symlink": lambda path: path.symlink_to("nowhere"),
    "fifo": lambda path: os.mkfifo(path),
    "socket": make_socket,
}


def other(kind: str, directory: Path, name: str) -> Path:
    """Something that can replace an object of this kind."""
    path = directory / name
    KINDS["directory" if kind == "directory" else "file"](path)
    return path


OPERATIONS: dict[Operation, Callable[[str, Path], None]] = {
    Operation.UNLINK: lambda kind, path: path.unlink(),
    Operation.RMDIR: lambda kind, path: path.rmdir(),
    Operation.RENAME: lambda kind, path: path.rename(path.with_name("moved")),
    Operation.REPLACE: lambda kind, path: other(kind, path.parent, "replacement").rename(path),
    Operation.EXCHANGE: lambda kind, path: rename2(other(kind, path.parent, "partner"), path, EXCHANGE),
    Operation.WHITEOUT: lambda kind, path: rename2(path, path.with_name("whited"), WHITEOUT),
}


def applies(operation: Operation, kind: str) -> bool:
    return (operation is Operation.RMDIR) == (kind == "directory") or operation not in (
        Operation.RMDIR,
        Operation.UNLINK,
    )


CASES = [
    (operation, kind, flags)
    for operation in Operation
    for kind in KINDS
    for flags in (*Flags, Flags.EXCL_INUSE | Flags.NO_REMOVE)
    if applies(operation, kind) and (kind == "directory" or not flags & OF_DIRECTORIES)
]


def hold(path: Path, flags: Flags) -> None:
    value = b'{"holder": "test", "flags": [%s]}' % b", ".join(b'"%s"' % name.encode() for name in flags.names)
    os.setxattr(path, "system.exclfs.hold", value, follow_symlinks=False)


def release(path: Path) -> None:
    os.removexattr(path, "system.exclfs.hold", follow_symlinks=False)


def identity(path: Path) -> tuple[int, int, int]:
    status = os.lstat(path)
    return status.st_ino, status.st_nlink, status.st_mode


@pytest.mark.root
@pytest.mark.parametrize(
    ("operation", "kind", "flags"), CASES, ids=lambda value: getattr(value, "name", None) or str(value)
)
def test_each_operation_is_refused_by_the_flags_that_say_so(
    mounted: Mounted, operation: Operation, kind: str, flags: Flags
) -> None:
    path, behind = mounted.path / "held", mounted.backing / "held"
    KINDS[kind](path)
    before = identity(behind)
    hold(path, flags)
    if not refuses(flags, operation):
        OPERATIONS[operation](kind, path)
        return
    mounted.expect("refused")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        OPERATIONS[operation](kind, path)
    assert caught.value.errno == errno.EBUSY
    assert identity(behind) == before
    assert identity(path) == before
    release(path)
    OPERATIONS[operation](kind, path) if operation not in (Operation.REPLACE, Operation.EXCHANGE) else path.rename(
        path.with_name("free")
    )


@pytest.mark.parametrize("by", ["unlink", "rename", "replace"])
def test_every_hard_link_of_a_held_inode_is_guarded(mounted: Mounted, by: str) -> None:
    mounted.expect("refused")
    first, second = mounted.path / "first", mounted.setup("other") / "second"
    make_file(first)
    second.hardlink_to(first)
    hold(first, Flags.NO_REMOVE)
    with pytest.raises(OSError, match="busy"):
        {
            "unlink": second.unlink,
            "rename": lambda: second.rename(mounted.path / "elsewhere"),
            "replace": lambda: other("file", mounted.path, "new").rename(second),
        }[by]()
    assert second.exists()
    assert first.stat().st_nlink == 2
    release(second)
    second.unlink()
    assert first.stat().st_nlink == 1


def test_a_rename_onto_another_link_of_itself_does_nothing_and_succeeds(mounted: Mounted) -> None:
    first, second = mounted.path / "first", mounted.path / "second"
    make_file(first)
    second.hardlink_to(first)
    hold(first, Flags.NO_REMOVE)
    first.rename(second)
    assert first.exists()
    assert second.exists()
    release(first)


def test_a_rename_that_may_not_replace_says_so_before_a_hold_does(mounted: Mounted) -> None:
    held, free = mounted.path / "held", mounted.path / "free"
    make_file(held)
    make_file(free)
    hold(held, Flags.NO_REMOVE)
    with pytest.raises(FileExistsError):
        rename2(free, held, NOREPLACE)
    release(held)


def test_nothing_else_about_a_held_inode_is_affected(mounted: Mounted) -> None:
    file, directory = mounted.path / "file", mounted.setup("directory")
    make_file(file)
    hold(file, Flags.NO_REMOVE | Flags.EXCL_INUSE)
    hold(directory, Flags.NO_REMOVE | Flags.EXCL_INUSE)
    file.write_text("written")
    file.chmod(0o600)
    os.utime(file, (1, 2))
    os.truncate(file, 3)
    os.setxattr(file, "user.colour", b"red")
    file.with_name("link").hardlink_to(file)
    assert file.read_text() == "wri"
    (directory / "inside").write_text("x")
    (directory / "inside").unlink()
    (directory / "below").mkdir()
    (directory / "below").rmdir()
    mounted.path.rename(mounted.path.with_name(mounted.path.name + ".moved"))
    mounted.path.with_name(mounted.path.name + ".moved").rename(mounted.path)
    release(file)
    release(directory)


def test_an_unheld_neighbour_can_be_removed(mounted: Mounted) -> None:
    held, neighbour = mounted.path / "held", mounted.path / "neighbour"
    make_file(held)
    make_file(neighbour)
    hold(held, Flags.NO_REMOVE)
    neighbour.unlink()
    assert not neighbour.exists()
    release(held)


def test_the_holder_itself_is_refused_until_it_unlocks(mounted: Mounted) -> None:
    mounted.expect("refused")
    directory = mounted.setup("directory")
    hold(directory, Flags.NO_REMOVE)
    with pytest.raises(OSError, match="busy"):
        directory.rmdir()
    release(directory)
    directory.rmdir()


def test_a_held_inode_that_was_removed_behind_the_mount_guards_nothing_else(mounted: Mounted) -> None:
    """A new inode with the old name, perhaps the old number, is not the held one."""
    path = mounted.path / "file"
    make_file(path)
    hold(path, Flags.NO_REMOVE)
    (mounted.backing / "file").unlink()
    make_file(mounted.backing / "file")
    # The kernel believes the old name for entry_timeout; a fresh look is forced by another rename behind the mount.
    (mounted.backing / "file").rename(mounted.backing / "fresh")
    (mounted.path / "fresh").unlink()
    assert not (mounted.backing / "fresh").exists()
