"""What is in a control group, from the files of its directory (cgroups(7))."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

FSTYPES: Final = frozenset({"cgroup", "cgroup2"})
"""Version 1 and version 2."""


@frozen
class Cgroup:
    """A control group, and what keeps it from being removed (cgroup_destroy_locked() in kernel/cgroup/cgroup.c)."""

    pids: tuple[int, ...]
    """The processes in it, or of a threaded one the threads; 0 for each of a foreign pid namespace."""
    children: tuple[str, ...]
    """The groups in it, by name."""


def opened(directory: int) -> Cgroup:
    """The group of which this is open, O_PATH, on its directory.

    Raises:
        OSError: it must not be read, or is gone (ENODEV).
    """
    return Cgroup(pids=_members(directory), children=tuple(sorted(_children(directory))))


def _members(directory: int) -> tuple[int, ...]:
    try:
        return _pids(directory, "cgroup.procs")
    except OSError:
        # EOPNOTSUPP of a threaded group, whose processes are its root's.
        return _pids(directory, "cgroup.threads")


def _pids(directory: int, name: str) -> tuple[int, ...]:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return tuple(int(line) for line in file)


def _children(directory: int) -> Iterator[str]:
    with os.scandir(f"/proc/self/fd/{directory}") as entries:
        for entry in entries:
            if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
                yield entry.name
