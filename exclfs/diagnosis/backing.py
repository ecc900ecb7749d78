"""What comes after the kernel's own checks: the server of a filesystem, which may refuse by itself.

The rule that this module owns: of a filesystem that is served by somebody the kernel knows only what the server says.
Of exclfs the backing tree is looked at, where it can be reached, because that is where the server does the removal,
after it has looked at the holds. Of any other server nothing is known, and that is said.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import attributes, covered, mounts
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

KINDS: Final = ("backing tree",)

_REMOVALS: Final = (Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME)
_SERVED: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse", "fuseblk", "lustre", "nfs", "nfs4", "smb3", "virtiofs"}
)


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What the server of the filesystem that has the name may refuse by itself."""
    if not subject.name:
        return
    mount = host.mount_of(subject.parent)
    if mount.fstype == mounts.FSTYPE:
        yield from _behind(subject, mount, host)
    elif mount.fstype.partition(".")[0] in _SERVED:
        text = (
            f"What the server of {quoted(os.fsdecode(mount.source))} ({mount.fstype}) refuses by itself is not known"
            " here; only to try it tells."
        )
        yield Unread("server", text, _REMOVALS)


def _behind(subject: Subject, mount: Mount, host: Host) -> Iterator[Finding]:
    path = _path_behind(subject, mount)
    with ExitStack() as opened:
        try:
            directory = _opened(os.path.dirname(path), os.fsdecode(mount.source), host)
            opened.callback(os.close, directory)
            if os.stat(directory).st_ino != os.stat(subject.parent).st_ino:
                raise FileNotFoundError
            thing = os.open(subject.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            opened.callback(os.close, thing)
        except OSError:
            text = (
                f"{quoted(path)}, where the server of the mount removes and renames {quoted(subject.path)}, could not"
                " be looked at from here; root of the host, or who mounted it, may see more: run it as one of them."
            )
            yield Unread("backing tree", text, _REMOVALS)
            return
        yield from _refusals(subject, path, directory, thing, host)


def _path_behind(subject: Subject, mount: Mount) -> str:
    """Where the mirror has it: the source of the mount, what of it is mounted there, and the way below."""
    below = os.path.relpath(subject.canonical, os.fsdecode(mount.mountpoint))
    return os.path.join(os.fsdecode(mount.source), os.fsdecode(mount.root).lstrip("/"), below)


def _opened(directory: str, source: str, host: Host) -> int:
    """The directory of the backing tree; under the mount if that is in place, over the tree itself."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if host.mount_of(descriptor).fstype != mounts.FSTYPE:
        return descriptor
    os.close(descriptor)
    above = os.open(os.path.dirname(source), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = covered.opened(above, os.path.basename(source))
    finally:
        os.close(above)
    try:
        below = os.path.relpath(directory, source)
        return os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    finally:
        os.close(tree)


def _refusals(subject: Subject, path: str, directory: int, thing: int, host: Host) -> Iterator[Cause]:
    """Whatever refuses it to everybody there, in the order in which the kernel looks."""
    above = os.path.dirname(path)
    of_directory, of_thing = attributes.of(directory), attributes.of(thing)
    if os.fstatvfs(directory).f_flag & os.ST_RDONLY:
        yield _told(subject, path, "is on a read-only filesystem or mount there", "EROFS")
    if of_directory.immutable:
        yield _told(subject, path, f"is in an immutable directory there: `chattr -i {typed(above)}` ends that", "EPERM")
    if of_directory.append_only:
        yield _told(
            subject, path, f"is in an append-only directory there: `chattr -a {typed(above)}` ends that", "EPERM"
        )
    if of_thing.append_only:
        yield _told(subject, path, f"is append-only there: `chattr -a {typed(path)}` ends that", "EPERM")
    if of_thing.immutable:
        yield _told(subject, path, f"is immutable there: `chattr -i {typed(path)}` ends that", "EPERM")
    if any(mount.mountpoint == os.fsencode(path) for mount in host.mounts):
        yield _told(subject, path, f"is a mountpoint there: `umount {typed(path)}` ends that", "EBUSY")


def _told(subject: Subject, path: str, fact: str, errno: str) -> Cause:
    text = (
        f"The server removes and renames {quoted(subject.path)} in the backing tree, as {quoted(path)}, and it {fact}."
    )
    return caused("backing tree", text, _REMOVALS, errno, where=path)
