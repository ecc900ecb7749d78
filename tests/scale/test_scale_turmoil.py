"""Many processes at once in a tree that is moved about, with holds below: nothing is lost, nothing stays behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from big import (
    FULL,
    MOST_OPEN,
    PATIENCE,
    descriptors,
    eventually,
    filesystem,
    forgotten,
    let_forget,
    memory,
    served,
    size,
    status,
)
from turmoil import HOUSES, STABLE

import exclfs
from exclfs import Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

BELOW = size(100, 5_000)
"""Stable files in each of the four rooms of each house."""
ROUNDS = size(4, 60)
ACTORS = ("walk", "move", "move", "build", "build", "hold", "hold", "stay")
EXPECTED = {"ENOENT", "EBUSY", "ENOTEMPTY", "EEXIST"}
KINDS = {"tmpfs": ("tmpfs", {}), "no handles": ("ramfs", {"passthrough": False}), "ext4": ("ext4", {})}


CASES = [
    (kind, behind)
    for kind in KINDS
    for behind in ("", "behind too")
    if FULL or (kind, behind) in {("tmpfs", ""), ("no handles", "behind too")}
]


@pytest.fixture
def town(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    kind, options = KINDS[request.param]
    with filesystem(tmp_path / "filesystem", kind, HOUSES * 5 * BELOW) as place:
        tree = place / "tree"
        for side in "NESW":
            (tree / side).mkdir(parents=True)
        for house in range(HOUSES):
            for room in range(4):
                where = tree / f"{'NESW'[house % 4]}/house{house}/room{room}"
                where.mkdir(parents=True)
                for number in range(BELOW):
                    (where / f"{STABLE}{number}").touch()
        for name in ("below/kept/a", "pinned/a/b"):
            (tree / name).mkdir(parents=True)
            (tree / name / "file").touch()
        with served(tmp_path, tree, entry_timeout=0.2, attr_timeout=0.2, **options) as mounted:
            mounted.expect("refused")
            yield mounted


def stable(top: Path) -> Counter[tuple[int, str, str]]:
    """The stable files and the rooms that they are in, wherever the house is."""
    return Counter(
        (os.lstat(f"{directory}/{name}").st_ino, os.path.basename(directory), name)
        for directory, _, names in os.walk(top)
        for name in names
        if name.startswith(STABLE)
    )


def run_all(mounted: Mounted, *, behind: bool) -> list[dict[str, object]]:
    """Every actor through the mount; with `behind`, one more that moves the houses behind it."""
    program = Path(__file__).with_name("turmoil.py")
    places = [(actor, mounted.path) for actor in ACTORS] + [("move", mounted.backing)] * behind
    running = [
        subprocess.Popen(
            [sys.executable, program, actor, str(seed), str(ROUNDS), place, str(int(behind))],
            stdout=subprocess.PIPE,
            cwd=mounted.root.parent,
        )
        for seed, (actor, place) in enumerate(places)
    ]
    return [json.loads(process.communicate(timeout=PATIENCE * 10)[0]) for process in running]


@pytest.mark.parametrize(("town", "behind"), CASES, indirect=["town"])
def test_many_at_once(town: Mounted, behind: str, figure: Callable[[str], None]) -> None:
    figure("made and mounted")
    before, idle = stable(town.backing), descriptors(town)
    memory_before = memory(town)
    with exclfs.connect(town.path) as client:
        client.hold(town.path / "below", flags=Flags.NO_REMOVE_BELOW)
        client.hold(town.path / "pinned/a/b/file", flags=Flags.PIN_PATH)
        reports = run_all(town, behind=bool(behind))
        figure("all done")
        for path in (town.path / "below/kept/a/file", town.path / "pinned/a/b/file"):
            with pytest.raises(OSError, match="busy"):
                path.unlink()
        with pytest.raises(OSError, match="busy"):
            (town.path / "pinned").rename(town.path / "moved")
        with pytest.raises(OSError, match="busy"):
            (town.path / "below/kept/a").rename(town.path / "moved")
    assert [wrong for report in reports for wrong in report["wrong"]] == []  # type: ignore[attr-defined]
    errors = {name for report in reports for name in report["errors"]}  # type: ignore[attr-defined]
    assert errors <= EXPECTED | ({"ELOOP", "ESTALE"} if behind else set())
    assert stable(town.backing) == before
    let_forget(town)
    assert stable(town.path) == before
    assert descriptors(town) <= MOST_OPEN
    eventually(lambda: status(town).holds == 0, "holds outlive their connection")
    forgotten(town)
    eventually(lambda: descriptors(town) <= idle + 4, "it keeps descriptors of what was forgotten")
    figure(f"forgotten; {memory_before >> 20} and {memory(town) >> 20} MiB before and after")


def test_directories_that_went_into_each_other_behind_the_mount(tmp_path: Path) -> None:
    """Each was seen in the other. The kernel answers ELOOP, and neither keeps the other known."""
    with served(tmp_path, tmp_path / "tree", entry_timeout=60.0) as mounted:
        here = os.open(".", os.O_RDONLY)
        try:
            for number in range(3):
                (mounted.path / f"outer{number}/inner").mkdir(parents=True)
                os.chdir(mounted.path / f"outer{number}/inner")
                (mounted.backing / f"outer{number}/inner").rename(mounted.backing / f"inner{number}")
                (mounted.backing / f"outer{number}").rename(mounted.backing / f"inner{number}/outer")
                with pytest.raises(OSError, match="Too many levels"):
                    os.stat("outer")
        finally:
            os.fchdir(here)
            os.close(here)
        forgotten(mounted)
        assert sorted(path.name for path in mounted.path.rglob("*")) == sorted(
            path.name for path in mounted.backing.rglob("*")
        )
