"""Who may remove or rename what: all that the kernel looks at before it asks the filesystem.

The rule that this module owns: the checks are those of filename_parentat(), mnt_want_write() and may_delete()
(fs/namei.c). They are about the directory that has the name, the mount on which this lies, and what has the name: never
about what is mounted over it. Where the kernel can be asked without anything being done, it is asked.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import attributes, covered, mounts, owners, privileges
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

KINDS: Final = (
    "no way",
    "read-only",
    "unmapped owner",
    "immutable directory",
    "no permission",
    "append-only directory",
    "sticky",
    "append-only",
    "immutable",
)

REMOVALS: Final = (Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME)
"""What needs the right to write the directory that has the name."""

_READ_ONLY: Final = frozenset({"ro", "emergency_ro"})
"""The second is what ext4 has become after an error (errors=remount-ro, Linux 6.15)."""
_NEVER_WRITTEN: Final = frozenset({"squashfs", "erofs", "iso9660", "cramfs", "romfs"})


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What the kernel would answer before it asks the filesystem."""
    if not subject.name:
        return  # / has no name in any directory, which the kernel sees before all this
    mount = host.mount_of(subject.parent)
    yield from _of_the_mount(subject, mount)
    yield from _of_the_directory(subject)
    if not subject.is_mountpoint:
        yield from _of_the_name(subject, subject.descriptor, mount)
        return
    try:
        under_the_mount = covered.opened(subject.parent, subject.name)
    except OSError:
        yield Unread(
            "attributes",
            f"Whose {quoted(subject.path)} is under what is mounted there, and whether it is immutable, could not be"
            " looked at: to remove or rename it may fail with EPERM before anything else. Root can look: run it with"
            " sudo.",
            REMOVALS,
        )
        return
    try:
        yield from _of_the_name(subject, under_the_mount, mount)
    finally:
        os.close(under_the_mount)


def no_way(path: str) -> Cause:
    """Of a path that cannot be looked up (EACCES): which directory on the way this user may not search."""
    who = f"There is no way to {quoted(path)} for {_self()}:"
    closed = _closed(path)
    if closed is None:
        text = f"{who} a directory on the way must not be searched by this user, or a symlink not followed."
        return caused("no way", text, Attempt, "EACCES")
    directory, status = closed
    if status is None:
        text = f"{who} {quoted(directory)} is a FUSE mount, which lets in {_mounter(directory)} alone, not even root."
    else:
        text = f"{who} the directory {quoted(directory)} must not be searched by this user; it is {_rights(status)}."
        if os.geteuid() != 0:
            text += " Root can: run it with sudo."
    return caused("no way", text, Attempt, "EACCES", where=directory)


# --- the mount -------------------------------------------------------------------------------------------------------


def _of_the_mount(subject: Subject, mount: Mount) -> Iterator[Cause]:
    mountpoint = os.fsdecode(mount.mountpoint)
    if not _READ_ONLY.isdisjoint(mount.super_options):
        fact = f"{quoted(subject.path)} is on a filesystem that is read-only ({mount.fstype}, at {quoted(mountpoint)})"
        advice = (
            "it is of a type that is never written."
            if mount.fstype in _NEVER_WRITTEN
            else f"`mount -o remount,rw {typed(mountpoint)}` makes it writable, if nothing is wrong with it."
        )
    elif not _READ_ONLY.isdisjoint(mount.options):
        fact = f"{quoted(subject.path)} is on a mount that is read-only, at {quoted(mountpoint)}"
        advice = (
            f"its filesystem ({mount.fstype}) is not: `mount -o remount,bind,rw {typed(mountpoint)}` makes the mount"
            " writable."
        )
    else:
        return
    yield caused("read-only", f"{fact}; {advice}", REMOVALS, "EROFS", where=mountpoint)


# --- the directory that has the name ---------------------------------------------------------------------------------


def _of_the_directory(subject: Subject) -> Iterator[Finding]:
    directory = os.path.dirname(subject.canonical)
    named = f"the directory of {quoted(subject.path)}, {quoted(directory)},"
    has = attributes.of(subject.parent)
    if has.immutable:
        text = (
            f"{_capital(named)} is immutable: nobody can remove, rename or make anything in it, not even root."
            f" `chattr -i {typed(directory)}`, as root, ends that."
        )
        yield caused("immutable directory", text, REMOVALS, "EPERM", where=directory)
    if has.append_only:
        text = (
            f"{_capital(named)} is append-only: names can be made in it, and none removed or renamed, not even by root."
            f" `chattr -a {typed(directory)}`, as root, ends that."
        )
        yield caused("append-only directory", text, REMOVALS, "EPERM", where=directory)
    if has == attributes.UNKNOWN:
        yield _attributes_unread(named)
    if privileges.refusal(subject.parent, os.W_OK | os.X_OK) == errno.EACCES:
        status = os.stat(subject.parent)
        acl = f", with an access control list (`getfacl {typed(directory)}`)" if owners.has_acl(subject.parent) else ""
        text = (
            f"{_capital(named)} must not be written by {_self()}: it is {_rights(status)}{acl}."
            f"{_out_of_reach(status)} {_whoever_may(status)}"
        )
        yield caused("no permission", text, REMOVALS, "EACCES", where=directory)


