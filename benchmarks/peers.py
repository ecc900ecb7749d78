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
from document import VARIANTS
from sources import CACHE, Unreachable, source_package

from exclfs.host import idle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGES: Final = {"bindfs": "bindfs", "mergerfs": "mergerfs", "g++": "g++", "rsync": "rsync", "git": "git"}
"""What `make bench` installs where it is missing: command and Debian package."""
HEADERS: Final = {"/usr/include/cxxopts.hpp": "libcxxopts-dev"}
PASSTHROUGH_LL: Final = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"
# The example is older than the cxxopts of its own Debian release; HAVE_* is what its configuration finds on Linux.
HP_FLAGS: Final = (
    *("-std=c++17", "-include", "iostream", "-Doption_not_exists_exception=exceptions::no_such_option"),
    *("-DHAVE_SETXATTR", "-DHAVE_POSIX_FALLOCATE", "-DHAVE_UTIMENSAT"),
)
EXCLFS_COMMAND: Final = (sys.executable, "-m", "exclfs.cli", "mount", "{src}", "{mnt}", "-o")


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
            else:
                subprocess.run(["umount", "--lazy", mountpoint], check=True)


def exclfs(name: str = "exclfs", options: str = "log=/dev/null") -> Peer:
    """exclfs itself, from this environment."""
    return Peer(name, (*EXCLFS_COMMAND, options))


def install() -> None:
    """Installs, with apt-get, what exclfs is compared with; without root or apt, what is missing is left out."""
    missing = [package for command, package in PACKAGES.items() if shutil.which(command) is None]
    missing += [package for header, package in HEADERS.items() if not os.path.exists(header)]
    if not missing or shutil.which("apt-get") is None:
        return
    print(f"bench: installing {' '.join(missing)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], check=False)
    command = ["apt-get", "-qq", "-y", "--no-install-recommends", "install", *missing]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)


def available() -> list[Peer]:
    """exclfs and every peer that is here; libfuse's examples are compiled on the spot."""
    peers = [exclfs(), *(exclfs(name, f"log=/dev/null,{option}") for option, name in VARIANTS.items())]
    if shutil.which("bindfs"):
        peers.append(Peer("bindfs", ("bindfs", "{src}", "{mnt}")))
    if shutil.which("mergerfs"):
        peers.append(Peer("mergerfs", ("mergerfs", "-o", "minfreespace=0", "{src}", "{mnt}")))
    if low_level := _compiled("passthrough_ll", PASSTHROUGH_LL, "cc"):
        options = "source={src},cache=auto,xattr,allow_other,default_permissions"
        peers.append(Peer("passthrough_ll", (low_level, "-o", options, "{mnt}")))
    if high_performance := _compiled("passthrough_hp", _unpacked("passthrough_hp.cc"), "g++", *HP_FLAGS):
        peers.append(Peer("passthrough_hp", (high_performance, "{src}", "{mnt}")))
    return peers


def cpu_seconds(pid: int | None) -> float:
    """User and system time that a process has used, its ended threads included; 0 for none."""
    if pid is None:
        return 0.0
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3) of another process


def quiet(pids: Sequence[int | None], seconds: float = 2.0) -> None:
    """Waits until these servers have done what they were still doing, for so long at most."""
    deadline = time.monotonic() + seconds
    before = [cpu_seconds(pid) for pid in pids]
    while time.monotonic() < deadline:
        time.sleep(0.01)
        now = [cpu_seconds(pid) for pid in pids]
        if all(later - earlier < 0.001 for earlier, later in zip(before, now, strict=True)):
            return
        before = now


def machine() -> dict[str, str]:
    """Where this was measured: kernel, processors, versions."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    with open("/proc/meminfo") as file:
        kibibytes = int(file.readline().split()[1])
    return {
        "kernel": os.uname().release,
        "processors": f"{os.cpu_count()} × {models[0] if models else os.uname().machine}",
        "idle driver": idle.driver() or "none",
        "memory": f"{kibibytes / (1 << 20):.0f} GiB",
        "Python": sys.version.split()[0],
        "bindfs": _version("bindfs", "--version"),
        "mergerfs": _version("mergerfs", "--version"),
        "libfuse": _version("pkg-config", "--modversion", "fuse3"),
        "exclfs": _version("git", "-C", os.path.dirname(CACHE), "describe", "--always", "--dirty"),
    }


def _version(*command: str) -> str:
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return "none"
    return told.splitlines()[0].split()[-1] if told.strip() else "unknown"


def _unpacked(name: str) -> str | None:
    """A file of libfuse's examples, next to what it includes."""
    try:
        tarball = source_package("fuse3")
    except Unreachable as reason:
        print(f"bench: without passthrough_hp: {reason}", file=sys.stderr)
        return None
    directory = os.path.join(CACHE, "examples")
    os.makedirs(directory, exist_ok=True)
    wanted = ("--wildcards", "--strip-components=2", f"*/example/{name}", "*/example/passthrough_helpers.h")
    subprocess.run(["tar", "-xf", tarball, "-C", directory, *wanted], check=True)
    return os.path.join(directory, name)


def _compiled(name: str, source: str | None, compiler: str, *more: str) -> str | None:
    if source is None or not os.path.exists(source):
        return None
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    os.makedirs(CACHE, exist_ok=True)
    binary = os.path.join(CACHE, name)
    if not os.path.exists(binary):
        command = [compiler, "-O2", "-w", *more, source, "-o", binary, *flags.stdout.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"bench: without {name}: {done.stderr.splitlines()[:1]}", file=sys.stderr)
            return None
    return binary


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""
