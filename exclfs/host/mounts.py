"""Which mounts there are, from /proc/self/mountinfo (proc_pid_mountinfo(5)).

The rule that this module owns: looking at a mount never asks its server. Paths are opened O_PATH and the kernel says
on which mount they lie, so a mount whose server hangs or has died is recognised and not waited for. `is_stale` is the
one exception, and says so.
"""

from __future__ import annotations

import errno
import functools
import os
import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

FSTYPE: Final = "fuse.exclfs"
"""The type under which exclfs mounts stand in mountinfo."""

_IN_THE_KERNEL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "proc", "sysfs", "btrfs", "zfs"})
"""Filesystems without a block device of their own (their st_dev has major 0) and without a server."""
_NEVER_UPPER: Final = frozenset({"overlay", "proc", "cgroup", "cgroup2"})
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@frozen
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    device: str
    """`major:minor` of st_dev of the files on it."""
    root: bytes
    """What of the filesystem is mounted here: a path within it, / unless this is a bind mount or a subvolume."""
    mountpoint: bytes
    """Where it is mounted, as seen from this process's root."""
    options: tuple[str, ...]
    """Of this mount: rw, nosuid, relatime, …"""
    fstype: str
    source: bytes
    super_options: tuple[str, ...]
    """Of the filesystem: rw, user_id=0, …"""
    peer_group: int | None = None
    """What is mounted below one mount of a peer group appears below all of them (shared:N, mount_namespaces(7))."""
    master: int | None = None
    """The peer group from which mounts appear here, and not the other way round (master:N)."""

    def super_option(self, name: str) -> str | None:
        """The value of an option of the filesystem: "0" of user_id=0; "" of one without value; None if not there."""
        for option in self.super_options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None

    @property
    def st_dev(self) -> int:
        """The device as stat(2) gives it for files on this mount."""
        major, _, minor = self.device.partition(":")
        return os.makedev(int(major), int(minor))

    @property
    def is_local(self) -> bool:
        """Whether to look up a name on it asks the kernel and a disk at most: no server that might not answer."""
        return self.fstype in _IN_THE_KERNEL or (not self.device.startswith("0:") and self.fstype != "fuseblk")

    @property
    def can_be_upper(self) -> bool:
        """Whether overlayfs takes a directory on it as upper (ovl_mount_dir_check() in fs/overlayfs/params.c)."""
        return self.fstype not in _NEVER_UPPER and "ro" not in (*self.options, *self.super_options)


def parse(mountinfo: bytes) -> tuple[Mount, ...]:
    """Every mount of a mountinfo file, in its order.

    Raises:
        ValueError: it is not a mountinfo file.
    """
    return tuple(_parse_line(line) for line in mountinfo.split(b"\n") if line)


def mounts() -> tuple[Mount, ...]:
    """Every mount that this process can see."""
    with open("/proc/self/mountinfo", "rb") as file:
        return parse(file.read())


def exclfs_mounts() -> tuple[Mount, ...]:
    """The mounts of exclfs that this process can see, served or stale."""
    return tuple(mount for mount in mounts() if mount.fstype == FSTYPE)


def mount_of(path: str | os.PathLike[str] | bytes) -> Mount:
    """The mount on which the object itself lies: a symlink at the end of the path is not followed.

    A path below a mount whose server has died cannot be opened any more; it is taken to lie on the nearest mount that
    its text names.

    Raises:
        OSError: there is no such path, or no way to it.
    """
    try:
        return _mount_of(os.fsencode(path), os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        mount = _nearest(os.path.abspath(os.fsencode(path)))
        if mount is None:
            raise
        return mount


def at(mountpoint: str | os.PathLike[str] | bytes) -> Mount | None:
    """The mount whose mountpoint this path is, the topmost of several; None if it is none, or not there."""
    path = os.fsencode(mountpoint)
    try:
        mount = _mount_of(path, 0)
        if mount.mountpoint == _canonical(path):
            return mount
    except OSError:
        pass
    return None


def id_of(descriptor: int) -> int:
    """The id of the mount through which this was opened: a bind mount has its own. Asks no filesystem."""
    with open(f"/proc/self/fdinfo/{descriptor}") as file:
        return next(int(value) for name, value in _fields(file.read()) if name == "mnt_id")


def is_stale(path: str | os.PathLike[str] | bytes) -> bool:
    """Whether this lies on a mount whose server is gone (ENOTCONN).

    It asks with statfs(2), which always reaches the server: attributes, as stat(2) wants them, the kernel may still
    believe for a second after the server was killed. Where a server hangs, this waits for it.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False


def _parse_line(line: bytes) -> Mount:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    fields, separator, filesystem = line.partition(b" - ")
    try:
        number, parent, device, root, mountpoint, options, *propagation = fields.split(b" ")
        if not separator:
            raise ValueError("no separator")
        fstype, source, super_options = _filesystem(filesystem)
        return Mount(
            id=int(number),
            parent=int(parent),
            device=device.decode("ascii"),
            root=_unescape(root),
            mountpoint=_unescape(mountpoint),
            options=_options(options),
            fstype=fstype,
            source=source,
            super_options=super_options,
            peer_group=_group(propagation, b"shared:"),
            master=_group(propagation, b"master:"),
        )
    except ValueError as error:
        raise ValueError(f"not a line of mountinfo: {line!r}") from error


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash stand there as \\040, \\011, \\012 and \\134."""
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), field) if b"\\" in field else field


@functools.lru_cache(maxsize=4096)
def _filesystem(fields: bytes) -> tuple[str, bytes, tuple[str, ...]]:
    """Type, source and options of a filesystem: the same in every mount namespace that has it."""
    fstype, source, super_options = [*fields.split(b" "), b""][:3]
    return os.fsdecode(_unescape(fstype)), _unescape(source), _options(super_options)


@functools.lru_cache(maxsize=4096)
def _options(field: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(_unescape(option)) for option in field.split(b",") if option)


def _group(propagation: list[bytes], tag: bytes) -> int | None:
    for field in propagation:
        if field.startswith(tag):
            return int(field.removeprefix(tag))
    return None


def _mount_of(path: bytes, flags: int) -> Mount:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    try:
        number = id_of(descriptor)
        for mount in mounts():
            if mount.id == number:
                return mount
    finally:
        os.close(descriptor)
    raise OSError(errno.ENODEV, "is on a mount that is not in reach of this process", os.fsdecode(path))


def _fields(fdinfo: str) -> Iterator[tuple[str, str]]:
    for line in fdinfo.splitlines():
        name, _, value = line.partition(":")
        yield name, value


def _canonical(path: bytes) -> bytes:
    """The path without symlinks, as the kernel has it; no component below a mountpoint is asked for."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def _nearest(path: bytes) -> Mount | None:
    """The mount with the longest mountpoint that this absolute path begins with; of equals the last, which covers."""
    nearest = None
    for mount in mounts():
        below = mount.mountpoint.rstrip(b"/") + b"/"
        if (path + b"/").startswith(below) and (nearest is None or len(mount.mountpoint) >= len(nearest.mountpoint)):
            nearest = mount
    return nearest
