"""Every mount namespace that can be seen, what is mounted in each, and who keeps it alive (mount_namespaces(7)).

The rule that this module owns: a mount belongs to one mount namespace, and its id to no other mount. So namespaces can
be told apart by their number in /proc/PID/ns/mnt, or, where another user's process does not show that, by the ids in
its mountinfo, which everybody may read; and each namespace is read once, however many processes are in it. Of a process
in a chroot(2) only what is mounted below that is seen: of several the one that shows most is believed. Threads that
have left the namespace of their process are not looked for.

A namespace can live on without a process: somebody has a descriptor of it, or it is bind-mounted somewhere, as snapd
and unshare(1) do. Root enters it, with one thread, to read what is mounted there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from exclfs.host import descriptors, mounts, places, privileges
from exclfs.host.apart import CLONE_NEWNS, apart, check

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Container, Iterable, Iterator, Sequence

    from exclfs.host.mounts import Mount
    from exclfs.host.view import Host

_INITIAL_PIDS: Final = "pid:[4026531836]"
"""The pid namespace in which every process is seen (PROC_PID_INIT_INO in include/linux/proc_ns.h)."""
_MOUNT_NAMESPACE: Final = re.compile(rb"mnt:\[(\d+)\]")
_ENOUGH: Final = 4096
"""Bytes of a mountinfo that tell from any other namespace's: the first line is in it."""


@frozen(kw_only=True)
class Namespace:
    """A mount namespace."""

    number: int | None
    """That of /proc/PID/ns/mnt; None if the processes that are in it do not show it to this user."""
    mounts: tuple[Mount, ...]
    """With the paths that the process has which shows most. None at all: it could not be read."""
    pids: tuple[int, ...]
    """The processes that are in it."""
    is_ours: bool
    """Whether this process is in it."""
    root: str | None
    """The path of a directory that leads to its root: /proc/PID/root."""
    descriptors: tuple[int, ...] = ()
    """The processes that have a descriptor of it, if none is in it."""
    bound_at: tuple[bytes, ...] = ()
    """The paths where it is bind-mounted, if no process is in it."""

    @cached_property
    def tree(self) -> places.Tree:
        """Its mounts, as mounted on one another."""
        return places.Tree(self.mounts)

    @property
    def keepers(self) -> tuple[int, ...]:
        """The processes but for which it would be gone."""
        return self.pids or self.descriptors


def seen(host: Host) -> tuple[Namespace, ...]:
    """Every mount namespace that this process can see: its own first, then those of processes, then the others."""
    found = _of_processes(host)
    if privileges.capable("CAP_SYS_ADMIN"):
        found += _without_processes(host, found)
    return tuple(sorted(found, key=lambda namespace: not namespace.is_ours))


def sees_all_processes(host: Host) -> bool:
    """Whether this is the initial pid namespace; in any other some processes, and their namespaces, are not seen."""
    with suppress(OSError):
        return os.readlink(f"{host.proc}/self/ns/pid") == _INITIAL_PIDS
    return False


def hides_processes(host: Host) -> bool:
    """Whether /proc hides other users' processes from this one (hidepid of proc(5))."""
    proc = host.tree.way(os.fsencode(host.proc))
    hidepid = proc[-1].super_option("hidepid") if proc and proc[-1].fstype == "proc" else None
    if hidepid in (None, "0", "off") or privileges.capable("CAP_SYS_PTRACE"):
        return False
    group = proc[-1].super_option("gid")
    return group is None or int(group) not in {os.getegid(), *os.getgroups()}


def copies(mount: Mount, host: Host) -> set[int]:
    """The ids of all mounts that umount(2) of this one takes with it, itself included: if one is in use, it is EBUSY.

    They are what is mounted at the same place of every mount that receives from the mount below: of its peer group, and
    of the groups that have that as their master, and so on. A copy on which something else is mounted is not looked at
    (propagate_mount_busy() of fs/pnode.c), unless that covers it.
    """
    below = host.tree.by_id.get(mount.parent)
    place = host.tree.covered(mount)
    taken = {mount.id}
    if below is None or place is None or below.peer_group is None:
        return taken
    everything = [(each, namespace.tree) for namespace in host.namespaces for each in namespace.mounts]
    receivers = _receivers(below.peer_group, [each for each, _ in everything])
    for each, tree in everything:
        if each.parent in receivers and tree.covered(each) == place and _can_be_taken(each, tree):
            taken.add(each.id)
    return taken


