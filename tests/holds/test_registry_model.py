"""The registry as a state machine: whatever is placed, renewed and ended, in whatever order, it and a plain list of
holds in a plain tree agree on every answer. The list asks every hold; the registry looks into its indexes."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from exclfs.holds.errors import Held, NoSuchHold
from exclfs.holds.flags import CLAIMS, PINNED, REFUSES, Flags, Operation, Place
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, End, Exit, Time, Unmount
from exclfs.holds.registry import Registry

NOON: Final = datetime(2026, 11, 22, 12, tzinfo=UTC)
PARENTS: Final = {1: None, 2: 1, 3: 2, 4: 3, 5: 2, 6: 1}
"""A tree of six directories: the number of each, and of the one above it."""
TREE: Final = {number: Inode(7, number, nodeid) for nodeid, number in enumerate(PARENTS, 10)}
HOLDERS: Final = (
    Holder("build", Process(pid=10, uid=1000, start_time=5)),
    Holder("build", Process(pid=10, uid=1000, start_time=6)),
    Holder("cleaner", Process(pid=11, uid=1001, start_time=6)),
)
PROCESS_ENDS: Final = (Connection(1), Connection(2), Exit(10, 5, "b"), Exit(10, 6, "b"))

FLAGS = st.sets(st.sampled_from(list(Flags)), min_size=1).map(lambda chosen: Flags(sum(flag.value for flag in chosen)))
TIMES = st.integers(1, 9).map(lambda hours: Time(NOON + timedelta(hours=hours), hours * 3600.0))
ENDS = st.lists(
    st.just(Unmount()) | st.sampled_from(PROCESS_ENDS) | TIMES,
    min_size=1,
    max_size=3,
    unique_by=(lambda end: end, type),
).map(tuple)


def above(inode: Inode) -> tuple[Inode, ...]:
    found = []
    number = PARENTS[inode.ino]
    while number is not None:
        found.append(TREE[number])
        number = PARENTS[number]
    return tuple(found)


def place_of(inode: Inode, seen_from: Inode) -> Place | None:
    if inode == seen_from:
        return Place.HERE
    if seen_from in above(inode):
        return Place.BELOW
    return Place.ABOVE if inode in above(seen_from) else None


def keeps_out(held: Hold, inode: Inode, flags: Flags, holder: Holder) -> bool:
    place = place_of(inode, held.inode)
    if place is None or not held.flags & CLAIMS or not flags & CLAIMS:
        return False
    if place is Place.HERE:
        return True
    return bool(Flags.EXCL_SUBTREE in held.flags | flags and not held.holder.is_same(holder))


def refuses(held: Hold, inode: Inode, operation: Operation) -> bool:
    place = place_of(inode, held.inode)
    return place is not None and any(operation in REFUSES[place].get(flag, ()) for flag in held.flags)


def pins(held: Hold, inode: Inode) -> bool:
    return Flags.PIN_PATH in held.flags and place_of(inode, held.inode) is Place.ABOVE


def covers(held: Hold, inode: Inode) -> bool:
    place = place_of(inode, held.inode)
    reaches = place is Place.BELOW and held.flags & (Flags.NO_REMOVE_BELOW | Flags.EXCL_SUBTREE)
    return place is Place.HERE or pins(held, inode) or bool(reaches)


class RegistryAgainstAList(RuleBasedStateMachine):
    ids = Bundle("ids")
    dead = Bundle("dead")

    def __init__(self) -> None:
        super().__init__()
        numbers = itertools.count()
        self.new_id = lambda: f"h{next(numbers)}"
        self.registry = Registry(self.new_id)
        self.model: dict[str, Hold] = {}
        self.clock = NOON

    @property
    def holds(self) -> tuple[Hold, ...]:
        return tuple(self.model.values())

    @rule(
        target=ids,
        inode=st.sampled_from(list(TREE.values())),
        flags=FLAGS,
        holder=st.sampled_from(HOLDERS),
        ends=ENDS,
    )
    def trylock(self, inode: Inode, flags: Flags, holder: Holder, ends: tuple[End, ...]) -> object:
        self.clock += timedelta(seconds=1)
        in_the_way = [hold for hold in self.holds if keeps_out(hold, inode, flags, holder)]

        def trylock() -> Hold:
            return self.registry.trylock(
                inode,
                path="/p",
                flags=flags,
                holder=holder,
                reason="",
                since=self.clock,
                ends=ends,
                above=above(inode) if self.registry.needs_above(flags) else (),
                below=[other for other in self.registry.may_lie_below(flags) if inode in above(other)],
            )

        if in_the_way:
            with pytest.raises(Held) as caught:
                trylock()
            assert caught.value.hold in in_the_way
            return multiple()
        hold = trylock()
        assert hold == Hold(hold.id, inode, "/p", flags, holder, "", self.clock, ends)
        assert hold.id not in self.model
        self.model[hold.id] = hold
        return hold.id

    @rule(id=ids, until=TIMES)
    def renew(self, id: str, until: Time) -> None:
        before = self.model[id]
        kept = tuple(end for end in before.ends if not isinstance(end, Time))
        self.model[id] = self.registry.renew(id, until)
        assert self.model[id] == evolve(before, ends=(*kept, until))

    @rule(target=dead, id=consumes(ids))
    def unlock(self, id: str) -> str:
        assert self.registry.unlock(id) == self.model.pop(id)
        return id

    @rule(id=dead, until=TIMES)
    def neither_ends_nor_lasts_what_is_gone(self, id: str, until: Time) -> None:
        with pytest.raises(NoSuchHold):
            self.registry.unlock(id)
        with pytest.raises(NoSuchHold):
            self.registry.renew(id, until)

    @rule()
    def comes_back_after_a_restart(self) -> None:
        before, self.registry = self.registry, Registry(self.new_id)
        for hold in before.all():
            self.registry.restore(hold, above(hold.inode))

    @invariant()
    def the_holds_are_the_same_in_the_same_order(self) -> None:
        assert self.registry.all() == self.holds
        assert len(self.registry) == len(self.model)
        for hold in self.holds:
            assert self.registry.get(hold.id) is hold
            assert self.registry.pinned(hold) == (above(hold.inode) if Flags.PIN_PATH in hold.flags else ())
        assert self.registry.reaches_below == any(Flags.NO_REMOVE_BELOW in hold.flags for hold in self.holds)

    @invariant()
    def every_inode_answers_the_same(self) -> None:
        for inode in TREE.values():
            on = tuple(hold for hold in self.holds if hold.inode == inode)
            assert self.registry.on(inode) == on
            assert len([hold for hold in on if hold.flags & CLAIMS]) <= 1
            bits = sum(flag.value for flag in Flags if any(flag in hold.flags for hold in on))
            assert self.registry.flags(inode).value == bits
            assert self.registry.word(inode) == bits | (PINNED if any(pins(hold, inode) for hold in self.holds) else 0)
            covering = tuple(hold for hold in self.holds if covers(hold, inode))
            assert self.registry.covering(inode, above(inode)) == covering
            for operation in Operation:
                refusing = tuple(hold for hold in self.holds if refuses(hold, inode, operation))
                assert self.registry.refusing(inode, operation, above(inode)) == refusing

    @invariant()
    def every_end_and_every_user_has_its_own(self) -> None:
        for end in PROCESS_ENDS:
            assert self.registry.ending_with(end) == tuple(hold for hold in self.holds if end in hold.ends)
        for uid in (1000, 1001, 1002):
            assert self.registry.number_of(uid) == len([hold for hold in self.holds if hold.holder.process.uid == uid])


RegistryAgainstAList.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRegistryAgainstAList = RegistryAgainstAList.TestCase
