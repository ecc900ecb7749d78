from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import pytest

from exclfs.host import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINES = rb"""22 27 0:21 / /proc rw,nosuid,relatime shared:5 master:1 - proc proc rw
35 27 8:1 /sub\040dir /a\040b\134\011\012 ro,noatime - ext4 /dev/sda1 rw,errors=remount-ro
36 35 0:44 / /mnt/caf\303\251 rw,nosuid,nodev - fuse.exclfs /srv/x rw,user_id=1000,group_id=100,default_permissions,allow_other
37 35 0:45 / /none rw - tmpfs  rw
"""  # noqa: E501


def test_parses_every_field() -> None:
    proc, bind, exclfs, nameless = mounts.parse(LINES)
    assert (proc.id, proc.parent, proc.device, proc.fstype, proc.mountpoint) == (22, 27, "0:21", "proc", b"/proc")
    assert (bind.root, bind.mountpoint, bind.options) == (b"/sub dir", b"/a b\\\t\n", ("ro", "noatime"))
    assert bind.source == b"/dev/sda1"
    assert bind.st_dev == os.makedev(8, 1)
    assert (exclfs.fstype, exclfs.mountpoint, exclfs.source) == ("fuse.exclfs", "/mnt/café".encode(), b"/srv/x")
    assert nameless.source == b""
    assert nameless.super_options == ("rw",)


def test_what_propagates_where_is_told() -> None:
    line = b"40 22 0:50 / /p rw %s - tmpfs none rw"
    for fields, expected in {
        b"shared:7": (7, None),
        b"master:8": (None, 8),
        b"shared:7 master:8 propagate_from:9": (7, 8),
        b"unbindable": (None, None),
    }.items():
        (mount,) = mounts.parse(line % fields)
        assert (mount.peer_group, mount.master) == expected


def test_which_filesystems_no_server_can_keep_waiting() -> None:
    line = b"40 22 %s / /p rw - %s none rw"
    for device, fstype, local in (
        (b"8:1", b"ext4", True),
        (b"0:30", b"tmpfs", True),
        (b"0:30", b"btrfs", True),
        (b"0:30", b"nfs4", False),
        (b"0:30", b"fuse.exclfs", False),
        (b"8:1", b"fuseblk", False),
        (b"0:30", b"overlay", False),
    ):
        (mount,) = mounts.parse(line % (device, fstype))
        assert mount.is_local == local, fstype


def test_options_of_the_filesystem() -> None:
    exclfs = mounts.parse(LINES)[2]
    assert exclfs.super_option("user_id") == "1000"
    assert exclfs.super_option("allow_other") == ""
    assert exclfs.super_option("user") is None


@pytest.mark.parametrize("line", [b"hello", b"1 2 0:1 / / rw", b"x 2 0:1 / / rw - tmpfs none rw", b"1 - 2"])
def test_what_is_no_mountinfo_is_told(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        mounts.parse(line)


def test_every_mount_here_can_be_read_and_found() -> None:
    assert mounts.mounts()
    assert mounts.mount_of("/proc/self").fstype == "proc"
    proc = mounts.at("/proc")
    assert proc is not None
    assert proc.st_dev == os.stat("/proc").st_dev
    assert mounts.at("/proc/self") is None
    assert mounts.at("/no/such/thing") is None
    with pytest.raises(FileNotFoundError):
        mounts.mount_of("/no/such/thing")


def test_of_a_symlink_its_own_mount_and_at_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert mounts.mount_of(link).fstype != "proc"
    mount = mounts.at(link)
    assert mount is not None
    assert mount.fstype == "proc"


@pytest.fixture
def stale(tmp_path: Path) -> Iterator[Path]:
    """A FUSE mount whose server is gone, of the type that exclfs has."""
    libc = ctypes.CDLL(None, use_errno=True)
    mountpoint = tmp_path / "a stale\tone"
    mountpoint.mkdir()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    result = libc.mount(b"/srv/x", os.fsencode(mountpoint), b"fuse.exclfs", 0, options)
    os.close(fuse)
    if result < 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield mountpoint
    libc.umount2(os.fsencode(mountpoint), 2)


@pytest.mark.mount
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")
def test_a_stale_mount_is_recognised(stale: Path, tmp_path: Path) -> None:
    assert mounts.is_stale(stale)
    assert mounts.is_stale(stale / "below")
    assert not mounts.is_stale(tmp_path)
    assert not mounts.is_stale("/no/such/thing")
    mount = mounts.at(stale)
    assert mount is not None
    assert mount.mountpoint == os.fsencode(stale)
    assert mount.super_option("user_id") == str(os.getuid())
    assert mount in mounts.exclfs_mounts()
    assert mounts.mount_of(stale) == mount
    assert mounts.mount_of(stale / "below" / "it") == mount
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.stat(stale)
    assert caught.value.errno == errno.ENOTCONN
