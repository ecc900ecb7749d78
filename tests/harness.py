"""A real mount, served by its own process, so that plain blocking code in a test cannot deadlock.

Environment, for the runs of `make`:
    EXCLFS_TEST_OPTIONS     options that every mount gets, as JSON ({"ask_always": true})
    EXCLFS_TEST_PYTHONPATH  where the server finds exclfs (a build with sanitizers)
    EXCLFS_TEST_PRELOAD     LD_PRELOAD of the server (a sanitizer's runtime)
    EXCLFS_TEST_CFLAGS      what every build of the mirror gets besides (-fsanitize=…)
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from exclfs import options as mount_options
from exclfs.host import mounts
from exclfs.testing import forks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import IO

    from exclfs.testing.forks import Fork

WARNED = re.compile(r"level=(warning|error|critical) event=(\S+)")
SANITIZED = bool(os.environ.get("EXCLFS_TEST_PRELOAD"))
SERVER = ("-m", "exclfs.mount")


def mounts_now() -> set[bytes]:
    """Where exclfs is mounted, by anybody."""
    return {mount.mountpoint for mount in mounts.exclfs_mounts()}


def children() -> set[str]:
    """The processes that this one has begun and not waited for."""
    return {pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def default_options() -> dict[str, Any]:
    """What every mount of this run is started with."""
    return dict(json.loads(os.environ.get("EXCLFS_TEST_OPTIONS", "{}")))


def server_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a server: this one's, with what a run with sanitizers needs."""
    environment = {**os.environ, "EXCLFS_KEEP_STDERR": "1"}
    if path := os.environ.get("EXCLFS_TEST_PYTHONPATH"):
        environment["PYTHONPATH"] = path
    if preload := os.environ.get("EXCLFS_TEST_PRELOAD"):
        environment["LD_PRELOAD"] = preload
    return {**environment, **(extra or {})}


class Mounted:
    """A mount: `path` is where programs see it, `backing` the tree behind it."""

    def __init__(
        self,
        path: Path,
        backing: Path,
        log: Path,
        process: subprocess.Popen[bytes] | Fork,
        narrow: str = "",
        stderr: Path | None = None,
    ) -> None:
        self.root = path
        self.path = path / narrow
        self.backing = backing / narrow
        self.process = process
        self.log_file = log
        self.stderr_file = stderr
        self.expected: set[str] = set()
        """Events at warning level that the tests ask for: refused, unlock_bad, …"""

    def log(self) -> str:
        """The server's log so far."""
        return self.log_file.read_text()

    def log_lines(self, event: str) -> list[str]:
        """The lines of one kind of event."""
        return [line for line in self.log().splitlines() if f" event={event} " in line]

    def expect(self, *events: str) -> None:
        """Allows these events, which are warnings, in the log."""
        self.expected.update(events)

    def setup(self, name: str) -> Path:
        """A directory in the mount, made behind it."""
        (self.backing / name).mkdir(parents=True)
        return self.path / name

    @contextmanager
    def narrowed(self, name: str) -> Iterator[Mounted]:
        """The same mount, seen from a new directory of it."""
        name = re.sub(r"[^\w.-]", "_", name)[:100]
        (self.backing / name).mkdir()
        narrow = Mounted(self.path, self.backing, self.log_file, self.process, name)
        narrow.expected = self.expected
        yield narrow

    def unmount(self) -> None:
        """umount(8), or fusermount3 for an ordinary user."""
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, str(self.root)], check=True, capture_output=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Unmounts, and checks that the server ended as it should and had nothing to complain about."""
        try:
            if self.process.poll() is None and os.fsencode(self.root) in mounts_now():
                done = subprocess.run(["umount", str(self.root)], capture_output=True, check=False)
                if done.returncode != 0:
                    subprocess.run(["umount", "-l", str(self.root)], check=True)
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not end with its mount") from None
        said = self.stderr_file.read_text(errors="replace") if self.stderr_file else ""
        assert status == 0, f"the server ended with {status}: {said[-6000:]}"
        assert "Sanitizer" not in said, said[-6000:]
        warnings = [
            line for line in self.log().splitlines() if (found := WARNED.search(line)) and found[2] not in self.expected
        ]
        assert not warnings, "the server warned:\n" + "\n".join(warnings)


def start(
    directory: Path,
    *,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = SERVER,
    **options: Any,
) -> Mounted:
    """Mounts `directory`/tree at `directory`/mnt (or `source` at `mountpoint`), and returns when it serves.

    `program` is what Python runs: a test may put something around the server.
    """
    source = Path(options.pop("source", directory / "tree"))
    mountpoint = Path(options.pop("mountpoint", directory / "mnt"))
    log, stderr = directory / "log", directory / "stderr"
    for path in (source, mountpoint):
        path.mkdir(exist_ok=True)
    wanted = attrs.evolve(
        mount_options.parse(str(source), str(mountpoint), superuser=os.geteuid() == 0),
        **{"log": str(log), **default_options(), **options},
    )
    document = json.dumps(attrs.asdict(mount_options.check(wanted)))
    reading, writing = os.pipe()
    with open(stderr, "wb") as complaints, open(reading, "rb") as answers:
        process = _begun(program, [document, "--ready-fd"], writing, complaints, server_environment(environment))
        os.close(writing)
        answer = answers.readline()
    if not answer or not json.loads(answer).get("ready"):
        process.wait()
        raise AssertionError(f"the mount failed: {answer!r} {stderr.read_text()[-4000:]}")
    return Mounted(mountpoint, source, log, process, stderr=stderr)


def _begun(
    program: Sequence[str], arguments: list[str], ready: int, complaints: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes] | Fork:
    """A server of the installed exclfs is forked, which saves each mount its imports; a sanitizer allows no fork."""
    if program == SERVER and not SANITIZED:
        server = forks.server_of("exclfs.mount", server_environment())
        if server.serves(environment):
            return server.fork(
                arguments, environment=environment, stdout=complaints, stderr=complaints, passed=ready, cwd=os.getcwd()
            )
    return subprocess.Popen(
        [sys.executable, "-P", *program, *arguments, str(ready)],
        stdin=subprocess.DEVNULL,
        stdout=complaints,
        stderr=complaints,
        pass_fds=[ready],
        env=environment,
    )


@functools.cache
def variant(*defines: str) -> Path:
    """As build_variant, once for all tests of a run that want the same; gone with the run."""
    directory = tempfile.TemporaryDirectory(prefix="exclfs-variant-")
    _variants.append(directory)
    return build_variant(Path(directory.name), *defines)


_variants: list[tempfile.TemporaryDirectory[str]] = []


def build_variant(directory: Path, *defines: str) -> Path:
    """A copy of exclfs whose mirror is compiled with these definitions; its parent, to be put on PYTHONPATH."""
    import sysconfig

    package = Path(mount_options.__file__).parent
    copy = directory / "exclfs"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sources = sorted(str(source) for source in (copy / "mirror").glob("*.c"))
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror"]
        + shlex.split(os.environ.get("EXCLFS_TEST_CFLAGS", ""))
        + [f"-D{define}" for define in defines]
        + [f"-I{sysconfig.get_path('include')}", *sources, "-o", str(copy / "mirror" / f"_mirror{suffix}")],
        check=True,
    )
    return directory
