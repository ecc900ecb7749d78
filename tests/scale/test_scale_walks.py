"""A tree of a million files is walked, looked at and opened by a server with 1,024 descriptors, and then forgotten."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from big import (
    FULL,
    MOST_OPEN,
    descriptors,
    eventually,
    files_below,
    filesystem,
    forgotten,
    found,
    let_forget,
    make_forest,
    memory,
    served,
    size,
    status,
)

from harness import SANITIZED
from twins import as_user
from user_mounts import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

FILES = size(20_000, 1_000_000)
OF_USER = size(3_000, 1_000_000)
LEVELS = size(1_500, 10_000)
KINDS = {
    "ext4": ("ext4", {}),
    "tmpfs": ("tmpfs", {}),
    "nopassthrough": ("tmpfs", {"passthrough": False}),
    "no handles": ("ramfs", {"passthrough": False}),
}
SHORT = ("ext4", "no handles")


@pytest.fixture(params=[kind for kind in KINDS if FULL or kind in SHORT])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Mounted, int]]:
    """A mount of a forest, and how many inodes that has."""
    kind, options = KINDS[request.param]
    with filesystem(tmp_path / "filesystem", kind, FILES) as mounted:
        tree = mounted / "tree"
        tree.mkdir()
        inodes = make_forest(tree, FILES)
        with served(tmp_path, tree, **options) as server:
            yield server, inodes


def opened(mounted: Mounted) -> int:
    """Opens every file once; some of them stay open for a while. How many there were."""
    number = 0
    with ExitStack() as stack:
        for path in files_below(mounted.path):
            fd = os.open(path, os.O_RDONLY)
            if number % (FILES // 100) == 0:
                stack.callback(os.close, fd)
            else:
                os.close(fd)
            number += 1
        return number


def test_everything_is_found_looked_at_opened_and_forgotten(
    place: tuple[Mounted, int], figure: Callable[[str], None]
) -> None:
    mounted, inodes = place
    figure("made and mounted")
    idle, before = descriptors(mounted), memory(mounted)
    assert found(mounted.path) == found(mounted.backing)
    most = memory(mounted)
    figure(f"find: {(most - before) / inodes:.0f} bytes for each inode")
    assert status(mounted).inodes == inodes + 1
    assert status(mounted).descriptors <= status(mounted).descriptor_budget + 1
    assert opened(mounted) == FILES
    assert descriptors(mounted) <= MOST_OPEN
    figure("open and close")
    forgotten(mounted)
    after = memory(mounted)
    figure(f"forgotten: {before >> 20}, {most >> 20}, {after >> 20} MiB before, at most, after")
    eventually(lambda: descriptors(mounted) <= idle + 4, "it keeps descriptors of what was forgotten")
    if FULL:
        assert after - before < (most - before) / 4 + (8 << 20)
    again(mounted, most)
    figure("twice more")


def again(mounted: Mounted, most: int) -> None:
    """Nothing has stayed: to do the same again takes no more."""
    for _ in range(2):
        subprocess.run(["find", mounted.path, "-printf", ""], check=True)
        assert SANITIZED or memory(mounted) < most + (8 << 20)  # a sanitizer keeps what was freed
        forgotten(mounted)


def test_a_users_server_has_no_more(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Root cannot look into it, and the server opens nothing by handle."""
    with filesystem(tmp_path / "filesystem", "tmpfs", FILES) as place:
        (place / "tree").mkdir()
        make_forest(place / "tree", OF_USER)
        with served(tmp_path, place / "tree", by_user=True) as mounted:
            figure("made and mounted")
            idle = descriptors(mounted)
            assert as_user(NOBODY, lambda: found(mounted.path)) == found(mounted.backing)
            figure("find")
            assert idle < descriptors(mounted) <= MOST_OPEN
            assert as_user(NOBODY, lambda: opened(mounted)) == OF_USER
            figure("open and close")
            assert descriptors(mounted) <= MOST_OPEN
            let_forget(mounted)
            eventually(lambda: descriptors(mounted) <= idle, "it keeps descriptors of what was forgotten")


@pytest.fixture(params=["tmpfs", "ramfs"] if FULL else ["ramfs"])
def deep(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    with filesystem(tmp_path / "filesystem", request.param, LEVELS) as mounted:
        (mounted / "tree").mkdir()
        with served(tmp_path, mounted / "tree", entry_timeout=0.0, attr_timeout=0.0) as server:
            yield server


def test_far_beyond_the_longest_path(deep: Mounted, figure: Callable[[str], None]) -> None:
    """Down by chdir(2) and up again, with nothing believed: what was closed meanwhile is opened again by its place."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(deep.path)
        for level in range(LEVELS):
            os.mkdir("level")
            os.chdir("level")
            if level % 500 == 0:
                os.close(os.open(f"file{level}", os.O_CREAT))
        figure("made")
        assert status(deep).inodes >= LEVELS
        with open("last", "w") as file:
            file.write("there")
        os.rename("last", "moved")
        with open("moved") as file:
            assert file.read() == "there"
        assert os.listdir(".") == ["moved"]
        for level in reversed(range(LEVELS)):
            assert os.path.exists(f"file{level}") == (level % 500 == 0)
            os.chdir("..")
        figure("up")
        assert os.path.samefile(".", deep.path)
    finally:
        os.fchdir(here)
        os.close(here)
    let_forget(deep)
    lines = [found(top, r"%y %d %f\0") for top in (deep.path, deep.backing)]
    assert [line for line in lines[0] if not line.endswith(b" mnt")] == [
        line for line in lines[1] if not line.endswith(b" tree")
    ]
    figure("find")
    assert descriptors(deep) <= MOST_OPEN
    subprocess.run(["rm", "-r", deep.path / "level"], check=True)
    figure("rm")
    assert os.listdir(deep.backing) == []
    forgotten(deep)
