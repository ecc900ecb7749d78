"""What outlives the server is in the store before anybody hears yes, and out of it before its release is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from scene import ALICE, ROOT, Scene, Shelf

from exclfs.holds.errors import BadHold, Gone, NoSuchHold, NotKept
from exclfs.holds.flags import Flags
from exclfs.holds.lifetime import Connection, StateFile, Unmount

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold

FOR_GOOD = (StateFile(),)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def scene(shelf: Shelf) -> Scene:
    """A scene with a store."""
    return Scene(store=shelf)


async def test_without_a_state_file_nothing_can_outlive_the_server() -> None:
    scene = Scene()
    with pytest.raises(BadHold, match="--state"):
        await scene.trylock(scene.one, ends=FOR_GOOD)
    scene.must_be_as_if_nothing_had_happened()


async def test_only_what_is_to_outlive_the_server_is_kept(scene: Scene, shelf: Shelf) -> None:
    await scene.trylock(scene.one)
    kept = await scene.trylock(scene.two, scene.three, ends=(Unmount(), *FOR_GOOD))
    assert tuple(shelf.holds.values()) == kept


async def test_nobody_hears_yes_before_it_is_written(scene: Scene, shelf: Shelf) -> None:
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.one, ends=FOR_GOOD)
        assert call.waits
        assert scene.told == []
        assert scene.verdict(scene.one), "it enters before it is written: nothing is kept that was removed meanwhile"
        written.set()
    assert call.holds == tuple(shelf.holds.values())
    assert scene.told == ["refused", "locked"]


async def test_what_cannot_be_written_is_not_placed(scene: Scene, shelf: Shelf) -> None:
    shelf.full = True
    with pytest.raises(NotKept):
        await scene.trylock(scene.one, scene.two, ends=FOR_GOOD)
    scene.must_be_as_if_nothing_had_happened()
    assert scene.told == []


async def test_a_call_that_is_cancelled_while_it_is_written_is_all_or_none(scene: Scene, shelf: Shelf) -> None:
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.one, ends=FOR_GOOD)
        call.scope.cancel()
        await scene.settle()
        written.set()
    assert tuple(shelf.holds.values()) == scene.holds


@pytest.mark.parametrize("how", ["broken", "cut off"])
async def test_what_ends_while_it_is_written_is_not_kept(scene: Scene, shelf: Shelf, how: str) -> None:
    line = scene.there(Connection(1))
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.one, scene.two, ends=(Connection(1), *FOR_GOOD))
        shelf.slow = None
        if how == "cut off":
            line.alive = False
        else:
            await scene.unlock(scene.holds[1], requester=ROOT, break_it=True)
        written.set()
    assert isinstance(call.error, NoSuchHold)
    assert shelf.holds == {}
    scene.must_be_as_if_nothing_had_happened()


async def test_nobody_hears_that_it_is_released_before_it_is_out(scene: Scene, shelf: Shelf) -> None:
    hold = await scene.hold(scene.one, ends=FOR_GOOD)
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.unlock, hold)
        await scene.settle()
        assert scene.told == ["locked"]
        assert scene.verdict(scene.one) == (hold,)
        written.set()
    assert shelf.holds == {}
    scene.must_be_as_if_nothing_had_happened()


async def test_what_cannot_be_taken_out_stays_held(scene: Scene, shelf: Shelf) -> None:
    kept = await scene.hold(scene.one, ends=FOR_GOOD)
    other = await scene.hold(scene.two)
    shelf.full = True
    with pytest.raises(NotKept):
        await scene.unlock(other, kept)
    assert scene.holds == (kept, other)
    assert scene.told == ["locked", "locked"]
    assert shelf.holds == {kept.id: kept}


async def test_what_ends_by_itself_is_taken_out_when_that_can_be_written(scene: Scene, shelf: Shelf) -> None:
    """That it cannot keeps nobody from going on: what is over does not come back in any case."""
    for number in (1, 2):
        scene.there(Connection(number))
        await scene.hold(scene.one, flags=Flags.NO_REMOVE, ends=(Connection(number), *FOR_GOOD))
    shelf.full = True
    await scene.keeper.end(Connection(1))
    assert scene.told[-1] == "unlocked"
    assert len(shelf.holds) == 2
    shelf.full = False
    await scene.keeper.end(Connection(2))
    assert shelf.holds == {}


# --- times ------------------------------------------------------------------------------------------------------------


async def test_another_time_is_written(scene: Scene, shelf: Shelf) -> None:
    hold = await scene.hold(scene.one, ends=(scene.keeper.until(10, ALICE), *FOR_GOOD))
    renewed = await scene.keeper.renew([hold.id], 100, requester=ALICE)
    assert tuple(shelf.holds.values()) == renewed == scene.holds
    assert renewed != (hold,)


async def test_if_another_time_cannot_be_written_the_old_one_counts(scene: Scene, shelf: Shelf) -> None:
    kept = await scene.hold(scene.one, ends=(scene.keeper.until(10, ALICE), *FOR_GOOD))
    other = await scene.hold(scene.two, ends=(scene.keeper.until(20, ALICE),))
    shelf.full, shelf.slow = True, trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fail_to_renew, scene, other, kept)
        await scene.settle()
        assert await scene.keeper.expire() == 100
        shelf.slow.set()
    shelf.full = False
    assert [set(hold.ends) for hold in scene.holds] == [set(hold.ends) for hold in (kept, other)]
    assert await scene.keeper.expire() == 10
    scene.boottime += 10
    assert await scene.keeper.expire() == 10
    assert [hold.id for hold in scene.holds] == [other.id]


async def _renew(scene: Scene, *holds: Hold) -> None:
    await scene.keeper.renew([hold.id for hold in holds], 100, requester=ALICE)


async def test_of_two_that_renew_the_one_that_failed_takes_nothing_back(scene: Scene, shelf: Shelf) -> None:
    hold = await scene.hold(scene.one, ends=(scene.keeper.until(10, ALICE), *FOR_GOOD))
    shelf.full, shelf.slow = True, trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_fail_to_renew, scene, hold)
        await scene.settle()
        failing, shelf.slow = shelf.slow, None
        shelf.full = False
        renewed = await scene.keeper.renew([hold.id], 200, requester=ALICE)
        shelf.full = True
        failing.set()
    assert scene.holds == renewed == tuple(shelf.holds.values())


async def _fail_to_renew(scene: Scene, *holds: Hold) -> None:
    with pytest.raises(NotKept):
        await _renew(scene, *holds)


async def test_what_is_released_while_it_is_renewed_does_not_come_back(scene: Scene, shelf: Shelf) -> None:
    hold = await scene.hold(scene.one, ends=(scene.keeper.until(10, ALICE), *FOR_GOOD))
    written = shelf.slow = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_renew, scene, hold)
        await scene.settle()
        shelf.slow = None
        await scene.keeper.unlock([hold.id], requester=ALICE)
        written.set()
    assert shelf.holds == {}
    scene.must_be_as_if_nothing_had_happened()


# --- what was held before ---------------------------------------------------------------------------------------------


async def test_what_was_held_before_is_held_again_as_it_was(scene: Scene) -> None:
    flags = Flags.EXCL_INUSE | Flags.PIN_PATH
    ends = (scene.keeper.until(10, ROOT), *FOR_GOOD)
    hold = await scene.hold(scene.leaf, flags=flags, requester=ROOT, ends=ends)
    again = Scene(store=Shelf())
    await again.keeper.restore(hold)
    assert again.holds == (hold,)
    assert again.words() == scene.words()
    assert again.told == []
    assert again.verdict(scene.leaf) == (hold,)
    assert await again.keeper.expire() == 10


@pytest.mark.parametrize("flags", [Flags.NO_REMOVE, Flags.PIN_PATH], ids=lambda flags: flags.name)
async def test_what_is_gone_is_not_held_again(scene: Scene, flags: Flags) -> None:
    hold = await scene.hold(scene.leaf, flags=flags, requester=ROOT, ends=FOR_GOOD)
    again = Scene()
    again.tree.remove(again.leaf)
    with pytest.raises(Gone):
        await again.keeper.restore(hold)
    again.must_be_as_if_nothing_had_happened()
