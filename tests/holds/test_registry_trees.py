"""Holds that reach beyond their inode: claims above and below one another, names below, and the path above."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from exclfs.holds.errors import Held
from exclfs.holds.flags import DEFAULT, PINNED, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import StateFile, Unmount
from exclfs.holds.registry import Registry

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ROOT, TOP, MIDDLE, LEAF, ASIDE = (Inode(7, number) for number in range(1, 6))
"""/, /top, /top/middle, /top/middle/leaf, /aside."""
ABOVE = {ROOT: (), TOP: (ROOT,), MIDDLE: (TOP, ROOT), LEAF: (MIDDLE, TOP, ROOT), ASIDE: (ROOT,)}
PROCESS = Process(pid=10, uid=1000, start_time=5)
BUILD = Holder("build", PROCESS)
CLEANER = Holder("cleaner", Process(pid=11, uid=1001, start_time=6))
SUBTREE, BELOW, PIN = Flags.EXCL_SUBTREE, Flags.NO_REMOVE_BELOW, Flags.PIN_PATH


def place(registry: Registry, inode: Inode, flags: Flags, holder: Holder = BUILD) -> Hold:
    """As the keeper does: the directories above, and which claims lie below, are found by who knows the tree."""
    below = [other for other in registry.may_lie_below(flags) if inode in ABOVE[other]]
    return registry.trylock(
        inode,
        path="/p",
        flags=flags,
        holder=holder,
        reason="",
        since=NOON + timedelta(seconds=len(registry)),
        ends=(Unmount(),),
        above=ABOVE[inode] if registry.needs_above(flags) else (),
        below=below,
    )


# --- claims on a subtree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [Flags.EXCL_INUSE, Flags.KERNEL_FILE, SUBTREE])
@pytest.mark.parametrize(("first", "second"), [(TOP, LEAF), (LEAF, TOP), (TOP, MIDDLE), (ROOT, LEAF), (LEAF, ROOT)])
def test_a_claim_on_a_subtree_keeps_out_others_above_and_below(claim: Flags, first: Inode, second: Inode) -> None:
    for flags in ((SUBTREE, claim), (claim, SUBTREE)):
        registry = Registry()
        held = place(registry, first, flags[0])
        with pytest.raises(Held) as caught:
            place(registry, second, flags[1], CLEANER)
        assert caught.value.hold is held


def test_claims_on_single_inodes_stand_above_and_below_one_another() -> None:
    registry = Registry()
    for inode, claim in ((TOP, Flags.EXCL_INUSE), (LEAF, Flags.EXCL_INUSE), (MIDDLE, Flags.KERNEL_FILE)):
        place(registry, inode, claim)


def test_a_claim_on_a_subtree_leaves_what_is_beside_it() -> None:
    registry = Registry()
    place(registry, MIDDLE, SUBTREE)
    place(registry, ASIDE, SUBTREE, CLEANER)
    place(registry, LEAF, Flags.NO_REMOVE, CLEANER)


def test_a_holder_is_not_kept_out_by_its_own_claim_above_or_below() -> None:
    registry = Registry()
    place(registry, MIDDLE, SUBTREE)
    place(registry, LEAF, DEFAULT)
    place(registry, TOP, SUBTREE)
    with pytest.raises(Held):
        place(registry, MIDDLE, Flags.EXCL_INUSE)


@pytest.mark.parametrize(
    "other",
    [
        Holder("another name", PROCESS),
        Holder("build", Process(pid=12, uid=1000, start_time=5)),
        Holder("build", Process(pid=10, uid=1000, start_time=6)),
        Holder("build", Process(pid=10, uid=1001, start_time=5)),
    ],
)
def test_a_holder_is_a_name_and_a_process(other: Holder) -> None:
    registry = Registry()
    place(registry, TOP, SUBTREE)
    with pytest.raises(Held):
        place(registry, LEAF, DEFAULT, other)


def test_of_several_claims_in_the_way_the_nearest_is_named() -> None:
    registry = Registry()
    place(registry, ROOT, SUBTREE)
    near = place(registry, MIDDLE, SUBTREE)
    with pytest.raises(Held) as caught:
        place(registry, LEAF, DEFAULT, CLEANER)
    assert caught.value.hold is near
    own = place(registry, LEAF, DEFAULT)
    with pytest.raises(Held) as caught:
        place(registry, LEAF, DEFAULT, CLEANER)
    assert caught.value.hold is own


def test_an_ended_claim_on_a_subtree_keeps_nobody_out() -> None:
    registry = Registry()
    held = place(registry, TOP, SUBTREE)
    registry.unlock(held.id)
    place(registry, LEAF, SUBTREE, CLEANER)


@pytest.mark.parametrize(
    ("standing", "wanted", "needs", "asks_below"),
    [
        (None, DEFAULT, False, False),
        (None, SUBTREE, False, False),
        (None, PIN, True, False),
        (None, BELOW, False, False),
        (DEFAULT, DEFAULT, False, False),
        (DEFAULT, SUBTREE, True, True),
        (DEFAULT, Flags.NO_REMOVE, False, False),
        (SUBTREE, DEFAULT, True, True),
        (SUBTREE, SUBTREE, True, True),
        (SUBTREE, Flags.NO_REMOVE | BELOW, False, False),
        (BELOW, SUBTREE, False, False),
    ],
)
def test_the_tree_is_asked_for_only_where_it_matters(
    standing: Flags | None, wanted: Flags, needs: bool, asks_below: bool
) -> None:
    registry = Registry()
    if standing is not None:
        place(registry, MIDDLE, standing)
    assert registry.needs_above(wanted) is needs
    assert registry.may_lie_below(wanted) == ((MIDDLE,) if asks_below else ())


# --- names below ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", Operation)
def test_what_lies_below_is_refused_as_the_directory_itself_is(operation: Operation) -> None:
    registry = Registry()
    held = place(registry, TOP, BELOW)
    for inode in (TOP, MIDDLE, LEAF):
        assert registry.refusing(inode, operation, ABOVE[inode]) == (held,)
    for inode in (ROOT, ASIDE):
        assert registry.refusing(inode, operation, ABOVE[inode]) == ()


def test_it_is_the_name_that_lies_below_and_not_the_inode() -> None:
    """A link of the same inode elsewhere can be removed."""
    registry = Registry()
    held = place(registry, TOP, BELOW)
    assert registry.refusing(LEAF, Operation.UNLINK, (ASIDE, ROOT)) == ()
    assert registry.refusing(LEAF, Operation.UNLINK, (TOP, ROOT)) == (held,)


def test_each_that_refuses_is_told_once_and_in_order() -> None:
    registry = Registry()
    holds = (
        place(registry, TOP, BELOW),
        place(registry, LEAF, Flags.NO_REMOVE | PIN),
        place(registry, MIDDLE, BELOW, CLEANER),
    )
    assert registry.refusing(LEAF, Operation.RENAME, ABOVE[LEAF]) == holds
    assert registry.refusing(MIDDLE, Operation.RENAME, ABOVE[MIDDLE]) == holds
    assert registry.refusing(MIDDLE, Operation.RMDIR, ABOVE[MIDDLE]) == (holds[0], holds[2])


def test_the_registry_says_whether_a_verdict_needs_what_is_above() -> None:
    registry = Registry()
    place(registry, TOP, SUBTREE | PIN | Flags.NO_REMOVE)
    assert not registry.reaches_below
    held = place(registry, MIDDLE, BELOW)
    assert registry.reaches_below
    registry.unlock(held.id)
    assert not registry.reaches_below


# --- the path above ---------------------------------------------------------------------------------------------------


def test_every_directory_above_a_pin_can_be_moved_by_nobody() -> None:
    registry = Registry()
    held = place(registry, LEAF, PIN)
    for directory in (MIDDLE, TOP, ROOT):
        for operation in Operation:
            moves = operation in (Operation.RENAME, Operation.EXCHANGE, Operation.WHITEOUT)
            assert registry.refusing(directory, operation, ABOVE[directory]) == ((held,) if moves else ())
    assert all(registry.refusing(LEAF, operation) == (held,) for operation in Operation)
    assert registry.refusing(ASIDE, Operation.RENAME, ABOVE[ASIDE]) == ()


def test_a_pin_is_in_the_word_of_each_directory_above_until_the_last_one_ends() -> None:
    registry = Registry()
    first, second = place(registry, LEAF, PIN), place(registry, MIDDLE, PIN)
    assert (registry.word(LEAF), registry.word(MIDDLE)) == (PIN.value, PIN.value | PINNED)
    assert registry.word(TOP) == registry.word(ROOT) == PINNED
    assert registry.flags(TOP) == Flags(0), "no hold is on it"
    registry.unlock(first.id)
    assert (registry.word(LEAF), registry.word(MIDDLE), registry.word(TOP)) == (0, PIN.value, PINNED)
    registry.unlock(second.id)
    assert registry.word(TOP) == registry.word(ROOT) == 0


def test_a_hold_says_what_it_pins_while_it_stands() -> None:
    registry = Registry()
    pin, other = place(registry, LEAF, PIN), place(registry, MIDDLE, Flags.NO_REMOVE)
    assert registry.pinned(pin) == (MIDDLE, TOP, ROOT)
    assert registry.pinned(other) == ()
    registry.unlock(pin.id)
    assert registry.pinned(pin) == ()


def test_a_pin_comes_back_with_the_directories_that_are_above_it_now() -> None:
    before, after = Registry(), Registry()
    held = before.trylock(
        LEAF, path="/p", flags=PIN, holder=BUILD, reason="", since=NOON, ends=(StateFile(),), above=ABOVE[LEAF]
    )
    after.restore(held, (ASIDE, ROOT))
    assert after.pinned(held) == (ASIDE, ROOT)
    assert after.refusing(ASIDE, Operation.RENAME) == (held,)
    assert after.word(MIDDLE) == 0


# --- all that covers --------------------------------------------------------------------------------------------------


def test_covering_is_what_says_something_about_an_inode() -> None:
    registry = Registry()
    subtree = place(registry, TOP, SUBTREE)
    below = place(registry, MIDDLE, BELOW)
    pin = place(registry, LEAF, PIN)
    aside = place(registry, ASIDE, DEFAULT, CLEANER)
    plain = place(registry, MIDDLE, DEFAULT)
    expected = {
        ROOT: (pin,),
        TOP: (subtree, pin),
        MIDDLE: (subtree, below, pin, plain),
        LEAF: (subtree, below, pin),
        ASIDE: (aside,),
    }
    for inode, holds in expected.items():
        assert registry.covering(inode, ABOVE[inode]) == holds


@pytest.mark.parametrize("flags", [DEFAULT, SUBTREE | BELOW, SUBTREE | PIN | DEFAULT, BELOW | PIN])
def test_whatever_a_hold_reached_nothing_is_left_of_it(flags: Flags) -> None:
    registry, fresh = Registry(), Registry()
    registry.unlock(place(registry, MIDDLE, flags).id)
    for inode, above in ABOVE.items():
        assert registry.word(inode) == 0
        assert registry.covering(inode, above) == ()
        assert registry.conflict(inode, SUBTREE, CLEANER, above, ABOVE) is None
    for wanted in Flags:
        assert registry.needs_above(wanted) == fresh.needs_above(wanted)
        assert registry.may_lie_below(wanted) == ()
