"""The timeline of a mount has what its gates, its programs and its server know."""

from __future__ import annotations

import errno
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from exclfs.testing import Mount

pytestmark = [pytest.mark.mount, pytest.mark.program]


def drawn(mount: Mount) -> list[str]:
    """The cells of the diagram, without times and the numbers of processes."""
    cells = [cell.strip() for line in mount.timeline(width=240).splitlines() for cell in line.split("│")[1:]]
    return [re.sub(r" \d+$", "", re.sub("─+", "─", cell)) for cell in cells if cell.strip("─┼ ")]


def test_both_kinds_of_gates_and_the_server_tell_one_story(exclfs_mount: Mount) -> None:
    for name in ("a", "b", "c"):
        (exclfs_mount.backing / name).write_text("")
    stopped = exclfs_mount.program(["rm", exclfs_mount.path / "a"])
    with exclfs_mount.gate("unlink", "a", by=stopped) as gate:
        stopped.start()
        gate.wait()
        with exclfs_mount.hold("a", holder="test"):
            gate.open()
            assert stopped.wait() == 1
    with exclfs_mount.gate("unlink", "[bc]", when="after") as gate:
        other = subprocess.Popen(["rm", "-f", exclfs_mount.path / "b", exclfs_mount.path / "c"])
        gate.wait()
        gate.open_one()
        gate.wait()
        gate.answer(errno.EIO)
        assert other.wait() == 1
    assert drawn(exclfs_mount)[3:] == [
        "· getattr of a",
        "■ before unlink of a",
        "● hold of a: EXCL_INUSE, NO_REMOVE (test)",
        "▶ unlink of a",
        "✗ unlink of a: EBUSY",
        "─ held by test ─▶",
        "○ hold of a released (test)",
        "■ after unlink of b",
        "▶ told of unlink of b",
        "■ after unlink of c",
        "✗ unlink of c: EIO, by the gate after unlink of '[bc]'",
    ]


def test_it_outlives_the_server(exclfs_mount: Mount) -> None:
    (exclfs_mount.backing / "a").write_text("")
    assert exclfs_mount.timeline() == ""
    exclfs_mount.run(["rm", exclfs_mount.path / "a"]).wait()
    exclfs_mount.close()
    assert "unlink of a" in exclfs_mount.timeline()
