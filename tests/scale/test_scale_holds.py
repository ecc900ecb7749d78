"""A hundred thousand holds cost memory only, refuse what they should whatever was forgotten, and go as they came."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from big import (
    FULL,
    MOST_OPEN,
    ONE_CALL,
    PATIENCE,
    descriptors,
    eventually,
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

import exclfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

HOLDS = size(2_000, 100_000)
ASKED = size(100, 1_000)
"""How many of those that are held somebody tries to remove."""


@pytest.fixture(params=["tmpfs", "ramfs"] if FULL else ["ramfs"])
def forest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    """Twice as many files as are held; on ramfs none can be opened by handle."""
    with filesystem(tmp_path / "filesystem", request.param, 2 * HOLDS) as place:
        (place / "tree").mkdir()
        make_forest(place / "tree", 2 * HOLDS, links=0)
        with served(tmp_path, place / "tree") as mounted:
            mounted.expect("refused", "log_dropped")  # of so many events at once some are counted only
            yield mounted


def in_parts(paths: list[Path]) -> Iterator[list[Path]]:
    return (paths[at : at + ONE_CALL] for at in range(0, len(paths), ONE_CALL))


def refused(act: Callable[[], None]) -> bool:
    try:
        act()
    except OSError as error:
        return "busy" in str(error)
    return False


def test_they_cost_no_descriptor_refuse_and_go(forest: Mounted, figure: Callable[[str], None]) -> None:
    files = sorted(path for path in forest.backing.glob("*/*/*"))
    order = random.Random(3)
    order.shuffle(files)
    held = [forest.path / path.relative_to(forest.backing) for path in files[:HOLDS]]
    free = [forest.path / path.relative_to(forest.backing) for path in files[HOLDS:]]
    directories = len({path.parent for path in held} | {path.parent.parent for path in held})
    idle, before = descriptors(forest), memory(forest)
    figure("made and mounted")
    with exclfs.connect(forest.path, timeout=PATIENCE) as client:
        holds = [hold for part in in_parts(held) for hold in client.hold(part, holder="crowd")]
        figure(f"placed: {(memory(forest) - before) / HOLDS:.0f} bytes for each hold")
        assert len({hold.id for hold in holds}) == HOLDS

        forgotten(forest, HOLDS + directories + 1)
        assert status(forest).inodes == HOLDS + directories + 1
        found(forest.path)  # others take every descriptor that there is
        let_forget(forest)
        assert status(forest).descriptors <= status(forest).descriptor_budget + 1
        assert descriptors(forest) <= min(idle + status(forest).descriptors + 8, MOST_OPEN)
        figure("everything looked at and forgotten")

        tried = order.sample(held, ASKED)
        assert all(refused(path.unlink) for path in tried)
        assert all(refused(lambda path=path: path.rename(path.with_name("moved"))) for path in tried)  # type: ignore[misc]
        assert all(path.exists() for path in tried)
        for path in free[:ASKED]:
            path.unlink()
        figure(f"{2 * ASKED} refused, {ASKED} not")

        listed = client.holds()
        assert {str(hold.path) for hold in listed} == {str(path) for path in held}
        assert len(listed) == HOLDS == status(forest).holds
        figure(f"listed: {(memory(forest) - before) / HOLDS:.0f} bytes for each hold")

        half = holds[: HOLDS // 2]
        for at in range(0, len(half), ONE_CALL):
            client.end(half[at : at + ONE_CALL])
        figure("half of them released")
        for path in held[: HOLDS // 2 : HOLDS // ASKED]:
            path.unlink()
        assert all(refused(path.unlink) for path in held[HOLDS // 2 :: HOLDS // ASKED])
    eventually(lambda: status(forest).holds == 0, "holds outlive their connection")
    figure("the others ended with their connection")
    held[-1].unlink()
    forgotten(forest)
    after = memory(forest)
    figure(f"{before >> 20} and {after >> 20} MiB before and after")
    if FULL:
        again(forest, held[HOLDS // 2 : -1 - HOLDS // ASKED], after)


def again(forest: Mounted, paths: list[Path], before: int) -> None:
    """Nothing has stayed: the next need no more."""
    there = [path for path in paths if path.exists()]
    for _ in range(2):
        with exclfs.connect(forest.path, timeout=PATIENCE) as client:
            for part in in_parts(there):
                client.hold(part)
        eventually(lambda: status(forest).holds == 0, "holds outlive their connection")
        forgotten(forest)
    assert memory(forest) < before + (48 << 20)
