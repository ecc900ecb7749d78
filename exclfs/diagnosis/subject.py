"""What is asked about: one path.

The rule that this module owns: the path is looked up once, and what is compared afterwards are the kernel's own words
about the two descriptors that this gave: on which mount, which inode. No path is looked up a second time, for it might
lead elsewhere then.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.diagnosis.attempts import Attempt, possible
from exclfs.host import identities, mount_rights
from exclfs.host.processes import UNKNOWN_UID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.host.identities import Identity
    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

_HOW: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen(kw_only=True)
class Subject:
    """One path, and what it led to when it was looked up. A symlink is itself, not what it leads to."""

    path: str
    """As it was asked about."""
    canonical: str
    """Absolute, without symlinks on the way, as /proc/PID/mountinfo of this process would name it."""
    descriptor: int
    """O_PATH, of what the path leads to: where something is mounted there, of the root of that."""
    parent: int
    """O_PATH, of the directory that has the name; of / it is / itself."""
    name: str
    """The last component; "" of /."""
    status: os.stat_result
    """Of no more than the type, and of nobody (UNKNOWN_UID), if its filesystem does not tell."""
    identity: Identity
    mount: Mount
    """The mount on which it lies: where something is mounted there, that."""
    is_mountpoint: bool
    """Whether it is the root of that mount, so that umount(2) would take it."""
    attempts: tuple[Attempt, ...]
    """What makes sense to be tried with it."""


@contextmanager
def looked_up(path: str, host: Host) -> Iterator[Subject]:
    """What this path leads to, as long as the context lasts.

    Raises:
        OSError: it cannot be looked up.
    """
    directory, name = _split(path)
    parent = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = os.open(name or ".", _HOW, dir_fd=parent)
        try:
            yield _subject(path, name, descriptor, parent, host)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename == (name or "."):
            error.filename = path
        raise
    finally:
        os.close(parent)


def _split(path: str) -> tuple[str, str]:
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    directory, name = os.path.split(path.rstrip("/") or "/")
    if name in (".", ".."):  # which name it has is known only where it leads to
        directory, name = os.path.split(os.path.realpath(path))
    return directory or ".", name


def _subject(path: str, name: str, descriptor: int, parent: int, host: Host) -> Subject:
    canonical = os.path.join(os.readlink(f"/proc/self/fd/{parent}"), name)
    status = _status(descriptor)
    mount = host.mount_of(descriptor)
    is_mountpoint = os.fsdecode(mount.mountpoint) == canonical
    return Subject(
        path=path,
        canonical=canonical,
        descriptor=descriptor,
        parent=parent,
        name=name,
        status=status,
        identity=identities.of(descriptor, mount),
        mount=mount,
        is_mountpoint=is_mountpoint,
        attempts=possible(
            status.st_mode, mountpoint=is_mountpoint, may_mount=mount.can_be_upper and mount_rights.may_mount()
        ),
    )


def _status(descriptor: int) -> os.stat_result:
    """Its status; where its filesystem does not give that (the server of a FUSE mount is dead), no more than its type.

    The type is known without asking: the kernel opens nothing but a directory as a directory.
    """
    try:
        return os.stat(descriptor)
    except OSError:
        kind = stat.S_IFDIR if _is_directory(descriptor) else stat.S_IFREG
        return os.stat_result((kind, 0, 0, 1, UNKNOWN_UID, UNKNOWN_UID, 0, 0, 0, 0))


def _is_directory(descriptor: int) -> bool:
    try:
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
