"""copy_file_range(2) through the mount shares blocks where the backing filesystem can share them."""

from __future__ import annotations

import array
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import filesystems
import needs
from harness import start
from twins import ALICE, Twins

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root]

FIEMAP, SYNC, SHARED_EXTENT = 0xC020660B, 1, 0x2000
SIZE = 4 << 20


@pytest.fixture(params=["xfs", "btrfs", "ext4"])
def on(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Twins]:
    kind = request.param
    if filesystems.kernel_lacks(kind):
        pytest.skip(f"the kernel has no {kind}")
    if why := filesystems.obstacle(kind):
        needs.unmet(why)
    with filesystems.filesystem(kind, mebibytes=512) as place:
        for name in ("tree", "shadow"):
            (place / name).mkdir()
            (place / name).chmod(0o777)
        with start(tmp_path, source=place / "tree") as mounted:
            yield Twins(mounted.path, mounted.backing, place / "shadow")


def shared(path: Path) -> bool:
    """Whether its first blocks are another file's, too (FS_IOC_FIEMAP)."""
    asked = array.array("B", struct.pack("=QQLLLL", 0, SIZE, SYNC, 0, 1, 0) + bytes(56))
    with open(path, "rb") as file:
        fcntl.ioctl(file.fileno(), FIEMAP, asked)
    flags: int = struct.unpack_from("=L", asked, 32 + 40)[0]
    return bool(flags & SHARED_EXTENT)


def copy() -> int:
    Path("source").write_bytes(os.urandom(SIZE))
    with open("source", "rb") as source, open("copy", "wb") as target:
        os.fsync(source.fileno())
        done = os.copy_file_range(source.fileno(), target.fileno(), SIZE)
        os.fsync(target.fileno())
    return done


def test_a_copy_shares_its_blocks_where_they_can_be_shared(on: Twins) -> None:
    assert on.succeed(copy, ALICE) == SIZE
    assert (on.mount / "copy").read_bytes() == (on.behind / "source").read_bytes()
    assert shared(on.behind / "copy") == shared(on.shadow / "copy")
    if "ext4" not in os.fsdecode(on.behind):
        assert shared(on.behind / "copy")
