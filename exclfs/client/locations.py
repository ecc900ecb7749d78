"""From paths to where they lie in the mount: how a call names more objects than descriptors can go along with it.

The rule that this module owns: a path means what it means to this process. Its directory is opened, and the kernel says
where that is and on which mount; so symlinks on the way, `..`, and bind mounts of a directory of the tree lead where
they lead for open(2). A symlink at the end is meant itself.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import BadObject
from exclfs.host import mounts
from exclfs.host.names import quoted
from exclfs.wire.messages import Object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.client.discovery import Server

_NO_NAME: Final = frozenset({b"", b".", b".."})
"""Last components that say where to go, and not what it is called there."""


def locate(paths: Sequence[str], server: Server) -> tuple[Object, ...]:
    """Each of the paths, relative to the root of the mount.

    Raises:
        BadObject: a path is in another filesystem.
        OSError: a path cannot be reached.
    """
    known = _Map(server)
    return tuple(Object(path=os.fsdecode(known.find(path)) or ".") for path in paths)


class _Map:
    """What is mounted where, and the directories that were found on it; each is looked at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._mounts = {mount.id: mount for mount in mounts.mounts()}
        self._mountpoints = {mount.mountpoint for mount in self._mounts.values()}
        self._directories: dict[bytes, tuple[bytes, bytes]] = {}

    def find(self, path: str) -> bytes:
        """The path relative to the root of the filesystem."""
        if os.lstat(path).st_dev != self._server.st_dev:
            raise BadObject(f"{quoted(path)} is not in the mount {quoted(self._server.mountpoint)}")
        directory, name = os.path.split(os.fsencode(path))
        if name in _NO_NAME:
            return self._look_at(os.fsencode(path))[1]
        if directory not in self._directories:
            self._directories[directory] = self._look_at(directory or b".")
        canonical, relative = self._directories[directory]
        if os.path.join(canonical, name) in self._mountpoints:
            return self._look_at(os.fsencode(path))[1]  # what is mounted there, not what it covers
        return os.path.join(relative, name)

    def _look_at(self, path: bytes) -> tuple[bytes, bytes]:
        """Where it is in this process's namespace, and where in its filesystem."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            mount = self._mounts.get(mounts.id_of(descriptor))
            canonical = os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}"))
        finally:
            os.close(descriptor)
        if mount is None:
            raise OSError(errno.ENODEV, "is on a mount that is not in reach of this process", os.fsdecode(path))
        inside = os.path.join(mount.root, os.path.relpath(canonical, mount.mountpoint))
        return canonical, os.path.normpath(inside).lstrip(b"/")
