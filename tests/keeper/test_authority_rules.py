"""Who may place, break and pin what (DESIGN, section 6), in every combination; and how much of everything."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Final

import pytest
import trio
from attrs import frozen
from scene import ALICE, ALICE_AGAIN, BOB, OWNER, ROOT, Scene

from exclfs.holds.errors import BadHold, BadObject, Gone, HoldError, NotPermitted
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.holder import Credentials, Process
from exclfs.holds.lifetime import Connection, Exit, Unmount
from exclfs.holds.limits import Limits
from exclfs.keeper.authority import Authority

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold, Inode

SHARED, PIN = Flags.NO_REMOVE, Flags.PIN_PATH
TEAM: Final = 2000
"""The group of the files and directories."""
CAROL: Final = Process(40, 1002, "carol-prog", start_time=9)
"""In the group."""
DAVE: Final = Process(50, 1003, "dave-prog", start_time=10)
"""In no group of anybody's."""


@frozen
class Case:
    """Somebody, and something in a directory: Alice's file in Bob's directory, both of the team."""

    who: Process
    kind: str
    mode: int
    parent: int
    """The mode of the directory."""
    links: int = 1
    holders: int | None = None
    flags: Flags = DEFAULT

    @property
    def groups(self) -> tuple[int, ...]:
        return (TEAM,) if self.who in (ALICE, BOB, CAROL) else ()

    def may(self, mode: int, owner: Process, wanted: int) -> bool:
        """access(2) by the book, for who is not root."""
        shift = 6 if self.who is owner else 3 if TEAM in self.groups else 0
        return mode >> shift & wanted == wanted

    @property
    def expected(self) -> bool:
        """The rules, as they are told."""
        if self.who is ROOT or self.who is ALICE:
            return True
        may_remove = self.may(self.parent, BOB, 3) and (not self.parent & 0o1000 or self.who is BOB)
        if may_remove and (self.kind == "directory" or self.links == 1):
            return True
        is_holder = self.holders == TEAM and TEAM in self.groups
        return is_holder and self.flags == SHARED and self.may(self.mode, ALICE, 4)


CASES: Final = [
    Case(who, kind, mode, parent, links, holders, flags)
    for who, (kind, links), mode, parent, holders, flags in itertools.product(
        (ROOT, ALICE, BOB, CAROL, DAVE),
        (("file", 1), ("file", 2), ("directory", 1), ("directory", 5)),
        (0o700, 0o740, 0o704),
        (0o700, 0o755, 0o775, 0o757, 0o1777, 0o1770, 0o730, 0o720, 0o500),
        (None, TEAM, 4242),
        (SHARED, DEFAULT, SHARED | Flags.KERNEL_FILE),
    )
]


@pytest.mark.parametrize("who", [ROOT, ALICE, BOB, CAROL, DAVE], ids=lambda who: who.comm)
async def test_who_may_place(who: Process) -> None:
    for case in CASES:
        if case.who is not who:
            continue
        scene = Scene(holders_group=case.holders)
        scene.tree.change(scene.top, uid=BOB.uid, gid=TEAM, mode=0o40000 | case.parent)
        name = "top/thing/" if case.kind == "directory" else "top/thing"
        thing = scene.tree.add(name, uid=ALICE.uid, gid=TEAM, mode=case.mode, links=case.links)
        try:
            await scene.hold(thing, flags=case.flags, requester=who, groups=case.groups)
            placed = True
        except NotPermitted:
            placed = False
            scene.must_be_as_if_nothing_had_happened()
        assert placed == case.expected, case


async def test_the_group_can_be_anybodys_first_one() -> None:
    scene = Scene(holders_group=CAROL.uid)
    await scene.hold(scene.one, flags=SHARED, requester=CAROL)
    with pytest.raises(NotPermitted):
        await scene.hold(scene.one, flags=SHARED, requester=DAVE)


