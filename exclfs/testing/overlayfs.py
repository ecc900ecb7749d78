"""overlayfs as a simulated holder: who may mount which layers, by the kernel's own rules, on trees in an exclfs mount.

    with Overlay(lower=[base], upper=container / "upper", work=container / "work", index=True):
        Overlay(lower=[base], upper=container / "upper", work=other, index=True).mount()   # OSError: EBUSY

Nothing is merged: it locks what an overlay locks, looks where an overlay looks, and lets go when an overlay does. So a
runtime that removes or shares layers can be tested without a mount, and with one that has leaked. The rule that this
module owns: which directories a mount takes, in which order it looks at which others, and what it then does. As in
fs/overlayfs/super.c, commits 2cac0c00a6cd (upper and work are locked), 85fdee1eef1a (without index it only warns),
146d62e5a586 (layers that overlap), 0be0bfd2de9d (which of that is an error), 708fa01597fa (upper inside of lower).

I_OVL_INUSE is a hold with the flag EXCL_INUSE. It refuses no removal, here as in the kernel. The kernel looks for it
upwards only, from the layers of a new mount: a new upper directory *above* that of another mount passes. With
`subtree=True` it is EXCL_SUBTREE, which is what the flag means, and exclfs sees to it in both directions.
"""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from exclfs.client.sync_client import connect
from exclfs.holds.errors import Gone, Held
from exclfs.holds.flags import CLAIMS, Flags

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold

_numbers: Final = count(1)


