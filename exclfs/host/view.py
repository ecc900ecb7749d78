"""One look at the host: where its files are, and what has been read of them once.

The rule that this module owns: whoever explains something reads each source once, so that all that is said is of one
moment, as nearly as /proc allows.
"""

from __future__ import annotations

import errno
import os
from functools import cached_property

from exclfs.host import mounts
from exclfs.host.mounts import Mount


class Host:
    """The host as one look finds it.

    Args:
        proc: where procfs is mounted.
        sys: where sysfs is mounted.
    """

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self.proc = proc
        self.sys = sys

    @cached_property
    def mounts(self) -> tuple[Mount, ...]:
        """Every mount that this process can see."""
        return mounts.mounts()

    @cached_property
    def pids(self) -> tuple[int, ...]:
        """Every process that this process can see, itself included."""
        return tuple(int(name) for name in os.listdir(self.proc) if name.isdecimal())

    def mount_of(self, descriptor: int) -> Mount:
        """The mount through which a descriptor of ours was opened.

        Raises:
            OSError: it is not in reach of this process (ENODEV).
        """
        number = mounts.id_of(descriptor)
        for mount in self.mounts:
            if mount.id == number:
                return mount
        raise OSError(errno.ENODEV, "is on a mount that is not in reach of this process")
