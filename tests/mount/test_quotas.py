"""Quotas of the backing filesystem hold through the mount, whatever the server may do itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import needs
from filesystems import filesystem, kernel_lacks, obstacle
from harness import start
from twins import ALICE, ROOT, Twins, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]

MIB = 1 << 20


@pytest.fixture(params=[True, False], ids=["passthrough", "nopassthrough"])
def limited(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Two subvolumes of a btrfs, each of which may have 8 MiB: the quotas that every kernel with btrfs has."""
    if kernel_lacks("btrfs"):
        pytest.skip("the kernel has no btrfs")
    if why := obstacle("btrfs"):
        needs.unmet(why)
    needs.programs("btrfs")
    with filesystem("btrfs", mebibytes=512) as place:
        run("btrfs", "quota", "enable", place)
        for name in ("tree", "shadow"):
            run("btrfs", "subvolume", "create", place / name)
            run("btrfs", "qgroup", "limit", "8M", place / name)
            (place / name).chmod(0o777)
        with start(tmp_path, source=place / "tree", passthrough=request.param) as mounted:
            yield Twins(mounted.path, mounted.backing, place / "shadow")


def run(*command: Any) -> None:
    subprocess.run(command, check=True, capture_output=True)


def filled() -> None:
    """With 16 MiB, each of them on the disk before the next."""
    fd = os.open("full", os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        for number in range(16):
            os.pwrite(fd, os.urandom(MIB), number * MIB)
            os.fsync(fd)
    finally:
        os.close(fd)


def allocated() -> None:
    fd = os.open("allocated", os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        fallocate(fd, 0, 0, 16 * MIB)
    finally:
        os.close(fd)


def written_beyond() -> None:
    fd = os.open("full", os.O_RDWR)
    try:
        os.pwrite(fd, os.urandom(4 * MIB), 64 * MIB)
    finally:
        os.close(fd)


WAYS: dict[str, Callable[[], Any]] = {
    "allocate": allocated,
    "write": filled,
    "write more": written_beyond,
    "copy": lambda: Path("copy").write_bytes(os.urandom(4 * MIB)),
}


@pytest.mark.parametrize("user", [ALICE, ROOT], ids=lambda user: user.name)
def test_a_quota_is_met_through_the_mount(limited: Twins, user: Any) -> None:
    outcomes = {way: limited.both(work, user) for way, work in WAYS.items()}
    assert set(outcomes.values()) == {"EDQUOT"}
    (limited.mount / "full").unlink()
