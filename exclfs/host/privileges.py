"""What this thread may do beyond the permission bits: its capabilities, and over whose files they reach.

The rule that this module owns: being uid 0 proves nothing. A capability is effective or it is not (capabilities(7)),
and in a user namespace it reaches no further than the ids that are mapped there (user_namespaces(7)). Both are per
thread, and so is everything here.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_NUMBERS: Final = {"CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}
"""include/uapi/linux/capability.h"""

_EVERY_ID: Final = 0xFFFF_FFFF
"""How many ids the map of the initial user namespace has: all but (uid_t) -1."""

_DEFAULT_OVERFLOW: Final = 65534
"""DEFAULT_OVERFLOWUID and DEFAULT_OVERFLOWGID of include/linux/highuid.h."""

_AT_EACCESS: Final = 0x200
_AT_EMPTY_PATH: Final = 0x1000
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def capable(name: str) -> bool:
    """Whether this thread has the capability in its effective set (CapEff, proc_pid_status(5)).

    Args:
        name: CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_PTRACE or CAP_SYS_ADMIN.
    """
    with open("/proc/thread-self/status", "rb") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))
    return bool(effective >> _NUMBERS[name] & 1)


def capable_over(name: str, status: os.stat_result) -> bool:
    """Whether the capability reaches this inode: owner and group must be ids of this user namespace.

    This is privileged_wrt_inode_uidgid() of kernel/capability.c.
    """
    return capable(name) and not is_unmapped("uid", status.st_uid) and not is_unmapped("gid", status.st_gid)


def is_unmapped(kind: str, id: int) -> bool:
    """Whether stat(2) gave this id because the true one has no number in this user namespace.

    The kernel shows the overflow id then (/proc/sys/kernel/overflowuid). In a namespace that has not all ids, one that
    is really called so cannot be told from one that is not mapped, and is taken for that.

    Args:
        kind: uid or gid.
        id: as stat(2) gave it.
    """
    return id == overflow_id(kind) and not _maps_every_id(kind)


def overflow_id(kind: str) -> int:
    """The number that stands for an uid or gid that has none."""
    try:
        with open(f"/proc/sys/kernel/overflow{kind}", "rb") as file:
            return int(file.read())
    except OSError:  # a container that hides /proc/sys
        return _DEFAULT_OVERFLOW


def refusal(descriptor: int, mode: int) -> int:
    """What the kernel answers to this use of an inode by this thread: 0, or an errno.

    It is asked by faccessat2(2), so that access control lists, capabilities, file systems and security modules all have
    their say. EROFS and EPERM are answered too: the mount is read-only, the inode is immutable.

    Args:
        descriptor: O_PATH will do.
        mode: os.R_OK, os.W_OK, os.X_OK.
    """
    if _LIBC.faccessat(descriptor, b"", mode, _AT_EACCESS | _AT_EMPTY_PATH) == 0:
        return 0
    return ctypes.get_errno()


def _maps_every_id(kind: str) -> bool:
    with open(f"/proc/thread-self/{kind}_map", "rb") as file:
        return sum(int(line.split()[2]) for line in file) >= _EVERY_ID
