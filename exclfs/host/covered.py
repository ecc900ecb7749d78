"""What lies under a mount.

The rule that this module owns: nothing is unmounted to look, and nobody sees that somebody looks. The mount of the
directory is copied without what is mounted below it (open_tree(2), OPEN_TREE_CLONE); the copy is attached nowhere and
ends with its descriptor.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE: Final = 428
"""On all architectures but alpha (open_tree(2))."""
_AT_EMPTY_PATH: Final = 0x1000
_CLONE: Final = 1


def opened(directory: int, name: str) -> int:
    """Opens, O_PATH, what this name in this directory is, whatever is mounted there. The descriptor is the caller's.

    Raises:
        OSError: this user may not look (EPERM: CAP_SYS_ADMIN, and in a user namespace mounts from outside stay
            together: EINVAL), or the kernel is older than 5.2 (ENOSYS).
    """
    copy = _LIBC.syscall(_OPEN_TREE, directory, b"", _CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH)
    if copy < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    try:
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=copy)
    finally:
        os.close(copy)
