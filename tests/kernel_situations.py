"""Situations among the names that the kernel itself makes: /, /proc, /sys and their like, and control groups."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from predicted import mount
from situations import SITUATIONS, new_directory, situation
from twins import LIBC, check

if TYPE_CHECKING:
    from collections.abc import Iterator


@situation("root")
def root_directory(here: Path) -> Iterator[Path]:
    yield Path("/")


@situation("cannot be removed", "no new name")
def file_of_proc(here: Path) -> Iterator[Path]:
    yield Path("/proc/sys/kernel/hostname")


@situation("cannot be removed")
def directory_of_proc(here: Path) -> Iterator[Path]:
    yield Path("/proc/sys/kernel")


@situation("cannot be removed")
def file_of_sysfs(here: Path) -> Iterator[Path]:
    yield Path("/sys/kernel/uevent_seqnum")


@situation("cannot be removed")
def directory_of_sysfs(here: Path) -> Iterator[Path]:
    yield Path("/sys/kernel/mm")


@situation("mountpoint")
def mountpoint_in_sysfs(here: Path) -> Iterator[Path]:
    mount("none", "/sys/kernel/mm", "tmpfs")
    yield Path("/sys/kernel/mm")


@situation("mountpoint", "cannot be removed")
def mountpoint_in_proc(here: Path) -> Iterator[Path]:
    mount("none", "/proc/sys/kernel", "tmpfs")
    yield Path("/proc/sys/kernel")


def _special(kind: str, name: str) -> None:
    @situation("cannot be removed")
    def make(here: Path) -> Iterator[Path]:
        mount("none", new_directory(here / "there"), kind)
        yield here / "there" / name

    SITUATIONS[f"in_{kind}"] = SITUATIONS.pop("make")


for _kind, _name in (
    ("debugfs", "sleep_time"),
    ("tracefs", "README"),
    ("securityfs", "lsm"),
    ("binfmt_misc", "status"),
    ("devpts", "ptmx"),
):
    _special(_kind, _name)


@contextmanager
def control_group(version: int) -> Iterator[Path]:
    """A new one, gone in the end with what is in it."""
    kind, hierarchy = ("cgroup2", "") if version == 2 else ("cgroup", "none,name=exclfs-tests")
    with tempfile.TemporaryDirectory(prefix="exclfs-cgroup-") as name:
        mount("none", name, kind, options=hierarchy)
        group = new_directory(Path(name) / f"exclfs-{os.getpid()}")
        try:
            yield group
        finally:
            for path in (group / "child", group, group.with_name(f"{group.name}-renamed")):
                with suppress(FileNotFoundError):
                    path.rmdir()
            check(LIBC.umount2(os.fsencode(name), 2))


@contextmanager
def sleeper_in(group: Path) -> Iterator[int]:
    """A process that is in it."""
    with subprocess.Popen(["sleep", "infinity"]) as sleeper:
        try:
            (group / "cgroup.procs").write_text(str(sleeper.pid))
            yield sleeper.pid
        finally:
            sleeper.kill()
            sleeper.wait()


@situation("cannot be removed")
def control_group_that_is_empty(here: Path) -> Iterator[Path]:
    with control_group(2) as group:
        yield group


@situation("cgroup", "cannot be removed")
def control_group_with_a_process(here: Path) -> Iterator[Path]:
    with control_group(2) as group, sleeper_in(group):
        yield group


@situation("cgroup", "cannot be removed")
def control_group_with_a_child(here: Path) -> Iterator[Path]:
    with control_group(2) as group:
        new_directory(group / "child")
        yield group


@situation("cannot be removed")
def file_of_a_control_group(here: Path) -> Iterator[Path]:
    with control_group(2) as group:
        yield group / "cgroup.procs"


@situation()
def control_group_of_version_1_that_is_empty(here: Path) -> Iterator[Path]:
    with control_group(1) as group:
        yield group


@situation("cgroup")
def control_group_of_version_1_with_a_process(here: Path) -> Iterator[Path]:
    with control_group(1) as group, sleeper_in(group):
        yield group


@situation("cannot be removed")
def file_of_a_control_group_of_version_1(here: Path) -> Iterator[Path]:
    with control_group(1) as group:
        yield group / "tasks"
