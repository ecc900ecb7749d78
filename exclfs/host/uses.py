"""Who uses an inode, or anything on a mount: what is open, worked in, run, mapped, watched, locked or bound to.

The rule that this module owns: a use is recognised by what the kernel says of it, never by asking the filesystem on
which it may lie, for that may hang. Descriptors and mappings say in /proc which mount or device and which inode they
are of. A working directory does not: it is opened (O_PATH) to be asked, but only where every mount on which its path
may lie is either of the filesystem that is asked about or has no server behind it.

Processes are looked at, not threads: one that has left its process's working directory or descriptors behind
(unshare(2)) is not seen.
"""

from __future__ import annotations

import functools
import os
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.host import descriptors, locks, unix_sockets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exclfs.host.identities import Identity
    from exclfs.host.locks import Lock
    from exclfs.host.mounts import Mount
    from exclfs.host.namespaces import Namespace
    from exclfs.host.view import Host


class Kind(StrEnum):
    """How a process uses something."""

    DESCRIPTOR = "descriptor"
    WORKING_DIRECTORY = "working directory"
    ROOT_DIRECTORY = "root directory"
    EXECUTABLE = "executable"
    MAPPING = "mapping"
    SOCKET = "socket"
    """A Unix socket is bound to it."""
    INOTIFY = "inotify"
    FANOTIFY = "fanotify"


_LINKS: Final = {"cwd": Kind.WORKING_DIRECTORY, "root": Kind.ROOT_DIRECTORY}


@frozen(kw_only=True)
class Sought:
    """Whose users are looked for."""

    identity: Identity
    path: str
    """As this process would see it in /proc/PID/fd: only kernels older than 5.14 need it."""
    is_directory: bool
    """Nobody maps or runs a directory, and nobody works in anything else."""
    mounts: frozenset[int] = frozenset()
    """Mounts of which everything is looked for, as umount(2) does: their ids."""
    ours: frozenset[int] = frozenset()
    """Descriptors of this process that only serve to look."""


@frozen(kw_only=True)
class Use:
    """One process uses something in one way."""

    pid: int
    kind: Kind
    is_it: bool
    """Whether it uses the inode that is looked for, and not something else on one of the mounts."""
    mount: int | None
    """The id of the mount through which it does; None if the kernel does not tell."""
    writing: bool = False
    descriptor: int | None = None
    """By which of its descriptors, if by one."""
    path: str | None = None
    """What it uses, as the kernel names it; None if it has not been asked: see `path_of`."""


@frozen
class Found:
    """All that was found."""

    uses: tuple[Use, ...]
    locks: dict[Lock, tuple[int, ...]]
    """Locks on the inode, and the processes that are known to have each."""
    unread: tuple[int, ...]
    """The processes that do not show to this user what they use."""
    sockets_unread: OSError | None
    """Why sockets could not be asked for."""


def find(sought: Sought, host: Host) -> Found:
    """Everybody who uses that, as far as this process may know."""
    opened = list(_descriptors(sought, host))
    bound, sockets_unread = _sockets(sought, host)
    return Found(
        uses=(*opened, *_links(sought, host), *_mappings(sought, host), *bound),
        locks=_locks(sought, opened, host),
        unread=host.descriptors.unread,
        sockets_unread=sockets_unread,
    )


def path_of(use: Use, host: Host) -> str | None:
    """What is used, as the kernel names it now; None if it is not used any more."""
    if use.path is None and use.descriptor is not None:
        with suppress(OSError):
            return os.readlink(f"{host.proc}/{use.pid}/fd/{use.descriptor}")
    return use.path


# --- /proc/PID/fdinfo -------------------------------------------------------------------------------------------------


