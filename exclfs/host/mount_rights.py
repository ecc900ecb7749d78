"""What this thread may do with mounts, whatever is on them: mount and unmount at all, and unmount this one.

The rule that this module owns: what the kernel will not say is found out where it changes nothing: in a mount namespace
of one thread, which is gone with it.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Final

from exclfs.host import privileges
from exclfs.host.apart import CLONE_NEWNS, apart, check

if TYPE_CHECKING:
    import ctypes

_NS_GET_USERNS: Final = 0xB701
"""ioctl_nsfs(2)"""
_INITIAL_USERS: Final = 0xEFFFFFFD
"""The inode number of the initial user namespace (PROC_USER_INIT_INO in include/linux/proc_ns.h)."""
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000
_MNT_DETACH: Final = 2


def may_mount() -> bool:
    """Whether mount(2) and umount(2) are allowed to this thread: may_mount() of fs/namespace.c.

    It takes CAP_SYS_ADMIN in the user namespace that owns the mount namespace. Who has it in his own user namespace has
    it in those below; that of a namespace that is not below, the kernel does not tell (EPERM).
    """
    return privileges.capable("CAP_SYS_ADMIN") and _owner() is not None


def is_locked(mountpoint: str) -> bool:
    """Whether this mount was handed down to a less privileged mount namespace, and has to stay there (MNT_LOCKED).

    No file tells it. So it is tried on a copy of all mounts, in a namespace that shares nothing with this one.

    Args:
        mountpoint: as seen from this process's root.

    Raises:
        OSError: it cannot be tried: who may not mount may not try (EPERM).
    """
    if _owner() == _INITIAL_USERS:
        return False
    try:
        apart(lambda libc: _take_off_a_copy(libc, os.fsencode(mountpoint)))
    except _Locked:
        return True
    return False


class _Locked(OSError):
    """umount2(2) said EINVAL of a mountpoint."""


def _take_off_a_copy(libc: ctypes.CDLL, mountpoint: bytes) -> None:
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    if libc.umount2(mountpoint, _MNT_DETACH) != 0:
        raise _Locked


def _owner() -> int | None:
    """The inode number of the user namespace that owns this mount namespace; None if it is out of reach."""
    namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    except PermissionError:
        return None
    finally:
        os.close(namespace)
    try:
        return os.stat(owner).st_ino
    finally:
        os.close(owner)
