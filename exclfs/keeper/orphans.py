"""Orphans: held inodes that have been removed behind the mount.

The rule that this module owns: only proof makes an orphan. A backing filesystem that is in trouble proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from exclfs.holds.errors import Gone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.hold import Inode
    from exclfs.keeper.words import Mirror

AT_A_TIME: Final = 1000
"""How many inodes are looked at before others have a turn."""


async def among(inodes: Sequence[Inode], mirror: Mirror) -> list[Inode]:
    """Those that are not there any more. The disk is waited for in a thread."""
    gone: list[Inode] = []
    for start in range(0, len(inodes), AT_A_TIME):
        gone += await trio.to_thread.run_sync(_gone, inodes[start : start + AT_A_TIME], mirror)
    return gone


def _gone(inodes: Sequence[Inode], mirror: Mirror) -> list[Inode]:
    return [inode for inode in inodes if _is_gone(inode, mirror)]


def _is_gone(inode: Inode, mirror: Mirror) -> bool:
    try:
        return mirror.attributes(inode).nlink == 0
    except Gone:
        return True
    except OSError:
        return False
