"""Times: a hold ends when its time is over and never before, by a clock that nobody can set."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import ALICE, ALICE_AGAIN, BOB, OWNER, ROOT, Scene

from exclfs.holds.errors import BadHold, NoSuchHold, NotPermitted
from exclfs.holds.flags import Flags
from exclfs.holds.hold import Hold
from exclfs.holds.holder import Process
from exclfs.holds.lifetime import Connection, Time, Unmount
from exclfs.holds.limits import Limits
from exclfs.holds.registry import Registry
from exclfs.keeper.deadlines import SLACK, Deadlines, time_of

SHARED = Flags.NO_REMOVE


async def hold_for(scene: Scene, seconds: float, requester: Process = ALICE) -> Hold:
    until = scene.keeper.until(seconds, requester)
    return await scene.hold(scene.one, flags=SHARED, requester=requester, ends=(until, Unmount()))


# --- expiring ---------------------------------------------------------------------------------------------------------


async def test_a_hold_ends_when_its_time_is_over_and_not_before(scene: Scene) -> None:
    hold = await hold_for(scene, 10)
    scene.boottime += 9.999
    assert await scene.keeper.expire() == pytest.approx(0.001)
    assert scene.verdict(scene.one) == (hold,)
    scene.boottime += 0.001
    assert await scene.keeper.expire() is None
    assert scene.told[-1] == "expired"
    scene.must_be_as_if_nothing_had_happened()


async def test_nothing_is_refused_for_a_time_that_is_over_though_nobody_has_noticed(scene: Scene) -> None:
    await hold_for(scene, 10)
    scene.boottime += 10
    assert scene.verdict(scene.one) == ()
    assert scene.told == ["locked", "expired"]


async def test_a_claim_whose_time_is_over_is_in_nobodys_way(scene: Scene) -> None:
    await scene.hold(scene.one, ends=(scene.keeper.until(10, ALICE),))
    scene.boottime += 10
    second = await scene.hold(scene.one, requester=ROOT)
    assert scene.holds == (second,)


async def test_the_clock_that_decides_is_not_the_one_on_the_wall(scene: Scene) -> None:
    """On the wall hours pass, and not a second since the machine was started."""
    hold = await hold_for(scene, 10)
    (end, _) = hold.ends
    assert isinstance(end, Time)
    while (now := scene.keeper._clock.now()) < end.at + timedelta(hours=1):
        pass
    assert await scene.keeper.expire() == 10
    assert scene.verdict(scene.one) == (hold,)
    assert scene.keeper.refusals[-1].at > now


async def test_it_is_told_on_the_wall_when_a_hold_ends(scene: Scene) -> None:
    before = scene.keeper._clock.now()
    end = time_of(await hold_for(scene, 3600))
    assert end is not None
    assert before < end.at - timedelta(hours=1) < scene.keeper._clock.now()
    assert end.deadline == scene.boottime + 3600


async def test_holds_end_in_the_order_of_their_times(scene: Scene) -> None:
    holds = {seconds: await hold_for(scene, seconds) for seconds in (30, 10, 20)}
    for seconds, left in ((10, 10), (20, 10), (30, None)):
        assert await scene.keeper.expire() == 10
        scene.boottime += 10
        assert await scene.keeper.expire() == left
        assert scene.events[-1].hold is holds[seconds]  # type: ignore[attr-defined]


async def test_many_whose_time_is_over_end_while_others_have_their_turns(scene: Scene) -> None:
    until = scene.keeper.until(10, ALICE)
    await scene.trylock(*[scene.tree.add(f"file{number}") for number in range(1000)], flags=SHARED, ends=(until,))
    scene.boottime += 10
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert await scene.keeper.expire() is None
        nursery.cancel_scope.cancel()
    assert turns >= 5, "of ten that there were"
    scene.must_be_as_if_nothing_had_happened()


async def test_who_sleeps_until_the_next_time_is_woken_for_an_earlier_one(scene: Scene) -> None:
    async def is_woken_by(seconds: float) -> bool:
        changed = scene.keeper.deadlines_changed
        await hold_for(scene, seconds)
        assert changed is scene.keeper.deadlines_changed or changed.is_set()
        assert not scene.keeper.deadlines_changed.is_set()
        return changed.is_set()

    assert await is_woken_by(20)
    assert not await is_woken_by(30)
    assert await is_woken_by(10)
    changed = scene.keeper.deadlines_changed
    await scene.keeper.renew([scene.holds[1].id], 5, requester=ALICE)
    assert changed.is_set()


async def test_what_has_no_time_does_not_end_by_itself(scene: Scene) -> None:
    changed = scene.keeper.deadlines_changed
    await scene.hold(scene.one)
    scene.boottime = 1e12
    assert await scene.keeper.expire() is None
    assert scene.verdict(scene.one)
    assert not changed.is_set()


# --- renewing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [5, 10, 100])
async def test_a_renewed_hold_ends_at_its_new_time(scene: Scene, seconds: float) -> None:
    hold = await hold_for(scene, 10)
    scene.boottime += 1
    (renewed,) = await scene.keeper.renew([hold.id], seconds, requester=ALICE)
    assert scene.holds == (renewed,)
    assert (renewed.id, renewed.since) == (hold.id, hold.since)
    assert set(renewed.ends) - {time_of(renewed)} == {Unmount()}
    assert await scene.keeper.expire() == seconds
    scene.boottime += seconds
    assert await scene.keeper.expire() is None
    assert scene.told == ["locked", "expired"]


async def test_what_is_over_cannot_be_renewed_though_nobody_has_noticed(scene: Scene) -> None:
    hold = await hold_for(scene, 10)
    scene.boottime += 10
    with pytest.raises(NoSuchHold):
        await scene.keeper.renew([hold.id], 10, requester=ALICE)


@pytest.mark.parametrize("requester", [ALICE, ALICE_AGAIN, BOB, ROOT, OWNER], ids=lambda process: process.comm)
@pytest.mark.parametrize("bound", [False, True], ids=["the user's", "the process's"])
async def test_who_may_renew(scene: Scene, requester: Process, bound: bool) -> None:
    scene.there(Connection(1))
    ends = (scene.keeper.until(10, ALICE), *([Connection(1)] if bound else []))
    hold = await scene.hold(scene.one, ends=ends)
    if requester in (ALICE, ROOT) or (requester is ALICE_AGAIN and not bound):
        assert await scene.keeper.renew([hold.id], 20, requester=requester) == scene.holds
        assert await scene.keeper.expire() == 20
    else:
        with pytest.raises(NotPermitted):
            await scene.keeper.renew([hold.id], 20, requester=requester)
        assert await scene.keeper.expire() == 10


@pytest.mark.parametrize("bad", ["nobody's", "ended", "without a time", "another's", "over"])
async def test_several_are_renewed_all_or_none(scene: Scene, bad: str) -> None:
    good = [await hold_for(scene, 10) for _ in range(2)]
    over = await hold_for(scene, 1)
    ended = await hold_for(scene, 10)
    await scene.unlock(ended)
    scene.boottime += 1
    ids = {
        "nobody's": "h99",
        "ended": ended.id,
        "without a time": (await scene.hold(scene.one, flags=SHARED)).id,
        "another's": (await hold_for(scene, 10, ROOT)).id,
        "over": over.id,
    }
    before = scene.holds
    with pytest.raises((NoSuchHold, NotPermitted, BadHold)):
        await scene.keeper.renew([good[0].id, ids[bad], good[1].id], 100, requester=ALICE)
    assert scene.holds == before
    assert len(await scene.keeper.renew([hold.id for hold in (*good, *good)], 100, requester=ALICE)) == 4
    assert {time_of(hold).deadline for hold in scene.holds[:2]} == {scene.boottime + 100}  # type: ignore[union-attr]


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, -math.inf])
async def test_what_is_no_time_is_refused(scene: Scene, seconds: float) -> None:
    with pytest.raises(BadHold):
        scene.keeper.until(seconds, ROOT)
    hold = await hold_for(scene, 10)
    with pytest.raises(BadHold):
        await scene.keeper.renew([hold.id], seconds, requester=ROOT)


async def test_a_time_beyond_every_calendar_is_refused(scene: Scene) -> None:
    for seconds in (1e12, 1e300):
        with pytest.raises(BadHold, match="calendar"):
            scene.keeper.until(seconds, ROOT)


async def test_nobody_holds_for_longer_than_the_limit_but_root_and_the_owner() -> None:
    scene = Scene(limits=Limits(ttl=60))
    assert scene.keeper.until(60, ALICE)
    with pytest.raises(NotPermitted, match="60 s"):
        scene.keeper.until(60.001, ALICE)
    hold = await hold_for(scene, 10)
    with pytest.raises(NotPermitted):
        await scene.keeper.renew([hold.id], 61, requester=ALICE)
    for unlimited in (ROOT, OWNER):
        assert scene.keeper.until(1e9, unlimited)
    await scene.keeper.renew([hold.id], 61, requester=ROOT)
    assert await scene.keeper.expire() == 61


# --- however many, however often --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("place"), st.integers(1, 20)),
            st.tuples(st.just("renew"), st.integers(1, 20)),
            st.tuples(st.sampled_from(["release", "wait"]), st.integers(1, 7)),
        ),
        max_size=40,
    )
)
def test_exactly_those_end_whose_time_is_over(script: list[tuple[str, int]]) -> None:
    async def run() -> None:
        scene = Scene()
        deadlines: dict[str, float] = {}
        for number, (what, value) in enumerate(script):
            chosen = list(deadlines)[number % len(deadlines)] if deadlines else None
            match what:
                case "place":
                    deadlines[(await hold_for(scene, value)).id] = scene.boottime + value
                case "renew" if chosen:
                    await scene.keeper.renew([chosen], value, requester=ALICE)
                    deadlines[chosen] = scene.boottime + value
                case "release" if chosen:
                    await scene.keeper.unlock([chosen], requester=ALICE)
                    del deadlines[chosen]
                case "wait":
                    scene.boottime += value
            left = await scene.keeper.expire()
            deadlines = {name: deadline for name, deadline in deadlines.items() if deadline > scene.boottime}
            assert [hold.id for hold in scene.holds] == list(deadlines)
            assert left == min((deadline - scene.boottime for deadline in deadlines.values()), default=None)

    trio.run(run)


async def test_what_is_remembered_does_not_grow_with_every_renewal(scene: Scene) -> None:
    registry = Registry()
    deadlines = Deadlines(registry)
    hold = await hold_for(scene, 1e5)
    registry.restore(hold)
    deadlines.note(hold)
    for number in range(5 * SLACK):
        deadlines.note(registry.renew(hold.id, scene.keeper.time_in(1e5 + number)))
        assert len(deadlines._heap) <= SLACK + 4
    upcoming = deadlines.next()
    assert upcoming is not None
    assert upcoming[0] == scene.boottime + 1e5 + 5 * SLACK - 1