async def test_who_asks_without_credentials_is_in_no_group() -> None:
    scene = Scene(holders_group=0)
    with pytest.raises(NotPermitted):
        await scene.keeper.trylock(
            [(scene.one, "/mnt/one")],
            flags=SHARED,
            holder=(await scene.hold(scene.two)).holder,
            reason="",
            ends=(Unmount(),),
            requester=BOB,
        )


async def test_the_root_is_its_owners(scene: Scene) -> None:
    """Nobody has a right of removal over it."""
    scene.tree.change(scene.tree.root, uid=ALICE.uid, mode=0o40777)
    await scene.hold(scene.tree.root, flags=SHARED | PIN)
    with pytest.raises(NotPermitted):
        await scene.hold(scene.tree.root, flags=SHARED, requester=BOB)


@pytest.mark.parametrize("flags", [Flags.EXCL_SUBTREE, Flags.NO_REMOVE_BELOW, Flags.EXCL_SUBTREE | SHARED])
@pytest.mark.parametrize("requester", [ROOT, ALICE], ids=lambda who: who.comm)
async def test_what_is_for_directories_is_for_directories(scene: Scene, flags: Flags, requester: Process) -> None:
    with pytest.raises(BadHold, match="not a directory"):
        await scene.hold(scene.one, flags=flags, requester=requester)
    await scene.hold(scene.top, flags=flags, requester=requester)


async def test_what_is_gone_is_nobodys(scene: Scene) -> None:
    scene.tree.forget(scene.one)
    for requester in (ROOT, ALICE, BOB):
        with pytest.raises(Gone):
            await scene.hold(scene.one, requester=requester)


async def test_where_the_disk_does_not_answer_nothing_is_placed(scene: Scene) -> None:
    scene.tree.in_trouble = True
    for requester, flags in itertools.product((ROOT, ALICE, BOB), (SHARED, PIN)):
        with pytest.raises(BadObject, match=r"/mnt/one: .*error"):
            await scene.hold(scene.one, flags=flags, requester=requester)


# --- pinning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [ROOT, ALICE, BOB], ids=lambda who: who.comm)
@pytest.mark.parametrize("root", [0o755, 0o777, 0o1777])
@pytest.mark.parametrize("top", [0o755, 0o777, 0o1777])
async def test_who_pins_a_path_may_rename_every_directory_on_it(
    scene: Scene, who: Process, root: int, top: int
) -> None:
    """/ is root's, /top Bob's, /top/middle Alice's, and so is what is in it."""
    scene.tree.change(scene.tree.root, mode=0o40000 | root)
    scene.tree.change(scene.top, uid=BOB.uid, mode=0o40000 | top)
    scene.tree.change(scene.middle, mode=0o40777)
    top_can_be_moved = {BOB: root & 0o002, ALICE: root == 0o777}
    middle_can_be_moved = {BOB: True, ALICE: top & 0o002}
    may = who is ROOT or bool(top_can_be_moved[who] and middle_can_be_moved[who])
    try:
        await scene.hold(scene.leaf, flags=PIN, requester=who)
    except NotPermitted:
        assert not may
        scene.must_be_as_if_nothing_had_happened()
    else:
        assert may
    await scene.hold(scene.leaf, flags=SHARED, requester=who)


async def test_it_is_the_path_that_is_pinned_and_not_another_to_the_same_file(scene: Scene) -> None:
    """A link in one's own directory must not freeze the directories in which somebody else has one."""
    scene.tree.change(scene.tree.root, mode=0o41777)
    bobs = scene.tree.add("bobs/", uid=BOB.uid)
    scene.tree.link(scene.leaf, "bobs/leaf")
    assert await pin_by(scene, scene.leaf, "/mnt/top/middle/leaf")
    with pytest.raises(NotPermitted):
        await pin_by(scene, scene.leaf, "/mnt/bobs/leaf")
    assert bobs not in scene.words()


