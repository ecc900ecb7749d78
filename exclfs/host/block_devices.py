"""Block devices as sysfs has them: what each is made of, and what is made of it.

The rule that this module owns: a device is asked nothing, for opening one needs rights and may wake a disk. All is read
below /sys/dev/block and /sys/block, which everybody may (Documentation/ABI/testing/sysfs-block).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


@frozen(kw_only=True)
class BlockDevice:
    """A disk, a partition, or what the kernel makes of them."""

    name: str
    """The kernel's: loop0, sda1, dm-0."""
    number: str
    """major:minor."""
    title: str | None
    """What it is called by whoever set it up: the name of a device of device-mapper, the level of an array of md."""
    backing_file: bytes | None
    """Of a loop device, as seen from this process's root."""
    above: tuple[str, ...]
    """The kernel's names of what is made of it: its partitions, and the devices that hold it."""
    below: tuple[str, ...]
    """The kernel's names of what it is made of."""

    @property
    def node(self) -> str:
        """The name by which one types it."""
        if self.name.startswith("dm-") and self.title is not None:
            return f"/dev/mapper/{self.title}"
        return f"/dev/{self.name.replace('!', '/')}"


def numbered(number: str, sys: str = "/sys") -> BlockDevice | None:
    """The device of this major:minor; None if there is none."""
    directory = os.path.realpath(f"{sys}/dev/block/{number}")
    return _read(directory) if os.path.isdir(directory) else None


def named(name: str, sys: str = "/sys") -> BlockDevice | None:
    """The device that the kernel calls so; None if there is none."""
    directory = os.path.realpath(f"{sys}/class/block/{name}")
    return _read(directory) if os.path.isdir(directory) else None


def loops(sys: str = "/sys") -> tuple[BlockDevice, ...]:
    """The loop devices that are attached to a file (loop(4))."""
    names = sorted(name for name in _names(f"{sys}/block") if name.startswith("loop"))
    return tuple(
        device
        for name in names
        if os.path.exists(f"{sys}/block/{name}/loop/backing_file") and (device := named(name, sys))
    )


def everything_above(device: BlockDevice, sys: str = "/sys") -> tuple[BlockDevice, ...]:
    """What is made of it, and what of that, and so on; each once, itself not among them."""
    found: dict[str, BlockDevice] = {}
    waiting = [device]
    while waiting:
        for name in waiting.pop(0).above:
            if name not in found and (further := named(name, sys)) is not None:
                found[name] = further
                waiting.append(further)
    return tuple(found.values())


def _read(directory: str) -> BlockDevice:
    return BlockDevice(
        name=os.path.basename(directory),
        number=_line(f"{directory}/dev") or "?",
        title=_line(f"{directory}/dm/name") or _line(f"{directory}/md/level"),
        backing_file=_backing_file(directory),
        above=(*_partitions(directory), *_names(f"{directory}/holders")),
        below=_names(f"{directory}/slaves"),
    )


def _partitions(directory: str) -> Iterator[str]:
    for name in _names(directory):
        if os.path.exists(f"{directory}/{name}/partition"):
            yield name


def _backing_file(directory: str) -> bytes | None:
    path = _contents(f"{directory}/loop/backing_file")
    return path.removesuffix(b"\n").removesuffix(b" (deleted)") or None


def _line(path: str) -> str | None:
    return os.fsdecode(_contents(path).removesuffix(b"\n")) or None


def _contents(path: str) -> bytes:
    """Of a small file; nothing if it is not there, or not any more."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _names(directory: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(os.listdir(directory)))
    except OSError:
        return ()
