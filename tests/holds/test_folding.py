"""Repeats of one refusal are told as one: none is lost from the counts, and neither lines nor memory grow with them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from exclfs.holds import folding
from exclfs.holds.events import (
    Broken,
    Event,
    Expired,
    Locked,
    LockFailed,
    ModeChanged,
    Orphaned,
    Reaped,
    Refused,
    UnlockBad,
    Unlocked,
)
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.folding import LONGEST, MOST, MOST_OF_PROGRAM, MOST_TOLD_APART, QUIET, Fold, Folding
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount
from exclfs.holds.mode import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DIRECTORY = Inode(1, 1)
CULLER = Process(pid=7, uid=0, comm="rm", start_time=100)


def hold(inode: Inode = DIRECTORY) -> Hold:
    return Hold("h1", inode, "/mnt/held", DEFAULT, Holder("us", Process(1, 0)), "", NOON, (Unmount(),))


def refused(number: int = 2, requester: Process = CULLER, at: float = 0.0, **changes: Any) -> Refused:
    inode = Inode(1, number)
    when = NOON + timedelta(seconds=at)
    event = Refused(when, Operation.UNLINK, f"/mnt/{number}", inode, requester, (hold(inode),))
    return evolve(event, **changes)


def told(events: Iterable[tuple[float, Event]]) -> list[Fold | Event]:
    """What is told of these events, each at its second, up to the end; looked at as often as the log does."""
    fold, lines, looked = Folding(), [], 0.0
    for now, event in events:
        while looked <= now:
            lines += fold.due(looked)
            looked += 0.25
        lines += fold.take(event, now)
    return lines + fold.rest()


def folds(lines: Iterable[Fold | Event]) -> list[Fold]:
    return [line for line in lines if isinstance(line, Fold)]


def total(lines: Iterable[Fold | Event]) -> int:
    return sum(fold.refused.count for fold in folds(lines))


# --- one culler ------------------------------------------------------------------------------------------------------


def test_a_thousand_tries_are_one() -> None:
    (line,) = told((number / 500, refused(at=number / 500)) for number in range(1000))
    assert isinstance(line, Fold)
    assert (line.refused.at, line.refused.until) == (NOON, NOON + timedelta(seconds=999 / 500))
    assert (line.refused.count, line.inodes, line.requesters) == (1000, 1, 1)


def test_one_alone_stands_for_itself() -> None:
    (line,) = told([(0, refused())])
    assert line == Fold(refused())
    assert (line.refused.count, line.refused.until) == (1, None)


def test_what_is_told_is_the_last() -> None:
    again = refused(at=1, path="/mnt/another link", holds=(hold(), hold(Inode(1, 2))))
    (line,) = folds(told([(0, refused()), (0.5, again)]))
    assert line.refused == evolve(again, at=NOON, count=2, until=again.at)


def test_it_is_told_when_it_has_been_quiet() -> None:
    fold = Folding()
    assert fold.take(refused(), 5.0) == []
    assert fold.take(refused(), 5.9) == []
    assert fold.due(5.9 + QUIET - 0.01) == []
    (line,) = fold.due(5.9 + QUIET)
    assert line.refused.count == 2
    assert len(fold) == 0
    assert fold.due(100) == []


def test_it_is_told_after_a_while_though_it_never_ends() -> None:
    lines = told((number / 10, refused()) for number in range(300))
    assert [fold.refused.count for fold in folds(lines)] == [pytest.approx(LONGEST * 10, abs=3)] * 2 + [
        pytest.approx(LONGEST * 10, abs=6)
    ]
    assert total(lines) == 300


@pytest.mark.parametrize(
    "other",
    [
        refused(3),
        refused(operation=Operation.RENAME),
        refused(enforced=False),
        refused(requester=evolve(CULLER, pid=8)),
        refused(requester=evolve(CULLER, start_time=101)),
        refused(requester=evolve(CULLER, uid=5)),
        refused(requester=evolve(CULLER, comm="mv")),
        refused(requester=evolve(CULLER, pid=None, start_time=None)),
    ],
    ids=["inode", "operation", "enforced", "pid", "start time", "uid", "comm", "unknown"],
)
def test_another_refusal_is_another_line(other: Refused) -> None:
    lines = told([(0, refused()), (0, other), (0, refused()), (0, other)])
    assert [(fold.refused.count, fold.inodes, fold.requesters) for fold in folds(lines)] == [(2, 1, 1)] * 2
    assert folding.key(other) != folding.key(refused())


def test_folding_by_hand_is_the_same() -> None:
    three = folding.folded(folding.folded(refused(at=0), refused(at=1)), refused(at=2))
    assert (three.at, three.until, three.count) == (NOON, NOON + timedelta(seconds=2), 3)
    six = folding.folded(three, evolve(three, at=three.at + timedelta(seconds=5), until=NOON + timedelta(seconds=9)))
    assert (six.at, six.until, six.count) == (NOON, NOON + timedelta(seconds=9), 6)


# --- order -----------------------------------------------------------------------------------------------------------

OF_INODE: list[Callable[[Inode], Event]] = [
    lambda inode: Locked(NOON, hold(inode)),
    lambda inode: Unlocked(NOON, hold(inode)),
    lambda inode: Reaped(NOON, hold(inode)),
    lambda inode: Expired(NOON, hold(inode)),
    lambda inode: Orphaned(NOON, hold(inode)),
    lambda inode: Broken(NOON, hold(inode), CULLER),
    lambda inode: LockFailed(NOON, "/mnt/2", inode, CULLER, hold(inode)),
]


@pytest.mark.parametrize("happens", OF_INODE)
def test_what_happens_to_its_inode_ends_a_fold_and_what_happens_to_others_does_not(
    happens: Callable[[Inode], Event],
) -> None:
    here, elsewhere = happens(Inode(1, 2)), happens(Inode(1, 3))
    lines = told([(0, refused()), (0, elsewhere), (0, refused()), (0, here), (0, refused())])
    assert [line if isinstance(line, Event) else line.refused.count for line in lines] == [elsewhere, 2, here, 1]


def test_so_does_what_happens_to_the_directory_whose_hold_refuses() -> None:
    below = refused(holds=(hold(DIRECTORY),))
    lines = told([(0, below), (0, Unlocked(NOON, hold(DIRECTORY)))])
    assert [type(line) for line in lines] == [Fold, Unlocked]


def test_another_mode_ends_all_and_a_bad_release_none() -> None:
    changed = ModeChanged(NOON, Mode.ENFORCE, Mode.WARN, CULLER)
    bad = UnlockBad(NOON, "h9", CULLER, "not there")
    lines = told([(0, refused(2)), (0, refused(3)), (0, bad), (0, changed), (0, refused(2, enforced=False))])
    assert [type(line) for line in lines] == [UnlockBad, Fold, Fold, ModeChanged, Fold]


# --- a thousand different ones ---------------------------------------------------------------------------------------


def widest(lines: Sequence[Fold | Event]) -> Fold:
    *narrow, wide = sorted(folds(lines), key=lambda fold: (fold.inodes, fold.requesters))
    assert {(fold.inodes, fold.requesters) for fold in narrow} == {(1, 1)}
    return wide


def test_one_process_refused_of_a_thousand_inodes() -> None:
    lines = told((number / 1000, refused(number)) for number in range(1000))
    assert len(lines) == MOST_OF_PROGRAM + 1
    wide = widest(lines)
    assert (wide.inodes, wide.requesters) == (1000 - MOST_OF_PROGRAM, 1)
    assert wide.refused.count == 1000 - MOST_OF_PROGRAM
    assert wide.refused.path == "/mnt/999"


def test_slowly_too() -> None:
    """Ten a second never have more than a few folds open at a time."""
    lines = told((number / 10, refused(number)) for number in range(1000))
    assert total(lines) == 1000
    assert len(lines) <= (100 / LONGEST + 1) * (MOST_OF_PROGRAM + 2)


def test_a_thousand_processes_of_one_program() -> None:
    lines = told((number / 1000, refused(2, evolve(CULLER, pid=number))) for number in range(1000))
    assert len(lines) == MOST_OF_PROGRAM + 1
    assert (widest(lines).inodes, widest(lines).requesters) == (1, 1000 - MOST_OF_PROGRAM)


def test_a_thousand_programs() -> None:
    lines = told((number / 1000, refused(number, evolve(CULLER, comm=f"rm{number}"))) for number in range(1000))
    assert len(lines) == MOST + 1
    assert (widest(lines).inodes, widest(lines).requesters) == (1000 - MOST, 1000 - MOST)


def test_the_repeats_of_what_has_a_line_of_its_own_stay_in_it() -> None:
    lines = told((0, refused(number)) for _ in range(10) for number in range(100))
    assert Counter(fold.refused.count for fold in folds(lines)) == {
        10: MOST_OF_PROGRAM,
        (100 - MOST_OF_PROGRAM) * 10: 1,
    }


def test_what_another_event_ends_leaves_room_for_the_next() -> None:
    """A test suite that places a hold, is refused and lets go, a thousand times: each is told."""
    lines = told(
        (0, event) for number in range(1000) for event in (refused(number), Unlocked(NOON, hold(Inode(1, number))))
    )
    assert [fold.inodes for fold in folds(lines)] == [1] * 1000


def test_of_too_many_inodes_it_says_as_many_as_it_can_tell_apart() -> None:
    fold = Folding()
    for number in range(5 * MOST_TOLD_APART):
        fold.take(refused(number), 0)
    wide = widest(fold.rest())
    assert (wide.inodes, wide.refused.count) == (MOST_TOLD_APART, 5 * MOST_TOLD_APART - MOST_OF_PROGRAM)


def test_then_whatever_happens_to_any_inode_ends_it() -> None:
    """It may be one of those that were not remembered."""
    events = [refused(number) for number in range(3 * MOST_TOLD_APART)]
    last = events[-1].inode
    lines = told((0, event) for event in [*events, Unlocked(NOON, hold(last))])
    assert [type(line) for line in lines[:2]] == [Fold, Unlocked]
    assert total(lines[:1]) == len(events) - MOST_OF_PROGRAM


# --- whatever comes --------------------------------------------------------------------------------------------------

PROCESSES = st.builds(
    Process,
    pid=st.none() | st.integers(1, 40),
    uid=st.integers(0, 3),
    comm=st.none() | st.sampled_from([f"program{number}" for number in range(30)]),
    start_time=st.none() | st.integers(0, 3),
)
INODES = st.builds(Inode, st.just(1), st.integers(1, 60))
REFUSALS = st.builds(
    Refused,
    at=st.just(NOON),
    operation=st.sampled_from(Operation),
    path=st.just("/mnt/x"),
    inode=INODES,
    requester=PROCESSES,
    holds=st.lists(INODES.map(hold), max_size=2).map(tuple),
    enforced=st.booleans(),
)
OTHERS = st.one_of(
    *(INODES.map(happens) for happens in OF_INODE), st.just(ModeChanged(NOON, Mode.WARN, Mode.OFF, CULLER))
)
PAUSES = st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.3, 1.0, 12.0])


def numbered(events: Iterable[tuple[float, Event]]) -> list[tuple[float, Event]]:
    """The events at their seconds, each `at` a time of its own."""
    now, found = 0.0, []
    for number, (pause, event) in enumerate(events):
        now += pause
        found.append((now, evolve(event, at=NOON + timedelta(microseconds=number))))
    return found


@given(st.lists(st.tuples(PAUSES, REFUSALS | REFUSALS | OTHERS), max_size=300).map(numbered))
def test_no_refusal_is_lost_and_each_inode_keeps_its_order(events: list[tuple[float, Event]]) -> None:
    lines = told(events)
    assert total(lines) == sum(isinstance(event, Refused) for _, event in events)
    others = [event for _, event in events if not isinstance(event, Refused)]
    assert [line for line in lines if isinstance(line, Event)] == others
    for _, event in events:
        if isinstance(event, Refused):
            must_stand_between_its_neighbours(event, events, lines)


def must_stand_between_its_neighbours(
    refusal: Refused, events: list[tuple[float, Event]], lines: list[Fold | Event]
) -> None:
    """A line whose span has this refusal stands between what happened to its inode before it and after it."""
    mine = {refusal.inode, *(hold.inode for hold in refusal.holds)}
    near = [event for _, event in events if inode_of(event) in mine or isinstance(event, ModeChanged)]
    after = max((lines.index(event) for event in near if event.at < refusal.at), default=-1)
    before = min((lines.index(event) for event in near if event.at > refusal.at), default=len(lines))
    assert any(
        line.refused.at <= refusal.at <= (line.refused.until or line.refused.at)
        for line in folds(lines[after + 1 : before])
        if (line.refused.operation, line.refused.enforced) == (refusal.operation, refusal.enforced)
    )


def inode_of(event: Event) -> Inode | None:
    if isinstance(event, Refused | ModeChanged | UnlockBad):
        return None
    return event.inode if isinstance(event, LockFailed) else event.hold.inode


WIDE = 2 * len(Operation)
"""How many of the widest folds there can be, and of those of one program: one for each operation, enforced or not."""


@given(st.lists(st.tuples(PAUSES, REFUSALS), max_size=600).map(numbered))
def test_lines_and_memory_are_bounded(events: list[tuple[float, Event]]) -> None:
    fold, lines, opened, looked, now = Folding(), 0, 0, 0.0, 0.0
    for now, event in events:
        while looked <= now:
            lines += len(fold.due(looked))
            looked += 0.25
        assert fold.take(event, now) == []
        opened = max(opened, len(fold))
    lines += len(fold.rest())
    wide = WIDE * (1 + MOST // MOST_OF_PROGRAM)
    assert opened <= 2 * MOST + wide
    assert lines <= MOST * (2 + now / LONGEST) + wide * (1 + now / QUIET)
