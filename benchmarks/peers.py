"""What exclfs is measured against: each peer mounts the same tree, and is unmounted and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIBFUSE_EXAMPLE: Final = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"


@frozen
class Peer:
    """A passthrough filesystem: `command` mounts SRC at MNT and goes to the background."""

    name: str
    command: tuple[str, ...]

    @contextmanager
    def mounted(self, source: str, mountpoint: str) -> Iterator[int | None]:
        """Mounts, gives the pid of the server, and unmounts."""
        os.makedirs(mountpoint, exist_ok=True)
        before = set(_pids())
        subprocess.run([part.format(src=source, mnt=mountpoint) for part in self.command], check=True)
        servers = [pid for pid in set(_pids()) - before if mountpoint in _command_line(pid)]
        try:
            yield servers[0] if servers else None
        finally:
            for _ in range(50):
                if subprocess.run(["umount", mountpoint], capture_output=True, check=False).returncode == 0:
                    break
                time.sleep(0.1)  # a peer may still be releasing files


def available(build: str) -> list[Peer]:
    """exclfs and every peer that is here; libfuse's example is compiled into the directory `build`."""
    exclfs = (sys.executable, "-m", "exclfs.cli", "mount", "{src}", "{mnt}", "-o", "log=/dev/null")
    peers = [Peer("exclfs", exclfs), Peer("exclfs, no passthrough", (*exclfs[:-1], "log=/dev/null,nopassthrough"))]
    if shutil.which("bindfs"):
        peers.append(Peer("bindfs", ("bindfs", "{src}", "{mnt}")))
    if shutil.which("mergerfs"):
        peers.append(Peer("mergerfs", ("mergerfs", "{src}", "{mnt}")))
    if example := _compiled_example(build):
        options = "source={src},cache=auto,xattr,allow_other,default_permissions"
        peers.append(Peer("passthrough_ll", (example, "-o", options, "{mnt}")))
    return peers


def cpu_seconds(pid: int | None) -> float:
    """User and system time that a process has used; 0 for none."""
    if pid is None:
        return 0.0
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def versions() -> Mapping[str, str]:
    """The kernel, and where this was measured."""
    return {"kernel": os.uname().release, "cpus": str(os.cpu_count()), "python": sys.version.split()[0]}


def _compiled_example(build: str) -> str | None:
    if not os.path.exists(LIBFUSE_EXAMPLE):
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    binary = os.path.join(build, "passthrough_ll")
    subprocess.run(["cc", "-O2", "-w", LIBFUSE_EXAMPLE, "-o", binary, *flags.stdout.split()], check=True)
    return binary


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""
