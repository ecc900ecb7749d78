from __future__ import annotations

import os
from pathlib import Path

import pytest

from exclfs.host import cgroups
from exclfs.host.cgroups import Cgroup
from kernel_situations import control_group, sleeper_in
from predicted import CLONE_NEWNS, MS_PRIVATE, MS_REC, in_a_child, mount
from twins import LIBC, check

pytestmark = pytest.mark.root


def read(group: Path) -> Cgroup:
    descriptor = os.open(group, os.O_PATH)
    try:
        return cgroups.opened(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("version", [1, 2])
def test_processes_and_groups_are_told(version: int) -> None:
    def look() -> dict[str, object]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        with control_group(version) as group:
            empty = read(group)
            (group / "child").mkdir()
            with sleeper_in(group) as pid:
                full = read(group)
            return {"empty": [empty.pids, empty.children], "full": [full.pids, full.children], "pid": pid}

    told = in_a_child(look)
    assert told["empty"] == [[], []]
    assert told["full"] == [[told["pid"]], ["child"]]


def test_a_threaded_group_tells_its_threads(tmp_path: Path) -> None:
    """Which has no processes of its own: reading them is EOPNOTSUPP."""

    def look() -> dict[str, object]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        with control_group(2) as group:
            (group / "child").mkdir()
            (group / "child" / "cgroup.type").write_text("threaded")
            with sleeper_in(group / "child") as pid:
                told = read(group / "child")
            return {"pids": told.pids, "pid": pid}

    told = in_a_child(look)
    assert told["pids"] == [told["pid"]]
