"""Why a mount cannot be taken off, whoever uses it: who asks, what the mount is, and what is mounted below it.

The rule that this module owns: everything that can_umount() and do_umount() of fs/namespace.c look at before they count
who uses the mount. What uses it is told elsewhere.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import mount_rights
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.diagnosis.findings import Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

KINDS: Final = ("privilege", "not a mountpoint", "locked mount", "mount below")
"""What this finder may yield."""

_SPELLED_OUT: Final = 10


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What keeps the subject from being unmounted, apart from its users."""
    may_mount = mount_rights.may_mount()
    if not may_mount:
        yield caused("privilege", _privilege(subject), (Attempt.UMOUNT, Attempt.OVERLAY_MOUNT), "EPERM")
    if subject.mount.id not in host.tree.by_id:
        yield caused("not a mountpoint", _foreign(subject), (Attempt.UMOUNT,), "EINVAL")
    elif not subject.is_mountpoint:
        yield caused("not a mountpoint", _not_a_mountpoint(subject), (Attempt.UMOUNT,), "EINVAL")
    elif subject.canonical == "/":
        yield Unread("root", _ROOT, (Attempt.UMOUNT,))
    else:
        yield from _of_mount(subject, host, may_mount=may_mount)


def _of_mount(subject: Subject, host: Host, *, may_mount: bool) -> Iterator[Finding]:
    if may_mount and mount_rights.is_locked(subject.canonical):
        yield caused("locked mount", _locked(subject), (Attempt.UMOUNT,), "EINVAL")
    below = host.tree.on(subject.mount)
    if below:
        yield caused("mount below", _below(subject, below), (Attempt.UMOUNT,), "EBUSY", where=subject.canonical)


_ROOT: Final = (
    "umount(2) never takes / off: it makes that filesystem read-only, if no file on it is open for writing and no file "
    "that is open has been removed; which of them that is cannot be read as reliably as the kernel counts it."
)


def _privilege(subject: Subject) -> str:
    text = "To mount and unmount takes CAP_SYS_ADMIN in the user namespace that owns this mount namespace: root has it."
    if not subject.is_mountpoint:
        return text
    mount = subject.mount
    if mount.fstype.split(".")[0] in ("fuse", "fuseblk") and mount.super_option("user_id") == str(os.getuid()):
        return f"{text} But this FUSE mount is yours: `fusermount3 -u {typed(subject.canonical)}` unmounts it for you."
    return f"{text} umount(8) has it for mounts that /etc/fstab gives to users (user, users, owner), if set-user-ID."


def _not_a_mountpoint(subject: Subject) -> str:
    return (
        f"{quoted(subject.path)} is not a mountpoint: it lies on {subject.mount.fstype} "
        f"{quoted(os.fsdecode(subject.mount.source))}, mounted on {quoted(os.fsdecode(subject.mount.mountpoint))}."
    )


def _foreign(subject: Subject) -> str:
    return (
        f"{quoted(subject.path)} is no mountpoint of this mount namespace, but lies in another one: unmount it there, "
        "as with `nsenter -t PID -m umount`."
    )


def _locked(subject: Subject) -> str:
    return (
        f"The mount on {quoted(subject.path)} was handed down to this less privileged mount namespace, which must not "
        "uncover what is below it (mount_namespaces(7)): unmount it in the namespace where it was mounted."
    )


def _below(subject: Subject, below: Sequence[Mount]) -> str:
    names = [quoted(os.fsdecode(mount.mountpoint)) for mount in below[:_SPELLED_OUT]]
    more = f" and {len(below) - len(names)} more" if len(below) > len(names) else ""
    return (
        f"{_count(len(below))} mounted below {quoted(subject.path)}: {', '.join(names)}{more}. Unmount what is below "
        f"first, or all of it with `umount -R {typed(subject.canonical)}`."
    )


def _count(number: int) -> str:
    return "Something is" if number == 1 else f"{number} filesystems are"
