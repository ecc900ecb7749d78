"""What docs/reference/limits.md says cannot be had through the mount: each answers as it says there."""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import start
from twins import CAROL, LIBC, Twins, as_user, check, handle_of, open_handle

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

GETFLAGS, SETFLAGS, FSGETXATTR, FSSETXATTR = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
FICLONE, FIBMAP, FIEMAP, FIFREEZE, FITRIM = 0x40049409, 1, 0xC020660B, 0xC0045877, 0xC0185879
ENABLE_VERITY, GET_ENCRYPTION_POLICY = 0x40806685, 0x400C6615
ENOTTY_IOCTLS = {
    "lsattr": GETFLAGS,
    "chattr": SETFLAGS,
    "project-id": FSGETXATTR,
    "set-project-id": FSSETXATTR,
    "fs-verity": ENABLE_VERITY,
    "encryption": GET_ENCRYPTION_POLICY,
    "trim": FITRIM,
}


def errno_of(attempt: Callable[[], Any]) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is returned
        attempt()
    return errno.errorcode[caught.value.errno or 0]


@pytest.mark.parametrize("name", ENOTTY_IOCTLS)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_ioctls_are_not_passed_on(twins: Twins, kind: str, name: str) -> None:
    (twins.behind / "file").write_text("text")
    (twins.behind / "directory").mkdir()
    fd = os.open(twins.mount / kind, os.O_RDONLY)
    try:
        said = errno_of(lambda: fcntl.ioctl(fd, ENOTTY_IOCTLS[name], array.array("B", bytes(256))))
    finally:
        os.close(fd)
    assert said in {"ENOTTY", "ENOTSUP"}


def test_there_are_no_reflinks_and_no_maps_of_blocks(twins: Twins) -> None:
    (twins.behind / "file").write_text("text")
    with open(twins.mount / "file") as source, open(twins.mount / "new", "w") as target:
        assert errno_of(lambda: fcntl.ioctl(target.fileno(), FICLONE, source.fileno())) in {"ENOTSUP", "EXDEV"}
        assert errno_of(lambda: fcntl.ioctl(source.fileno(), FIEMAP, array.array("B", bytes(64)))) == "ENOTSUP"


def test_the_filesystem_is_not_frozen_through_the_mount(twins: Twins) -> None:
    fd = os.open(twins.mount, os.O_RDONLY)
    try:
        assert errno_of(lambda: fcntl.ioctl(fd, FIFREEZE, array.array("i", [0]))) == "ENOTSUP"
    finally:
        os.close(fd)


def test_a_directory_has_neither_holes_nor_data(twins: Twins) -> None:
    """Filesystems differ here; the kernel's FUSE says that a directory is all data, of its size."""
    (twins.mount / "file").touch()  # on btrfs an empty directory has none
    fd = os.open(twins.mount, os.O_RDONLY)
    try:
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)) == (0, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def test_what_goes_through_a_fifo_touches_no_times(twins: Twins) -> None:
    os.mkfifo(twins.mount / "fifo")
    before = os.stat(twins.behind / "fifo")
    fd = os.open(twins.mount / "fifo", os.O_RDWR)
    try:
        os.write(fd, b"data")
        assert os.read(fd, 4) == b"data"
    finally:
        os.close(fd)
    after = os.stat(twins.mount / "fifo")
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)


def test_a_write_from_nowhere_has_cleared_nothing_without_passthrough(any_mount: Mounted, twins: Twins) -> None:
    """Elsewhere setuid bits have gone before it fails; here the kernel has nothing to send."""
    (twins.behind / "file").write_text("text")
    os.chmod(twins.behind / "file", 0o4777)

    def attempt() -> None:
        fd = os.open("file", os.O_WRONLY)
        try:
            check(LIBC.write(fd, ctypes.c_void_p(1), 8))
        finally:
            os.close(fd)

    said = errno_of(lambda: as_user(CAROL, attempt, cwd=twins.mount))
    assert said == "EFAULT"
    passes_through = "nopassthrough" not in str(any_mount.root)
    assert os.stat(twins.behind / "file").st_mode & 0o7777 == (0o777 if passes_through else 0o4777)


def test_reading_an_empty_file_is_not_passed_on_without_passthrough(any_mount: Mounted, twins: Twins) -> None:
    (twins.behind / "file").touch()
    os.utime(twins.behind / "file", ns=(10**18, 10**18))
    assert (twins.mount / "file").read_bytes() == b""
    touched = os.stat(twins.behind / "file").st_atime_ns != 10**18
    assert touched == ("nopassthrough" not in str(any_mount.root)) or "noatime" in mount_options_of(twins.behind)


def test_there_are_no_quotas_on_the_mount(twins: Twins) -> None:
    buffer = ctypes.create_string_buffer(256)
    fd = os.open(twins.mount, os.O_RDONLY)
    try:
        number = {"x86_64": 443, "aarch64": 443}[os.uname().machine]
        said = errno_of(lambda: check(LIBC.syscall(number, fd, 0x800007 << 8 & 0xFFFFFFFF, 0, buffer)))
    finally:
        os.close(fd)
    assert said in {"ENOSYS", "ESRCH", "EINVAL"}


def test_a_handle_from_before_a_remount_is_stale_until_the_inode_is_seen_again(tmp_path: Path) -> None:
    """And good from then on: nodeid and generation are the same after a restart."""
    with start(tmp_path) as before:
        (before.backing / "file").write_text("text")
        handle = handle_of(before.path / "file")
    with start(tmp_path) as after:
        assert errno_of(lambda: open_handle(after.path, handle)) == "ESTALE"
        os.stat(after.path / "file")
        with open(open_handle(after.path, handle)) as file:
            assert file.read() == "text"


def test_reading_touches_the_backing_file_whatever_the_mount_says(mount: Callable[..., Mounted]) -> None:
    mounted = mount(kernel_flags=("noatime",))
    behind = mounted.backing / "file"
    behind.write_text("text")
    os.utime(behind, ns=(10**18, 10**18))
    assert (mounted.path / "file").read_text() == "text"
    assert behind.stat().st_atime_ns != 10**18 or "noatime" in mount_options_of(mounted.backing)


def mount_options_of(path: Path) -> str:
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return " ".join(line.split()[5] for line in lines if line.split()[2] == wanted)
