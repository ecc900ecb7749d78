"""Of several ends the first wins: whatever comes after it, in whatever order, ends nothing and is told of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio
from scene import ALICE, ROOT, Scene, Shelf

from exclfs.holds.errors import NoSuchHold
from exclfs.holds.events import Broken, Expired, Orphaned, Reaped, Unlocked
from exclfs.holds.flags import Flags
from exclfs.holds.lifetime import Connection, Exit, StateFile, Unmount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from exclfs.holds.hold import Hold

CONNECTION: Final = Connection(1)
PROCESS: Final = Exit(40, 9, "boot")
ENDED = (Unlocked, Broken, Reaped, Expired, Orphaned)


async def release(scene: Scene, hold: Hold) -> None:
    await scene.keeper.unlock([hold.id], requester=ALICE)


async def break_it(scene: Scene, hold: Hold) -> None:
    await scene.keeper.unlock([hold.id], requester=ROOT, break_it=True)


async def close(scene: Scene, _: Hold) -> None:
    await scene.keeper.end(CONNECTION)


async def end_process(scene: Scene, _: Hold) -> None:
    await scene.keeper.end(PROCESS)


async def find_dead(scene: Scene, hold: Hold) -> None:
    scene.keeper.present.pop(PROCESS, None)
    scene.verdict(hold.inode)


async def let_time_pass(scene: Scene, _: Hold) -> None:
    scene.boottime += 100
    await scene.keeper.expire()


async def find_over(scene: Scene, hold: Hold) -> None:
    scene.boottime += 100
    scene.verdict(hold.inode)


async def remove_behind(scene: Scene, hold: Hold) -> None:
    scene.tree.remove(hold.inode)
    await scene.keeper.sweep()


WAYS: Final[dict[Callable[[Scene, Hold], Awaitable[None]], str]] = {
    release: "unlocked",
    break_it: "broken",
    close: "unlocked",
    end_process: "reaped",
    find_dead: "reaped",
    let_time_pass: "expired",
    find_over: "expired",
    remove_behind: "orphaned",
}
"""Every way in which a hold can end, and what is told of it."""

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


@pytest.fixture
def kept() -> Scene:
    """A scene with a store."""
    return Scene(store=Shelf())


async def hold_with_every_end(scene: Scene) -> Hold:
    for end in (CONNECTION, PROCESS):
        scene.there(end)
    ends = (CONNECTION, PROCESS, scene.keeper.until(60, ALICE), Unmount(), StateFile())
    # Bound to a connection it is its process's alone; whoever breaks it is somebody else.
    return await scene.hold(scene.one, ends=ends)


def ends_told(scene: Scene) -> list[str]:
    return [event.name for event in scene.events if isinstance(event, ENDED)]


@every_way
@pytest.mark.parametrize("first", WAYS, ids=lambda way: way.__name__)
async def test_the_first_end_is_the_only_one(
    kept: Scene,
    first: Callable[[Scene, Hold], Awaitable[None]],
    way: Callable[[Scene, Hold], Awaitable[None]],
) -> None:
    hold = await hold_with_every_end(kept)
    await first(kept, hold)
    if way in (release, break_it):
        with pytest.raises(NoSuchHold):
            await way(kept, hold)
    else:
        await way(kept, hold)
    assert ends_told(kept) == [WAYS[first]]
    kept.must_be_as_if_nothing_had_happened()
    await kept.keeper.sweep()
    assert kept.keeper.store.holds == {}  # type: ignore[union-attr]


@every_way
@pytest.mark.parametrize("asked", [release, break_it], ids=lambda way: way.__name__)
async def test_what_ends_while_its_release_is_written_has_ended_once(
    kept: Scene,
    asked: Callable[[Scene, Hold], Awaitable[None]],
    way: Callable[[Scene, Hold], Awaitable[None]],
) -> None:
    hold = await hold_with_every_end(kept)
    shelf = kept.keeper.store
    assert isinstance(shelf, Shelf)
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked, kept, hold)
        await kept.settle()
        nursery.start_soon(way, kept, hold)
        await kept.settle()
        written.set()
    assert len(ends_told(kept)) == 1
    kept.must_be_as_if_nothing_had_happened()
    await kept.keeper.sweep()
    assert shelf.holds == {}


async def test_of_many_each_ends_once_whoever_is_faster(scene: Scene) -> None:
    """A connection's end gives others their turns."""
    inodes = [scene.tree.add(f"file{number}") for number in range(450)]
    scene.there(CONNECTION)
    holds = await scene.trylock(*inodes, ends=(CONNECTION,), flags=Flags.NO_REMOVE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.keeper.end, CONNECTION)
        await trio.lowlevel.checkpoint()
        await scene.keeper.unlock([hold.id for hold in holds[-50:]], requester=ROOT, break_it=True)
    assert sorted(ends_told(scene)) == ["broken"] * 50 + ["unlocked"] * 400
    scene.must_be_as_if_nothing_had_happened()


async def test_nothing_of_a_renewed_hold_ends_at_its_first_time(kept: Scene) -> None:
    hold = await hold_with_every_end(kept)
    (renewed,) = await kept.keeper.renew([hold.id], 300, requester=ALICE)
    assert set(renewed.ends) - set(hold.ends) == {renewed.ends[-1]}
    await let_time_pass(kept, hold)
    await find_over(kept, hold)
    assert ends_told(kept) == []
    await let_time_pass(kept, hold)
    assert ends_told(kept) == ["expired"]
