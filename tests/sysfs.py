"""A small /sys, with block devices that a test machine has not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Sysfs:
    """As in Documentation/ABI/testing/sysfs-block and sysfs-class-block."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._path = path

    def device(
        self,
        name: str,
        number: str,
        *,
        backing_file: str | None = None,
        dm: str | None = None,
        level: str | None = None,
        partition_of: str | None = None,
        made_of: Sequence[str] = (),
    ) -> None:
        """One more device: of loop, of device-mapper, of md, or a partition."""
        directory = self._path / "devices" / "virtual" / "block" / (partition_of or "") / name
        directory.mkdir(parents=True)
        for below in ("holders", "slaves"):
            (directory / below).mkdir()
        (directory / "dev").write_text(f"{number}\n")
        files = {"loop/backing_file": backing_file, "dm/name": dm, "md/level": level}
        for file, contents in files.items():
            if contents is not None:
                (directory / file).parent.mkdir()
                (directory / file).write_text(f"{contents}\n")
        if partition_of is not None:
            (directory / "partition").write_text("1\n")
        for link in (f"dev/block/{number}", f"class/block/{name}", *([] if partition_of else [f"block/{name}"])):
            (self._path / link).parent.mkdir(parents=True, exist_ok=True)
            (self._path / link).symlink_to(directory)
        for lower in made_of:
            below = (self._path / "class" / "block" / lower).resolve()
            (directory / "slaves" / lower).symlink_to(below)
            (below / "holders" / name).symlink_to(directory)
