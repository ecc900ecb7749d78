"""The filesystems that a backing tree can lie on: each made on the spot, in a sparse file, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import loops

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = (*loops.MAKE, "tmpfs")
MEBIBYTES = 2048


def obstacle(kind: str) -> str | None:
    """Why this machine has no such filesystem; None if it has."""
    if os.geteuid() != 0:
        return "needs root, to mount filesystems"
    if kind in loops.MAKE and not shutil.which(program := loops.MAKE[kind][1][0]):
        return f"needs {program}"
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
def filesystem(
    kind: str, *, mebibytes: int = MEBIBYTES, make: tuple[str, ...] = (), options: str = ""
) -> Iterator[Path]:
    """Where a new filesystem is mounted, empty; with more arguments of mkfs and more options of mount(8)."""
    directory = Path(tempfile.mkdtemp(prefix=f"exclfs-{kind}-"))
    directory.chmod(0o755)
    mountpoint = directory / "mounted"
    try:
        with ExitStack() as stack:
            if kind == "tmpfs":
                stack.enter_context(tmpfs(mountpoint, f"size={mebibytes}m,mode=755{options and ','}{options}"))
            else:
                loops.make_image(directory / "image", kind, *make, mebibytes=mebibytes)
                stack.enter_context(loops.loop_mount(directory / "image", mountpoint, options))
            yield mountpoint
    finally:
        shutil.rmtree(directory)


@contextmanager
def tmpfs(mountpoint: Path, options: str) -> Iterator[None]:
    """A tmpfs, mounted there."""
    mountpoint.mkdir()
    loops.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", mountpoint)
    try:
        yield
    finally:
        loops.run("umount", mountpoint)
