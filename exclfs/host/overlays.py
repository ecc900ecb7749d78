"""Which overlays are mounted, in any namespace, and where their layers lie.

The rule that this module owns: a layer is known by the text that whoever mounted it gave (ovl_show_options() of
fs/overlayfs/params.c), and is looked for where that text may have meant something: in the mount namespaces that have
the overlay, and in this one. On the way symlinks are read, but only on filesystems that no server can keep waiting, and
on the one that the question is about. A relative text, as docker writes it, is relative to a working directory that
nothing tells: it is taken to be the nearest one above the overlay's other layers, or above its mountpoint, in which all
that is relative is there.

An overlay that is unmounted lazily and still in use, and one of a namespace that is not seen, stands in no mountinfo.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.host.mounts import Mount
    from exclfs.host.namespaces import Namespace
    from exclfs.host.places import Place
    from exclfs.host.view import Host

FSTYPE: Final = "overlay"

_ROLES: Final = {
    "upperdir": "upper",
    "workdir": "work",
    "lowerdir": "lower",
    "lowerdir+": "lower",
    "datadir+": "lower",
}
"""What the mount options of an overlay give (Documentation/filesystems/overlayfs.rst)."""
_MOST_SYMLINKS: Final = 40
"""MAXSYMLINKS of include/linux/namei.h."""
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_UNESCAPED_COLON: Final = re.compile(rb"((?:[^\\:]|\\.)*)(?::|$)", re.DOTALL)


@frozen
class Layer:
    """A directory that an overlay was mounted with."""

    role: str
    """upper, work or lower."""
    text: bytes
    """Its path, as whoever mounted it gave it."""

    @property
    def is_absolute(self) -> bool:
        """Whether it is known from where its path goes."""
        return self.text.startswith(b"/")


@frozen
class Overlay:
    """An overlay filesystem, however often it is mounted."""

    layers: tuple[Layer, ...]
    sightings: tuple[tuple[Mount, Namespace], ...]
    """Where it is mounted, in this namespace first."""

    @property
    def is_here(self) -> bool:
        """Whether it is mounted in this namespace."""
        return self.sightings[0][1].is_ours


def overlays(host: Host) -> tuple[Overlay, ...]:
    """Every overlay that is mounted in a namespace that can be seen."""
    found: dict[str, list[tuple[Mount, Namespace]]] = {}
    for namespace in host.namespaces:
        for mount in namespace.mounts:
            if mount.fstype == FSTYPE:
                found.setdefault(mount.device, []).append((mount, namespace))
    return tuple(Overlay(tuple(layers_of(sightings[0][0])), tuple(sightings)) for sightings in found.values())


def layers_of(mount: Mount) -> Iterator[Layer]:
    r"""The layers of an overlay, from its options: in lowerdir several, with : between; \ escapes, but in lowerdir+."""
    for option in mount.super_options:
        name, _, value = option.partition("=")
        role, text = _ROLES.get(name), os.fsencode(value)
        if role is None:
            continue
        parts = [text] if name.endswith("+") else _unescaped(text, several=name == "lowerdir")
        yield from (Layer(role, part) for part in parts if part)


def index_is_default(host: Host) -> bool:
    """Whether an overlay that is mounted without saying so has the feature index: only that refuses a layer in use."""
    try:
        with open(f"{host.sys}/module/overlay/parameters/index", "rb") as file:
            return file.read().strip() == b"Y"
    except OSError:  # the module is not loaded, and its default is whatever it was built with
        return False


@frozen
class Finder:
    """Finds where layers lie, as long as that is on one filesystem.

    Args:
        host: as this process sees it.
        device: of that filesystem. No other is asked but those that answer at once.
    """

    host: Host
    device: str
    _links: dict[tuple[str | None, bytes], bytes | None] = field(factory=dict, init=False)
    _mounted_from: dict[tuple[int, str | None], bytes | None] = field(factory=dict, init=False)

    def place(self, layer: Layer, overlay: Overlay) -> Place | None:
        """Where it lies; None if that is not on this filesystem, or cannot be known."""
        for namespace in self._namespaces(overlay):
            path = self._path(layer, overlay, namespace)
            place = None if path is None else namespace.tree.place(path)
            if place is not None and place.device == self.device:
                return place
        return None

    def is_lost(self, layer: Layer, overlay: Overlay) -> bool:
        """Whether it is relative, and there is such a thing in none of the directories where it might be."""
        return not layer.is_absolute and all(
            self._path(layer, overlay, namespace) is None for namespace in self._namespaces(overlay)
        )

    def path_here(self, layer: Layer, overlay: Overlay) -> bytes | None:
        """Its path without symlinks in this namespace; None if it cannot be known."""
        return self._path(layer, overlay, self.host.namespaces[0])

    def _namespaces(self, overlay: Overlay) -> list[Namespace]:
        """Where its layers' texts mean something: here, or else where it is mounted; it may be leaked from here."""
        ours = self.host.namespaces[0]
        return [ours] if overlay.is_here else [overlay.sightings[0][1], ours]

    def _path(self, layer: Layer, overlay: Overlay, namespace: Namespace) -> bytes | None:
        if layer.is_absolute:
            return self._followed(layer.text, namespace)
        directory = self._working_directory(overlay, namespace)
        return None if directory is None else self._followed(directory + b"/" + layer.text, namespace)

    def _working_directory(self, overlay: Overlay, namespace: Namespace) -> bytes | None:
        """Where it was mounted from, if anything can be found in which all its relative layers are."""
        key = (id(overlay), namespace.root)
        if key not in self._mounted_from:
            relative = [layer.text for layer in overlay.layers if not layer.is_absolute]
            self._mounted_from[key] = next(
                (
                    directory
                    for directory in self._candidates(overlay, namespace)
                    if all(self._is_there(directory + b"/" + text, namespace) for text in relative)
                ),
                None,
            )
        return self._mounted_from[key]

    def _candidates(self, overlay: Overlay, namespace: Namespace) -> Iterator[bytes]:
        """The directories to which a relative path may be relative, the nearest first."""
        known = [layer.text for layer in overlay.layers if layer.is_absolute]
        known += [mount.mountpoint for mount, seen_in in overlay.sightings if seen_in is namespace]
        for path in known:
            while path.strip(b"/"):
                path = os.path.dirname(path)
                yield path.rstrip(b"/")

    def _followed(self, path: bytes, namespace: Namespace) -> bytes | None:
        """An absolute path without symlinks; None if it goes round in circles."""
        done, rest, links = b"", path.split(b"/")[::-1], 0
        while rest:
            name = rest.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                done = os.path.dirname(done).rstrip(b"/")
                continue
            target = self._link(done + b"/" + name, namespace)
            if target is None:
                done += b"/" + name
                continue
            links += 1
            if links > _MOST_SYMLINKS:
                return None
            done = b"" if target.startswith(b"/") else done
            rest += target.split(b"/")[::-1]
        return done or b"/"

    def _link(self, path: bytes, namespace: Namespace) -> bytes | None:
        """What the symlink there says; None if it is none, or must not be asked."""
        key = (namespace.root, path)
        if key not in self._links:
            self._links[key] = None
            if self._may_ask(path, namespace):
                with suppress(OSError):  # EINVAL: no symlink. Or it is gone, or no way for us: the text is all there is
                    self._links[key] = os.readlink(os.fsencode(namespace.root or "") + path)
        return self._links[key]

    def _is_there(self, path: bytes, namespace: Namespace) -> bool:
        followed = self._followed(path, namespace)
        if followed is None or not self._may_ask(followed, namespace):
            return False
        return os.path.lexists(os.fsencode(namespace.root or "") + followed)

    def _may_ask(self, path: bytes, namespace: Namespace) -> bool:
        way = namespace.tree.way(path)
        return namespace.root is not None and all(mount.is_local or mount.device == self.device for mount in way)


def _unescaped(text: bytes, *, several: bool) -> list[bytes]:
    parts = [match[1] for match in _UNESCAPED_COLON.finditer(text)] if several else [text]
    return [_ESCAPED.sub(rb"\1", part) for part in parts]
