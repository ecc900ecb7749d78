"""The modes: what is enforced, what is only told, and what is neither."""

from __future__ import annotations

import math
import threading

import pytest
import trio
from scene import ALICE, ALICE_AGAIN, BOB, OWNER, ROOT, Scene

from exclfs.holds.errors import Held, NotPermitted
from exclfs.holds.events import LockFailed, ModeChanged
from exclfs.holds.flags import DEFAULT, Flags, Operation
from exclfs.holds.holder import Process
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode

SHARED, BELOW, SUBTREE = Flags.NO_REMOVE, Flags.NO_REMOVE_BELOW, Flags.EXCL_SUBTREE
LENIENT = [Mode.WARN, Mode.OFF]


async def test_a_mount_enforces_unless_it_is_told_otherwise() -> None:
    assert Scene().keeper.mode is Mode.ENFORCE
    assert Scene().tree.barriers == [True]
    assert Scene(mode=Mode.WARN).keeper.mode is Mode.WARN
    assert Scene(mode=Mode.WARN).tree.barriers == [False]


# --- removals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", Operation)
async def test_warning_records_what_it_would_have_refused(operation: Operation) -> None:
    scene = Scene(mode=Mode.WARN)
    hold = await scene.hold(scene.top, flags=SHARED | BELOW)
    assert scene.verdict(scene.top, operation) == ()
    assert scene.verdict(scene.leaf, operation, parent=scene.middle) == ()
    assert [refusal.enforced for refusal in scene.keeper.refusals] == [False, False]
    assert [refusal.holds for refusal in scene.keeper.refusals] == [(hold,), (hold,)]
    assert scene.told == ["locked", "refused", "refused"]
    assert (scene.keeper.counts["refused"], scene.keeper.counts["would_refuse"]) == (0, 2)


async def test_off_records_nothing(scene: Scene) -> None:
    scene = Scene(mode=Mode.OFF)
    await scene.hold(scene.one)
    assert scene.verdict(scene.one) == ()
    assert scene.told == ["locked"]
    assert not scene.keeper.refusals


async def test_refusals_are_counted_apart(scene: Scene) -> None:
    await scene.hold(scene.one)
    assert scene.verdict(scene.one)
    await scene.keeper.set_mode(Mode.WARN, requester=ROOT)
    assert not scene.verdict(scene.one)
    await scene.keeper.set_mode(Mode.ENFORCE, requester=ROOT)
    assert scene.verdict(scene.one)
    assert (scene.keeper.counts["refused"], scene.keeper.counts["would_refuse"]) == (2, 1)


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LENIENT)
async def test_a_claim_that_conflicts_is_none(mode: Mode) -> None:
    scene = Scene(mode=mode)
    first = await scene.hold(scene.one)
    second = await scene.hold(scene.one, requester=ROOT)
    assert (first.flags, second.flags) == (DEFAULT, SHARED)
    assert (await scene.hold(scene.one, flags=Flags.EXCL_INUSE, requester=ROOT)).flags == Flags(0)
    await scene.keeper.set_mode(Mode.ENFORCE, requester=ROOT)
    await scene.unlock(first)
    assert await scene.hold(scene.one), "what was no claim then is none now"


@pytest.mark.parametrize("mode", LENIENT)
async def test_a_claim_that_is_none_keeps_its_inode_known(mode: Mode) -> None:
    scene = Scene(mode=mode)
    first = await scene.hold(scene.one, flags=Flags.EXCL_INUSE)
    bare = await scene.hold(scene.one, flags=Flags.EXCL_INUSE, requester=ROOT)
    await scene.unlock(first)
    assert bare.flags == Flags(0)
    assert scene.tree.words[scene.one], "the mirror lets the kernel forget an inode whose word is zero"
    assert scene.keeper.verdict(Operation.UNLINK, scene.one, "/mnt/one", lambda: BOB) == ()
    assert "refused" not in scene.told
    await scene.unlock(bare, requester=ROOT)
    assert scene.tree.words[scene.one] == 0