def _descriptors(sought: Sought, host: Host) -> Iterator[Use]:
    on_device = _mounts_of(sought.identity.device, host)
    watches = _watches(sought)
    for pid, opened in host.descriptors.of.items():
        for number, fields in opened.items():
            mount, inode = descriptors.leads_to(fields)
            if mount in on_device:
                is_it = _is_it(sought, inode, f"{host.proc}/{pid}/fd/{number}")
                if (is_it or mount in sought.mounts) and not (number in sought.ours and pid == os.getpid()):
                    yield _descriptor(pid, number, fields, mount, is_it=is_it)
            elif b"notify " in fields:
                kinds = {kind for watch, kind in watches.items() if watch in fields}
                yield from (Use(pid=pid, kind=kind, is_it=True, mount=None, descriptor=number) for kind in kinds)


def _descriptor(pid: int, number: int, fields: bytes, mount: int, *, is_it: bool) -> Use:
    writing = descriptors.flags(fields) & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)
    return Use(pid=pid, kind=Kind.DESCRIPTOR, is_it=is_it, mount=mount, writing=writing, descriptor=number)


def _is_it(sought: Sought, inode: int | None, link: str) -> bool:
    """Whether the inode that is looked for has that number; by its path, where the kernel does not tell numbers."""
    if inode is not None:
        return inode == sought.identity.inode
    with suppress(OSError):
        return os.readlink(link) == sought.path
    return False


def _mounts_of(device: str, host: Host) -> set[int]:
    return {mount.id for namespace in host.namespaces for mount in namespace.mounts if mount.device == device}


def _watches(sought: Sought) -> dict[bytes, Kind]:
    """What stands in the fdinfo of an inotify or fanotify descriptor that watches it (proc_pid_fdinfo(5))."""
    inode, device = sought.identity.inode, sought.identity.kernel_device
    watches = {
        b" ino:%x sdev:%x mask:" % (inode, device): Kind.INOTIFY,
        b"fanotify ino:%x sdev:%x " % (inode, device): Kind.FANOTIFY,
    }
    if sought.mounts:
        watches[b"fanotify sdev:%x " % device] = Kind.FANOTIFY
    return watches | {b"fanotify mnt_id:%x " % mount: Kind.FANOTIFY for mount in sought.mounts}


def _sockets(sought: Sought, host: Host) -> tuple[list[Use], OSError | None]:
    try:
        sockets = unix_sockets.bound(sought.identity.kernel_device)
    except OSError as error:
        return [], error
    wanted = {each.number: each for each in sockets.bound if sought.mounts or each.inode == sought.identity.inode}
    namespace_of = {pid: namespace for namespace in host.namespaces for pid in namespace.pids}
    found: dict[tuple[int, str], Use] = {}
    for pid, opened in host.descriptors.of.items() if wanted else ():
        for number, fields in opened.items():
            mount, inode = descriptors.leads_to(fields)
            if mount == sockets.mount and inode in wanted:
                name, is_it = wanted[inode].name, wanted[inode].inode == sought.identity.inode
                on = _mount_over(name, namespace_of[pid], sought.identity.device) if pid in namespace_of else None
                # Those that it has accepted have the name of the one that listens: they are one use.
                found[pid, name] = Use(pid=pid, kind=Kind.SOCKET, is_it=is_it, mount=on, descriptor=number, path=name)
    return list(found.values()), None


# --- /proc/PID/cwd, root ----------------------------------------------------------------------------------------------


def _links(sought: Sought, host: Host) -> Iterator[Use]:
    if not (sought.is_directory or sought.mounts):
        return
    on_device = _mounts_of(sought.identity.device, host)
    for namespace in host.namespaces:
        may_be_opened = functools.cache(partial(_may_be_opened, sought.identity.device, namespace.mounts))
        for pid in namespace.pids:
            with suppress(OSError):  # it has ended; or does not show them; or is a kernel thread, which runs no program
                os.readlink(f"{host.proc}/{pid}/exe")
                for name, kind in _LINKS.items():
                    link = f"{host.proc}/{pid}/{name}"
                    path = os.readlink(link)
                    if may_be_opened(path):
                        mount, inode = _opened(link)
                        is_it = mount in on_device and _is_it(sought, inode, link)
                        if is_it or mount in sought.mounts:
                            yield Use(pid=pid, kind=kind, is_it=is_it, mount=mount, path=path)


