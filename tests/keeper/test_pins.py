"""PIN_PATH: no directory above can be renamed, so the path stays true; or the hold is not placed at all."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import ROOT, Scene

from exclfs.holds.errors import Gone, NoSuchHold
from exclfs.holds.flags import PINNED, Flags, Operation
from exclfs.keeper.words import TRIES

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold, Inode

PIN, SHARED = Flags.PIN_PATH, Flags.NO_REMOVE
MOVES = {Operation.RENAME, Operation.EXCHANGE, Operation.WHITEOUT}


async def pin(scene: Scene, inode: Inode) -> Hold:
    return await scene.hold(inode, flags=PIN, requester=ROOT)


def pinned(scene: Scene, *inodes: Inode) -> dict[Inode, int]:
    return dict.fromkeys((scene.tree.root, *inodes), PINNED)


async def test_a_pin_is_in_the_word_of_every_directory_above(scene: Scene) -> None:
    hold = await pin(scene, scene.leaf)
    assert scene.words() == pinned(scene, scene.top, scene.middle) | {scene.leaf: PIN.value}
    await scene.unlock(hold, requester=ROOT)
    scene.must_be_as_if_nothing_had_happened()


@pytest.mark.parametrize("operation", Operation)
async def test_what_is_above_cannot_be_moved_and_what_is_pinned_cannot_be_removed(
    scene: Scene, operation: Operation
) -> None:
    hold = await pin(scene, scene.leaf)
    assert scene.verdict(scene.leaf, operation, parent=scene.middle) == (hold,)
    for inode, parent in ((scene.middle, scene.top), (scene.top, scene.tree.root)):
        assert scene.verdict(inode, operation, parent=parent) == ((hold,) if operation in MOVES else ())
    assert scene.verdict(scene.one, operation, parent=scene.tree.root) == ()


async def test_a_pin_is_seen_from_what_it_pins(scene: Scene) -> None:
    hold = await pin(scene, scene.leaf)
    for inode in (scene.leaf, scene.middle, scene.top, scene.tree.root):
        assert scene.keeper.covering(inode) == (hold,)
    assert scene.keeper.on(scene.top) == ()


async def test_of_two_pins_one_stays(scene: Scene) -> None:
    first = await pin(scene, scene.leaf)
    second = await pin(scene, scene.middle)
    await scene.unlock(first, requester=ROOT)
    assert scene.words() == pinned(scene, scene.top) | {scene.middle: PIN.value}
    await scene.unlock(second, requester=ROOT)
    scene.must_be_as_if_nothing_had_happened()


async def test_above_the_root_there_is_nothing_to_pin(scene: Scene) -> None:
    await pin(scene, scene.tree.root)
    assert scene.words() == {scene.tree.root: PIN.value}


# --- renames that are in flight ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["top", "middle", "leaf"])
async def test_a_rename_in_flight_that_fails_is_waited_for(scene: Scene, nursery: trio.Nursery, what: str) -> None:
    rename = scene.tree.in_flight[getattr(scene, what)] = threading.Event()
    call = await scene.begin(nursery, scene.leaf, flags=PIN, requester=ROOT)
    assert call.waits
    assert scene.verdict(scene.top, Operation.RENAME), "one that asks from now on is refused"
    rename.set()
    await scene.settle()
    assert call.holds == scene.holds
    assert scene.words() == pinned(scene, scene.top, scene.middle) | {scene.leaf: PIN.value}


@pytest.mark.parametrize("what", ["top", "middle", "leaf"])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_path_that_a_rename_in_flight_has_made_false_is_not_pinned(scene: Scene, what: str, which: int) -> None:
    moved = getattr(scene, what)
    rename = scene.tree.in_flight[moved] = threading.Event()
    objects = [scene.one, scene.leaf][:: 1 - 2 * which]
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, *objects, flags=PIN, requester=ROOT)
        scene.tree.move(moved, "moved")
        rename.set()
    assert isinstance(call.error, Gone)
    assert call.error.inode == scene.leaf
    scene.must_be_as_if_nothing_had_happened()
    assert scene.told == []


async def test_a_path_that_leads_to_another_inode_is_not_pinned(scene: Scene, nursery: trio.Nursery) -> None:
    rename = scene.tree.in_flight[scene.leaf] = threading.Event()
    async with trio.open_nursery() as inner:
        call = await scene.begin(inner, scene.leaf, flags=PIN, requester=ROOT)
        scene.tree.move(scene.leaf, "elsewhere")
        scene.tree.add("top/middle/leaf")
        rename.set()
    assert isinstance(call.error, Gone)
    scene.must_be_as_if_nothing_had_happened()


@pytest.mark.parametrize("removed", [False, True])
async def test_a_path_on_which_directories_were_exchanged_is_pinned_again(scene: Scene, removed: bool) -> None:
    """It leads to the inode as before, by a hard link in other directories."""
    other = scene.tree.add("other/")
    inner = scene.tree.add("other/middle/")
    scene.tree.link(scene.leaf, "other/middle/leaf")
    exchange = scene.tree.in_flight[scene.top] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.leaf, flags=PIN, requester=ROOT)
        scene.tree.exchange(scene.top, other)
        if removed:
            scene.tree.remove(scene.top)
        exchange.set()
    assert call.holds == scene.holds
    assert scene.words() == pinned(scene, other, inner) | {scene.leaf: PIN.value}
    assert scene.verdict(other, Operation.RENAME)
    assert not scene.verdict(scene.top, Operation.RENAME)
    await scene.unlock(*scene.holds, requester=ROOT)
    scene.must_be_as_if_nothing_had_happened()


async def test_what_was_seen_by_another_name_is_pinned_where_it_was_asked_for(scene: Scene) -> None:
    scene.tree.link(scene.one, "top/also one")
    hold = await scene.keeper.trylock(
        [(scene.one, "/mnt/top/also one")],
        flags=PIN,
        holder=(await scene.hold(scene.two)).holder,
        reason="",
        ends=(await scene.hold(scene.three)).ends,
        requester=ROOT,
    )
    assert scene.words()[scene.top] == PINNED
    assert scene.keeper.covering(scene.top) == hold


async def test_a_path_that_never_comes_to_rest_is_not_pinned(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody exchanges two directories, each with a link of it, as often as it is looked up."""
    other = scene.tree.add("other/")
    scene.tree.add("other/middle/")
    scene.tree.link(scene.leaf, "other/middle/leaf")
    looked_up = []
    way = scene.tree.way

    def exchange_and_look_up(path: bytes) -> tuple[Inode, ...]:
        looked_up.append(path)
        scene.tree.exchange(scene.top, other)
        return way(path)

    monkeypatch.setattr(scene.tree, "way", exchange_and_look_up)
    with pytest.raises(Gone):
        await pin(scene, scene.leaf)
    assert len(looked_up) == 1 + TRIES
    scene.must_be_as_if_nothing_had_happened()


