"""The channel: how /dev/fuse is opened and mounted, and how the mount is taken away again.

Root mounts by mount(2). An ordinary user has fusermount3(1) do it, the one setuid helper there is; it hands the
descriptor back over the socket named by _FUSE_COMMFD. The kernel checks permissions on every mount of ours
(default_permissions): nothing else does.
"""

from __future__ import annotations

import array
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from exclfs.mirror import _mirror

if TYPE_CHECKING:
    from collections.abc import Sequence

FUSE_DEVICE: Final = "/dev/fuse"
TYPE: Final = "fuse.exclfs"
_MOUNT_FLAGS: Final = {  # mount(2)
    "ro": 1 << 0,
    "nosuid": 1 << 1,
    "nodev": 1 << 2,
    "noexec": 1 << 3,
    "sync": 1 << 4,
    "dirsync": 1 << 7,
    "nosymfollow": 1 << 8,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}


class MountRefused(Exception):
    """The system refused the mount; `why` is what it said."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def mount(fsname: str, mountpoint: str, *, flags: Sequence[str], allow_other: bool) -> int:
    """Mounts, and returns the descriptor of /dev/fuse, close-on-exec.

    Args:
        fsname: the first column of mountinfo.
        mountpoint: an absolute path.
        flags: kernel flags by name, each a key of mount(2)'s table.
        allow_other: whether other users may enter.

    Raises:
        MountRefused: the kernel, or fusermount3, said no.
    """
    if os.geteuid() == 0:
        return _mount_as_root(fsname, mountpoint, flags, allow_other)
    return _mount_as_user(fsname, mountpoint, flags, allow_other)


def detach(mountpoint: str) -> None:
    """Takes the mount away at once; who still uses it keeps it until the last user has left (umount2 MNT_DETACH).

    Raises:
        OSError: it is not a mountpoint any more, or not ours to unmount.
    """
    if os.geteuid() == 0:
        _mirror.detach(os.fsencode(mountpoint))
        return
    done = subprocess.run(
        ["fusermount3", "-u", "-z", "-q", "--", mountpoint],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(done.returncode, done.stderr.strip() or "fusermount3 failed", mountpoint)


def hide_from_other_processes() -> None:
    """Keeps everybody but root from looking into this process, which has descriptors of the backing tree."""
    _mirror.hide()


def _mount_as_root(fsname: str, mountpoint: str, flags: Sequence[str], allow_other: bool) -> int:
    device = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    mode = os.stat(mountpoint).st_mode & 0o170000
    options = [f"fd={device}", f"rootmode={mode:o}", "user_id=0", f"group_id={os.getegid()}", "default_permissions"]
    if allow_other:
        options.append("allow_other")
    bits = 0
    for flag in flags:
        bits |= _MOUNT_FLAGS[flag]
    try:
        _mirror.mount(os.fsencode(fsname), os.fsencode(mountpoint), TYPE.encode(), bits, ",".join(options).encode())
    except OSError as error:
        os.close(device)
        raise MountRefused(f"mount(2) on {mountpoint}: {error.strerror}") from None
    return device


def _mount_as_user(fsname: str, mountpoint: str, flags: Sequence[str], allow_other: bool) -> int:
    options = ["default_permissions", f"fsname={_escaped(fsname)}", "subtype=exclfs", *flags]
    if allow_other:
        options.append("allow_other")
    ours, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, helpers:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(helpers.fileno())},
                pass_fds=[helpers.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise MountRefused("fusermount3 is not installed (package fuse3); only root can mount without it") from None
        if done.returncode != 0:
            raise MountRefused(done.stderr.strip() or f"fusermount3 ended with {done.returncode}")
        return _received(ours)


def _received(from_helper: socket.socket) -> int:
    descriptors = array.array("i")
    _, ancillary, _, _ = from_helper.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    if len(descriptors) != 1:
        raise MountRefused("fusermount3 handed no descriptor back")
    return descriptors[0]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")
