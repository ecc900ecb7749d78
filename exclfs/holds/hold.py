"""A hold: flags, holder, reason and lifetime on one inode."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen

from exclfs.holds.flags import Flags
from exclfs.holds.holder import Holder
from exclfs.holds.lifetime import End


@frozen(order=True)
class Inode:
    """The identity of an inode of the backing tree. All its hard links share it."""

    dev: int
    """st_dev of the backing filesystem."""
    ino: int
    """st_ino on the backing filesystem."""
    nodeid: int = 0
    """What the kernel calls it (FUSE)."""
    generation: int = 0
    """With the nodeid: tells apart two inodes that had the same number one after the other."""


@frozen
class Hold:
    """One hold. It is never changed: it is placed, and it ends."""

    id: str
    inode: Inode
    path: str
    """The path by which it was placed, absolute in the mount; bytes that are not UTF-8 as surrogates (os.fsdecode)."""
    flags: Flags
    holder: Holder
    reason: str
    since: datetime
    """When it was placed; aware, UTC."""
    ends: tuple[End, ...]