async def test_a_claim_that_conflicts_is_told_when_warning() -> None:
    scene = Scene(mode=Mode.WARN)
    first = await scene.hold(scene.top, flags=SUBTREE)
    await scene.keeper.trylock(
        [(scene.one, "/mnt/one"), (scene.leaf, "/mnt/leaf")],
        flags=DEFAULT,
        holder=first.holder.__class__("other", BOB),
        reason="",
        ends=first.ends,
        requester=ROOT,
    )
    _, failed, *placed = scene.events
    assert isinstance(failed, LockFailed)
    assert (failed.inode, failed.path, failed.requester, failed.conflict) == (scene.leaf, "/mnt/leaf", ROOT, first)
    assert [event.name for event in placed] == ["locked", "locked"]
    assert [hold.flags for hold in scene.holds] == [SUBTREE, DEFAULT, SHARED]


async def test_off_does_not_tell_of_it() -> None:
    scene = Scene(mode=Mode.OFF)
    for _ in range(2):
        await scene.hold(scene.one)
    assert scene.told == ["locked", "locked"]


@pytest.mark.parametrize("mode", LENIENT)
async def test_the_claim_of_the_dead_does_not_conflict(mode: Mode) -> None:
    scene = Scene(mode=mode)
    line = scene.there(Connection(1))
    await scene.hold(scene.one, ends=(Connection(1),))
    line.alive = False
    hold = await scene.hold(scene.one, requester=ROOT)
    assert hold.flags == DEFAULT
    assert scene.holds == (hold,)
    assert scene.told == ["locked", "reaped", "locked"]


# --- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requester", [ROOT, OWNER, ALICE, BOB], ids=lambda process: process.comm)
async def test_only_root_and_the_owner_of_the_mount_may_switch(scene: Scene, requester: Process) -> None:
    if requester in (ROOT, OWNER):
        await scene.keeper.set_mode(Mode.OFF, requester=requester)
        assert scene.events == [ModeChanged(scene.events[0].at, Mode.ENFORCE, Mode.OFF, requester)]
        assert scene.keeper.mode is Mode.OFF
        return
    with pytest.raises(NotPermitted):
        await scene.keeper.set_mode(Mode.OFF, requester=requester)
    assert scene.keeper.mode is Mode.ENFORCE
    assert scene.told == []


async def test_what_changes_nothing_is_not_told(scene: Scene) -> None:
    await scene.keeper.set_mode(Mode.ENFORCE, requester=ROOT)
    assert scene.told == []


@pytest.mark.parametrize("mode", Mode)
async def test_a_switch_is_done_when_what_was_in_flight_has_happened(mode: Mode) -> None:
    scene = Scene(mode=Mode.WARN)
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: scene.keeper.set_mode(mode, requester=ROOT))
        await scene.settle()
        assert scene.keeper.mode is mode, "who asks from now on is treated accordingly"
        assert scene.tree.barriers == [False]
        assert scene.told == []
        removal.set()
    assert scene.tree.barriers == [False, mode is Mode.ENFORCE]


async def test_switches_are_told_in_their_order(scene: Scene) -> None:
    removal = scene.tree.in_flight[scene.one] = threading.Event()
    async with trio.open_nursery() as nursery:
        for mode in (Mode.OFF, Mode.WARN, Mode.ENFORCE):
            nursery.start_soon(lambda: scene.keeper.set_mode(mode, requester=ROOT))  # noqa: B023
            await scene.settle()
        removal.set()
    changes = [(event.before, event.after) for event in scene.events if isinstance(event, ModeChanged)]
    assert changes == [(Mode.ENFORCE, Mode.OFF), (Mode.OFF, Mode.WARN), (Mode.WARN, Mode.ENFORCE)]
    assert scene.tree.barriers[-1] is True


@pytest.mark.parametrize("mode", LENIENT)
async def test_nobody_waits_for_what_is_not_in_the_way_any_more(
    scene: Scene, nursery: trio.Nursery, mode: Mode
) -> None:
    await scene.hold(scene.one)
    calls = [await scene.begin(nursery, scene.one, requester=ALICE_AGAIN, timeout=math.inf) for _ in range(2)]
    assert [call.waits for call in calls] == [True, True]
    await scene.keeper.set_mode(mode, requester=ROOT)
    await scene.settle()
    assert [hold.flags for hold in scene.holds] == [DEFAULT, SHARED, SHARED]


async def test_from_then_on_claims_conflict_again() -> None:
    scene = Scene(mode=Mode.OFF)
    await scene.hold(scene.one)
    await scene.keeper.set_mode(Mode.ENFORCE, requester=ROOT)
    with pytest.raises(Held):
        await scene.trylock(scene.one)