@pytest.mark.parametrize("moved", [False, True])
async def test_a_pin_that_ends_while_it_is_placed_leaves_nothing(scene: Scene, moved: bool) -> None:
    rename = scene.tree.in_flight[scene.top] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.leaf, flags=PIN, requester=ROOT)
        await scene.unlock(*scene.holds, requester=ROOT)
        if moved:
            scene.tree.move(scene.top, "moved")
        rename.set()
    assert isinstance(call.error, Gone if moved else NoSuchHold)
    scene.must_be_as_if_nothing_had_happened()


# --- whatever else is held --------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["one", "top", "middle", "leaf"]), st.sampled_from([PIN, SHARED, PIN | SHARED])),
            st.tuples(st.just("release"), st.integers(0, 10)),
        ),
        max_size=20,
    )
)
def test_a_word_is_what_is_held_there_and_whether_anything_below_is_pinned(script: list[tuple[str, Any]]) -> None:
    async def run() -> None:
        scene = Scene()
        holds: list[Hold] = []
        for what, value in script:
            if what != "release":
                holds.append(await scene.hold(getattr(scene, what), flags=value, requester=ROOT))
            elif holds:
                await scene.unlock(holds.pop(value % len(holds)), requester=ROOT)
            expected: dict[Inode, int] = {}
            for hold in holds:
                expected[hold.inode] = expected.get(hold.inode, 0) | hold.flags.value
                for directory in scene.tree.ancestors(hold.inode) if PIN in hold.flags else ():
                    expected[directory] = expected.get(directory, 0) | PINNED
            assert scene.words() == expected

    trio.run(run)
