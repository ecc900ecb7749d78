"""Waiting for a claim: first come, first served, all objects at once, and nobody is forgotten."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from scene import ALICE, ALICE_AGAIN, BOB, ROOT, Call, Scene

from exclfs.holds.errors import Gone, Held, NoSuchHold, NotPermitted
from exclfs.holds.events import LockFailed
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.lifetime import Connection, Exit, Time, Unmount
from exclfs.holds.limits import Limits

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold

FOR_EVER = math.inf
SHARED, SUBTREE = Flags.NO_REMOVE, Flags.EXCL_SUBTREE


def served(*calls: Call) -> list[bool]:
    return [call.holds is not None for call in calls]


async def test_who_waits_is_served_when_the_claim_is_released(scene: Scene, nursery: trio.Nursery) -> None:
    first = await scene.hold(scene.one, requester=ROOT)
    call = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    assert call.waits
    assert scene.keeper.waiting == 1
    await scene.unlock(first, requester=ROOT)
    assert call.holds == scene.holds
    assert scene.keeper.waiting == 0
    assert scene.words() == {scene.one: DEFAULT.value}
    assert scene.told == ["locked", "unlocked", "locked"], "it is not told that it failed, for it did not"


async def test_what_is_free_is_not_waited_for(scene: Scene) -> None:
    with trio.fail_after(1):
        await scene.trylock(scene.one, scene.two, timeout=FOR_EVER)


async def test_what_claims_nothing_waits_for_nobody(scene: Scene, nursery: trio.Nursery) -> None:
    await scene.hold(scene.one, requester=ROOT)
    await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    assert served(await scene.begin(nursery, scene.one, flags=SHARED, timeout=FOR_EVER)) == [True]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["closed", "exited", "expired", "broken", "orphaned", "found dead"])
async def test_whatever_ends_the_claim_serves_who_waits(scene: Scene, nursery: trio.Nursery, end: str) -> None:
    connection, process = Connection(1), Exit(40, 9, "boot")
    line = scene.there(connection)
    scene.there(process)
    first = await scene.hold(scene.top, ends=(connection, process, scene.keeper.until(10, ALICE)))
    call = await scene.begin(nursery, scene.top, requester=ROOT, timeout=FOR_EVER)
    match end:
        case "closed":
            await scene.keeper.end(connection)
        case "exited":
            await scene.keeper.end(process)
        case "expired":
            scene.boottime += 10
            await scene.keeper.expire()
        case "broken":
            await scene.keeper.unlock([first.id], requester=ROOT, break_it=True)
        case "found dead":
            line.alive = False
            scene.verdict(scene.top)
        case "orphaned":
            scene.tree.remove(scene.top)
            await scene.keeper.sweep()
    await scene.settle()
    if end == "orphaned":
        assert isinstance(call.error, Gone)
        scene.must_be_as_if_nothing_had_happened()
    else:
        assert call.holds == scene.holds


# --- first come, first served -----------------------------------------------------------------------------------------


async def test_first_come_first_served(scene: Scene, nursery: trio.Nursery) -> None:
    held = await scene.hold(scene.one)
    calls = [await scene.begin(nursery, scene.one, timeout=FOR_EVER) for _ in range(5)]
    for number in range(5):
        await scene.unlock(held)
        assert served(*calls) == [True] * (number + 1) + [False] * (4 - number)
        (held,) = scene.holds


async def test_a_trylock_takes_what_is_free_though_others_wait_for_it(scene: Scene, nursery: trio.Nursery) -> None:
    """It does not wait and is not kept waiting."""
    other = await scene.hold(scene.two, requester=ROOT)
    both = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    taken = await scene.hold(scene.one, requester=ROOT)
    await scene.unlock(other, requester=ROOT)
    assert both.waits
    await scene.unlock(taken, requester=ROOT)
    assert served(both) == [True]


async def test_who_waits_for_several_gets_them_all_at_once(scene: Scene, nursery: trio.Nursery) -> None:
    one, two = [await scene.hold(inode, requester=ROOT) for inode in (scene.one, scene.two)]
    call = await scene.begin(nursery, scene.one, scene.two, scene.three, timeout=FOR_EVER)
    await scene.unlock(two, requester=ROOT)
    assert call.waits
    assert scene.holds == (one,), "it has nothing while it waits"
    await scene.unlock(one, requester=ROOT)
    assert call.holds is not None
    assert [hold.inode for hold in call.holds] == [scene.one, scene.two, scene.three]


async def test_who_came_later_waits_behind_even_for_what_is_free(scene: Scene, nursery: trio.Nursery) -> None:
    held = await scene.hold(scene.two, requester=ROOT)
    both = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    behind = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    beside = await scene.begin(nursery, scene.three, timeout=FOR_EVER)
    assert served(both, behind, beside) == [False, False, True]
    await scene.unlock(held, requester=ROOT)
    assert served(both, behind) == [True, False]
    assert both.holds is not None
    await scene.unlock(*both.holds)
    assert served(behind) == [True]


async def test_who_waits_behind_nobody_any_more_is_served(scene: Scene, nursery: trio.Nursery) -> None:
    """What it wants was free all the time: only somebody else waited for it, and has given up."""
    await scene.hold(scene.two, requester=ROOT)
    both = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    behind = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    both.scope.cancel()
    await scene.settle()
    assert served(behind) == [True]


async def test_one_end_serves_everybody_whom_it_kept_waiting(scene: Scene, nursery: trio.Nursery) -> None:
    held = await scene.hold(scene.top, flags=SUBTREE, requester=ROOT)
    inodes = (scene.middle, scene.leaf, scene.tree.add("top/other"))
    calls = [await scene.begin(nursery, inode, timeout=FOR_EVER) for inode in inodes]
    assert served(*calls) == [False] * 3
    await scene.unlock(held, requester=ROOT)
    assert served(*calls) == [True] * 3


async def test_a_claim_on_a_subtree_waits_for_all_that_are_below(scene: Scene, nursery: trio.Nursery) -> None:
    held = [await scene.hold(inode, requester=ROOT) for inode in (scene.leaf, scene.middle)]
    call = await scene.begin(nursery, scene.top, flags=SUBTREE, timeout=FOR_EVER)
    await scene.unlock(held[1], requester=ROOT)
    assert call.waits
    await scene.unlock(held[0], requester=ROOT)
    assert served(call) == [True]


# --- until when -------------------------------------------------------------------------------------------------------


async def test_the_time_to_wait_is_over(scene: Scene, autojump_clock: trio.testing.MockClock) -> None:
    held = await scene.hold(scene.one, requester=ROOT)
    began = trio.current_time()
    with pytest.raises(Held) as caught:
        await scene.trylock(scene.two, scene.one, timeout=60)
    assert trio.current_time() - began == 60
    assert caught.value.hold == held
    assert scene.holds == (held,)
    failed = scene.events[-1]
    assert isinstance(failed, LockFailed)
    assert (failed.inode, failed.requester, failed.conflict) == (scene.one, ALICE, held)
    assert scene.keeper.waiting == 0


async def test_who_waited_behind_others_is_told_what_they_waited_for(
    scene: Scene, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    held = await scene.hold(scene.three, requester=ROOT)
    await scene.begin(nursery, scene.two, scene.three, timeout=FOR_EVER)
    await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    with pytest.raises(Held) as caught:
        await scene.trylock(scene.one, timeout=1)
    assert caught.value.hold == held
    nursery.cancel_scope.cancel()


async def test_it_is_told_what_is_in_the_way_now(scene: Scene, autojump_clock: trio.testing.MockClock) -> None:
    first = await scene.hold(scene.one, requester=ROOT)
    second = await scene.hold(scene.two, requester=ROOT)
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, scene.one, scene.two, timeout=1)
        await scene.unlock(first, requester=ROOT)
        assert call.waits
    assert isinstance(call.error, Held)
    assert call.error.hold == second


async def test_nothing_of_its_own_time_passes_while_it_waits(scene: Scene, nursery: trio.Nursery) -> None:
    held = await scene.hold(scene.one, requester=ROOT)
    ends = (scene.keeper.until(10, ALICE), Unmount())
    call = await scene.begin(nursery, scene.one, ends=ends, timeout=FOR_EVER)
    scene.boottime += 1000
    await scene.unlock(held, requester=ROOT)
    assert call.holds is not None
    (time,) = (end for end in call.holds[0].ends if isinstance(end, Time))
    assert time.deadline == scene.boottime + 10
    assert (time.at - call.holds[0].since).total_seconds() <= 10
    assert await scene.keeper.expire() == 10


# --- giving up --------------------------------------------------------------------------------------------------------


async def test_who_gives_up_leaves_nothing(scene: Scene, nursery: trio.Nursery) -> None:
    held = await scene.hold(scene.one, requester=ROOT)
    call = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    call.scope.cancel()
    await scene.settle()
    assert scene.keeper.waiting == 0
    await scene.unlock(held, requester=ROOT)
    scene.must_be_as_if_nothing_had_happened()


@pytest.mark.parametrize("order", ["served, then cancelled", "cancelled, then served"])
async def test_who_is_cancelled_in_the_moment_it_is_served_gives_back(
    scene: Scene, nursery: trio.Nursery, order: str
) -> None:
    held = await scene.hold(scene.one, requester=ROOT)
    call = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    behind = await scene.begin(nursery, scene.two, timeout=FOR_EVER)
    if order == "cancelled, then served":
        call.scope.cancel()
    scene.keeper._endings.leave(held)
    assert len(scene.holds) == 2, "it has been served; its task has not had a turn since"
    call.scope.cancel()
    await scene.settle()
    assert served(call, behind) == [False, True]
    assert scene.holds == behind.holds
    assert scene.keeper.waiting == 0


async def test_who_is_served_as_its_time_ends_has_its_holds(scene: Scene) -> None:
    clock = trio.testing.MockClock()
    outcomes: list[Call] = []

    async def run() -> None:
        held = await scene.hold(scene.one, requester=ROOT)
        async with trio.open_nursery() as nursery:
            outcomes.append(await scene.begin(nursery, scene.one, timeout=5))
            clock.jump(5)
            scene.keeper._endings.leave(held)

    await trio.to_thread.run_sync(lambda: trio.run(run, clock=clock))
    assert served(*outcomes) == [True]
    assert [hold.inode for hold in scene.holds] == [scene.one]


async def test_what_is_over_while_it_waits_is_not_placed(scene: Scene, nursery: trio.Nursery) -> None:
    """Its process has died, and who placed it waits on."""
    line = scene.there(Exit(40, 9, "boot"))
    held = await scene.hold(scene.one, requester=ROOT)
    await scene.begin(nursery, scene.one, ends=(Exit(40, 9, "boot"),), timeout=FOR_EVER)
    behind = await scene.begin(nursery, scene.one, requester=ALICE_AGAIN, timeout=FOR_EVER)
    line.alive = False
    await scene.unlock(held, requester=ROOT)
    assert behind.holds == scene.holds


# --- what may not be --------------------------------------------------------------------------------------------------


async def test_nobody_has_more_by_waiting(nursery: trio.Nursery) -> None:
    scene = Scene(limits=Limits(holds=3))
    held = await scene.hold(scene.one, requester=ROOT)
    calls = [await scene.begin(nursery, scene.one, timeout=FOR_EVER) for _ in range(2)]
    await scene.trylock(scene.two, scene.three)
    await scene.unlock(held, requester=ROOT)
    assert served(*calls) == [True, False]
    with pytest.raises(NotPermitted):
        await scene.trylock(scene.leaf)
    assert calls[0].holds is not None
    await scene.unlock(*calls[0].holds)
    assert served(*calls) == [True, True]


async def test_who_may_have_no_more_when_it_is_its_turn_is_told_so(nursery: trio.Nursery) -> None:
    scene = Scene(limits=Limits(holds=2))
    held = await scene.hold(scene.one, requester=ROOT)
    call = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    behind = await scene.begin(nursery, scene.one, requester=ROOT, timeout=FOR_EVER)
    await scene.trylock(scene.two, scene.three)
    await scene.unlock(held, requester=ROOT)
    assert isinstance(call.error, NotPermitted)
    assert served(behind) == [True]


async def test_what_may_not_be_held_is_not_waited_for(scene: Scene) -> None:
    await scene.hold(scene.one)
    with trio.fail_after(1), pytest.raises(NotPermitted):
        await scene.trylock(scene.one, requester=BOB, timeout=FOR_EVER)


# --- the dead ---------------------------------------------------------------------------------------------------------


async def test_a_dead_holder_makes_way_for_who_waited_first(scene: Scene, nursery: trio.Nursery) -> None:
    """Who comes later finds out, but the claim is not theirs."""
    line = scene.there(Connection(1))
    await scene.hold(scene.one, ends=(Connection(1),))
    waiting = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    line.alive = False
    with pytest.raises(Held):
        await scene.trylock(scene.one, requester=ROOT)
    await scene.settle()
    assert waiting.holds == scene.holds


async def test_who_waits_is_not_held_up_by_a_call_that_fails(scene: Scene, nursery: trio.Nursery) -> None:
    """That finds the dead holder, and fails of something else: in between nothing of it is in anybody's way."""
    line = scene.there(Connection(1))
    await scene.hold(scene.two, ends=(Connection(1),))
    await scene.hold(scene.three)
    waiting = await scene.begin(nursery, scene.one, scene.two, timeout=FOR_EVER)
    line.alive = False
    with pytest.raises(Held):
        await scene.trylock(scene.one, scene.two, scene.three, requester=ROOT)
    await scene.settle()
    assert served(waiting) == [True]


