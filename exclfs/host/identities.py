"""Which inode something is, in words that the kernel has without asking the filesystem.

The rule that this module owns: two things are one inode if the device of their mount and the inode number are the
same, both of /proc (proc_pid_mountinfo(5), proc_pid_fdinfo(5)). stat(2) would ask the filesystem of each, and one whose
server hangs would hang whoever looks through all that is open. On btrfs, where inode numbers are those of a subvolume,
two things that are one by this need not be.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from exclfs.host.mounts import Mount


@frozen
class Identity:
    """An inode."""

    device: str
    """major:minor, as mountinfo has it."""
    inode: int

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor of the device."""
        major, _, minor = self.device.partition(":")
        return int(major), int(minor)

    @property
    def kernel_device(self) -> int:
        """The device in one number, as the kernel counts (MKDEV() in include/linux/kdev_t.h); not that of stat(2)."""
        major, minor = self.numbers
        return major << 20 | minor


def of(descriptor: int, mount: Mount) -> Identity:
    """Of what this descriptor of ours is open on, which lies on that mount."""
    inode = fdinfo(f"/proc/self/fdinfo/{descriptor}").get("ino")
    # Linux has told it since 5.14.
    return Identity(mount.device, int(inode) if inode is not None else os.stat(descriptor).st_ino)


def fdinfo(path: str) -> dict[str, str]:
    """The fields of a file of /proc/PID/fdinfo: pos, flags, mnt_id, ino, …

    Raises:
        OSError: it is not there any more, or must not be read.
    """
    with open(path, "rb", buffering=0) as file:
        return dict(line.split(":\t", 1) for line in os.fsdecode(file.read()).splitlines() if ":\t" in line)
