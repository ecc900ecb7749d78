"""What the xattr exclfs.why says: all that a server knows about a path without looking at the whole host.

The rule that this module owns: what stands in the way comes first, and what has happened last. Where nothing that the
server knows of stands in the way, it says who knows more.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.holding import explain, time_in_words
from exclfs.diagnosis.mountpoints import described
from exclfs.host.names import quoted, typed
from exclfs.host.requesters import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.holds.events import Refused
    from exclfs.holds.hold import Hold, Inode
    from exclfs.host.mounts import Mount

MOST_MOUNTS: Final = 3
"""How many mounts are spelled out."""


def answer(
    path: str,
    holds: Sequence[Hold],
    inode: Inode,
    *,
    enforced: bool,
    mounted: Sequence[Mount] = (),
    refusals: Sequence[Refused] = (),
    now: datetime | None = None,
) -> str:
    """All of it in one line.

    Args:
        path: what is asked about, absolute in the mount.
        holds: those that cover it.
        inode: what the path leads to.
        enforced: whether the mount is in mode enforce.
        mounted: what is mounted on it in the mount namespace of whoever asks.
        refusals: the last refusals of this inode.
        now: decides whether a time needs its date; without it, the clock.
    """
    now = now or datetime.now(UTC)
    sentences = [explain(path, holds, inode, enforced=enforced, now=now)] if holds else []
    sentences += [_covered(path, mount) for mount in mounted[:MOST_MOUNTS]]
    if not sentences:
        sentences.append(f'Nothing holds {quoted(path)}; "exclfs why {typed(path)}" looks at the whole host.')
    return " ".join([*sentences, *_history(refusals, now)])


def _covered(path: str, mount: Mount) -> str:
    mountpoint = os.fsdecode(mount.mountpoint)
    return (
        f"{quoted(path)} is a mountpoint where you are: {described(mount)} is mounted on it as {quoted(mountpoint)}, "
        "and the kernel refuses unlink, rmdir and rename before exclfs is asked. "
        f'"umount {typed(mountpoint)}" ends that.'
    )


def _history(refusals: Sequence[Refused], now: datetime) -> Iterator[str]:
    """One sentence for what was refused, and one for what would have been (mode warn)."""
    for enforced, happened in (True, "was"), (False, "would have been"):
        of_kind = [refused for refused in refusals if refused.enforced is enforced]
        if of_kind:
            last = max(of_kind, key=_last_time)
            number = sum(refused.count for refused in of_kind)
            times = "once" if number == 1 else f"{number} times, last"
            asker, at = in_words(last.requester), time_in_words(_last_time(last), now)
            yield f"Removing or renaming it {happened} refused {times} to {asker} at {at}."


def _last_time(refused: Refused) -> datetime:
    return refused.until or refused.at
