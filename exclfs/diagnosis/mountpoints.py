"""Mountpoints: what is mounted on the subject, here under any name, and in other mount namespaces.

The rule that this module owns: what counts is the directory entry, not its name. Something mounted on it anywhere in
this mount namespace makes its removal fail (__is_local_mountpoint() of fs/namespace.c), even by the name of a bind
mount of its parent under which nothing is seen mounted; in another namespace it blocks nothing, and goes away with the
entry (detach_mounts(), Linux 3.18).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis import keepers
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import caused
from exclfs.host import overlays, places
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.diagnosis.findings import Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.mounts import Mount
    from exclfs.host.namespaces import Namespace
    from exclfs.host.places import Place, Tree
    from exclfs.host.view import Host
    from exclfs.wire.causes import Cause

KINDS: Final = ("root", "mountpoint", "mountpoint elsewhere")
"""What this finder may yield."""

_REMOVALS: Final = (Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME)


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What is mounted on the subject, and what of mount namespaces could not be seen."""
    if subject.canonical == "/":
        yield caused("root", _ROOT, (Attempt.RMDIR, Attempt.RENAME), "EBUSY")
    else:
        entry = entry_of(subject, host)
        for mount in host.tree.over(entry):
            yield _here(subject, mount, host.tree)
        yield from _elsewhere(subject, entry, host)
    yield from keepers.unread(host, _may_be_blocked_from_afar(subject, host))


def entry_of(subject: Subject, host: Host) -> Place:
    """The place of the directory entry that the path names, below everything that is mounted on it."""
    parent = host.mount_of(subject.parent)
    return places.of(os.fsencode(os.path.dirname(subject.canonical)), parent) / os.fsencode(subject.name)


def _may_be_blocked_from_afar(subject: Subject, host: Host) -> tuple[Attempt, ...]:
    """What mounts in other namespaces can make fail: of peers, umount; of overlays, another overlay."""
    below = host.tree.by_id.get(subject.mount.parent)
    attempts = []
    if subject.is_mountpoint and below is not None and below.peer_group is not None:
        attempts.append(Attempt.UMOUNT)
    if Attempt.OVERLAY_MOUNT in subject.attempts and overlays.index_is_default(host):
        attempts.append(Attempt.OVERLAY_MOUNT)
    return tuple(attempts)


# --- Here ------------------------------------------------------------------------------------------------------------


def _here(subject: Subject, mount: Mount, tree: Tree) -> Cause:
    stack = _stack(mount, tree)
    mountpoint = os.fsdecode(mount.mountpoint)
    if mountpoint == subject.canonical:
        text = f"{quoted(subject.path)} is a mountpoint: {_mounted(stack)} on it."
    else:
        text = (
            f"{quoted(subject.path)} is a mountpoint by another name: it is the same directory entry as "
            f"{quoted(mountpoint)}, and {_mounted(stack)} on that."
        )
    return caused("mountpoint", f"{text} {_way_out(mountpoint, stack)}", _REMOVALS, "EBUSY", where=mountpoint)


def _stack(lowest: Mount, tree: Tree) -> list[Mount]:
    """This and what is mounted on top of it, and on top of that."""
    stack = [lowest]
    while on_top := [each for each in tree.on(stack[-1]) if tree.covered(each) == places.root(stack[-1])]:
        stack.append(on_top[0])
    return stack


def _mounted(stack: Sequence[Mount]) -> str:
    """What is mounted there, the topmost first."""
    told = ", on top of ".join(described(mount) for mount in reversed(stack))
    return f"{told} {'is' if len(stack) == 1 else 'are'} mounted"


def _way_out(mountpoint: str, stack: Sequence[Mount]) -> str:
    times = "" if len(stack) == 1 else f", {len(stack)} times,"
    return f"`umount {typed(mountpoint)}`{times} takes it off."


def described(mount: Mount) -> str:
    """What is mounted: `tmpfs "none"`, `"/sub" of ext4 "/dev/sda1"`."""
    whole = f"{mount.fstype} {quoted(os.fsdecode(mount.source))}"
    return whole if mount.root == b"/" else f"{quoted(os.fsdecode(mount.root))} of {whole}"


_ROOT: Final = "/ is the root directory of this process: it has no name that could be removed or changed."


# --- Elsewhere -------------------------------------------------------------------------------------------------------


def _elsewhere(subject: Subject, entry: Place, host: Host) -> Iterator[Cause]:
    """One cause for each thing that is mounted there, in however many namespaces."""
    found: dict[Place, list[tuple[Mount, Namespace]]] = {}
    for namespace in host.namespaces:
        if not namespace.is_ours:
            for mount in namespace.tree.over(entry):
                found.setdefault(places.root(mount), []).append((mount, namespace))
    for sightings in found.values():
        mount = sightings[0][0]
        where = [namespace for _, namespace in sightings]
        yield caused(
            "mountpoint elsewhere",
            f"{quoted(subject.path)} is a mountpoint in {keepers.named(where)}: {described(mount)} is mounted there, "
            f"on {quoted(os.fsdecode(mount.mountpoint))}. That blocks nothing here: if it is removed here it is "
            "unmounted there, and if it is renamed the mount moves along.",
            processes=keepers.processes_of(where),
            where=os.fsdecode(mount.mountpoint),
            namespace=keepers.only_number(where),
        )