class Overlay:
    """An overlay: mounted by mount(), or by the `with` block.

    Args:
        lower: the lower layers, the topmost first.
        upper: the upper directory; None, as `work` then: a read-only overlay, which takes nothing.
        work: the work directory.
        index: whether a layer that is in use is an error, EBUSY, or a warning. Without `upper` it is a warning.
        subtree: whether upper and work are claimed with all that is below.
        name: of the mount, for whoever meets its holds; by default "overlayfs-" and a number.
    """

    def __init__(
        self,
        *,
        lower: Sequence[Path],
        upper: Path | None = None,
        work: Path | None = None,
        index: bool = False,
        subtree: bool = False,
        name: str | None = None,
    ) -> None:
        if not lower:
            raise ValueError("an overlay has a lower layer")
        if (upper is None) != (work is None):
            raise ValueError("upper and work come together")
        self.lower: Final = tuple(map(Path, lower))
        self.upper: Final = None if upper is None else Path(upper)
        self.work: Final = None if work is None else Path(work)
        self.warnings: list[str] = []
        """What the kernel would have written to its log, and gone on."""
        self._index = index and upper is not None  # "useless in a non-upper mount, ignore"
        self._flag = Flags.EXCL_SUBTREE if subtree else Flags.EXCL_INUSE
        self._name = name or f"overlayfs-{next(_numbers)}"
        self._client: Client | None = None
        self._locks: list[Hold] = []
        self._traps: list[tuple[int, int]] = []

    @property
    def mounted(self) -> bool:
        """Whether it is, also where only another mount namespace has it."""
        return self._client is not None

    def mount(self) -> None:
        """Mounts it, in the order of ovl_fill_super: upper, work, the lower layers, and then what is above each.

        Raises:
            OSError: EBUSY: a layer is in use by another, and `index` makes that an error; `__cause__` is the Held that
                says whose. ELOOP: layers of this overlay are the same, or a lower one is inside of upper, work or
                another lower. EINVAL: upper and work are not separate. ENOENT, ENOTDIR, …: of the paths themselves.
            NotAMount, NoServer: the layers are in no exclfs mount, or in one whose server is gone.
            RuntimeError: it is mounted already.
        """
        if self._client is not None:
            raise RuntimeError("it is mounted already")
        for layer in self._layers():
            if not layer.is_dir():
                code = errno.ENOTDIR if layer.exists() else errno.ENOENT
                raise OSError(code, os.strerror(code), str(layer))
        self._traps, self.warnings = [], []
        self._client = connect(self.upper or self.lower[0])
        try:
            self._take_layers(self._client)
        except BaseException:
            self.let_go()
            raise

    def unmount(self, *, leaked: bool = False) -> None:
        """Unmounts it here.

        Args:
            leaked: another mount namespace still has it, which was made while it was mounted: what it took stays
                taken, and no mount table that can be seen here says why. Until let_go().
        """
        if not leaked:
            self.let_go()

    def let_go(self) -> None:
        """The last mount of it, in whatever namespace, is gone: what it took is free (ovl_free_fs)."""
        client, self._client = self._client, None
        if client is not None:
            with client:
                client.end(self._locks)
            self._locks = []

    # --- the order in which the kernel goes through them -----------------------------------------------------------

    def _layers(self) -> tuple[Path, ...]:
        writable = () if self.upper is None or self.work is None else (self.upper, self.work)
        return (*writable, *self.lower)

    def _take_layers(self, client: Client) -> None:
        if self.upper is not None and self.work is not None:
            self._set_trap(self.upper, "upperdir")  # ovl_get_upper
            self._trylock(client, self.upper, "upperdir")
            if not _separate(self.upper, self.work):  # ovl_get_workdir, ovl_workdir_ok
                raise OSError(errno.EINVAL, "workdir and upperdir must be separate subtrees", str(self.work))
            self._trylock(client, self.work, "workdir")
            self._set_trap(self.work, "workdir")
            (self.work / "work").mkdir(exist_ok=True)  # ovl_make_workdir
        for lower in self.lower:  # ovl_get_layers
            self._set_trap(lower, "lowerdir")
            self._must_be_free(client, lower, lower, "lowerdir")
        if self.upper is not None and self.work is not None:  # ovl_check_overlapping_layers
            self._check_layer(client, self.upper, "upperdir")
            self._check_layer(client, self.work, "workdir")
        for lower in self.lower:
            self._check_layer(client, lower, "lowerdir")

    def _trylock(self, client: Client, path: Path, name: str) -> None:
        """ovl_inuse_trylock."""
        try:
            self._locks += client.hold(path, holder=self._name, reason=f"{name} of an overlay", flags=self._flag)
        except Held as held:
            self._report_in_use(path, name, held)
        except Gone as gone:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from gone

    def _must_be_free(self, client: Client, path: Path, layer: Path, name: str) -> None:
        """ovl_is_inuse of what a layer is, or what is above it."""
        inode = os.lstat(path).st_ino
        for hold in client.holds(path):
            # A hold from above covers it too, and is not on it.
            if hold.flags & CLAIMS & ~Flags.KERNEL_FILE and hold.inode.ino == inode:
                self._report_in_use(layer, name, Held(hold))

    def _check_layer(self, client: Client, layer: Path, name: str) -> None:
        """ovl_check_layer: everything from above it up to the root of the filesystem."""
        path, root = _real(layer), _real(Path(client.mountpoint))
        while path not in (root, path.parent):
            path = path.parent
            if name == "lowerdir" and _identity(path) in self._traps:
                raise OSError(errno.ELOOP, f"overlapping {name} path", str(layer))
            self._must_be_free(client, path, layer, name)

    def _set_trap(self, path: Path, name: str) -> None:
        """ovl_setup_trap: no two layers of one overlay are the same."""
        identity = _identity(path)
        if identity in self._traps:
            raise OSError(errno.ELOOP, f"conflicting {name} path", str(path))
        self._traps.append(identity)

    def _report_in_use(self, path: Path, name: str, held: Held) -> None:
        """ovl_report_in_use. Unlike the kernel it says by whom."""
        by = f"{name} is in-use as upperdir/workdir of another mount"
        if self._index:
            raise OSError(errno.EBUSY, f"{by}: {held.hold.holder.name}", str(path)) from held
        self.warnings.append(f"{by}, accessing files from both mounts will result in undefined behavior.")

    def __enter__(self) -> Self:
        """Mounts it."""
        self.mount()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Unmounts it."""
        self.unmount()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _separate(one: Path, other: Path) -> bool:
    one, other = _real(one), _real(other)
    return not (one.is_relative_to(other) or other.is_relative_to(one))
