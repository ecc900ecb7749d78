"""Storage: what the kernel swaps to, what a loop device is made of, and what is made of a block device.

The rule that this module owns: /proc/swaps and sysfs name files by paths as they were when they were opened. Such a
path is looked up only if by mountinfo it lies on the filesystem of the subject, and counts only if it still leads to
the very inode, or for an unmount to the very mount.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis import keepers
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import block_devices, identities, swaps
from exclfs.host.names import printable, quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.block_devices import BlockDevice
    from exclfs.host.mounts import Mount
    from exclfs.host.namespaces import Namespace
    from exclfs.host.view import Host

KINDS: Final = ("swap", "loop", "block device")

_REMOVALS: Final = (Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME)


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What the storage layer of the kernel does with the subject, or with a file on the mount that it is."""
    yield from _swaps(subject, host)
    if stat.S_ISREG(subject.status.st_mode) or subject.is_mountpoint:
        yield from _loops(subject, host)
    if stat.S_ISBLK(subject.status.st_mode):
        yield from _block_device(subject, host)


# --- swap ------------------------------------------------------------------------------------------------------------


def _swaps(subject: Subject, host: Host) -> Iterator[Finding]:
    try:
        files = [swap.path for swap in swaps.swaps(host.proc) if swap.is_file]
    except FileNotFoundError:  # a kernel without swap
        return
    except OSError as error:
        yield Unread("swap", f"{host.proc}/swaps could not be read: {error.strerror}.", (*_REMOVALS, Attempt.UMOUNT))
        return
    for path in files:
        yield from _swap(subject, path, host)


def _swap(subject: Subject, path: bytes, host: Host) -> Iterator[Cause]:
    name = os.fsdecode(path)
    ends = f"`swapoff {typed(name)}`, as root, ends that."
    is_it, is_below = _is_of(path, subject, host)
    if is_it:
        text = (
            f"The kernel swaps to {quoted(subject.path)}. Until it stops nobody can remove or rename it, not even root,"
            f" and who writes to it gets ETXTBSY. {ends}"
        )
        yield caused("swap", text, _REMOVALS, "EPERM")
    if is_below:
        text = f"The kernel swaps to {quoted(name)}, on the filesystem that is mounted here. {ends}"
        yield caused("swap", text, (Attempt.UMOUNT,), "EBUSY", where=name)


# --- loop ------------------------------------------------------------------------------------------------------------


def _loops(subject: Subject, host: Host) -> Iterator[Cause]:
    for device in block_devices.loops(host.sys):
        if device.backing_file is None:  # it has been detached meanwhile
            continue
        is_it, is_below = _is_of(device.backing_file, subject, host)
        name = os.fsdecode(device.backing_file)
        if is_it:
            text = (
                f"{quoted(subject.path)} is the backing file of {device.node}. It can be removed and renamed all the"
                f" same; its data stay until the device lets go of it. {_chain(device, host)}"
            )
            yield caused("loop", text, where=device.node)
        if is_below:
            text = (
                f"{quoted(name)}, on the filesystem that is mounted here, is the backing file of {device.node}."
                f" {_chain(device, host)}"
            )
            yield caused("loop", text, (Attempt.UMOUNT,), "EBUSY", where=device.node)


def _chain(device: BlockDevice, host: Host) -> str:
    """What becomes of a loop device, up to where it is mounted, and how to end that."""
    used = list(_used(device, host))
    detached = f"`losetup -d {device.node}` lets go"
    return " ".join([*used, f"Then {detached}." if used else f"{detached}: nothing is made of it."])


# --- block devices ---------------------------------------------------------------------------------------------------


def _block_device(subject: Subject, host: Host) -> Iterator[Cause]:
    number = f"{os.major(subject.status.st_rdev)}:{os.minor(subject.status.st_rdev)}"
    device = block_devices.numbered(number, host.sys)
    if device is None:
        return
    sentences = [f"{quoted(subject.path)} is a node of the block device {_described(device)}, {number}."]
    if device.backing_file is not None:
        sentences.append(f"Its backing file is {quoted(os.fsdecode(device.backing_file))}.")
    if device.below:
        sentences.append(f"It is made of {', '.join(map(printable, device.below))}.")
    sentences += _used(device, host)
    sentences.append("The node can be removed and renamed all the same: the device does not notice.")
    yield caused("block device", " ".join(sentences), where=device.node)


def _described(device: BlockDevice) -> str:
    node = printable(device.node)
    if device.title is None:
        return node
    return f"{node} ({device.name})" if device.name.startswith("dm-") else f"{node} ({printable(device.title)})"


def _used(device: BlockDevice, host: Host) -> Iterator[str]:
    """What it is used for, and what is made of it for."""
    yield from _uses(device, host)
    for above in block_devices.everything_above(device, host.sys):
        yield f"{_described(above)} is made of it."
        yield from _uses(above, host)


def _uses(device: BlockDevice, host: Host) -> Iterator[str]:
    """Where it is mounted, in every mount namespace that can be seen, and whether it is swapped to."""
    mounted: dict[str, list[Namespace]] = {}
    for namespace in host.namespaces:
        for mount in namespace.mounts:
            if _is_made_of(mount, device):
                mounted.setdefault(os.fsdecode(mount.mountpoint), []).append(namespace)
    for mountpoint, where in mounted.items():
        elsewhere = "" if any(namespace.is_ours for namespace in where) else f" in {keepers.named(where)}"
        yield f"{printable(device.node)} is mounted at {quoted(mountpoint)}{elsewhere}."
    if any(_is_swap(swap, device) for swap in _devices_swapped_to(host)):
        yield f"The kernel swaps to {printable(device.node)}."


def _is_made_of(mount: Mount, device: BlockDevice) -> bool:
    # btrfs has device numbers of its own, and names the device as its source.
    return mount.device == device.number or mount.source in (os.fsencode(device.node), b"/dev/" + device.name.encode())


def _devices_swapped_to(host: Host) -> list[bytes]:
    try:
        return [swap.path for swap in swaps.swaps(host.proc) if not swap.is_file]
    except OSError:
        return []


def _is_swap(path: bytes, device: BlockDevice) -> bool:
    return path in (os.fsencode(device.node), b"/dev/" + os.fsencode(device.name))


# --- paths of the kernel ---------------------------------------------------------------------------------------------


def _is_of(path: bytes, subject: Subject, host: Host) -> tuple[bool, bool]:
    """Whether a path as the kernel tells it leads to the subject; and to something on the mount that the subject is."""
    crossed = host.tree.way(path)
    if not crossed or crossed[-1].device != subject.mount.device:
        return False, False
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # it has been removed, or there is no way to it for this user; it keeps its mount busy all the same
        return False, subject.is_mountpoint and crossed[-1].id == subject.mount.id
    try:
        mount = host.mount_of(descriptor)
        is_it = identities.of(descriptor, mount) == subject.identity
        return is_it, subject.is_mountpoint and mount.id == subject.mount.id and not is_it
    finally:
        os.close(descriptor)
