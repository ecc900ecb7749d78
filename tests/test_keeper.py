"""The keeper's rules, with a word table in memory in place of the mirror's: no mount, no thread but the helper's."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing

from exclfs.holds.errors import Gone, Held, NoSuchHold, NotPermitted
from exclfs.holds.events import Event
from exclfs.holds.flags import DEFAULT, Flags, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, End, Unmount
from exclfs.holds.registry import Registry
from exclfs.keeper import Keeper
from exclfs.mirror import Attributes

ONE, TWO = Inode(7, 100, 100), Inode(7, 200, 200)
ROOT = Process(1, 0, "init", start_time=1)
ALICE = Process(10, 1000, "alice-prog", start_time=5)
ALICE_AGAIN = Process(11, 1000, "alice-shell", start_time=6)
BOB = Process(20, 1001, "bob-prog", start_time=7)


class Words:
    """The words of a table in memory. `in_flight` has the inodes that a removal is at work on."""

    def __init__(self) -> None:
        self.words: dict[Inode, int] = {}
        self.in_flight: dict[Inode, threading.Event] = {}
        self.gone: set[Inode] = set()

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        before = self.words.get(inode, 0)
        if word & ~before:
            if inode in self.in_flight:
                if not wait:
                    raise BlockingIOError
                self.in_flight[inode].wait()
            if inode in self.gone:
                raise Gone(inode)
        self.words[inode] = word

    def attributes(self, inode: Inode) -> Attributes:
        return Attributes(uid=1000, gid=1000, mode=0o100644, nlink=1)


class Line:
    """A connection that can be cut."""

    def __init__(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive


class Scene:
    def __init__(self) -> None:
        ticks = itertools.count()
        self.words = Words()
        self.keeper = Keeper(
            Registry(),
            self.words,
            owner=500,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(ticks)),
        )
        self.events: list[Event] = []
        self.keeper.subscribe(self.events.append)

    async def trylock(
        self,
        *inodes: Inode,
        flags: Flags = DEFAULT,
        requester: Process = ALICE,
        ends: tuple[End, ...] = (Unmount(),),
    ) -> tuple[Hold, ...]:
        return await self.keeper.trylock(
            [(inode, f"/mnt/{inode.ino}") for inode in inodes],
            flags=flags,
            holder=Holder(requester.comm or "", requester),
            reason="",
            ends=ends,
            requester=requester,
        )

    def verdict(self, inode: Inode) -> tuple[Hold, ...]:
        return self.keeper.verdict(Operation.UNLINK, inode, "/mnt/x", lambda: BOB)

    @property
    def told(self) -> list[str]:
        return [event.name for event in self.events]


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_hold_sets_the_word_and_its_end_clears_it(scene: Scene) -> None:
    (hold,) = await scene.trylock(ONE)
    assert scene.words.words[ONE] == DEFAULT.value
    await scene.keeper.unlock(hold.id, requester=ALICE)
    assert scene.words.words[ONE] == 0
    assert scene.told == ["locked", "unlocked"]


async def test_several_objects_are_held_all_or_none(scene: Scene) -> None:
    (first,) = await scene.trylock(TWO, requester=ROOT)
    with pytest.raises(Held) as caught:
        await scene.trylock(ONE, TWO)
    assert caught.value.hold == first
    assert scene.words.words[ONE] == 0
    assert scene.keeper.registry.all() == (first,)
    assert scene.told == ["locked", "lock_failed"]


async def test_a_refusal_tells_both_sides(scene: Scene) -> None:
    (hold,) = await scene.trylock(ONE)
    assert scene.verdict(ONE) == (hold,)
    (refused,) = scene.keeper.refusals
    assert refused.requester == BOB
    assert refused.holds == (hold,)
    assert scene.told == ["locked", "refused"]


async def test_who_is_gone_refuses_nobody(scene: Scene) -> None:
    line = scene.keeper.connections[1] = Line()
    await scene.trylock(ONE, ends=(Connection(1),))
    assert scene.verdict(ONE)
    line.alive = False
    assert scene.verdict(ONE) == ()
    assert scene.words.words[ONE] == 0
    assert scene.told == ["locked", "refused", "reaped"]


async def test_who_is_gone_has_no_claim(scene: Scene) -> None:
    line = scene.keeper.connections[1] = Line()
    await scene.trylock(ONE, ends=(Connection(1),))
    line.alive = False
    (second,) = await scene.trylock(ONE, requester=ROOT)
    assert scene.keeper.registry.all() == (second,)


async def test_a_closed_connection_takes_its_holds_along(scene: Scene) -> None:
    scene.keeper.connections[1] = Line()
    await scene.trylock(ONE, TWO, ends=(Connection(1),))
    (stays,) = await scene.trylock(ONE, flags=Flags.NO_REMOVE)
    await scene.keeper.end_connection(1)
    assert scene.keeper.registry.all() == (stays,)
    assert scene.words.words == {ONE: Flags.NO_REMOVE.value, TWO: 0}


@pytest.mark.parametrize(("requester", "allowed"), [(ROOT, True), (ALICE, True), (BOB, False)])
async def test_only_root_and_the_owner_may_hold(scene: Scene, requester: Process, allowed: bool) -> None:
    if allowed:
        assert await scene.trylock(ONE, requester=requester)
        return
    with pytest.raises(NotPermitted):
        await scene.trylock(ONE, requester=requester)
    assert scene.words.words.get(ONE, 0) == 0


OWNER_OF_THE_MOUNT = Process(30, 500, start_time=8)


@pytest.mark.parametrize(
    ("requester", "break_it", "event"),
    [
        (ALICE, False, "unlocked"),
        (ALICE_AGAIN, False, None),
        (ALICE_AGAIN, True, "broken"),
        (BOB, False, None),
        (BOB, True, None),
        (ROOT, False, None),
        (ROOT, True, "broken"),
        (OWNER_OF_THE_MOUNT, True, "broken"),
    ],
)
async def test_who_may_end_a_hold_that_a_process_has(
    scene: Scene, requester: Process, break_it: bool, event: str | None
) -> None:
    scene.keeper.connections[1] = Line()
    (hold,) = await scene.trylock(ONE, ends=(Connection(1),))
    if event is None:
        with pytest.raises(NotPermitted):
            await scene.keeper.unlock(hold.id, requester=requester, break_it=break_it)
        assert scene.told[-1] == "unlock_bad"
        assert scene.verdict(ONE)
    else:
        await scene.keeper.unlock(hold.id, requester=requester, break_it=break_it)
        assert scene.told[-1] == event
        assert not scene.verdict(ONE)


async def test_a_hold_until_unmount_is_its_users(scene: Scene) -> None:
    (hold,) = await scene.trylock(ONE)
    await scene.keeper.unlock(hold.id, requester=ALICE_AGAIN)
    assert scene.told[-1] == "unlocked"


async def test_to_end_what_is_not_there_is_told(scene: Scene) -> None:
    with pytest.raises(NoSuchHold):
        await scene.keeper.unlock("h9", requester=ALICE)
    assert scene.told == ["unlock_bad"]


async def test_the_last_link_gone_is_no_hold(scene: Scene) -> None:
    scene.words.gone.add(ONE)
    with pytest.raises(Gone):
        await scene.trylock(ONE)
    assert len(scene.keeper.registry) == 0
    assert scene.told == []


async def test_a_removal_in_flight_is_waited_for_while_verdicts_go_on(scene: Scene) -> None:
    removal = scene.words.in_flight[ONE] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.trylock, ONE)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.verdict(ONE), "a removal that asks now comes after the hold"
        assert not scene.verdict(TWO)
        removal.set()
    assert scene.words.words[ONE] == DEFAULT.value


async def test_two_that_wait_for_one_removal_both_get_their_bits(scene: Scene) -> None:
    removal = scene.words.in_flight[ONE] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: scene.trylock(ONE, flags=Flags.EXCL_INUSE))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: scene.trylock(ONE, flags=Flags.NO_REMOVE))
        await trio.testing.wait_all_tasks_blocked()
        removal.set()
    assert scene.words.words[ONE] == (Flags.EXCL_INUSE | Flags.NO_REMOVE).value


async def test_a_hold_that_ends_while_another_waits_leaves_no_bit(scene: Scene) -> None:
    (first,) = await scene.trylock(ONE, flags=Flags.EXCL_INUSE)
    removal = scene.words.in_flight[ONE] = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: scene.trylock(ONE, flags=Flags.NO_REMOVE))
        await trio.testing.wait_all_tasks_blocked()
        await scene.keeper.unlock(first.id, requester=ALICE)
        removal.set()
    assert scene.words.words[ONE] == Flags.NO_REMOVE.value
