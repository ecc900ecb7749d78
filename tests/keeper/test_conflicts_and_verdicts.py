"""Claims that keep one another out, removals that are refused, and holders that are gone and do neither."""

from __future__ import annotations

import itertools

import pytest
from scene import ALICE, ALICE_AGAIN, BOB, ROOT, Scene

from exclfs.holds.errors import Held, NoSuchHold
from exclfs.holds.events import LockFailed
from exclfs.holds.flags import Flags, Operation
from exclfs.holds.holder import Holder
from exclfs.holds.lifetime import Connection, Exit, Unmount

SHARED, BELOW, SUBTREE, CLAIM = Flags.NO_REMOVE, Flags.NO_REMOVE_BELOW, Flags.EXCL_SUBTREE, Flags.EXCL_INUSE


# --- conflicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [CLAIM, Flags.KERNEL_FILE, SUBTREE], ids=lambda flags: flags.name)
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["top", "middle", "leaf"], 2)))
async def test_a_claim_on_a_subtree_keeps_out_the_claims_of_others(
    scene: Scene, claim: Flags, first: str, second: str
) -> None:
    if "leaf" in (first, second):
        scene.leaf = scene.tree.add("top/middle/directory/")
    for flags in ((SUBTREE, claim), (claim, SUBTREE)):
        held = await scene.hold(getattr(scene, first), flags=flags[0])
        with pytest.raises(Held) as caught:
            await scene.trylock(getattr(scene, second), flags=flags[1], requester=ROOT)
        assert caught.value.hold == held
        assert await scene.hold(getattr(scene, second), flags=SHARED, requester=ROOT)
        own = await scene.hold(getattr(scene, second), flags=flags[1])
        assert own.flags == flags[1], "a holder is not kept out by its own claims above and below"
        await scene.unlock(*scene.holds, requester=ROOT, break_it=True)
    scene.must_be_as_if_nothing_had_happened()


async def test_the_claim_in_the_way_is_told_of_the_object_that_it_is_in_the_way_of(scene: Scene) -> None:
    held = await scene.hold(scene.top, flags=SUBTREE)
    with pytest.raises(Held):
        await scene.trylock(scene.one, scene.leaf, requester=ROOT)
    failed = scene.events[-1]
    assert isinstance(failed, LockFailed)
    assert (failed.inode, failed.path, failed.conflict) == (scene.leaf, "/mnt/top/middle/leaf", held)


async def test_what_is_moved_out_of_a_subtree_can_be_claimed(scene: Scene) -> None:
    await scene.hold(scene.middle, flags=SUBTREE)
    with pytest.raises(Held):
        await scene.trylock(scene.leaf, requester=ROOT)
    scene.tree.move(scene.leaf, "leaf")
    await scene.trylock(scene.leaf, requester=ROOT)


async def test_a_holder_has_one_claim_on_one_inode_and_any_number_of_other_holds(scene: Scene) -> None:
    first = await scene.hold(scene.one)
    with pytest.raises(Held) as caught:
        await scene.trylock(scene.one)
    assert caught.value.hold == first
    for _ in range(3):
        await scene.trylock(scene.one, flags=SHARED)
    assert len(scene.keeper.on(scene.one)) == 4


@pytest.mark.parametrize(
    "other", [Holder("other", ALICE), Holder("alice-prog", ALICE_AGAIN), Holder("alice-prog", ROOT)]
)
async def test_a_claim_above_is_ones_own_only_by_name_and_process(scene: Scene, other: Holder) -> None:
    await scene.hold(scene.top, flags=SUBTREE)
    with pytest.raises(Held):
        await scene.keeper.trylock(
            [(scene.leaf, "/mnt/leaf")],
            flags=CLAIM,
            holder=other,
            reason="",
            ends=(Unmount(),),
            requester=other.process,
        )


# --- verdicts ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_tells_both_sides(scene: Scene) -> None:
    (hold,) = await scene.trylock(scene.one)
    assert scene.verdict(scene.one) == (hold,)
    (refused,) = scene.keeper.refusals
    assert (refused.operation, refused.path, refused.inode) == (Operation.UNLINK, "/mnt/one", scene.one)
    assert (refused.requester, refused.holds, refused.enforced) == (BOB, (hold,), True)
    assert scene.told == ["locked", "refused"]


async def test_nobody_is_asked_who_removes_what_is_free(scene: Scene) -> None:
    await scene.hold(scene.two)
    verdict = scene.keeper.verdict(Operation.UNLINK, scene.one, "/mnt/one", lambda: pytest.fail("asked"))  # type: ignore[arg-type,return-value]
    assert verdict == ()


async def test_no_name_below_can_be_removed_and_it_is_told_who_says_so(scene: Scene) -> None:
    hold = await scene.hold(scene.top, flags=BELOW)
    stranger = scene.tree.add("top/middle/new")
    for inode, parent in ((stranger, scene.middle), (scene.leaf, scene.middle), (scene.middle, scene.top)):
        for operation in (Operation.UNLINK, Operation.RENAME, Operation.REPLACE):
            assert scene.verdict(inode, operation, parent=parent) == (hold,)
    assert scene.verdict(scene.top, Operation.RMDIR, parent=scene.tree.root) == (hold,)
    assert scene.words() == {scene.top: BELOW.value}


