"""The theorem, in every interleaving of small models: no removal between the return of a trylock and its unlock; a
trylock after the last link has gone is ESTALE; nobody waits for ever, and nothing is left behind.

Each rule that the sources keep to is then taken away, and something goes wrong: `pytest -rP` shows how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import removals_and_holds as one
import trees_and_holds as tree
from interleavings import Found, Shared, Violation, search
from removals_and_holds import CLAIM, NO_REMOVE, Inode

if TYPE_CHECKING:
    from interleavings import Process, Scene


def outcomes(found: Found) -> set[str]:
    """Every way in which it can end, as one string each: "hold: held, removal: EBUSY"."""
    return {", ".join(f"{name}: {result}" for name, result in sorted(end)) for end in found.ends}


def goes_wrong(found: Found) -> str:
    """What goes wrong; the steps that lead there are shown."""
    assert found.violation, f"nothing goes wrong in any of {found.states} states"
    print(*found.trace, sep="\n")
    return found.violation


# --- the search itself ------------------------------------------------------------------------------------------------


@attrs.define
class Counter(Shared):
    number: int = 0
    taken: bool = False
    also_taken: bool = False

    def at_the_end(self) -> None:
        if self.number != 2:
            raise Violation(f"two have counted, and the number is {self.number}")

    def is_free(self) -> bool:
        return not self.taken

    def other_is_free(self) -> bool:
        return not self.also_taken


def counting(counter: Counter, locks: bool) -> Process:
    if locks:
        yield "takes the lock", counter.is_free
        counter.taken = True
    yield "reads"
    number = counter.number
    yield "writes"
    counter.number = number + 1
    counter.taken = False
    return None


@pytest.mark.parametrize("locks", [True, False])
def test_the_search_finds_what_a_lock_is_for(locks: bool) -> None:
    def scene() -> tuple[Shared, dict[str, Process]]:
        counter = Counter()
        return counter, {name: counting(counter, locks) for name in ("Anna", "Otto")}

    found = search(scene)
    if locks:
        assert found.violation == ""
    else:
        assert goes_wrong(found) == "two have counted, and the number is 1"
        assert sorted(found.trace[:4]) == ["Anna reads", "Anna writes", "Otto reads", "Otto writes"]


def test_the_search_finds_a_deadlock() -> None:
    def takes_both(counter: Counter, first: bool) -> Process:
        for which in (first, not first):
            yield "takes", counter.is_free if which else counter.other_is_free
            counter.taken |= which
            counter.also_taken |= not which
        yield "gives back"
        counter.taken = counter.also_taken = False
        return None

    def scene() -> tuple[Shared, dict[str, Process]]:
        counter = Counter(2)
        return counter, {"Anna": takes_both(counter, True), "Otto": takes_both(counter, False)}

    assert goes_wrong(search(scene)) == "deadlock: Anna, Otto cannot go on"


def test_the_search_finds_what_goes_on_for_ever() -> None:
    def turning(counter: Counter) -> Process:
        while True:
            yield "turns"
            counter.taken = not counter.taken

    def scene() -> tuple[Shared, dict[str, Process]]:
        counter = Counter()
        return counter, {"Anna": turning(counter)}

    assert search(scene).violation == "this can go on for ever"


# --- holds and removals of one inode, or the two of a rename ----------------------------------------------------------

KEEP, KEEP_TOO = one.Hold("keeper", 0, NO_REMOVE), one.Hold("other keeper", 0, NO_REMOVE)
MINE = one.Hold("claimant", 0, CLAIM)
BOTH, BOTH_TOO = one.Hold("owner", 0, CLAIM | NO_REMOVE), one.Hold("rival", 0, CLAIM | NO_REMOVE)
KEEP_TARGET = one.Hold("keeper of the target", 1, NO_REMOVE)
UNLINK = one.Removal((0,))
RENAME, RENAME_BACK, EXCHANGE = one.Removal((0, 1)), one.Removal((1, 0)), one.Removal((0, 1), goes=0)
ONE_STRIPE, TWO_STRIPES = (0, 0), (0, 1)


def on_inodes(
    holds: tuple[one.Hold, ...],
    removals: tuple[one.Removal, ...],
    rules: one.Rules | None = None,
    stripes: tuple[int, ...] = (0,),
) -> Scene:
    """Holders and removers, each removal by a link of its own."""

    def scene() -> tuple[Shared, dict[str, Process]]:
        inodes = [Inode(links=len(removals), stripe=stripe) for stripe in stripes]
        world = one.world(rules or one.Rules(), *inodes)
        holders = {hold.holder: one.holder(world, hold) for hold in holds}
        removers = {f"remover {number}": one.remover(world, removal) for number, removal in enumerate(removals, 1)}
        return world, {**holders, **removers}

    return scene


def test_of_one_hold_and_one_removal_it_is_seen_who_was_first() -> None:
    found = search(on_inodes((KEEP,), (UNLINK,)))
    assert found.violation == ""
    assert outcomes(found) == {
        "keeper: ESTALE, remover 1: removed",
        "keeper: held, remover 1: EBUSY",
        "keeper: held, remover 1: removed",  # after the unlock
    }


@pytest.mark.parametrize("holds", [(KEEP, KEEP_TOO), (KEEP, MINE), (BOTH, BOTH_TOO)])
def test_two_holders_and_two_removers_of_the_last_two_links(holds: tuple[one.Hold, ...]) -> None:
    found = search(on_inodes(holds, (UNLINK, UNLINK)))
    assert found.violation == ""
    for end in map(dict, found.ends):
        if "ESTALE" in end.values():
            assert end["remover 1"] == end["remover 2"] == "removed"
    for name in ("remover 1", "remover 2"):
        assert {dict(end)[name] for end in found.ends} == {"EBUSY", "removed"}
    rivals = {"EBUSY"} if holds == (BOTH, BOTH_TOO) else set()
    for hold in holds:
        assert {dict(end)[hold.holder] for end in found.ends} == {"held", "ESTALE"} | rivals


@pytest.mark.parametrize(
    ("removals", "stripes"),
    [
        ((RENAME,), ONE_STRIPE),
        ((RENAME,), TWO_STRIPES),
        ((EXCHANGE,), ONE_STRIPE),
        ((EXCHANGE,), TWO_STRIPES),
        ((RENAME, UNLINK), TWO_STRIPES),
    ],
)
def test_a_rename_meets_two_inodes(removals: tuple[one.Removal, ...], stripes: tuple[int, ...]) -> None:
    found = search(on_inodes((KEEP, KEEP_TARGET), removals, stripes=stripes))
    assert found.violation == ""


def test_renames_in_opposite_directions_wait_for_one_another_in_no_circle() -> None:
    found = search(on_inodes((KEEP,), (RENAME, RENAME_BACK), stripes=TWO_STRIPES))
    assert found.violation == ""


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("stripes", "what keeper holds is removed"),
        ("generations", "what keeper holds is removed"),
        ("registry_first", "what keeper holds is removed"),
        ("links", "is told that it holds what has gone"),
        ("lowering_gives_way", "lowering a word would have to wait"),
    ],
)
def test_without_any_one_of_its_rules_it_goes_wrong(rule: str, wrong: str) -> None:
    rules = one.Rules(**{rule: False})
    assert wrong in goes_wrong(search(on_inodes((KEEP, MINE), (UNLINK,), rules)))


def test_without_the_lock_a_removal_that_was_under_way_comes_after_the_hold() -> None:
    found = search(on_inodes((KEEP,), (UNLINK,), one.Rules(stripes=False)))
    goes_wrong(found)
    steps = [step for step in found.trace if step.startswith("remover") or "unlock" in step]
    assert steps == [
        "remover 1 reads a generation",
        "remover 1 reads a word",
        "remover 1 makes the system call",
    ]


def test_without_the_generation_a_verdict_from_before_the_hold_is_carried_out_after_it() -> None:
    found = search(on_inodes((KEEP, MINE), (UNLINK,), one.Rules(generations=False)))
    goes_wrong(found)
    order = [
        found.trace.index(step)
        for step in (
            "remover 1 is given a verdict",
            "keeper sets the word and gives the stripe back",
            "remover 1 makes the system call",
        )
    ]
    assert order == sorted(order)


# --- a path that is pinned --------------------------------------------------------------------------------------------

PARENTS = (None, 0, 1, 2, 0)
"""Of the root, /top, /top/middle, /top/middle/file, and /aside."""
PIN, PIN_ABOVE = one.Hold("pinner", 3, NO_REMOVE), one.Hold("other pinner", 2, NO_REMOVE)
MOVE_MIDDLE, MOVE_BACK, MOVE_TOP = one.Move((2,), 0), one.Move((2,), 1), one.Move((1,), 4)


def on_a_path(holds: tuple[one.Hold, ...], moves: tuple[one.Move, ...], rules: one.Rules | None = None) -> Scene:
    def scene() -> tuple[Shared, dict[str, Process]]:
        inodes = [Inode(stripe=at, parent=parent, known_parent=parent) for at, parent in enumerate(PARENTS)]
        world = one.world(rules or one.Rules(), *inodes)
        pinners = {hold.holder: one.pinner(world, hold) for hold in holds}
        movers = {f"mover {number}": one.remover(world, move) for number, move in enumerate(moves, 1)}
        return world, {**pinners, **movers}

    return scene


@pytest.mark.parametrize(
    ("holds", "moves"),
    [
        ((PIN,), (MOVE_MIDDLE,)),
        ((PIN,), (MOVE_MIDDLE, MOVE_BACK)),
        ((PIN,), (MOVE_MIDDLE, MOVE_TOP)),
        ((PIN, PIN_ABOVE), (MOVE_MIDDLE,)),
    ],
)
def test_no_directory_above_a_pin_is_moved(holds: tuple[one.Hold, ...], moves: tuple[one.Move, ...]) -> None:
    found = search(on_a_path(holds, moves))
    assert found.violation == ""
    assert {"pinner: held", "mover 1: EBUSY", "mover 1: removed"} <= {
        told for outcome in outcomes(found) for told in outcome.split(", ")
    }


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("stripes", "what pinner holds is removed"),
        ("generations", "pinner holds is removed"),
        ("path_is_looked_up", "pinner is told that a path is pinned that is another"),
    ],
)
def test_without_any_one_of_its_rules_a_pin_goes_wrong(rule: str, wrong: str) -> None:
    holds = (PIN, PIN_ABOVE) if rule == "generations" else (PIN,)
    assert wrong in goes_wrong(search(on_a_path(holds, (MOVE_MIDDLE,), one.Rules(**{rule: False}))))


# --- names below a directory ------------------------------------------------------------------------------------------

TOP, MOVING, ASIDE = 1, 2, 3
BELOW_TOP, BELOW_MOVING = tree.Hold("keeper", TOP), tree.Hold("nearer keeper", MOVING)
BELOW_ASIDE = tree.Hold("keeper aside", ASIDE)
UNLINK_FILE = tree.Removal(MOVING)
MOVE_IN, MOVE_OUT = tree.Removal(tree.ROOT, MOVING, TOP), tree.Removal(TOP, MOVING, tree.ROOT)
MOVE_THROUGH = tree.Removal(TOP, MOVING, ASIDE)
INSIDE, OUTSIDE = (tree.ROOT, TOP, tree.ROOT), (tree.ROOT, tree.ROOT, tree.ROOT)
"""Where /top, /top/moving or /moving, and /aside are at first. There is a file in `moving`."""

LOOK = "somebody looks /moving up"
UNLINKED = (INSIDE, (BELOW_TOP,), (UNLINK_FILE,))
HELD_TWICE = (INSIDE, (BELOW_TOP, BELOW_MOVING), (UNLINK_FILE,))
MOVED_IN = (OUTSIDE, (BELOW_TOP,), (UNLINK_FILE, MOVE_IN))
MOVED_OUT = (INSIDE, (BELOW_TOP,), (UNLINK_FILE, MOVE_OUT))
MOVED_THROUGH = (INSIDE, (BELOW_TOP, BELOW_ASIDE), (MOVE_THROUGH,))
MOVED_IN_AND_TWO_UNLINKED = (OUTSIDE, (BELOW_TOP,), (UNLINK_FILE, UNLINK_FILE, MOVE_IN))
MOVED_IN_WHILE_SOMEBODY_LOOKS = (OUTSIDE, (BELOW_TOP,), (UNLINK_FILE, MOVE_IN), LOOK)
Setting = tuple[tuple[int, ...], tuple[tree.Hold, ...], tuple[tree.Removal, ...], *tuple[str, ...]]


def below(setting: Setting, rules: tree.Rules | None = None) -> Scene:
    parents, holds, removals, *more = setting

    def scene() -> tuple[Shared, dict[str, Process]]:
        world = tree.world(rules or tree.Rules(), parents)
        holders = {hold.holder: tree.holder(world, hold) for hold in holds}
        removers = {
            f"{'mover' if removal.moving else 'remover'} {number}": tree.remover(world, removal)
            for number, removal in enumerate(removals, 1)
        }
        lookers = {"looker": tree.looker(world, MOVING)} if LOOK in more else {}
        return world, {**holders, **removers, **lookers}

    return scene


@pytest.mark.parametrize(
    "setting",
    [
        UNLINKED,
        HELD_TWICE,
        MOVED_IN,
        MOVED_OUT,
        MOVED_THROUGH,
        MOVED_IN_AND_TWO_UNLINKED,
        MOVED_IN_WHILE_SOMEBODY_LOOKS,
    ],
)
def test_no_name_is_removed_below_what_is_held(setting: Setting) -> None:
    found = search(below(setting))
    assert found.violation == ""
    results = {result for end in found.ends for _, result in end}
    assert results - {"seen"} == {"held", "EBUSY", "removed"}


def test_moving_in_is_never_refused_and_moving_out_is() -> None:
    assert not any("mover 2: EBUSY" in end for end in outcomes(search(below(MOVED_IN))) if "remover" not in end)
    assert any("mover 2: EBUSY" in end for end in outcomes(search(below(MOVED_OUT))))


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        ("sharing", UNLINKED),
        ("moving_alone", MOVED_IN),
        ("generations", HELD_TWICE),
        ("moves_are_counted", MOVED_IN_AND_TWO_UNLINKED),
        ("holds_are_counted", HELD_TWICE),
        ("looks_are_ordered", MOVED_IN_WHILE_SOMEBODY_LOOKS),
    ],
)
def test_without_any_one_of_its_rules_a_name_is_removed_below(rule: str, setting: Setting) -> None:
    assert "a name is removed below what" in goes_wrong(search(below(setting, tree.Rules(**{rule: False}))))


def test_the_rules_that_are_taken_away_are_all_that_there_are() -> None:
    tested = {"stripes", "generations", "registry_first", "links", "lowering_gives_way", "path_is_looked_up"}
    assert {field.name for field in attrs.fields(one.Rules)} == tested
    tested = {"sharing", "moving_alone", "generations", "moves_are_counted", "holds_are_counted"}
    tested |= {"looks_are_ordered"}
    assert {field.name for field in attrs.fields(tree.Rules)} == tested