async def test_a_path_that_leads_through_anothers_directory_meanwhile_is_not_pinned(scene: Scene) -> None:
    scene.tree.change(scene.tree.root, mode=0o41777)
    own, bobs = scene.tree.add("own/"), scene.tree.add("bobs/", uid=BOB.uid)
    file = scene.tree.add("own/file")
    scene.tree.link(file, "bobs/file")
    rename = scene.tree.in_flight[file] = threading.Event()
    async with trio.open_nursery() as nursery:
        call = await scene.begin(nursery, file, flags=PIN)
        scene.tree.exchange(own, bobs)
        rename.set()
    assert isinstance(call.error, NotPermitted)
    scene.must_be_as_if_nothing_had_happened()


async def test_nothing_is_pinned_on_the_way_to_where_it_was_seen_last(scene: Scene) -> None:
    """Not for a moment: whoever asks again and again would keep others from renaming their own."""
    scene.tree.change(scene.tree.root, mode=0o41777)
    bobs = scene.tree.add("bobs/", uid=BOB.uid)
    leaf = scene.tree.add("bobs/leaf")
    scene.tree.link(leaf, "top/leaf")
    assert await pin_by(scene, leaf, "/mnt/top/leaf")
    assert bobs not in scene.tree.words


async def pin_by(scene: Scene, inode: Inode, path: str) -> tuple[Hold, ...]:
    return await scene.keeper.trylock(
        [(inode, path)],
        flags=PIN,
        holder=(await scene.hold(scene.one, flags=SHARED)).holder,
        reason="",
        ends=(Unmount(),),
        requester=ALICE,
        credentials=Credentials(ALICE.uid, ALICE.uid),
    )


# --- ending -----------------------------------------------------------------------------------------------------------

ENDS: Final = {"connection": Connection(1), "process": Exit(60, 11, "boot"), "unmount": Unmount()}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("links", [1, 2])
@pytest.mark.parametrize("who", [ROOT, OWNER, ALICE, ALICE_AGAIN, BOB, CAROL, DAVE], ids=lambda who: who.comm)
async def test_who_may_release_and_who_may_break(scene: Scene, who: Process, links: int, end: str) -> None:
    """Carol's file in Bob's directory, that everybody may write to; held by Alice, whose directory /mnt is."""
    scene.there(Connection(1))
    scene.there(Exit(60, 11, "boot"))
    scene.tree.change(scene.tree.root, uid=DAVE.uid)
    scene.tree.change(scene.top, uid=BOB.uid, mode=0o40777)
    file = scene.tree.add("top/file", uid=CAROL.uid, links=links)
    if links == 1:
        hold = await scene.hold(file, ends=(ENDS[end],))
    else:
        hold = await scene.hold(file, ends=(ENDS[end],), requester=ROOT, holder=ALICE)
    releases = who is ALICE or (who is ALICE_AGAIN and end != "connection")
    breaks = releases or who in (ROOT, OWNER, ALICE_AGAIN) or (who is BOB and links == 1)
    for break_it, may in ((False, releases), (True, breaks)):
        if may:
            await scene.unlock(hold, requester=who, break_it=break_it)
            assert scene.told[-1] == ("unlocked" if releases else "broken")
            assert scene.holds == ()
            return
        with pytest.raises(NotPermitted):
            await scene.unlock(hold, requester=who, break_it=break_it)
        assert scene.told[-1] == "unlock_bad"
        assert scene.holds == (hold,)


async def test_who_owns_the_directory_may_break_what_is_on_a_directory_in_it(scene: Scene) -> None:
    scene.tree.change(scene.top, uid=BOB.uid)
    scene.tree.change(scene.middle, nlink=7)
    hold = await scene.hold(scene.middle)
    await scene.unlock(hold, requester=BOB, break_it=True)


async def test_who_owns_a_directory_further_above_may_not(scene: Scene) -> None:
    scene.tree.change(scene.top, uid=BOB.uid)
    hold = await scene.hold(scene.leaf)
    with pytest.raises(NotPermitted):
        await scene.unlock(hold, requester=BOB, break_it=True)


