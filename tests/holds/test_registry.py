"""The registry by example: what is placed, kept out, found, refused and ended. Pinned and covered subtrees are in
test_registry_trees.py, and every order of everything in test_registry_model.py."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from exclfs.holds.errors import Held, NoSuchHold
from exclfs.holds.flags import DEFAULT, NOTHING, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Close, Connection, End, Exit, StateFile, Time, Unmount
from exclfs.holds.registry import Registry

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
FILE = Inode(dev=7, ino=100)
DIRECTORY = Inode(dev=7, ino=101)
BUILD = Holder("build", Process(pid=10, uid=1000, start_time=5))
CLEANER = Holder("cleaner", Process(pid=11, uid=1001, start_time=6))
ALWAYS = (Unmount(),)
PROCESS = Exit(pid=10, start_time=5, boot="b")


def place(
    registry: Registry,
    inode: Inode = FILE,
    *,
    flags: Flags = DEFAULT,
    holder: Holder = BUILD,
    ends: tuple[End, ...] = ALWAYS,
    since: datetime = NOON,
) -> Hold:
    return registry.trylock(inode, path="/f", flags=flags, holder=holder, reason="for a test", since=since, ends=ends)


def until(hour: int) -> Time:
    return Time(at=NOON.replace(hour=hour), deadline=hour * 3600.0)


# --- placing ----------------------------------------------------------------------------------------------------------


def test_a_hold_says_what_it_was_placed_with() -> None:
    registry = Registry()
    hold = registry.trylock(
        FILE, path="/cache/f", flags=DEFAULT, holder=BUILD, reason="linking", since=NOON, ends=(Connection(3),)
    )
    assert hold == Hold("h1", FILE, "/cache/f", DEFAULT, BUILD, "linking", NOON, (Connection(3),))
    assert registry.get("h1") is hold
    assert registry.all() == registry.on(FILE) == registry.ending_with(Connection(3)) == (hold,)
    assert registry.number_of(1000) == len(registry) == 1


def test_a_second_claim_is_told_who_has_the_first() -> None:
    registry = Registry()
    first = place(registry)
    with pytest.raises(Held) as caught:
        place(registry, flags=Flags.KERNEL_FILE, holder=CLEANER)
    assert caught.value.hold is first
    assert registry.all() == (first,)
    assert registry.word(FILE) == DEFAULT.value


def test_a_holder_does_not_get_its_own_claim_twice() -> None:
    registry = Registry()
    first = place(registry)
    with pytest.raises(Held) as caught:
        place(registry)
    assert caught.value.hold is first


def test_a_holder_may_keep_from_removal_what_it_claims_and_as_often_as_it_likes() -> None:
    registry = Registry()
    place(registry)
    for number in range(2, 5):
        place(registry, flags=Flags.NO_REMOVE)
        assert len(registry.on(FILE)) == number


def test_a_conflict_names_the_claim_and_not_a_hold_beside_it() -> None:
    registry = Registry()
    place(registry, flags=Flags.NO_REMOVE)
    claim = place(registry, flags=Flags.EXCL_INUSE)
    place(registry, flags=Flags.NO_REMOVE)
    with pytest.raises(Held) as caught:
        place(registry)
    assert caught.value.hold is claim


def test_who_asks_about_a_conflict_places_nothing() -> None:
    registry = Registry()
    claim = place(registry)
    assert registry.conflict(FILE, DEFAULT, CLEANER) is claim
    assert registry.conflict(FILE, Flags.NO_REMOVE, CLEANER) is None
    assert registry.conflict(DIRECTORY, DEFAULT, CLEANER) is None
    assert registry.all() == (claim,)


def test_any_number_of_holders_keep_it_from_removal_and_the_last_lets_go() -> None:
    registry = Registry()
    holds = [place(registry, flags=Flags.NO_REMOVE) for _ in range(5)]
    for hold in holds:
        assert registry.word(FILE) == Flags.NO_REMOVE.value
        registry.unlock(hold.id)
    assert registry.word(FILE) == 0
    assert registry.flags(FILE) == NOTHING
    assert registry.refusing(FILE, Operation.UNLINK) == ()


def test_the_word_has_the_flags_of_all_holds_together() -> None:
    registry = Registry()
    place(registry, DIRECTORY, flags=Flags.KERNEL_FILE)
    kept = place(registry, DIRECTORY, flags=Flags.NO_REMOVE_BELOW)
    assert registry.flags(DIRECTORY) == Flags.KERNEL_FILE | Flags.NO_REMOVE_BELOW
    assert registry.word(DIRECTORY) == 4 | 16
    registry.unlock(kept.id)
    assert registry.word(DIRECTORY) == 4


def test_refusing_are_only_those_that_refuse_this_operation() -> None:
    registry = Registry()
    kernel = place(registry, DIRECTORY, flags=Flags.KERNEL_FILE)
    assert registry.refusing(DIRECTORY, Operation.RENAME) == ()
    keep = place(registry, DIRECTORY, flags=Flags.NO_REMOVE)
    assert registry.refusing(DIRECTORY, Operation.RENAME) == (keep,)
    assert registry.refusing(DIRECTORY, Operation.RMDIR) == (kernel, keep)
    assert registry.refusing(FILE, Operation.RMDIR) == ()


def test_who_refuses_is_told_oldest_first_whenever_it_entered_the_registry() -> None:
    registry = Registry()
    young = place(registry, flags=Flags.NO_REMOVE, since=NOON + timedelta(seconds=2))
    old = place(registry, flags=Flags.NO_REMOVE, since=NOON)
    assert registry.refusing(FILE, Operation.UNLINK) == registry.covering(FILE) == (old, young)


def test_two_nodeids_of_one_number_are_two_inodes() -> None:
    registry = Registry()
    place(registry, Inode(7, 100, nodeid=1))
    assert registry.on(Inode(7, 100, nodeid=2)) == ()
    place(registry, Inode(7, 100, nodeid=2))


def test_ids_come_from_the_factory_and_must_not_repeat() -> None:
    registry = Registry(new_id=lambda: "same")
    first = place(registry)
    assert first.id == "same"
    with pytest.raises(ValueError, match="same"):
        place(registry, DIRECTORY)
    assert registry.all() == (first,)
    assert registry.on(DIRECTORY) == ()


# --- ending -----------------------------------------------------------------------------------------------------------


def test_what_was_released_can_be_claimed_and_not_released_again() -> None:
    registry = Registry()
    first = place(registry)
    assert registry.unlock(first.id) is first
    for ask in (registry.unlock, registry.get):
        with pytest.raises(NoSuchHold) as caught:
            ask(first.id)
        assert caught.value.id == first.id
    with pytest.raises(NoSuchHold):
        registry.renew(first.id, until(13))
    assert place(registry).id != first.id


def test_a_hold_with_several_ends_is_found_by_each_and_goes_with_the_first() -> None:
    registry = Registry()
    hold = place(registry, ends=(Connection(1), PROCESS, until(13), Unmount()))
    other = place(registry, DIRECTORY, ends=(Connection(2), PROCESS))
    assert registry.ending_with(Connection(1)) == (hold,)
    assert registry.ending_with(PROCESS) == (hold, other)
    registry.unlock(hold.id)
    assert registry.ending_with(Connection(1)) == ()
    assert registry.ending_with(PROCESS) == (other,)


def test_a_process_is_not_its_pid_alone() -> None:
    registry = Registry()
    hold = place(registry, ends=(PROCESS,))
    for other in (evolve(PROCESS, start_time=6), evolve(PROCESS, boot="c"), evolve(PROCESS, pid=11)):
        assert registry.ending_with(other) == ()
    assert registry.ending_with(Exit(10, 5, "b")) == (hold,)


def test_holds_are_counted_by_the_user_of_the_process_that_placed_them() -> None:
    registry = Registry()
    first = place(registry)
    place(registry, DIRECTORY, holder=Holder("another name", BUILD.process))
    place(registry, Inode(7, 102), holder=CLEANER)
    assert (registry.number_of(1000), registry.number_of(1001), registry.number_of(0)) == (2, 1, 0)
    registry.unlock(first.id)
    assert registry.number_of(1000) == 1


# --- renewing ---------------------------------------------------------------------------------------------------------


def test_a_renewed_hold_is_the_same_but_for_its_time() -> None:
    registry = Registry()
    before = place(registry, DIRECTORY, ends=(Connection(1), until(13)))
    after = registry.renew(before.id, until(14))
    assert after == evolve(before, ends=(Connection(1), until(14)))
    assert before.ends == (Connection(1), until(13)), "a hold is never changed"
    assert registry.get(before.id) is after
    assert registry.all() == registry.on(DIRECTORY) == registry.ending_with(Connection(1)) == (after,)
    assert registry.unlock(before.id) is after
    assert registry.number_of(1000) == len(registry) == 0


def test_a_renewed_hold_keeps_its_place_among_the_others() -> None:
    registry = Registry()
    holds = [place(registry, flags=Flags.NO_REMOVE, ends=(PROCESS, until(13))) for _ in range(3)]
    registry.renew(holds[0].id, until(14))
    ids = [hold.id for hold in holds]
    for found in (registry.all(), registry.on(FILE), registry.ending_with(PROCESS), registry.covering(FILE)):
        assert [hold.id for hold in found] == ids


@pytest.mark.parametrize("flags", Flags)
def test_every_flag_of_a_renewed_hold_answers_as_before_and_ends_with_it(flags: Flags) -> None:
    registry = Registry()
    root = Inode(7, 1)
    hold = registry.trylock(
        DIRECTORY, path="/d", flags=flags, holder=BUILD, reason="", since=NOON, ends=(until(13),), above=(root,)
    )
    renewed = registry.renew(hold.id, until(14))
    assert registry.covering(DIRECTORY, (root,)) == (renewed,)
    assert registry.conflict(DIRECTORY, Flags.EXCL_SUBTREE, CLEANER, (root,)) in (renewed, None)
    registry.unlock(hold.id)
    assert registry.covering(DIRECTORY, (root,)) == registry.covering(root) == ()
    assert registry.conflict(DIRECTORY, Flags.EXCL_SUBTREE, CLEANER, (root,)) is None
    assert (registry.word(DIRECTORY), registry.word(root), registry.reaches_below) == (0, 0, False)


def test_a_time_may_come_to_a_hold_that_had_none() -> None:
    """Who may do so is not for the registry to say."""
    registry = Registry()
    hold = place(registry, ends=(StateFile(),))
    assert registry.renew(hold.id, until(13)).ends == (StateFile(), until(13))


# --- what there was before --------------------------------------------------------------------------------------------


def test_a_restored_hold_is_one_like_any_other() -> None:
    first, second = Registry(), Registry()
    kept = place(first, ends=(StateFile(), PROCESS))
    second.restore(kept)
    assert second.get(kept.id) is kept
    assert second.on(FILE) == second.ending_with(PROCESS) == (kept,)
    assert second.refusing(FILE, Operation.UNLINK) == (kept,)
    with pytest.raises(Held) as caught:
        second.trylock(FILE, path="/f", flags=DEFAULT, holder=CLEANER, reason="", since=NOON, ends=ALWAYS)
    assert caught.value.hold is kept
    assert second.unlock(kept.id) is kept
    assert second.word(FILE) == 0


def test_what_is_restored_is_not_asked_about_its_conflicts_again() -> None:
    """In mode warn two claims may stand; they come back as they were."""
    registry = Registry()
    holds = [
        Hold(number, FILE, "/f", Flags.EXCL_INUSE, holder, "", NOON, (StateFile(),))
        for number, holder in (("p1", BUILD), ("p2", CLEANER))
    ]
    for hold in holds:
        registry.restore(hold)
    assert registry.on(FILE) == tuple(holds)
    assert registry.conflict(FILE, DEFAULT, BUILD) == holds[0]


def test_an_id_is_not_restored_twice() -> None:
    registry = Registry()
    hold = place(registry)
    with pytest.raises(ValueError, match="h1"):
        registry.restore(hold)
    assert registry.all() == (hold,)


def test_an_open_file_can_be_a_hold() -> None:
    registry = Registry()
    opened = Hold("open-5-100", FILE, "/f", Flags.NO_REMOVE, CLEANER, "opened by pid 11 (cleaner)", NOON, (Close(),))
    registry.restore(opened)
    assert registry.refusing(FILE, Operation.UNLINK) == (opened,)
    assert registry.conflict(FILE, DEFAULT, BUILD) is None


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_a_question_about_one_inode_costs_the_same_beside_many_others() -> None:
    """Counted in calls, not in time: the steps that Python takes must not depend on the holds elsewhere."""
    root = Inode(7, 1)

    def steps(others: int) -> Counter[str]:
        registry = Registry()
        for number in range(others):
            inode = Inode(8, number)
            flags = (DEFAULT, DEFAULT | Flags.PIN_PATH, Flags.NO_REMOVE_BELOW)[number % 3]
            registry.trylock(
                inode, path="/o", flags=flags, holder=CLEANER, reason="", since=NOON, ends=(PROCESS,), above=(root,)
            )
        mine = place(registry, ends=(Connection(2), until(13)))
        seen: Counter[str] = Counter()

        def count(frame: object, event: str, _: object) -> None:
            seen[event] += 1

        sys.setprofile(count)
        try:
            registry.word(FILE)
            registry.refusing(FILE, Operation.UNLINK, (DIRECTORY,))
            registry.covering(FILE, (DIRECTORY,))
            registry.conflict(FILE, DEFAULT, CLEANER)
            registry.ending_with(Connection(2))
            registry.renew(mine.id, until(14))
            registry.unlock(mine.id)
        finally:
            sys.setprofile(None)
        return seen

    assert steps(others=0) == steps(others=600)