def _receivers(group: int, everything: Iterable[Mount]) -> set[int]:
    """The ids of the mounts to which a peer group propagates, its own included."""
    groups, receivers, grown = {group}, set[int](), True
    while grown:
        grown = False
        for mount in everything:
            if mount.id not in receivers and (mount.peer_group in groups or mount.master in groups):
                receivers.add(mount.id)
                if mount.peer_group is not None:
                    groups.add(mount.peer_group)
                grown = True
    return receivers


def _can_be_taken(mount: Mount, tree: places.Tree) -> bool:
    on = tree.on(mount)
    return not on or (len(on) == 1 and tree.covered(on[0]) == places.root(mount))


# --- Namespaces that processes are in --------------------------------------------------------------------------------


@define
class _Sighting:
    """What some processes show of a namespace."""

    number: int | None
    mounts: tuple[Mount, ...]
    pids: list[int]

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset(mount.id for mount in self.mounts)


def _of_processes(host: Host) -> list[Namespace]:
    ours = _number(f"{host.proc}/self/ns/mnt")
    found = []
    for number, sightings in _gathered(_sightings(host)):
        most = max(sightings, key=lambda sighting: len(sighting.mounts))
        pids = tuple(sorted(pid for sighting in sightings for pid in sighting.pids))
        found.append(
            Namespace(
                number=number,
                mounts=most.mounts,
                pids=pids,
                is_ours=number is not None and number == ours,
                root=f"{host.proc}/{most.pids[0]}/root",
            )
        )
    return found


def _sightings(host: Host) -> Iterator[_Sighting]:
    """What processes show, each view once."""
    known: dict[tuple[int, str], _Sighting] = {}
    hidden: list[_Sighting] = []
    for pid in host.pids:
        with suppress(OSError):  # it has ended meanwhile
            view = _view(host, pid)
            if view is None:
                _sight_hidden(host, pid, hidden)
            elif view in known:
                known[view].pids.append(pid)
            else:
                known[view] = _Sighting(view[0], _mounts(f"{host.proc}/{pid}/mountinfo"), [pid])
    yield from known.values()
    yield from hidden


def _view(host: Host, pid: int) -> tuple[int, str] | None:
    """What processes with the same mountinfo have in common: the namespace and the root. None if it is not shown."""
    try:
        number = _number(f"{host.proc}/{pid}/ns/mnt")
        return None if number is None else (number, os.readlink(f"{host.proc}/{pid}/root"))
    except PermissionError:
        return None


def _sight_hidden(host: Host, pid: int, hidden: list[_Sighting]) -> None:
    """Another user's process: only its mountinfo can be read, and of most of them its beginning is enough."""
    path = f"{host.proc}/{pid}/mountinfo"
    with open(path, "rb", buffering=0) as file:
        beginning = file.read(_ENOUGH)
    first = beginning.split(b" ", 1)[0]
    for sighting in hidden:
        if first.isdigit() and int(first) in sighting.ids:
            sighting.pids.append(pid)
            return
    hidden.append(_Sighting(None, _mounts(path), [pid]))


def _gathered(sightings: Iterable[_Sighting]) -> Iterator[tuple[int | None, list[_Sighting]]]:
    """The sightings of each namespace together."""
    groups: list[tuple[int | None, list[_Sighting]]] = []
    for sighting in sightings:
        for number, group in groups:
            same = sighting.number is None or number is None
            if sighting.number == number is not None or (same and any(sighting.ids & each.ids for each in group)):
                group.append(sighting)
                break
        else:
            groups.append((sighting.number, [sighting]))
    yield from groups


# --- Namespaces that no process is in --------------------------------------------------------------------------------


