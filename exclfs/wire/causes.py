"""A cause: one thing that something has to do with a path.

It is apart from the messages because `exclfs why` makes causes without talking to anybody, and is to be quick.
"""

from __future__ import annotations

from attrs import frozen

from exclfs.holds.hold import Hold
from exclfs.holds.holder import Process


@frozen
class Cause:
    """One thing that something has to do with a path: what fails because of it, and what does not."""

    kind: str
    """A word of docs/reference/causes.md: hold, mountpoint, swap, …"""
    text: str
    """A sentence, in words for whoever is staring at EBUSY."""
    blocks: tuple[str, ...]
    """What fails because of it: rmdir, unlink, rename, umount, overlay-mount."""
    allows: tuple[str, ...]
    """What could be done with the path, and does not fail because of it."""
    processes: tuple[Process, ...]
    """Who does it, or keeps it alive, if that is known."""
    errno: str | None = None
    """The error with which what it blocks fails, by its name: EBUSY, EPERM, …; None if it blocks nothing."""
    hold: Hold | None = None
    where: str | None = None
    """What else it is about: a mountpoint, a device, a directory below."""
    namespace: int | None = None
    """The mount namespace in which it is, if that is another than the asker's: its number in /proc/PID/ns/mnt."""
