"""What a thing is and what is in it: the checks of removals that depend on neither user nor use.

The rule that this module owns: what cannot be removed because of what it is says so by the type of its filesystem, and
a directory is looked into only where its filesystem minds: in /proc, /sys and their like there is always something.
"""

from __future__ import annotations

import os
import stat
from itertools import islice
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

KINDS: Final = (
    "no new name",
    "not a directory",
    "is a directory",
    "cannot be removed",
    "not empty",
    "unsuitable filesystem",
)

KERNELS_OWN: Final = frozenset(
    {"proc", "sysfs", "debugfs", "tracefs", "securityfs", "selinuxfs", "fusectl", "binfmt_misc", "devpts"}
)
"""Filesystems in which the kernel alone makes names, and takes them away."""
_CONTENTS_DO_NOT_COUNT: Final = KERNELS_OWN | {"cgroup", "cgroup2", "configfs", "resctrl"}

_MOST_COUNTED: Final = 1000
_MOST_NAMED: Final = 5


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What it is, where it is, and what is in it."""
    is_directory = stat.S_ISDIR(subject.status.st_mode)
    if is_directory and not subject.mount.can_be_upper:
        yield from _never_upper(subject)
    yield from _of_a_directory(subject) if is_directory else _of_another(subject)
    if not subject.name:
        return
    mount = host.mount_of(subject.parent)
    if mount.fstype in KERNELS_OWN:
        yield from _of_the_kernel(subject, mount.fstype)
    if is_directory and not subject.is_mountpoint:
        if mount.fstype not in _CONTENTS_DO_NOT_COUNT:
            yield from _contents(subject)
        if mount.fstype == "overlay" and not _can_move_directories(mount, host):
            yield from _layers(subject)


def _of_a_directory(subject: Subject) -> Iterator[Cause]:
    advice = f" `rmdir {typed(subject.path)}` removes one that is empty." if subject.name else ""
    text = f"{quoted(subject.path)} is a directory, which unlink(2) does not remove.{advice}"
    yield caused("is a directory", text, (Attempt.UNLINK,), "EISDIR")


def _never_upper(subject: Subject) -> Iterator[Cause]:
    text = (
        f"{quoted(subject.path)} is on {subject.mount.fstype}, mounted on"
        f" {quoted(os.fsdecode(subject.mount.mountpoint))}: that is read-only or of a type on which no overlay can have"
        " its upper directory. It can be a lower one."
    )
    yield caused("unsuitable filesystem", text, (Attempt.OVERLAY_MOUNT,), "EINVAL")


def _of_another(subject: Subject) -> Iterator[Cause]:
    kind = _KINDS_OF_FILES.get(stat.S_IFMT(subject.status.st_mode), "something else")
    text = f"{quoted(subject.path)} is {kind}, not a directory."
    yield caused("not a directory", f"{text} `rm {typed(subject.path)}` removes it.", (Attempt.RMDIR,), "ENOTDIR")
    yield caused("not a directory", f"{text} An overlay's layers are directories.", (Attempt.OVERLAY_MOUNT,), "EINVAL")


_KINDS_OF_FILES: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def _of_the_kernel(subject: Subject, fstype: str) -> Iterator[Cause]:
    blocks = {Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME}
    if fstype == "sysfs" and subject.is_mountpoint:
        # It has the calls (kernfs_dir_iops, fs/kernfs/dir.c), and they fail only after the mountpoint has been seen.
        blocks = {Attempt.UNLINK}
    if fstype == "proc":  # proc_lookup() (fs/proc/generic.c) fails where others find that the new name is free
        text = f"In {fstype} there is no name that could be given to {quoted(subject.path)}."
        yield caused("no new name", text, (Attempt.RENAME,), "ENOENT")
    text = (
        f"{quoted(subject.path)} is in {fstype}, where the kernel itself makes the names and takes them away."
        " Nobody can remove or rename one."
    )
    yield caused("cannot be removed", text, blocks, "EPERM")


def _can_move_directories(mount: Mount, host: Host) -> bool:
    """Whether this overlay moves directories of which lower layers have something (redirect_dir=on, or the default)."""
    mode = mount.super_option("redirect_dir")
    if mode is not None:
        return mode == "on"
    try:
        with open(f"{host.sys}/module/overlay/parameters/redirect_dir") as file:
            return file.read().startswith("Y")
    except OSError:
        return False


def _layers(subject: Subject) -> Iterator[Unread]:
    text = (
        f"{quoted(subject.path)} is a directory of an overlay without redirect_dir=on: if a lower layer has a part of"
        " it, rename(2) fails with EXDEV, as between filesystems, and mv(1) copies it. Only to try it tells whether one"
        " has."
    )
    yield Unread("layers", text, (Attempt.RENAME,))


def _contents(subject: Subject) -> Iterator[Finding]:
    try:
        with os.scandir(f"/proc/self/fd/{subject.descriptor}") as entries:
            names = [entry.name for entry in islice(entries, _MOST_COUNTED + 1)]
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        yield Unread(
            "contents",
            f"Whether {quoted(subject.path)} is empty could not be read ({why}); root can: run it with sudo.",
            (Attempt.RMDIR,),
        )
        return
    if names:
        text = (
            f"{quoted(subject.path)} is not empty: {_enumerated(names)}."
            f" Only an empty directory can be removed: `ls -A {typed(subject.path)}` lists what is in the way."
        )
        yield caused("not empty", text, (Attempt.RMDIR,), "ENOTEMPTY")


def _enumerated(names: list[str]) -> str:
    first = ", ".join(map(quoted, sorted(names)[:_MOST_NAMED]))
    if len(names) > _MOST_COUNTED:
        return f"more than {_MOST_COUNTED} names are in it, {first} among them"
    if len(names) > _MOST_NAMED:
        return f"{len(names)} names are in it, {first} among them"
    return f"{first} {'is' if len(names) == 1 else 'are'} in it"
