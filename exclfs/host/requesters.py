"""Whoever asks for something: who that is in words, and what is mounted where it asks.

The rule that this module owns: a requester is told as what it is. One that nothing is known of is not passed over in
silence, and one that asks as somebody else is told as both.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from exclfs.host import mounts, places
from exclfs.host.names import printable
from exclfs.host.processes import user_name

if TYPE_CHECKING:
    from exclfs.holds.holder import Process
    from exclfs.host.mounts import Mount
    from exclfs.host.places import Place

UNSEEN: Final = "a process outside the server's pid namespace, or the kernel"
"""Who has no pid here (fuse_req_init_context(): pid_nr_ns() is 0 in a pid namespace that does not have the process)."""
VANISHED: Final = "a process that is gone or hidden"
"""Who has a pid of which /proc says nothing."""

_MOST_READ: Final = 1 << 20
"""Bytes of a mountinfo: some thousands of mounts. Whoever has more is not told of the rest."""


def in_words(process: Process) -> str:
    """`rm (pid 12, user alice, asking as root, docker:0123456789ab)`; of what is not known, that."""
    if process.pid is None:
        return f"{UNSEEN} ({user_in_words(process)})"
    known = [f"pid {process.pid}", user_in_words(process)]
    if process.container is not None:
        known.append(printable(process.container))
    return f"{printable(process.comm) if process.comm else VANISHED} ({', '.join(known)})"


def user_in_words(process: Process) -> str:
    """Whose process it is, and as whom it asks where that is somebody else."""
    asking = printable(process.user or str(process.uid))
    if process.own_uid is None:
        return f"user {asking}"
    return f"user {printable(user_name(process.own_uid) or str(process.own_uid))}, asking as {asking}"


def mounted_on(pid: int, place: Place) -> list[Mount]:
    """What is mounted on this place, by whatever name, in the mount namespace of a process or thread.

    With something mounted there the kernel answers EBUSY to this process before a filesystem is asked
    (__is_local_mountpoint() of fs/namespace.c). None if that cannot be read: the process is gone, unseen or not ours to
    look at.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            read = file.read(_MOST_READ)
    except OSError:
        return []
    return places.Tree(mounts.parse(read[: read.rfind(b"\n") + 1])).over(place)
