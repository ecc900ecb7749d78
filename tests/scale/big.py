"""Large trees, and what a server has in use while they are gone through.

Each test here has two sizes: one for `make test`, and with EXCLFS_SCALE=full (`make scale`) the one that is promised.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import exclfs
from exclfs.wire.messages import Status
from harness import Mounted, start
from loops import loop_mount, make_image, run
from twins import LIBC, check
from user_mounts import BECOME_NOBODY, NOBODY, USERS_OPTIONS, device_for_everybody

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL: Final = os.environ.get("EXCLFS_SCALE") == "full"
MOST_OPEN: Final = 1024
"""RLIMIT_NOFILE of every server here."""
PATIENCE: Final = 1200.0 if FULL else 60.0
IN_ONE: Final = 1000
"""Files in one directory of a tree."""
SYS_GETDENTS64: Final = 217 if os.uname().machine == "x86_64" else 61
ONE_CALL: Final = 10_000
"""Objects in one call to the server."""

MS_REMOUNT: Final = 32

LIMITED: Final = f"""
import encodings.idna, os, resource, sys
from exclfs.mount import main
resource.setrlimit(resource.RLIMIT_NOFILE, ({MOST_OPEN}, {MOST_OPEN}))
"""
SERVE: Final = "sys.exit(main())"


def size(short: int, full: int) -> int:
    """How many, in this run."""
    return full if FULL else short


# --- where ------------------------------------------------------------------------------------------------------------


ROOM: Final[dict[str, Callable[[int], tuple[int, tuple[str, ...]]]]] = {
    "ext4": lambda files: (64 + files // 1500, ("-I", "256", "-N", str(files + 5000))),
    "xfs": lambda files: (400 + files // 500, ("-i", "maxpct=0")),
    "btrfs": lambda files: (256 + files // 500, ()),
}
"""How many MiB a filesystem needs for so many files, and how it is to be made."""


@contextmanager
def filesystem(place: Path, kind: str, files: int, *options: str) -> Iterator[Path]:
    """A filesystem of this kind that has room for so many files. A file on ramfs cannot be opened by handle."""
    if kind in {"tmpfs", "ramfs"}:
        place.mkdir()
        run("mount", "-t", kind, "-o", "nr_inodes=0" if kind == "tmpfs" else "rw", kind, place)
        try:
            yield place
        finally:
            run("umount", place)
        return
    mebibytes, room = ROOM[kind](files)
    image = place.with_suffix(".image")
    make_image(image, kind, *room, *options, mebibytes=mebibytes)
    try:
        with loop_mount(image, place) as mounted:
            yield mounted
    finally:
        image.unlink()


@contextmanager
def served(directory: Path, source: Path, *, by_user: bool = False, **options: Any) -> Iterator[Mounted]:
    """A mount whose server may have 1,024 descriptors; by an ordinary user it opens nothing by handle."""
    named: dict[str, Any] = {"source": source, "program": ("-c", LIMITED + SERVE), **options}
    if not by_user:
        with start(directory, **named) as mounted:
            yield mounted
        return
    where = Path(tempfile.mkdtemp(prefix="exclfs-test-"))  # into pytest's own directories only root may go
    try:
        where.chmod(0o755)
        for name in ("tree", "mnt", "run", "log"):
            (where / name).touch() if name == "log" else (where / name).mkdir()
        run("mount", "--bind", source, where / "tree")
        for name in ("tree", "mnt", "run", "log"):
            os.chown(where / name, NOBODY.uid, NOBODY.gid)
        named |= {
            "source": where / "tree",
            "program": ("-c", LIMITED + BECOME_NOBODY + SERVE),
            "environment": {"XDG_RUNTIME_DIR": str(where / "run")},
            **USERS_OPTIONS,
        }
        with device_for_everybody():
            mounted = start(where, **named)
        with mounted:
            yield mounted
    finally:
        if (where / "tree").is_mount():
            run("umount", where / "tree")
        shutil.rmtree(where)


# --- trees ------------------------------------------------------------------------------------------------------------


def make_forest(top: Path, files: int, links: float = 0.3) -> int:
    """So many names of files, a thousand to a directory, some of them second links. How many inodes there are."""
    real = files - int(files * links)
    directories = [f"{top}/{number // 32}/{number % 32}" for number in range((files + IN_ONE - 1) // IN_ONE)]
    for number, directory in enumerate(directories):
        os.makedirs(directory)
        for file in range(number * IN_ONE, min((number + 1) * IN_ONE, files)):
            name = f"{directory}/{file % IN_ONE}"
            if file < real:
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
            else:
                os.link(f"{directories[(file - real) // IN_ONE]}/{(file - real) % IN_ONE}", name)
    return real + len(directories) + len({os.path.dirname(directory) for directory in directories})


def make_crowd(directory: Path, entries: int) -> None:
    """Numbers as names in one directory: few inodes, each with as many links as every filesystem lets it have."""
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        fd = os.open(directory, os.O_RDONLY)
        stack.callback(os.close, fd)
        for number in range(entries):
            if number % 20_000 == 0:
                os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
                first = number
            else:
                os.link(f"{first}", f"{number}", src_dir_fd=fd, dst_dir_fd=fd)


def files_below(top: Path) -> Iterator[str]:
    """The path of every file."""
    for directory, _, files in os.walk(top):
        for name in files:
            yield f"{directory}/{name}"


def found(top: Path, what: str = r"%i %n %y %m %s %T@ %P\0") -> list[bytes]:
    """Everything below, as find(1) tells it, sorted."""
    done = subprocess.run(["find", top, "-printf", what], stdout=subprocess.PIPE, check=True)
    return sorted(done.stdout.split(b"\0"))


class Entry(NamedTuple):
    """struct linux_dirent64."""

    name: bytes
    type: int
    number: int
    offset: int


def entries_of(fd: int, buffer_size: int = 32 << 10) -> Iterator[Entry]:
    """getdents64(2) from where the descriptor is, with a buffer of this size."""
    buffer = ctypes.create_string_buffer(buffer_size)
    while size := check(LIBC.syscall(SYS_GETDENTS64, fd, buffer, buffer_size)):
        data, at = buffer.raw[:size], 0
        while at < size:
            number, offset, length, kind = struct.unpack_from("<QqHB", data, at)
            yield Entry(data[at + 19 : at + length].split(b"\0", 1)[0], kind, number, offset)
            at += length


# --- what the server has ----------------------------------------------------------------------------------------------


def status(mounted: Mounted) -> Status:
    """What `exclfs status` tells."""
    with exclfs.connect(mounted.path, timeout=PATIENCE) as client:
        return client.status()


def descriptors(mounted: Mounted) -> int:
    """How many the server has."""
    return len(os.listdir(f"/proc/{mounted.process.pid}/fd"))


def memory(mounted: Mounted) -> int:
    """Bytes of the server that are its own and in use (RssAnon)."""
    with open(f"/proc/{mounted.process.pid}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def let_forget(mounted: Mounted) -> None:
    """Has the kernel drop every name of this mount that nobody uses: a remount does, and leaves other mounts alone."""
    check(LIBC.mount(None, os.fsencode(mounted.root), None, ctypes.c_ulong(MS_REMOUNT), None))


def eventually(true: Callable[[], bool], what: str) -> None:
    """Waits until it is so: a FORGET has no answer that one could wait for."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def forgotten(mounted: Mounted, inodes: int = 1) -> None:
    """Waits until the server knows so few inodes, and has no descriptor of any other."""
    let_forget(mounted)
    eventually(lambda: status(mounted).inodes <= inodes, f"the server knows {status(mounted).inodes} inodes")
    assert status(mounted).descriptors <= inodes
