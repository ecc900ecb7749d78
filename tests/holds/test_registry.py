"""The registry: by example, and as a state machine against a plain dictionary."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from exclfs.holds.errors import BadHold, Held, NoSuchHold
from exclfs.holds.flags import CLAIMS, DEFAULT, NOTHING, REFUSES, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, End, Unmount
from exclfs.holds.registry import Registry

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
FILE = Inode(dev=7, ino=100)
DIRECTORY = Inode(dev=7, ino=101)
BUILD = Holder("build", Process(pid=10, uid=1000))
CLEANER = Holder("cleaner", Process(pid=11, uid=1001))
ALWAYS = (Unmount(),)


def place(
    registry: Registry,
    inode: Inode = FILE,
    *,
    flags: Flags = DEFAULT,
    holder: Holder = BUILD,
    ends: tuple[End, ...] = ALWAYS,
) -> Hold:
    return registry.trylock(inode, path="/f", flags=flags, holder=holder, reason="for a test", since=NOON, ends=ends)


def test_a_hold_says_what_it_was_placed_with() -> None:
    registry = Registry()
    hold = registry.trylock(
        FILE, path="/cache/f", flags=DEFAULT, holder=BUILD, reason="linking", since=NOON, ends=(Connection(3),)
    )
    assert hold == Hold("h1", FILE, "/cache/f", DEFAULT, BUILD, "linking", NOON, (Connection(3),))
    assert registry.get("h1") is hold
    assert registry.all() == registry.on(FILE) == registry.of_connection(3) == (hold,)
    assert len(registry) == 1


def test_a_second_claim_is_told_who_has_the_first() -> None:
    registry = Registry()
    first = place(registry)
    with pytest.raises(Held) as caught:
        place(registry, flags=Flags.KERNEL_FILE, holder=CLEANER)
    assert caught.value.hold is first
    assert registry.all() == (first,)
    assert registry.word(FILE) == DEFAULT


def test_a_holder_does_not_get_its_own_claim_twice() -> None:
    registry = Registry()
    first = place(registry)
    with pytest.raises(Held) as caught:
        place(registry)
    assert caught.value.hold is first


def test_a_conflict_names_the_claim_and_not_a_hold_beside_it() -> None:
    registry = Registry()
    place(registry, flags=Flags.NO_REMOVE)
    claim = place(registry, flags=Flags.EXCL_INUSE)
    place(registry, flags=Flags.NO_REMOVE)
    with pytest.raises(Held) as caught:
        place(registry)
    assert caught.value.hold is claim


def test_any_number_of_holders_keep_it_from_removal_and_the_last_lets_go() -> None:
    registry = Registry()
    holds = [place(registry, flags=Flags.NO_REMOVE) for _ in range(5)]
    for hold in holds:
        assert registry.word(FILE) == Flags.NO_REMOVE
        registry.unlock(hold.id)
    assert registry.word(FILE) == NOTHING
    assert registry.refusing(FILE, Operation.UNLINK) == ()


def test_refusing_are_only_those_that_refuse_this_operation() -> None:
    registry = Registry()
    kernel = place(registry, DIRECTORY, flags=Flags.KERNEL_FILE)
    assert registry.refusing(DIRECTORY, Operation.RENAME) == ()
    keep = place(registry, DIRECTORY, flags=Flags.NO_REMOVE)
    assert registry.refusing(DIRECTORY, Operation.RENAME) == (keep,)
    assert registry.refusing(DIRECTORY, Operation.RMDIR) == (kernel, keep)
    assert registry.refusing(FILE, Operation.RMDIR) == ()


def test_two_nodeids_of_one_number_are_two_inodes() -> None:
    registry = Registry()
    place(registry, Inode(7, 100, nodeid=1))
    assert registry.on(Inode(7, 100, nodeid=2)) == ()
    place(registry, Inode(7, 100, nodeid=2))


def test_what_was_released_can_be_claimed_and_not_released_again() -> None:
    registry = Registry()
    first = place(registry)
    assert registry.unlock(first.id) is first
    for ask in (registry.unlock, registry.get):
        with pytest.raises(NoSuchHold) as caught:
            ask(first.id)
        assert caught.value.id == first.id
    assert place(registry).id != first.id


def test_a_hold_with_two_ends_is_found_by_its_connection_and_goes_with_the_first() -> None:
    registry = Registry()
    hold = place(registry, ends=(Connection(1), Unmount()))
    place(registry, DIRECTORY, ends=(Connection(2),))
    assert registry.of_connection(1) == (hold,)
    registry.unlock(hold.id)
    assert registry.of_connection(1) == ()


@pytest.mark.parametrize(
    ("flags", "name", "reason", "ends"),
    [
        (NOTHING, "build", "", ALWAYS),
        (DEFAULT, "", "", ALWAYS),
        (DEFAULT, "build", "r" * 1025, ALWAYS),
        (DEFAULT, "build", "", ()),
    ],
)
def test_what_is_no_hold_leaves_nothing_behind(flags: Flags, name: str, reason: str, ends: tuple[End, ...]) -> None:
    registry = Registry()
    with pytest.raises(BadHold):
        registry.trylock(
            FILE, path="/f", flags=flags, holder=Holder(name, BUILD.process), reason=reason, since=NOON, ends=ends
        )
    assert len(registry) == 0


def test_ids_come_from_the_factory_and_must_not_repeat() -> None:
    registry = Registry(new_id=lambda: "same")
    first = place(registry)
    assert first.id == "same"
    with pytest.raises(ValueError, match="same"):
        place(registry, DIRECTORY)
    assert registry.all() == (first,)
    assert registry.on(DIRECTORY) == ()


def test_a_question_about_one_inode_costs_the_same_beside_many_others() -> None:
    """Counted in calls, not in time: the steps that Python takes must not depend on the holds elsewhere."""

    def steps(others: int) -> Counter[str]:
        registry = Registry()
        for number in range(others):
            place(registry, Inode(8, number), ends=(Connection(1),))
        mine = place(registry, ends=(Connection(2),))
        seen: Counter[str] = Counter()

        def count(frame: object, event: str, _: object) -> None:
            seen[event] += 1

        sys.setprofile(count)
        try:
            registry.word(FILE)
            registry.refusing(FILE, Operation.UNLINK)
            registry.of_connection(2)
            registry.unlock(mine.id)
        finally:
            sys.setprofile(None)
        return seen

    assert steps(others=0) == steps(others=500)


INODES = st.builds(Inode, dev=st.just(7), ino=st.integers(1, 3), nodeid=st.integers(0, 1))
FLAGS = st.sets(st.sampled_from(list(Flags)), min_size=1).map(lambda chosen: Flags(sum(flag.value for flag in chosen)))
ENDS = st.lists(st.just(Unmount()) | st.builds(Connection, st.integers(1, 3)), min_size=1, max_size=3, unique=True)


class RegistryAgainstADictionary(RuleBasedStateMachine):
    """Whatever is placed and released, the registry and a dictionary of holds agree on every answer."""

    ids = Bundle("ids")
    dead = Bundle("dead")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.model: dict[str, Hold] = {}
        self.placed = 0

    @rule(target=ids, inode=INODES, flags=FLAGS, holder=st.sampled_from([BUILD, CLEANER]), ends=ENDS)
    def trylock(self, inode: Inode, flags: Flags, holder: Holder, ends: list[End]) -> object:
        self.placed += 1
        since = NOON + timedelta(seconds=self.placed)
        claims = [hold for hold in self.model.values() if hold.inode == inode and hold.flags & CLAIMS]

        def trylock() -> Hold:
            return self.registry.trylock(
                inode, path="/p", flags=flags, holder=holder, reason="", since=since, ends=tuple(ends)
            )

        if flags & CLAIMS and claims:
            with pytest.raises(Held) as caught:
                trylock()
            assert [caught.value.hold] == claims
            return multiple()
        hold = trylock()
        assert hold.id not in self.model
        assert (hold.inode, hold.flags, hold.holder, hold.since, hold.ends) == (
            inode,
            flags,
            holder,
            since,
            tuple(ends),
        )
        self.model[hold.id] = hold
        return hold.id

    @rule(target=dead, id=consumes(ids))
    def unlock(self, id: str) -> str:
        assert self.registry.unlock(id) == self.model.pop(id)
        return id

    @rule(id=dead)
    def unlock_what_is_gone(self, id: str) -> None:
        with pytest.raises(NoSuchHold):
            self.registry.unlock(id)

    @invariant()
    def the_holds_are_the_same_in_the_same_order(self) -> None:
        assert self.registry.all() == tuple(self.model.values())
        assert len(self.registry) == len(self.model)
        assert all(self.registry.get(hold.id) == hold for hold in self.model.values())

    @invariant()
    def every_inode_answers_the_same(self) -> None:
        for inode in [Inode(7, ino, nodeid) for ino in (1, 2, 3) for nodeid in (0, 1)]:
            holds = [hold for hold in self.model.values() if hold.inode == inode]
            assert self.registry.on(inode) == tuple(holds)
            assert self.registry.word(inode).value == sum(
                flag.value for flag in Flags if any(flag in hold.flags for hold in holds)
            )
            for operation in Operation:
                assert self.registry.refusing(inode, operation) == tuple(
                    hold for hold in holds if any(operation in REFUSES[flag] for flag in hold.flags)
                )
            assert len([hold for hold in holds if hold.flags & CLAIMS]) <= 1

    @invariant()
    def every_connection_has_its_own(self) -> None:
        for number in (1, 2, 3):
            assert self.registry.of_connection(number) == tuple(
                hold for hold in self.model.values() if Connection(number) in hold.ends
            )


RegistryAgainstADictionary.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRegistryAgainstADictionary = RegistryAgainstADictionary.TestCase
