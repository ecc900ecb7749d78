"""The attributes of an inode that refuse changes to everybody: immutable and append-only (chattr(1)).

The rule that this module owns: what a filesystem does not tell is None, not False; and nothing is opened that might
notice it. statx(2) tells without opening; only where it does not, and the inode is a file or directory on a disk, is it
opened for FS_IOC_GETFLAGS (ioctl_iflags(2)).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Final

from attrs import frozen

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_AT_EMPTY_PATH: Final = 0x1000
_STRUCT_STATX: Final = struct.Struct("=8xQ40xQ192x")
"""stx_attributes and stx_attributes_mask, of 256 bytes (include/uapi/linux/stat.h)."""
_STATX_ATTR_IMMUTABLE: Final = 0x10
_STATX_ATTR_APPEND: Final = 0x20

_FS_IOC_GETFLAGS: Final = 0x8000_6601 | struct.calcsize("l") << 16
_FS_IMMUTABLE_FL: Final = 0x10
_FS_APPEND_FL: Final = 0x20
_HAS_NONE: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@frozen
class Attributes:
    """Each is None if the filesystem does not tell this user."""

    immutable: bool | None
    append_only: bool | None


NONE: Final = Attributes(immutable=False, append_only=False)
UNKNOWN: Final = Attributes(immutable=None, append_only=None)


def of(descriptor: int) -> Attributes:
    """The attributes of what this is open on; O_PATH will do. Asks its filesystem.

    A filesystem in memory or over a network that does not tell them by statx(2) keeps none that the kernel would look
    at; what a server keeps for itself is known to the server alone. Never raises.
    """
    buffer = ctypes.create_string_buffer(_STRUCT_STATX.size)
    if _LIBC.statx(descriptor, b"", _AT_EMPTY_PATH, 0, buffer) != 0:
        return UNKNOWN
    attributes, told = _STRUCT_STATX.unpack(buffer.raw)
    if told & _STATX_ATTR_IMMUTABLE and told & _STATX_ATTR_APPEND:
        return Attributes(
            immutable=bool(attributes & _STATX_ATTR_IMMUTABLE), append_only=bool(attributes & _STATX_ATTR_APPEND)
        )
    return _flags(descriptor) if _is_on_a_disk(os.stat(descriptor)) else NONE


def _is_on_a_disk(status: os.stat_result) -> bool:
    """Whether opening it cannot do anything: no device, no FIFO, no file of /proc or /sys, no server to be asked."""
    return os.major(status.st_dev) != 0 and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _flags(descriptor: int) -> Attributes:
    try:
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return UNKNOWN
    try:
        (flags,) = struct.unpack_from("=I", fcntl.ioctl(opened, _FS_IOC_GETFLAGS, bytes(struct.calcsize("l"))))
    except OSError as error:
        return NONE if error.errno in _HAS_NONE else UNKNOWN
    finally:
        os.close(opened)
    return Attributes(immutable=bool(flags & _FS_IMMUTABLE_FL), append_only=bool(flags & _FS_APPEND_FL))
