from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from exclfs.host import covered
from twins import ALICE, as_user

pytestmark = pytest.mark.root


def opened_inode(directory: int, name: str) -> int:
    descriptor = covered.opened(directory, name)
    try:
        return os.stat(descriptor).st_ino
    finally:
        os.close(descriptor)


def test_what_is_under_a_mount_is_seen_and_stays_mounted(tmp_path: Path) -> None:
    for name in ("under", "over", "other"):
        (tmp_path / name).mkdir()
    inodes = {name: (tmp_path / name).stat().st_ino for name in ("under", "over", "other")}
    subprocess.run(["mount", "--bind", tmp_path / "over", tmp_path / "under"], check=True)
    above = os.open(tmp_path, os.O_PATH)
    try:
        before = Path("/proc/self/mountinfo").read_text()
        assert (tmp_path / "under").stat().st_ino == inodes["over"]
        assert opened_inode(above, "under") == inodes["under"]
        assert opened_inode(above, "other") == inodes["other"]
        assert Path("/proc/self/mountinfo").read_text() == before
        with pytest.raises(FileNotFoundError):
            covered.opened(above, "none")
        with pytest.raises(PermissionError) as caught:
            as_user(ALICE, lambda: covered.opened(above, "under"))
        assert caught.value.errno == errno.EPERM
    finally:
        os.close(above)
        subprocess.run(["umount", tmp_path / "under"], check=True)
