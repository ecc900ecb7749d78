"""Where something is, whatever it is called: on which filesystem, and where on that.

The rule that this module owns: one directory has many names, in this mount namespace and in others, and one place. It
is worked out from mountinfo alone (proc_pid_mountinfo(5)), so nobody is asked, however far away the namespace is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from exclfs.host.mounts import Mount


@frozen
class Place:
    """A directory entry, as the kernel has one dentry for it, of however many mounts."""

    device: str
    """major:minor, as mountinfo has it."""
    path: bytes
    """Within the filesystem: what mountinfo calls the root, of a mount of this alone."""

    def __truediv__(self, name: bytes) -> Place:
        """What is there by this name, or by this relative path."""
        return Place(self.device, _joined(self.path, name)) if name else self

    def contains(self, other: Place) -> bool:
        """Whether the other is below this one."""
        return self.device == other.device and self != other and _is_below(other.path, self.path)


def of(path: bytes, mount: Mount) -> Place:
    """The place of a path that lies on this mount.

    Args:
        path: absolute, without symlinks, as the mountinfo that has the mount would name it.
        mount: on which it lies.
    """
    return Place(mount.device, mount.root) / path[len(mount.mountpoint) :].strip(b"/")


def root(mount: Mount) -> Place:
    """The place of what is seen where this is mounted."""
    return Place(mount.device, mount.root)


class Tree:
    """The mounts of one mount namespace, as mounted on one another."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self.by_id = {mount.id: mount for mount in mounts}
        self._on: dict[int, list[Mount]] = {}
        self._at: dict[tuple[int, bytes], Mount] = {}
        self._first: Mount | None = None
        for mount in self.by_id.values():
            if mount.parent in self.by_id and mount.parent != mount.id:
                self._on.setdefault(mount.parent, []).append(mount)
                self._at[mount.parent, mount.mountpoint] = mount
            elif mount.mountpoint == b"/":
                self._first = mount

    def on(self, mount: Mount) -> list[Mount]:
        """What is mounted on this mount, directly."""
        return self._on.get(mount.id, [])

    def covered(self, mount: Mount) -> Place | None:
        """The place that this is mounted over; None of the root of a namespace, and where that is out of sight."""
        parent = self.by_id.get(mount.parent)
        return of(mount.mountpoint, parent) if parent is not None and parent != mount else None

    def over(self, place: Place) -> list[Mount]:
        """What is mounted over this place, by whatever name. What is mounted over that in turn is not among it."""
        parents = [parent for parent in self.by_id.values() if parent.device == place.device]
        return [mount for parent in parents for mount in self.on(parent) if of(mount.mountpoint, parent) == place]

    def way(self, path: bytes) -> list[Mount]:
        """The mounts that somebody crosses who looks this path up, from the root; it lies on the last of them.

        Args:
            path: absolute. A symlink in it is not followed: nobody is asked whether there is one.
        """
        crossed = [self._first] if self._first is not None else []
        for prefix in _prefixes(path) if crossed else ():
            while (on_top := self._at.get((crossed[-1].id, prefix))) is not None:
                crossed.append(on_top)
        return crossed

    def place(self, path: bytes) -> Place | None:
        """The place of an absolute path without symlinks; None if no mount of this tree has it."""
        way = self.way(path)
        return of(path, way[-1]) if way else None


def _joined(path: bytes, name: bytes) -> bytes:
    return path.rstrip(b"/") + b"/" + name


def _prefixes(path: bytes) -> Iterator[bytes]:
    """The root, and every directory on the way to this absolute path, itself included."""
    yield b"/"
    end = path.find(b"/", 1)
    while end > 0:
        yield path[:end]
        end = path.find(b"/", end + 1)
    if len(path) > 1:
        yield path


def _is_below(path: bytes, directory: bytes) -> bool:
    """Whether it is that directory or in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")