async def test_the_dead_are_dropped_one_after_the_other_while_others_are_served(
    scene: Scene, nursery: trio.Nursery
) -> None:
    """Serving one finds the next dead holder, whose end serves the next."""
    lines = []
    for number, inode in enumerate((scene.one, scene.two, scene.three)):
        lines.append(scene.there(Connection(number)))
        await scene.hold(inode, ends=(Connection(number),), requester=ROOT)
    calls = [
        await scene.begin(nursery, *inodes, timeout=FOR_EVER)
        for inodes in ((scene.one, scene.two), (scene.three, scene.leaf), (scene.middle, scene.three))
    ]
    for line in lines:
        line.alive = False
    await scene.keeper.end(Connection(0))
    assert scene.told.count("reaped") == 1
    scene.verdict(scene.three)
    await scene.settle()
    assert served(*calls) == [True, True, False]
    assert scene.told.count("reaped") == 2
    assert scene.told.count("unlocked") == 1
    nursery.cancel_scope.cancel()


async def test_a_dead_one_that_is_dropped_twice_over_is_told_once(scene: Scene, nursery: trio.Nursery) -> None:
    """The verdict drops two; the end of the first serves a call that meets the second."""
    for number in (1, 2):
        scene.there(Connection(number))
    await scene.hold(scene.leaf, ends=(Connection(1),))
    await scene.hold(scene.leaf, flags=SHARED, ends=(Connection(2),))
    await scene.hold(scene.middle, flags=Flags.EXCL_SUBTREE | Flags.NO_REMOVE_BELOW, ends=(Connection(2),))
    call = await scene.begin(nursery, scene.top, flags=SUBTREE, requester=ROOT, timeout=FOR_EVER)
    scene.keeper.present.clear()
    assert scene.verdict(scene.leaf, parent=scene.middle) == ()
    await scene.settle()
    assert call.holds == scene.holds
    assert scene.told.count("reaped") == 3