def _may_be_opened(device: str, mounts: Iterable[Mount], path: str) -> bool:
    """Whether this may lie on that device, and to look asks no other server, however the mounts cover one another."""
    over = [mount for mount in mounts if _is_below(path, mount)]
    ours = [mount for mount in over if mount.device == device]
    return bool(ours) and all(mount.is_local for mount in over if mount not in ours)


def _opened(link: str) -> tuple[int, int | None]:
    descriptor = os.open(link, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb", buffering=0) as file:
            return descriptors.leads_to(file.read())
    finally:
        os.close(descriptor)


def _is_below(path: str, mount: Mount) -> bool:
    mountpoint = os.fsdecode(mount.mountpoint)
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")


# --- /proc/PID/maps ---------------------------------------------------------------------------------------------------


def _mappings(sought: Sought, host: Host) -> Iterator[Use]:
    """What is mapped, and what is run, for that is mapped too: each inode once, in however many pieces it is."""
    if sought.is_directory and not sought.mounts:
        return
    for namespace in host.namespaces:
        for pid in namespace.pids:
            program = None
            for (inode, path), writing in _mapped(sought, f"{host.proc}/{pid}/maps").items():
                mount = _mount_over(path, namespace, sought.identity.device)
                is_it = inode == sought.identity.inode
                if is_it or mount in sought.mounts:
                    program = program or _program(f"{host.proc}/{pid}/exe")
                    kind = Kind.EXECUTABLE if path == program else Kind.MAPPING
                    yield Use(pid=pid, kind=kind, is_it=is_it, mount=mount, writing=writing, path=path)


def _mapped(sought: Sought, maps: str) -> dict[tuple[int, str], bool]:
    """The inodes on the device that are mapped, by number and path, and whether what is written goes to the file."""
    device = b"%02x:%02x" % sought.identity.numbers
    needle = b" %b " % device if sought.mounts else b" %b %d " % (device, sought.identity.inode)
    mapped: dict[tuple[int, str], bool] = {}
    for line in _lines(maps, needle):
        # 7f3a50000000-7f3a50021000 rw-s 00000000 fe:00 2498568                    /srv/data
        _, permissions, _, on, inode, path = line.split(None, 5)
        if on == device:
            piece = int(inode), os.fsdecode(path)
            mapped[piece] = mapped.get(piece, False) or permissions[1:4:2] == b"ws"
    return mapped


def _program(link: str) -> str | None:
    with suppress(OSError):
        return os.readlink(link)
    return None


def _lines(path: str, needle: bytes) -> list[bytes]:
    """Those that have this; none of a file that cannot be read."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        text = file.read()
        return [line for line in text.split(b"\n") if needle in line] if needle in text else []
    return []


def _mount_over(path: str, namespace: Namespace, device: str) -> int | None:
    """The mount of this filesystem on which that lies, by its path; whatever the path, if there is only one of them.

    The kernel has the mount, and does not tell: not in /proc/PID/maps, and /proc/PID/map_files is for root alone.
    """
    mounts = [mount for mount in namespace.mounts if mount.device == device]
    over = [mount for mount in mounts if _is_below(path, mount)] or (mounts if len(mounts) == 1 else [])
    return max(over, key=lambda mount: len(mount.mountpoint)).id if over else None


# --- Locks ------------------------------------------------------------------------------------------------------------


def _locks(sought: Sought, opened: Iterable[Use], host: Host) -> dict[Lock, tuple[int, ...]]:
    having: dict[Lock, set[int]] = {}
    with suppress(OSError), open(f"{host.proc}/locks", "rb", buffering=0) as file:
        for lock in locks.in_locks(file.read(), sought.identity):
            having.setdefault(lock, set())
    for use in opened:
        if use.is_it and use.kind is Kind.DESCRIPTOR and use.descriptor is not None:
            for lock in locks.in_fdinfo(host.descriptors.of[use.pid][use.descriptor]):
                having.setdefault(lock, set()).add(use.pid)
    return {lock: tuple(sorted(pids)) or _taker(lock) for lock, pids in having.items()}


def _taker(lock: Lock) -> tuple[int, ...]:
    return () if lock.pid is None else (lock.pid,)
