"""Whatever happens in whatever order: nobody is served before who came first, and nobody waits for nothing."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import Call, Line, Scene

from exclfs.holds.flags import Flags, Place, conflicts
from exclfs.holds.hold import Inode
from exclfs.holds.holder import Process
from exclfs.holds.lifetime import Connection

NAMES: Final = ("one", "two", "three", "top", "middle", "leaf")
FLAGS: Final = (Flags.EXCL_INUSE, Flags.EXCL_INUSE | Flags.NO_REMOVE, Flags.EXCL_SUBTREE, Flags.NO_REMOVE)
DIRECTORIES: Final = frozenset({"top", "middle"})

numbers = st.integers(0, 20)
wishes = st.tuples(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), st.sampled_from(FLAGS))
steps = st.one_of(
    st.tuples(st.just("wait"), wishes),
    st.tuples(st.just("wait"), wishes),
    st.tuples(st.just("try"), wishes),
    st.tuples(st.sampled_from(["release", "give up", "close", "die"]), numbers),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
)


@define(eq=False)
class Asked:
    """A call, and what it wants."""

    number: int
    inodes: frozenset[Inode]
    flags: Flags
    line: Line
    call: Call = field(factory=Call)


class Play:
    """A scene in which many ask, wait, give up, release and die."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.scene = Scene()
        self.nursery = nursery
        self.asked: list[Asked] = []
        self.queue: list[Asked] = []
        """Those that wait, as they came."""

    async def step(self, what: str, value: object) -> None:
        match what, value:
            case (("wait" | "try"), (names, flags)):
                await self.ask(names, flags, math.inf if what == "wait" else 0.0)
            case "remove", str(name):
                self.scene.verdict(getattr(self.scene, name))
            case "give up", int(number) if self.queue:
                self.queue[number % len(self.queue)].call.scope.cancel()
            case _, int(number) if standing := [one for one in self.asked if one.call.holds]:
                one = standing[number % len(standing)]
                if what == "release":
                    there = [hold for hold in one.call.holds or () if hold in self.scene.holds]
                    await self.scene.keeper.unlock([hold.id for hold in there], requester=self.process(one.number))
                else:
                    one.line.alive = False
                    if what == "close":
                        await self.scene.keeper.end(Connection(one.number))
        await self.scene.settle()
        self.check()

    async def ask(self, names: set[str], flags: Flags, timeout: float) -> None:  # noqa: ASYNC109 - the keeper's word
        if Flags.EXCL_SUBTREE in flags and not names <= DIRECTORIES:
            flags = Flags.EXCL_INUSE
        inodes = [getattr(self.scene, name) for name in sorted(names)]
        number = len(self.asked)
        one = Asked(number, frozenset(inodes), flags, self.scene.there(Connection(number)))
        self.asked.append(one)
        self.queue.append(one)
        one.call = await self.scene.begin(
            self.nursery,
            *inodes,
            flags=flags,
            requester=self.process(number),
            ends=(Connection(number),),
            timeout=timeout,
        )

    def process(self, number: int) -> Process:
        return Process(100 + number, 0, f"holder{number}", start_time=number)

    def check(self) -> None:
        waiting: list[Asked] = []
        for one in self.queue:
            ahead = [other for other in waiting if other.inodes & one.inodes]
            if one.call.waits:
                assert ahead or any(self.keeps_out(hold.inode, hold.flags, one) for hold in self.scene.holds), (
                    "it waits for nothing"
                )
                waiting.append(one)
            elif one.call.holds and one.flags is not Flags.NO_REMOVE and one is not self.asked[-1]:
                assert not ahead, "it was served before who came first"
        self.queue = waiting
        assert self.scene.keeper.waiting == len(waiting)
        for hold in self.scene.holds:
            for other in self.scene.holds:
                rivals = hold is not other and hold.holder != other.holder
                assert not (rivals and self.conflict(hold.inode, hold.flags, other.inode, other.flags)), "two claims"
        told = Counter((event.name == "locked", event.hold.id) for event in self.scene.events if hasattr(event, "hold"))
        assert set(told.values()) <= {1}

    def keeps_out(self, inode: Inode, flags: Flags, one: Asked) -> bool:
        return any(self.conflict(inode, flags, wanted, one.flags) for wanted in one.inodes)

    def conflict(self, inode: Inode, flags: Flags, other: Inode, wanted: Flags) -> bool:
        above, below = self.scene.tree.ancestors(other), self.scene.tree.ancestors(inode)
        if inode == other:
            return conflicts(flags, wanted)
        if inode in above:
            return conflicts(flags, wanted, Place.BELOW)
        return other in below and conflicts(flags, wanted, Place.ABOVE)

    async def end(self) -> None:
        for one in self.asked:
            one.call.scope.cancel()
        await self.scene.settle()
        for one in self.asked:
            await self.scene.keeper.end(Connection(one.number))
        self.scene.must_be_as_if_nothing_had_happened()


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=30))
def test_nobody_is_forgotten_and_nobody_comes_first_who_came_later(script: list[tuple[str, object]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            play = Play(nursery)
            for what, value in script:
                await play.step(what, value)
            await play.end()

    trio.run(run)
