"""What somebody may try to do with a path, and with which error the kernel will answer.

The rule that this module owns: of several causes that make one attempt fail, the errno is that of the one at which the
kernel looks first. A cause of which nothing is known but that it exists predicts nothing, and what could not be read
makes a success uncertain, never a failure.
"""

from __future__ import annotations

import errno
import stat
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.diagnosis.findings import Unread
    from exclfs.wire.causes import Cause


class Attempt(StrEnum):
    """What somebody may try to do with a path."""

    RMDIR = "rmdir"
    """rmdir(2)."""
    UNLINK = "unlink"
    """unlink(2)."""
    RENAME = "rename"
    """rename(2) to a name that is free, in the same directory."""
    UMOUNT = "umount"
    """umount2(2) without flags."""
    OVERLAY_MOUNT = "overlay-mount"
    """mount(2) of an overlay with this as its upper or work directory."""


def possible(mode: int, *, mountpoint: bool, may_mount: bool = True) -> tuple[Attempt, ...]:
    """What makes sense to be tried with an object.

    Args:
        mode: st_mode.
        mountpoint: whether something is mounted there. Who may not unmount it may have somebody who does it for him.
        may_mount: whether the asker may mount an overlay with it, as far as that depends on him and the filesystem.
    """
    attempts = [Attempt.RMDIR if stat.S_ISDIR(mode) else Attempt.UNLINK, Attempt.RENAME]
    if mountpoint:
        attempts.append(Attempt.UMOUNT)
    if stat.S_ISDIR(mode) and may_mount:
        attempts.append(Attempt.OVERLAY_MOUNT)
    return tuple(attempts)


ORDER: Final = (
    # Who may do this at all: may_mount(), and the first checks of can_umount() (fs/namespace.c).
    "privilege",
    "not a mountpoint",
    "locked mount",
    # On the way to the directory and to its name: filename_parentat(), mnt_want_write() (fs/namei.c).
    "no way",
    "root",
    "read-only",
    "no new name",
    # may_delete(): is this anybody's, and may its directory be written (inode_permission())?
    "unmapped owner",
    "immutable directory",
    "no permission",
    "append-only directory",
    # The rest of may_delete(): may this be taken away, by this call?
    "sticky",
    "append-only",
    "immutable",
    "swap",
    "not a directory",
    "is a directory",
    "silly rename",
    # vfs_rmdir(), vfs_unlink() and vfs_rename() themselves: has the filesystem such a call, is something mounted there?
    "cannot be removed",
    "mountpoint",
    # The filesystem, and behind one that is served the filesystem of the server.
    "hold",
    "open file",
    "backing tree",
    "cgroup",
    "not empty",
    # umount: do_umount(), propagate_mount_busy().
    "mount below",
    "loop",
    "descriptor",
    "working directory",
    "root directory",
    "executable",
    "mapping",
    "socket",
    # An overlay's layers: ovl_fill_super() (fs/overlayfs/super.c).
    "unsuitable filesystem",
    "overlay upper",
    "overlay work",
    "overlay lower",
)
"""The kinds of causes that can make an attempt fail, in the order in which the kernel looks at them."""


def rank(cause: Cause) -> int:
    """How early the kernel looks at this; what never makes anything fail comes last."""
    return ORDER.index(cause.kind) if cause.kind in ORDER else len(ORDER)


@frozen
class Outcome:
    """How an attempt will end."""

    blocked: bool | None
    """Whether it fails; None if nothing that was found makes it fail, and something could not be read."""
    errno: str | None
    """The error's name, if it fails."""


def outcome(attempt: Attempt, causes: Sequence[Cause], unread: Sequence[Unread]) -> Outcome:
    """How this attempt will end, as far as these causes tell."""
    in_the_way = [cause for cause in causes if attempt in cause.blocks]
    if in_the_way:
        first = min(in_the_way, key=rank)
        return Outcome(blocked=True, errno=first.errno)
    if any(attempt in gap.may_block for gap in unread):
        return Outcome(blocked=None, errno=None)
    return Outcome(blocked=False, errno=None)


def number(name: str) -> int:
    """The errno of this name: 16 of EBUSY."""
    value: int = getattr(errno, name)
    return value
