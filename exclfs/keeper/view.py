"""The view: what says something about an inode, from the registry, from above, and from files that are open."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from attrs import frozen

from exclfs.holds.errors import Gone
from exclfs.holds.mode import OpenFiles
from exclfs.keeper.open_files import openings

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.holder import Process
    from exclfs.holds.registry import Registry
    from exclfs.keeper.words import Mirror


@frozen
class View:
    """The holds of one mount, as they are seen from an inode."""

    registry: Registry
    mirror: Mirror
    mountpoint: str
    """Begins every path that is told."""
    open_files: OpenFiles
    """Whose open files are holds."""
    describe: Callable[..., Process]
    is_alive: Callable[[Process], bool]

    def on(self, inode: Inode) -> tuple[Hold, ...]:
        """The holds on this inode, its open files among them, oldest first."""
        return (*self.registry.on(inode), *self.openings(inode))

    def covering(self, inode: Inode) -> tuple[Hold, ...]:
        """Every hold that says something about this inode, from above too; oldest first, open files last."""
        above = self.above(inode) if self.registry.covers_below else ()
        return (*self.registry.covering(inode, above), *self.openings(inode))

    def above(self, inode: Inode) -> tuple[Inode, ...]:
        """The directories above, as far as they are known."""
        with suppress(Gone):
            return self.mirror.ancestors(inode)
        return ()

    def openings(self, inode: Inode) -> tuple[Hold, ...]:
        """The holds that open files are."""
        if self.open_files is OpenFiles.NONE:
            return ()
        with suppress(Gone):
            path = os.path.join(self.mountpoint, os.fsdecode(self.mirror.path(inode)))
            return openings(inode, path, self.mirror, self.describe, self.is_alive)
        return ()
