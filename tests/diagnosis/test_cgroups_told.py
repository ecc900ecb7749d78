"""What is said of control groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from exclfs.diagnosis.asking import why
from kernel_situations import control_group, sleeper_in
from predicted import CLONE_NEWNS, MS_PRIVATE, MS_REC, in_a_child, mount
from twins import LIBC, check

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def told_of(path: Path) -> list[list[Any]]:
    causes = why(path).causes
    return [
        [cause.kind, cause.text, cause.blocks, cause.errno, [process.pid for process in cause.processes]]
        for cause in causes
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_who_is_in_it_and_how_to_get_it_out(version: int) -> None:
    def look() -> dict[str, Any]:
        check(LIBC.unshare(CLONE_NEWNS))
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        with control_group(version) as group:
            with sleeper_in(group) as pid:
                with_process = told_of(group)
            (group / "child").mkdir()
            with_child = told_of(group)
            return {"group": str(group), "pid": pid, "with_process": with_process, "with_child": with_child}

    told = in_a_child(look)
    kind, text, blocks, error, pids = told["with_process"][0 if version == 1 else 1]
    assert (kind, blocks, error, pids) == ("cgroup", ["rmdir"], "EBUSY", [told["pid"]])
    assert f"has 1 process: pid {told['pid']} (sleep)." in text
    assert f"`echo PID > {told['group'].rpartition('/')[0]}/cgroup.procs` moves one." in text
    kind, text, blocks, error, _ = told["with_child"][0 if version == 1 else 1]
    assert (kind, blocks, error) == ("cgroup", ["rmdir"], "EBUSY")
    assert f'has 1 group in it: "child". Remove what is in it first: `rmdir {told["group"]}/child`.' in text
    renames = [cause for cause in told["with_process"] if "rename" in cause[2]]
    assert [cause[0] for cause in renames] == ([] if version == 1 else ["cannot be removed"])