async def test_a_name_elsewhere_of_what_has_one_below_can_be_removed(scene: Scene) -> None:
    await scene.hold(scene.top, flags=BELOW)
    assert scene.verdict(scene.leaf, parent=scene.tree.root) == ()


async def test_an_own_hold_and_one_from_above_refuse_together(scene: Scene) -> None:
    above = await scene.hold(scene.middle, flags=BELOW)
    own = await scene.hold(scene.leaf)
    assert scene.verdict(scene.leaf, parent=scene.middle) == (above, own)


async def test_a_parent_that_nobody_knows_the_way_to_refuses_for_itself(scene: Scene) -> None:
    """As much as is known counts: a name in the held directory itself is in it, wherever that lies."""
    hold = await scene.hold(scene.middle, flags=BELOW)
    scene.tree.forget(scene.middle)
    assert scene.verdict(scene.leaf, parent=scene.middle) == (hold,)


async def test_what_covers_an_inode_is_known_from_above_too(scene: Scene) -> None:
    below = await scene.hold(scene.top, flags=BELOW)
    subtree = await scene.hold(scene.middle, flags=SUBTREE)
    own = await scene.hold(scene.leaf, flags=SHARED)
    assert scene.keeper.covering(scene.leaf) == (below, subtree, own)
    assert scene.keeper.covering(scene.top) == (below,)
    assert scene.keeper.on(scene.leaf) == (own,)


# --- who is gone ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [Connection(1), Exit(40, 9, "boot")], ids=["connection", "process"])
async def test_who_is_gone_refuses_nobody(scene: Scene, end: Connection | Exit) -> None:
    line = scene.there(end)
    await scene.trylock(scene.one, ends=(end,))
    assert scene.verdict(scene.one)
    line.alive = False
    assert scene.verdict(scene.one) == ()
    assert scene.told == ["locked", "refused", "reaped"]
    scene.must_be_as_if_nothing_had_happened()


async def test_of_two_holders_the_one_that_is_gone_is_not_named(scene: Scene) -> None:
    line = scene.there(Connection(1))
    await scene.hold(scene.one, flags=SHARED, ends=(Connection(1),))
    stays = await scene.hold(scene.one, flags=SHARED)
    line.alive = False
    assert scene.verdict(scene.one) == (stays,)


async def test_what_is_over_before_it_is_placed_is_not_placed(scene: Scene) -> None:
    scene.there(Connection(1)).alive = False
    for end in (Connection(1), Connection(2), Exit(40, 9, "boot")):
        with pytest.raises(NoSuchHold):
            await scene.trylock(scene.one, scene.two, ends=(Unmount(), end))
        assert "locked" not in scene.told
        scene.must_be_as_if_nothing_had_happened()


async def test_who_is_gone_has_no_claim(scene: Scene) -> None:
    line = scene.there(Connection(1))
    await scene.trylock(scene.one, ends=(Connection(1),))
    line.alive = False
    (second,) = await scene.trylock(scene.one, requester=ROOT)
    assert scene.holds == (second,)
    assert scene.told == ["locked", "reaped", "locked"]


async def test_any_number_of_the_dead_is_in_nobodys_way(scene: Scene) -> None:
    """A claim on a subtree meets them one after the other."""
    for number, inode in enumerate((scene.leaf, scene.middle, scene.tree.add("top/other"))):
        scene.there(Connection(number))
        await scene.hold(inode, ends=(Connection(number),), requester=ALICE_AGAIN)
    for line in scene.keeper.present.values():
        line.alive = False  # type: ignore[attr-defined]
    hold = await scene.hold(scene.top, flags=SUBTREE)
    assert scene.holds == (hold,)
    assert scene.words() == {scene.top: SUBTREE.value}


async def test_a_closed_connection_takes_its_holds_along(scene: Scene) -> None:
    scene.there(Connection(1))
    await scene.trylock(scene.one, scene.two, ends=(Connection(1),))
    (stays,) = await scene.trylock(scene.one, flags=SHARED)
    await scene.keeper.end(Connection(1))
    assert scene.holds == (stays,)
    assert scene.words() == {scene.one: SHARED.value}
    assert scene.told[-2:] == ["unlocked", "unlocked"]


async def test_the_end_of_one_ends_nothing_of_another(scene: Scene) -> None:
    for end in (Connection(1), Connection(2), Exit(3, 9, "boot"), Exit(3, 10, "boot")):
        scene.there(end)
        await scene.hold(scene.one, flags=SHARED, ends=(end,))
    await scene.keeper.end(Exit(3, 9, "boot"))
    assert [hold.ends[0] for hold in scene.holds] == [Connection(1), Connection(2), Exit(3, 10, "boot")]
    assert scene.told[-1] == "reaped"