# --- what has the name -----------------------------------------------------------------------------------------------


def _of_the_name(subject: Subject, descriptor: int, mount: Mount) -> Iterator[Finding]:
    named = quoted(subject.path)
    status = os.stat(descriptor)
    if "idmapped" in mount.options and _has_no_owner(status):
        text = (
            f"The owner of {named} has no number on this mount, {quoted(os.fsdecode(mount.mountpoint))}, which maps ids"
            " (mount_setattr(2), MOUNT_ATTR_IDMAP). What is nobody's there cannot be removed or renamed through it."
        )
        yield caused("unmapped owner", text, REMOVALS, "EOVERFLOW")
    yield from _sticky(subject, status)
    has = attributes.of(descriptor)
    if has.immutable:
        text = (
            f"{named} is immutable: nobody can remove, rename or change it, not even root."
            f" `chattr -i {typed(subject.path)}`, as root, ends that."
        )
        yield caused("immutable", text, REMOVALS, "EPERM")
    if has.append_only:
        text = (
            f"{named} is append-only: nobody can remove or rename it, not even root."
            f" `chattr -a {typed(subject.path)}`, as root, ends that."
        )
        yield caused("append-only", text, REMOVALS, "EPERM")
    if has == attributes.UNKNOWN:
        yield _attributes_unread(named)


def _sticky(subject: Subject, status: os.stat_result) -> Iterator[Cause]:
    """As __check_sticky(): the owner of the directory, the owner of the thing, and CAP_FOWNER over this."""
    directory = os.stat(subject.parent)
    if not directory.st_mode & stat.S_ISVTX:
        return
    if _is_self(status.st_uid) or _is_self(directory.st_uid) or privileges.capable_over("CAP_FOWNER", status):
        return
    where = os.path.dirname(subject.canonical)
    text = (
        f"The directory of {quoted(subject.path)}, {quoted(where)}, is sticky ({_rights(directory)}): what is in it can"
        f" be removed or renamed by its owner, the owner of the directory, and root. {quoted(subject.path)} is"
        f" {_rights(status)}, and you are {_self()}.{_out_of_reach(status)}"
    )
    yield caused("sticky", text, REMOVALS, "EPERM", where=where)


# --- words -----------------------------------------------------------------------------------------------------------


def _attributes_unread(named: str) -> Unread:
    return Unread(
        "attributes",
        f"Whether {named.rstrip(',')} is immutable could not be read; root can: run it with sudo.",
        REMOVALS,
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _self() -> str:
    return owners.user(os.geteuid())


def _rights(status: os.stat_result) -> str:
    return owners.owned(status)


def _is_self(uid: int) -> bool:
    return uid == os.geteuid() and not privileges.is_unmapped("uid", uid)


def _has_no_owner(status: os.stat_result) -> bool:
    return status.st_uid == privileges.overflow_id("uid") or status.st_gid == privileges.overflow_id("gid")


def _out_of_reach(status: os.stat_result) -> str:
    if not privileges.is_unmapped("uid", status.st_uid) and not privileges.is_unmapped("gid", status.st_gid):
        return ""
    return " Its true owner has no number in this user namespace, so that root in here has no rights over it."


def _whoever_may(status: os.stat_result) -> str:
    if privileges.capable_over("CAP_DAC_OVERRIDE", status):
        return "It is refused even to CAP_DAC_OVERRIDE: by its filesystem, or by a security module."
    if os.geteuid() == 0:
        return "This process is root without CAP_DAC_OVERRIDE over it; root on the host can."
    return (
        f"{_capital(owners.user(status.st_uid))} can give the right to write it (chmod, setfacl), and root can do it."
    )


# --- the way ---------------------------------------------------------------------------------------------------------


def _closed(path: str) -> tuple[str, os.stat_result | None] | None:
    """The first directory on the way that must not be searched, if one can be named; its status, if that is told."""
    way = os.path.realpath(os.path.dirname(path.rstrip("/")) or ".")  # as far as it can be followed
    parts = way.split("/")
    for count in range(1, len(parts) + 1):
        directory = "/".join(parts[:count]) or "/"
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if privileges.refusal(descriptor, os.X_OK) == errno.EACCES:
                return directory, _status(descriptor)
        finally:
            os.close(descriptor)
    return None


def _status(descriptor: int) -> os.stat_result | None:
    try:
        return os.stat(descriptor)
    except PermissionError:  # fuse_allow_current_process() (fs/fuse/dir.c)
        return None


def _mounter(mountpoint: str) -> str:
    try:
        uid = mounts.mount_of(mountpoint).super_option("user_id")
    except OSError:
        uid = None
    return owners.user(int(uid)) if uid else "the user who mounted it"