async def test_who_waited_and_is_dead_is_in_nobodys_way_either(scene: Scene, nursery: trio.Nursery) -> None:
    """The end of the dead holder serves one that has died meanwhile, before anybody has noticed."""
    lines = [scene.there(Connection(number)) for number in (1, 2)]
    await scene.hold(scene.one, ends=(Connection(1),))
    dead = await scene.begin(nursery, scene.one, ends=(Connection(2),), timeout=FOR_EVER)
    for line in lines:
        line.alive = False
    hold = await scene.hold(scene.one, requester=ROOT)
    await scene.settle()
    assert scene.holds == (hold,)
    assert isinstance(dead.error, NoSuchHold)
    assert scene.told == ["locked", "reaped", "reaped", "locked"]


async def test_whom_a_dead_holder_kept_out_is_not_forgotten_while_others_are_served(
    scene: Scene, nursery: trio.Nursery
) -> None:
    """To serve the second, a dead holder's claim is dropped that kept out the first."""
    line = scene.there(Connection(1))
    await scene.hold(scene.leaf, ends=(Connection(1),))
    other = scene.tree.add("other/")
    held = await scene.hold(other, requester=ROOT)
    first = await scene.begin(nursery, scene.leaf, timeout=FOR_EVER)
    second = await scene.begin(nursery, other, scene.top, flags=SUBTREE, requester=ALICE_AGAIN, timeout=FOR_EVER)
    line.alive = False
    await scene.unlock(held, requester=ROOT)
    assert served(first, second) == [False, True]
    assert second.holds is not None
    await scene.unlock(*second.holds)
    assert served(first) == [True]


# --- and the words ----------------------------------------------------------------------------------------------------


async def test_who_is_served_waits_for_a_removal_in_flight_like_anybody(scene: Scene, nursery: trio.Nursery) -> None:
    held: Hold = await scene.hold(scene.one, flags=Flags.EXCL_INUSE, requester=ROOT)
    call = await scene.begin(nursery, scene.one, timeout=FOR_EVER)
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    await scene.unlock(held, requester=ROOT)
    assert call.waits
    assert scene.verdict(scene.one)
    removal.set()
    await scene.settle()
    assert scene.words() == {scene.one: DEFAULT.value}
