"""Overlays: whose layer the subject is, lies in or has in it, and what an overlay's own upper directory refuses.

The rule that this module owns: overlayfs protects its layers from nobody who removes or renames them. All that it ever
refuses is to be mounted with an upper or work directory that is one already, or lies in one, and only if the new
overlay has the feature index (ovl_report_in_use() and ovl_check_layer() of fs/overlayfs/super.c); else it says so in
the kernel's log. A layer that is lower, or below the new one's, it does not look at.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from attrs import evolve, frozen

from exclfs.diagnosis import keepers, servers
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Cause, Unread, caused
from exclfs.host import mounts, overlays, places
from exclfs.host.names import quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.diagnosis.findings import Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.overlays import Layer, Overlay
    from exclfs.host.places import Place
    from exclfs.host.view import Host

KINDS: Final = ("overlay upper", "overlay work", "overlay lower")
"""What this finder may yield, beside the holds that a server tells."""

_SPELLED_OUT: Final = 10
_MARKED_BY_CACHEFILES: Final = (b"cache", b"graveyard")
"""The directories of a cache at or below which cachefiles marks what it uses (fs/cachefiles/cache.c)."""


@frozen
class _Found:
    """A layer on the subject's filesystem."""

    overlay: Overlay
    layer: Layer
    place: Place


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What overlays have to do with the subject."""
    finder = overlays.Finder(host, subject.mount.device)
    known = overlays.overlays(host)
    found = []
    for overlay in known:
        for layer in overlay.layers:
            place = finder.place(layer, overlay)
            if place is not None:
                found.append(_Found(overlay, layer, place))
    index = overlays.index_is_default(host)
    yield from _of_layers(subject, found, index=index)
    yield from _lost(finder, known, index=index)
    if subject.mount.fstype == overlays.FSTYPE:
        yield from _through(subject, finder, known)
    yield from _kernel_files(subject, host)


# --- Layers ----------------------------------------------------------------------------------------------------------


def _of_layers(subject: Subject, found: Sequence[_Found], *, index: bool) -> Iterator[Cause]:
    """One cause for each overlay that has the subject in a layer, and one for all layers of a role that are in it."""
    here = places.of(os.fsencode(subject.canonical), subject.mount)
    told = set()
    for one in found:
        key = (id(one.overlay), one.layer.role)
        if (one.place == here or one.place.contains(here)) and key not in told:
            told.add(key)
            yield _of_layer(subject, one, is_it=one.place == here, index=index)
    for role in ("upper", "work", "lower"):
        inside = [one for one in found if one.layer.role == role and here.contains(one.place)]
        if inside:
            yield _of_what_is_inside(subject, role, inside)


def _of_layer(subject: Subject, one: _Found, *, is_it: bool, index: bool) -> Cause:
    role, path = one.layer.role, quoted(subject.path)
    what = f"{path} is the {role} directory" if is_it else f"{path} lies in the {role} directory {_text(one.layer)}"
    refused = role != "lower" and index
    text = f"{what} of {_overlay(one.overlay)}. {_UNPROTECTED}"
    if role != "lower":
        text += _REFUSED if refused else _WARNED
    leaked_in = [namespace for _, namespace in one.overlay.sightings] if not one.overlay.is_here else []
    return caused(
        f"overlay {role}",
        text,
        (Attempt.OVERLAY_MOUNT,) if refused else (),
        "EBUSY" if refused else None,
        processes=keepers.processes_of(leaked_in),
        where=os.fsdecode(one.overlay.sightings[0][0].mountpoint),
        namespace=keepers.only_number(leaked_in),
    )


_UNPROTECTED: Final = (
    "Nothing protects it: it can be removed and renamed, but what the overlay does after it was changed behind its "
    "back is undefined."
)
_REFUSED: Final = (
    " Another overlay with its upper or work directory here is refused (EBUSY): the feature index is on by default."
)
_WARNED: Final = (
    " Another overlay with its upper or work directory here is mounted, with a warning in the kernel's log; with "
    "index=on it would be refused (EBUSY)."
)


def _of_what_is_inside(subject: Subject, role: str, inside: Sequence[_Found]) -> Cause:
    told = [f"{_text(one.layer)} of {_overlay(one.overlay)}" for one in inside[:_SPELLED_OUT]]
    more = f"; and {len(inside) - len(told)} more" if len(inside) > len(told) else ""
    noun = "directory" if len(inside) == 1 else "directories"
    text = (
        f"{quoted(subject.path)} has {len(inside)} {role} {noun} of overlays in it: {'; '.join(told)}{more}. That "
        "protects nothing from being removed or renamed, and keeps no mount from being unmounted: only the filesystem "
        "lives on, as long as the overlays do."
    )
    leaked = [namespace for one in inside for _, namespace in one.overlay.sightings if not one.overlay.is_here]
    return caused(f"overlay {role}", text, processes=keepers.processes_of(leaked[:_SPELLED_OUT]))


def _text(layer: Layer) -> str:
    told = quoted(os.fsdecode(layer.text))
    return told if layer.is_absolute else f"{told} (relative to a directory that the kernel does not tell)"


def _overlay(overlay: Overlay) -> str:
    """Which overlay: `the overlay on "/merged"`, or that it is leaked, and to whom."""
    mount, first = overlay.sightings[0]
    name = os.fsdecode(mount.mountpoint)
    mountpoint = quoted(name)
    if overlay.is_here:
        return f"the overlay on {mountpoint}"
    where = [namespace for _, namespace in overlay.sightings]
    end = f": `nsenter -t {first.pids[0]} -m umount {typed(name)}` ends it" if first.pids else ""
    return f"a leaked overlay: it is mounted nowhere here, but on {mountpoint} in {keepers.named(where)}{end}"


def _lost(finder: overlays.Finder, known: Sequence[Overlay], *, index: bool) -> Iterator[Unread]:
    lost = [layer for overlay in known for layer in overlay.layers if finder.is_lost(layer, overlay)]
    if lost:
        noun = "layer" if len(lost) == 1 else "layers"
        may_block = index and any(layer.role != "lower" for layer in lost)
        yield Unread(
            "overlays",
            f"{len(lost)} {noun} of overlays cannot be located: {quoted(os.fsdecode(lost[0].text))} is relative to a "
            "directory that the kernel does not tell, or that this user cannot search; root finds more: run it with "
            "sudo.",
            (Attempt.OVERLAY_MOUNT,) if may_block else (),
        )


# --- What the upper directory refuses --------------------------------------------------------------------------------


def _through(subject: Subject, finder: overlays.Finder, known: Sequence[Overlay]) -> Iterator[Finding]:
    """The holds of an exclfs in which the upper directory lies: what is refused there fails in the overlay, too."""
    for overlay in known:
        if any(mount.id == subject.mount.id for mount, _ in overlay.sightings):
            for layer in overlay.layers:
                if layer.role == "upper":
                    yield from _through_upper(subject, finder, finder.path_here(layer, overlay))


def _through_upper(subject: Subject, finder: overlays.Finder, upper: bytes | None) -> Iterator[Finding]:
    way = finder.host.tree.way(upper) if upper is not None else []
    if upper is None or not way or way[-1].fstype != mounts.FSTYPE:
        return
    inside = places.of(os.fsencode(subject.canonical), subject.mount).path.lstrip(b"/")
    path = os.fsdecode(os.path.join(upper, inside))
    if not os.path.lexists(path):  # it is of a lower layer
        return
    for finding in servers.told(path):
        yield evolve(finding, text=f"By the overlay's upper directory {quoted(os.fsdecode(upper))}: {finding.text}")


# --- cachefiles ------------------------------------------------------------------------------------------------------


def _kernel_files(subject: Subject, host: Host) -> Iterator[Unread]:
    """What cachefiles uses: it marks that with S_KERNEL_FILE, which vfs_rmdir() tests and which nothing tells."""
    on_the_way = places.of(os.fsencode(subject.canonical), subject.mount).path.split(b"/")
    if Attempt.RMDIR in subject.attempts and any(name in on_the_way for name in _MARKED_BY_CACHEFILES):
        caches = _caches(host)
        if caches:
            yield Unread("kernel files", _KERNEL_FILES.format(", ".join(quoted(cache) for cache in caches)), _RMDIR)


_RMDIR: Final = (Attempt.RMDIR,)
_KERNEL_FILES: Final = (
    "The kernel's cachefiles serves a cache ({}) and refuses rmdir (EBUSY) of the directories that it uses; which they "
    "are nobody can read. Those of a cache are freed by cachefilesd alone: let it cull them, or stop it."
)


def _caches(host: Host) -> list[str]:
    """The names of the caches in use (fscache_caches_seq_show() of fs/fscache/cache.c): below two lines of heading."""
    with suppress(OSError), open(f"{host.proc}/fs/fscache/caches", "rb") as file:
        lines = os.fsdecode(file.read()).splitlines()[2:]
        return [line.split(None, 6)[6] for line in lines if len(line.split(None, 6)) == 7]
    return []
