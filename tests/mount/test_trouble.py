"""Trouble in the policy: a fault is the error of one request, and a verdict that does not come is a refusal."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import Mounted, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root]

TROUBLED = """
import os, sys, time
from exclfs import mount
from exclfs.fuse.operations import Policy

decide = Policy._decide

def troubled(self, removals, ctx):
    for _, _, path in removals:
        if path.endswith(b"fault"):
            raise ZeroDivisionError("injected\\nlevel=info event=forged")
        while path.endswith(b"hang") and os.path.exists(os.environ["HANG"]):
            time.sleep(0.01)
    decide(self, removals, ctx)

Policy._decide = troubled
sys.exit(mount.main())
"""


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[tuple[Mounted, Path]]:
    """A mount whose policy fails at what is named fault, and at what is named hang hangs while a file is there."""
    script, hang = tmp_path / "troubled.py", tmp_path / "hang"
    script.write_text(TROUBLED)
    with start(tmp_path, program=[str(script)], environment={"HANG": str(hang)}, decision_timeout=0.3) as mounted:
        for name in ("fault", "hang"):
            os.setxattr(mounted.setup(name), "system.exclfs.hold", b"test")
        yield mounted, hang
        hang.unlink(missing_ok=True)


def test_a_fault_of_a_handler_is_an_error_of_one_request_and_logged(troubled: tuple[Mounted, Path]) -> None:
    mounted, _ = troubled
    mounted.expect("refused", '"a')
    for remove in (os.rmdir, lambda path: path.rename(mounted.path / "moved")):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            remove(mounted.path / "fault")
        assert (mounted.backing / "fault").is_dir()
        with exclfs.hold(mounted.setup("held")), pytest.raises(OSError, match="busy"):
            (mounted.path / "held").rmdir()
        (mounted.path / "held").rmdir()
    mounted.unmount()
    mounted.process.wait(30)
    faults = [line for line in mounted.log().splitlines() if 'event="a handler failed"' in line]
    assert len(faults) == 2
    assert all("ZeroDivisionError" in line and "level=error" in line for line in faults)
    assert all(line.startswith("at=") for line in mounted.log().splitlines())


def test_a_policy_that_hangs_refuses_and_all_else_goes_on(troubled: tuple[Mounted, Path]) -> None:
    mounted, hang = troubled
    mounted.expect("refused")
    (mounted.backing / "file").write_text("before")
    hang.touch()
    for _ in range(2):  # the second finds it hanging
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            (mounted.path / "hang").rmdir()
    assert (mounted.backing / "hang").is_dir()
    # No verdict is needed for any of this, and there is nobody to give one.
    assert (mounted.path / "file").read_text() == "before"
    (mounted.path / "file").write_text("after")
    (mounted.path / "new").mkdir()
    assert sorted(os.listdir(mounted.path)) == ["fault", "file", "hang", "new"]
    hang.unlink()
    with exclfs.connect(mounted.path) as client:
        assert client.status().verdicts_timed_out == 2
    with pytest.raises(OSError, match="busy"):
        (mounted.path / "hang").rmdir()
    os.removexattr(mounted.path / "hang", "system.exclfs.hold")
    (mounted.path / "hang").rmdir()


def test_while_the_policy_hangs_the_mount_can_be_taken_away(troubled: tuple[Mounted, Path]) -> None:
    mounted, hang = troubled
    mounted.expect("refused")
    hang.touch()
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        (mounted.path / "hang").rmdir()
    mounted.unmount()
    assert os.listdir(mounted.root) == []
    hang.unlink()
    assert mounted.process.wait(30) == 0
