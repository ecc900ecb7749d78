"""One look at the host: where its files are, and what has been read of them once.

The rule that this module owns: whoever explains something reads each source once, so that all that is said is of one
moment, as nearly as /proc allows.
"""

from __future__ import annotations

import errno
import os
from functools import cached_property

from exclfs.host import descriptors, mounts, namespaces, places
from exclfs.host.descriptors import Descriptors
from exclfs.host.mounts import Mount
from exclfs.host.namespaces import Namespace


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
    def tree(self) -> places.Tree:
        """The mounts that this process can see, as mounted on one another."""
        return places.Tree(self.mounts)

    @cached_property
    def namespaces(self) -> tuple[Namespace, ...]:
        """Every mount namespace that this process can see, its own first."""
        return namespaces.seen(self)

    @cached_property
    def pids(self) -> tuple[int, ...]:
        """Every process that this process can see, itself included."""
        return tuple(int(name) for name in os.listdir(self.proc) if name.isdecimal())

    @cached_property
    def descriptors(self) -> Descriptors:
        """What every process has open that this one may look at."""
        return descriptors.read(self)

    def mount_of(self, descriptor: int) -> Mount:
        """The mount through which a descriptor of ours was opened, be it of another mount namespace (/proc/PID/root).

        Raises:
            OSError: it is in no namespace that can be seen (ENODEV).
        """
        number = mounts.id_of(descriptor)
        if number in self.tree.by_id:
            return self.tree.by_id[number]
        for namespace in self.namespaces:
            if number in namespace.tree.by_id:
                return namespace.tree.by_id[number]
        raise OSError(errno.ENODEV, "is on a mount that is not in reach of this process")
