"""The filesystems that a backing tree can lie on: each made on the spot, in a sparse file, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "tmpfs": [],
}
"""How each is made; tmpfs needs no making."""
SIZE = 2 << 30


def obstacle(kind: str) -> str | None:
    """Why this machine has no such filesystem; None if it has."""
    if os.geteuid() != 0:
        return "needs root, to mount filesystems"
    if MAKE[kind] and not shutil.which(MAKE[kind][0]):
        return f"needs {MAKE[kind][0]}"
    return None


def kernel_lacks(kind: str) -> bool:
    """Whether the kernel has no such filesystem, nor a module of it."""

    def known() -> bool:
        return any(line.split()[-1] == kind for line in Path("/proc/filesystems").read_text().splitlines())

    if known():
        return False
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", kind], check=False)
    return not known()


@contextmanager
def filesystem(kind: str, *, size: int = SIZE, make: tuple[str, ...] = (), options: str = "") -> Iterator[Path]:
    """Where a new filesystem is mounted, empty; with more arguments of mkfs and more options of mount(8)."""
    directory = Path(tempfile.mkdtemp(prefix=f"exclfs-{kind}-"))
    directory.chmod(0o755)
    image, mountpoint = directory / "image", directory / "mounted"
    mountpoint.mkdir()
    more = f",{options}" if options else ""
    try:
        if kind == "tmpfs":
            arguments = ["-t", "tmpfs", "-o", f"size={size},mode=755{more}", "tmpfs"]
        else:
            with open(image, "wb") as file:
                file.truncate(size)
            subprocess.run([*MAKE[kind], *make, str(image)], check=True, capture_output=True)
            arguments = ["-t", kind, "-o", f"loop{more}", str(image)]
        subprocess.run(["mount", *arguments, str(mountpoint)], check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", str(mountpoint)], check=True)
    finally:
        shutil.rmtree(directory)