def _without_processes(host: Host, known: Sequence[Namespace]) -> list[Namespace]:
    """The others. One that is bound in one of them cannot be entered from here: it is known, and not read."""
    found: list[Namespace] = []
    numbers = {namespace.number for namespace in known}
    bound = _bound(known)
    held = _held(host, numbers | bound.keys())
    while held or bound:
        new = [_entered(host, number, held=holders) for number, holders in held.items()]
        new += [_entered(host, number, bound=where) for number, where in bound.items() if number not in numbers]
        numbers |= {namespace.number for namespace in new}
        found += new
        held, bound = {}, _bound(new)
    return found


def _bound(namespaces: Iterable[Namespace]) -> dict[int, list[tuple[Namespace, bytes]]]:
    """Which namespaces are bind-mounted, and where: as unshare(1) --mount=FILE does."""
    bound: dict[int, list[tuple[Namespace, bytes]]] = {}
    for namespace in namespaces:
        for mount in namespace.mounts:
            if mount.fstype == "nsfs" and (number := _MOUNT_NAMESPACE.fullmatch(mount.root)):
                bound.setdefault(int(number[1]), []).append((namespace, mount.mountpoint))
    return bound


def _held(host: Host, known: Container[int | None]) -> dict[int, list[tuple[int, str]]]:
    """Which other namespaces somebody has a descriptor of: the pids, and the paths of the descriptors."""
    nsfs = _mount_of_namespaces()
    held: dict[int, list[tuple[int, str]]] = {}
    for pid, opened in host.descriptors.of.items():
        for descriptor, fields in opened.items():
            mount, inode = descriptors.leads_to(fields)
            if mount != nsfs or inode in known:
                continue
            path = f"{host.proc}/{pid}/fd/{descriptor}"
            with suppress(OSError):  # it has been closed
                number = _number(path)
                if number is not None and number not in known:
                    held.setdefault(number, []).append((pid, path))
    return held


def _mount_of_namespaces() -> int:
    """The id of the one mount through which the namespaces of /proc/PID/ns are opened: it stands in no mountinfo."""
    descriptor = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mounts.id_of(descriptor)
    finally:
        os.close(descriptor)


def _entered(
    host: Host,
    number: int,
    bound: Iterable[tuple[Namespace, bytes]] = (),
    held: Iterable[tuple[int, str]] = (),
) -> Namespace:
    paths = [path for _, path in held]
    for namespace, mountpoint in bound:
        if namespace.root is not None and all(mount.is_local for mount in namespace.tree.way(mountpoint)[:-1]):
            paths.append(namespace.root + os.fsdecode(mountpoint))
    entered: tuple[Mount, ...] = ()
    while paths and not entered:
        with suppress(OSError):
            entered = _mounts_inside(host, paths.pop())
    return Namespace(
        number=number,
        mounts=entered,
        pids=(),
        is_ours=False,
        root=None,
        descriptors=tuple(sorted({pid for pid, _ in held})),
        bound_at=tuple(mountpoint for _, mountpoint in bound),
    )


def _mounts_inside(host: Host, path: str) -> tuple[Mount, ...]:
    """What is mounted in the namespace that this path leads to.

    Raises:
        OSError: it cannot be opened, or not entered.
    """
    namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        proc = os.open(host.proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return apart(lambda libc: _visit(libc, namespace, proc))
        finally:
            os.close(proc)
    finally:
        os.close(namespace)


def _visit(libc: ctypes.CDLL, namespace: int, proc: int) -> tuple[Mount, ...]:
    """The own mountinfo of a thread that goes there, by the /proc from here."""
    check(libc.setns(namespace, CLONE_NEWNS))
    descriptor = os.open("thread-self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(descriptor, "rb") as file:
        return mounts.parse(file.read())


# --- /proc -----------------------------------------------------------------------------------------------------------


def _number(path: str) -> int | None:
    """The number of the mount namespace that this link names; None if it names something else, or nothing any more."""
    try:
        link = _MOUNT_NAMESPACE.fullmatch(os.readlink(os.fsencode(path)))
    except PermissionError:
        raise
    except OSError:
        return None
    return int(link[1]) if link else None


def _mounts(path: str) -> tuple[Mount, ...]:
    with open(path, "rb", buffering=0) as file:
        return mounts.parse(file.read())