@pytest.mark.parametrize("what", ["gone", "in trouble"])
async def test_what_cannot_be_told_gives_no_right(scene: Scene, what: str) -> None:
    scene.tree.change(scene.top, uid=BOB.uid)
    hold = await scene.hold(scene.middle)
    if what == "gone":
        scene.tree.forget(scene.middle)
    else:
        scene.tree.in_trouble = True
    with pytest.raises(NotPermitted):
        await scene.unlock(hold, requester=BOB, break_it=True)
    await scene.unlock(hold, requester=ROOT, break_it=True)


@pytest.mark.parametrize(("who", "hint"), [(ROOT, "--break"), (BOB, "only root")], ids=["may", "may not"])
async def test_who_is_refused_is_told_what_to_do(scene: Scene, who: Process, hint: str) -> None:
    scene.there(Connection(1))
    hold = await scene.hold(scene.one, ends=(Connection(1),))
    with pytest.raises(NotPermitted, match=hint) as caught:
        await scene.unlock(hold, requester=who)
    assert "alice-prog" in caught.value.why


# --- how much ---------------------------------------------------------------------------------------------------------


async def test_nobody_has_more_holds_than_the_limit_but_root_and_the_owner() -> None:
    scene = Scene(limits=Limits(holds=3))
    for unlimited in (ROOT, OWNER):
        inodes = [scene.tree.add(f"{unlimited.comm}{number}", uid=unlimited.uid) for number in range(5)]
        await scene.trylock(*inodes, requester=unlimited)
    first = await scene.hold(scene.one)
    with pytest.raises(NotPermitted, match=r"4 holds.*limit is 3"):
        await scene.trylock(scene.two, scene.three, scene.leaf)
    assert len(scene.holds) == 11
    await scene.trylock(scene.two, scene.three, requester=ALICE_AGAIN)
    with pytest.raises(NotPermitted):
        await scene.hold(scene.leaf)
    bobs = scene.tree.add("bobs", uid=BOB.uid)
    await scene.hold(bobs, requester=BOB)
    await scene.unlock(first)
    await scene.hold(scene.leaf)


async def test_what_root_has_a_users_process_hold_is_not_limited() -> None:
    scene = Scene(limits=Limits(holds=1))
    scene.there(Exit(60, 11, "boot"))
    for _ in range(3):
        await scene.hold(scene.one, flags=SHARED, requester=ROOT, holder=ALICE, ends=(Exit(60, 11, "boot"),))
    with pytest.raises(NotPermitted):
        await scene.hold(scene.one, flags=SHARED)


async def test_limits_of_nothing_let_nobody_hold_anything() -> None:
    scene = Scene(limits=Limits(holds=0))
    with pytest.raises(NotPermitted):
        await scene.hold(scene.one)


@pytest.mark.parametrize("requester", [ROOT, OWNER, ALICE], ids=lambda who: who.comm)
async def test_a_reason_is_as_long_as_the_limit_for_everybody(requester: Process) -> None:
    scene = Scene(limits=Limits(reason=3))
    with pytest.raises(BadHold, match="reason"):
        await scene.hold(scene.one, requester=requester)


async def test_a_reason_to_break_is_no_longer_and_on_one_line() -> None:
    scene = Scene(limits=Limits(reason=3 + len("because")))
    hold = await scene.hold(scene.one)
    for reason in ("long" + "because", "two\nlines"):
        with pytest.raises(BadHold, match="reason"):
            await scene.unlock(hold, requester=ROOT, break_it=True, reason=reason)
    assert scene.holds == (hold,)
    await scene.unlock(hold, requester=ROOT, break_it=True, reason="no because")


def test_who_has_come_to_a_limit_is_told_how_to_go_on() -> None:
    scene = Scene()
    authority = Authority(scene.tree, OWNER.uid, limits=Limits(holds=1, ttl=2))
    for check in (lambda: authority.may_have(7, 2), lambda: authority.may_last(7, 3)):
        with pytest.raises(HoldError, match=r"release|renew"):
            check()
