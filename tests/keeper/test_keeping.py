"""Placing and ending: all or none, and nothing is left of what has not been placed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
from scene import ALICE, ALICE_AGAIN, BOB, OWNER, ROOT, Scene

from exclfs.holds.errors import BadHold, Gone, Held, NoSuchHold, NotPermitted
from exclfs.holds.events import Broken, LockFailed, UnlockBad
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.lifetime import Connection, Unmount
from exclfs.holds.mode import Mode

if TYPE_CHECKING:
    from exclfs.holds.holder import Process

SHARED, BELOW, SUBTREE, CLAIM = Flags.NO_REMOVE, Flags.NO_REMOVE_BELOW, Flags.EXCL_SUBTREE, Flags.EXCL_INUSE


async def test_a_hold_sets_the_word_and_its_end_clears_it(scene: Scene) -> None:
    (hold,) = await scene.trylock(scene.one)
    assert scene.words() == {scene.one: DEFAULT.value}
    assert await scene.keeper.unlock([hold.id], requester=ALICE) == (hold,)
    assert scene.told == ["locked", "unlocked"]
    scene.must_be_as_if_nothing_had_happened()


async def test_a_hold_is_as_it_was_asked_for(scene: Scene) -> None:
    hold = await scene.hold(scene.leaf, flags=SHARED)
    assert (hold.inode, hold.path, hold.flags) == (scene.leaf, "/mnt/top/middle/leaf", SHARED)
    assert (hold.holder.process, hold.reason, hold.ends) == (ALICE, "because", (Unmount(),))


@pytest.mark.parametrize("flags", [Flags(0), Flags.NO_REMOVE], ids=["no flags", "no end"])
async def test_what_is_no_hold_is_not_placed(scene: Scene, flags: Flags) -> None:
    with pytest.raises(BadHold):
        await scene.trylock(scene.one, flags=flags, ends=() if flags else (Unmount(),))
    scene.must_be_as_if_nothing_had_happened()


# --- all or none ------------------------------------------------------------------------------------------------------


async def test_several_objects_are_held_all_or_none(scene: Scene) -> None:
    (first,) = await scene.trylock(scene.two, requester=ROOT)
    with pytest.raises(Held) as caught:
        await scene.trylock(scene.one, scene.two, scene.three)
    assert caught.value.hold == first
    assert scene.words() == {scene.two: DEFAULT.value}
    assert scene.holds == (first,)
    assert scene.told == ["locked", "lock_failed"]


async def test_who_has_the_claim_is_told_to_whoever_wanted_it(scene: Scene) -> None:
    (first,) = await scene.trylock(scene.two, requester=ROOT)
    with pytest.raises(Held):
        await scene.trylock(scene.one, scene.two)
    failed = scene.events[-1]
    assert isinstance(failed, LockFailed)
    assert (failed.path, failed.inode, failed.requester, failed.conflict) == ("/mnt/two", scene.two, ALICE, first)


@pytest.mark.parametrize("which", range(3))
async def test_of_several_one_that_is_gone_is_enough(scene: Scene, which: int) -> None:
    objects = (scene.one, scene.two, scene.three)
    scene.tree.remove(objects[which])
    with pytest.raises(Gone) as caught:
        await scene.trylock(*objects)
    assert caught.value.inode == objects[which]
    assert scene.told == []
    scene.must_be_as_if_nothing_had_happened()


@pytest.mark.parametrize("which", range(3))
async def test_of_several_one_that_may_not_be_held_is_enough(scene: Scene, which: int) -> None:
    objects = (scene.one, scene.two, scene.three)
    scene.tree.change(objects[which], uid=BOB.uid)
    scene.tree.change(scene.tree.root, mode=0o40755)
    with pytest.raises(NotPermitted):
        await scene.trylock(*objects)
    scene.must_be_as_if_nothing_had_happened()


async def test_one_object_cannot_be_claimed_twice_in_one_call(scene: Scene) -> None:
    """Nor would waiting help: nobody else is in the way."""
    with trio.fail_after(1), pytest.raises(BadHold, match="twice"):
        await scene.trylock(scene.one, scene.two, scene.one, timeout=60)
    scene.must_be_as_if_nothing_had_happened()
    assert len(await scene.trylock(scene.one, scene.one, flags=SHARED)) == 2


async def test_thousands_are_held_while_others_have_their_turns(scene: Scene) -> None:
    inodes = [scene.tree.add(f"file{number}") for number in range(1000)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        holds = await scene.trylock(*inodes)
        placed = turns
        await scene.keeper.unlock([hold.id for hold in holds], requester=ALICE)
        nursery.cancel_scope.cancel()
    assert [hold.inode for hold in holds] == inodes
    assert placed >= 9
    assert turns - placed >= 9
    scene.must_be_as_if_nothing_had_happened()


async def test_a_call_that_is_cancelled_half_way_leaves_nothing(scene: Scene) -> None:
    inodes = [scene.tree.add(f"file{number}") for number in range(250)]
    removal = scene.tree.in_flight[inodes[50]] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, *inodes)
        assert len(scene.holds) == 250
        call.scope.cancel()
        removal.set()
    scene.must_be_as_if_nothing_had_happened()
    assert scene.told == []


# --- releasing and breaking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requester", "break_it", "event"),
    [
        (ALICE, False, "unlocked"),
        (ALICE, True, "unlocked"),
        (ALICE_AGAIN, False, None),
        (ALICE_AGAIN, True, "broken"),
        (BOB, False, None),
        (BOB, True, None),
        (ROOT, False, None),
        (ROOT, True, "broken"),
        (OWNER, False, None),
        (OWNER, True, "broken"),
    ],
    ids=lambda value: getattr(value, "comm", str(value)),
)
async def test_who_may_end_a_hold_that_a_process_has(
    scene: Scene, requester: Process, break_it: bool, event: str | None
) -> None:
    scene.there(Connection(1))
    (hold,) = await scene.trylock(scene.one, ends=(Connection(1),))
    if event is None:
        with pytest.raises(NotPermitted):
            await scene.unlock(hold, requester=requester, break_it=break_it)
        assert scene.told[-1] == "unlock_bad"
        assert scene.verdict(scene.one)
    else:
        await scene.unlock(hold, requester=requester, break_it=break_it)
        assert scene.told[-1] == event
        assert not scene.verdict(scene.one)


async def test_a_hold_until_unmount_is_its_users(scene: Scene) -> None:
    (hold,) = await scene.trylock(scene.one)
    await scene.unlock(hold, requester=ALICE_AGAIN)
    assert scene.told[-1] == "unlocked"


async def test_a_break_says_why(scene: Scene) -> None:
    (hold,) = await scene.trylock(scene.one)
    await scene.unlock(hold, requester=ROOT, break_it=True, reason="it was in the way")
    broken = scene.events[-1]
    assert isinstance(broken, Broken)
    assert (broken.hold, broken.requester, broken.reason) == (hold, ROOT, "it was in the way")


async def test_several_are_ended_all_or_none(scene: Scene) -> None:
    own = await scene.trylock(scene.one, scene.two)
    other = await scene.hold(scene.three, requester=ROOT)
    for ids in ([own[0].id, other.id, own[1].id], [own[0].id, "h9"]):
        with pytest.raises((NotPermitted, NoSuchHold)):
            await scene.keeper.unlock(ids, requester=ALICE)
        bad = scene.events[-1]
        assert isinstance(bad, UnlockBad)
        assert (bad.id, bad.requester) == (ids[1], ALICE)
    assert scene.holds == (*own, other)
    assert await scene.keeper.unlock([own[1].id, own[0].id, own[1].id], requester=ALICE) == (own[1], own[0])
    assert scene.holds == (other,)


async def test_to_end_what_is_not_there_is_told(scene: Scene) -> None:
    with pytest.raises(NoSuchHold):
        await scene.keeper.unlock(["h9"], requester=ALICE)
    assert scene.told == ["unlock_bad"]


# --- words ------------------------------------------------------------------------------------------------------------


async def test_the_last_link_gone_is_no_hold(scene: Scene) -> None:
    scene.tree.remove(scene.one)
    with pytest.raises(Gone):
        await scene.trylock(scene.one)
    scene.must_be_as_if_nothing_had_happened()
    assert scene.told == []


@pytest.mark.parametrize("mode", Mode)
async def test_what_is_gone_is_gone_whoever_claims_where_it_was(mode: Mode) -> None:
    scene = Scene(mode=mode)
    claim = await scene.hold(scene.top, flags=Flags.EXCL_SUBTREE, requester=ROOT)
    scene.tree.remove(scene.leaf)
    with pytest.raises(Gone):
        await scene.trylock(scene.leaf)
    assert scene.told == ["locked"]
    assert scene.holds == (claim,)


async def test_a_removal_in_flight_is_waited_for_while_verdicts_go_on(scene: Scene) -> None:
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.trylock, scene.one)
        await scene.settle()
        assert scene.verdict(scene.one), "a removal that asks now comes after the hold"
        assert not scene.verdict(scene.two)
        assert "locked" not in scene.told
        removal.set()
    assert scene.words() == {scene.one: DEFAULT.value}
    assert scene.told == ["refused", "locked"]


async def test_a_hold_ends_at_once_whatever_others_wait_for(scene: Scene) -> None:
    """Its word cannot be lowered to what the next hold wants: whoever placed that is still busy with another inode."""
    (first,) = await scene.trylock(scene.two, flags=CLAIM)
    removals = {inode: threading.Event() for inode in (scene.one, scene.two)}
    scene.tree.in_flight |= removals
    async with trio.open_nursery() as nursery:
        await scene.begin(nursery, scene.one, scene.two, flags=SHARED)
        await scene.unlock(first)
        assert scene.told == ["locked", "unlocked"]
        for removal in removals.values():
            removal.set()
    assert scene.words() == {scene.one: SHARED.value, scene.two: SHARED.value}


async def test_what_is_removed_while_it_is_waited_for_is_gone(scene: Scene) -> None:
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.two, scene.one)
        scene.tree.remove(scene.one)
        removal.set()
    assert isinstance(call.error, Gone)
    scene.must_be_as_if_nothing_had_happened()


async def test_two_that_wait_for_one_removal_both_get_their_bits(scene: Scene) -> None:
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        await scene.begin(nursery, scene.one, flags=CLAIM)
        await scene.begin(nursery, scene.one, flags=SHARED)
        removal.set()
    assert scene.words() == {scene.one: (CLAIM | SHARED).value}


async def test_a_hold_that_ends_while_another_waits_leaves_no_bit(scene: Scene) -> None:
    (first,) = await scene.trylock(scene.one, flags=CLAIM)
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        await scene.begin(nursery, scene.one, flags=SHARED)
        await scene.unlock(first)
        removal.set()
    assert scene.words() == {scene.one: SHARED.value}


@pytest.mark.parametrize("how", ["broken", "cut off", "gone behind"])
async def test_what_ends_before_it_stands_is_not_told_to_stand(scene: Scene, how: str) -> None:
    """It was seen on the lists and broken, or its holder has died, while a removal in flight was waited for."""
    line = scene.there(Connection(1))
    removal = scene.tree.in_flight[scene.two] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.one, scene.two, ends=(Connection(1),))
        if how == "broken":
            await scene.unlock(scene.holds[0], requester=ROOT, break_it=True)
        elif how == "cut off":
            line.alive = False
            assert scene.verdict(scene.one) == ()
        else:
            scene.tree.remove(scene.one)
            await scene.keeper.sweep()
        removal.set()
    assert isinstance(call.error, NoSuchHold)
    assert "locked" not in scene.told
    scene.must_be_as_if_nothing_had_happened()


# --- behind the mount -------------------------------------------------------------------------------------------------


async def test_a_sweep_ends_the_holds_on_what_is_gone(scene: Scene) -> None:
    await scene.trylock(scene.one, scene.one, flags=SHARED)
    stays = await scene.hold(scene.two)
    scene.tree.remove(scene.one)
    await scene.keeper.sweep()
    assert scene.holds == (stays,)
    assert scene.told[-2:] == ["orphaned", "orphaned"]
    assert scene.words() == {scene.two: DEFAULT.value}


async def test_a_sweep_ends_the_holds_on_what_nobody_knows_any_more(scene: Scene) -> None:
    await scene.hold(scene.one)
    scene.tree.forget(scene.one)
    await scene.keeper.sweep()
    assert scene.told == ["locked", "orphaned"]
    assert scene.holds == ()


async def test_what_was_removed_before_a_hold_on_it_stood_is_no_orphan(scene: Scene) -> None:
    """The removal went through the mount and won: who wanted to hold it hears so, and nobody else hears anything."""
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        calls = [await scene.begin(nursery, scene.two, scene.one, flags=SHARED) for _ in range(2)]
        scene.tree.remove(scene.one)
        await scene.keeper.sweep()
        assert scene.told == []
        removal.set()
    assert [type(call.error) for call in calls] == [Gone, Gone]
    assert scene.told == []
    scene.must_be_as_if_nothing_had_happened()


async def test_a_disk_in_trouble_proves_nothing(scene: Scene) -> None:
    hold = await scene.hold(scene.one)
    scene.tree.in_trouble = True
    await scene.keeper.sweep()
    assert scene.holds == (hold,)


async def test_a_sweep_looks_at_all_of_many(scene: Scene) -> None:
    inodes = [scene.tree.add(f"file{number}") for number in range(2500)]
    await scene.trylock(*inodes, flags=SHARED)
    for inode in inodes[::500]:
        scene.tree.remove(inode)
    await scene.keeper.sweep()
    assert scene.keeper.counts["orphaned"] == 5
    assert len(scene.holds) == 2495


# --- the record -------------------------------------------------------------------------------------------------------


async def test_every_subscriber_hears_of_everything_until_it_ends_that(scene: Scene) -> None:
    told: list[Any] = []
    unsubscribe = scene.keeper.subscribe(told.append)
    hold = await scene.hold(scene.one)
    unsubscribe()
    unsubscribe()
    await scene.unlock(hold)
    assert [event.name for event in told] == ["locked"]
    assert scene.told == ["locked", "unlocked"]


async def test_the_last_hundred_refusals_are_kept_and_all_are_counted(scene: Scene) -> None:
    inodes = [scene.tree.add(f"file{number}") for number in range(150)]
    await scene.trylock(*inodes)
    for inode in inodes:
        scene.verdict(inode)
        scene.verdict(inode)
    assert [refusal.path for refusal in scene.keeper.refusals] == [f"/mnt/file{number}" for number in range(50, 150)]
    assert {refusal.count for refusal in scene.keeper.refusals} == {2}
    assert scene.keeper.counts["refused"] == 300
