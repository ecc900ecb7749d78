"""The last refusals: repeats are one, and all are counted, in little room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from exclfs.holds.events import Refused
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount
from exclfs.keeper import refusals
from exclfs.keeper.past import weight
from exclfs.keeper.refusals import BYTES, KEPT, TOLD_APART, Refusals, Requester

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def refused(pid: int, ino: int = 1, *, second: int = 0, comm: str = "rm", enforced: bool = True) -> Refused:
    culler = Process(pid, 1001, comm, user="bob", start_time=7)
    at = NOON + timedelta(seconds=second)
    return Refused(at, Operation.UNLINK, f"/mnt/{ino}", Inode(7, ino), culler, (), enforced)


def test_one_that_tries_all_the_time_does_not_push_out_the_others() -> None:
    kept = Refusals()
    kept.add(refused(1, ino=9))
    for second in range(1000):
        kept.add(refused(2, second=second))
        kept.add(refused(3, second=second))
    assert [(one.requester.pid, one.count, one.at) for one in kept.last] == [
        (1, 1, NOON),
        (2, 1000, NOON),
        (3, 1000, NOON),
    ]
    assert [one.until for one in kept.last] == [None, *2 * [NOON + timedelta(seconds=999)]]
    assert kept.by_operation == {Operation.UNLINK: 2001}


def test_the_latest_is_at_the_end_and_the_first_to_go_is_the_one_that_was_not_repeated_for_longest() -> None:
    kept = Refusals()
    for ino in range(KEPT):
        kept.add(refused(1, ino))
    kept.add(refused(1, 0, second=1))
    kept.add(refused(1, KEPT, second=2))
    assert [one.inode.ino for one in kept.last] == [*range(2, KEPT), 0, KEPT]


def test_what_happened_and_what_did_not_are_not_one() -> None:
    kept = Refusals()
    for enforced in True, False:
        kept.add(refused(1, enforced=enforced))
    assert [one.enforced for one in kept.last] == [True, False]


def test_those_of_many_holders_are_fewer() -> None:
    holds = tuple(
        Hold(f"h{number}", Inode(7, 1), "/mnt/1", DEFAULT, Holder("a", Process(1, 0)), "x" * 1000, NOON, (Unmount(),))
        for number in range(500)
    )
    kept = Refusals()
    for pid in range(20):
        one = refused(pid)
        kept.add(Refused(one.at, one.operation, one.path, one.inode, one.requester, holds))
    assert 1 <= len(kept.last) < 20
    assert sum(map(weight, kept.last)) <= BYTES
    assert kept.last[-1].requester.pid == 19


@given(st.lists(st.sampled_from("abcdefgh"), max_size=200))
def test_every_refusal_is_counted_once(comms: list[str]) -> None:
    refusals.TOLD_APART, before = 4, refusals.TOLD_APART  # type: ignore[misc]
    try:
        kept = Refusals()
        for comm in comms:
            kept.add(refused(1, comm=comm))
    finally:
        refusals.TOLD_APART = before  # type: ignore[misc]
    assert len(kept.by_requester) <= 4
    assert kept.by_requester.total() + kept.by_others == len(comms)
    assert all(count <= comms.count(one.comm or "") for one, count in kept.by_requester.items())


def test_who_is_refused_most_is_told_apart_however_many_there_are() -> None:
    kept = Refusals()
    for number in range(10 * TOLD_APART):
        kept.add(refused(number, comm=f"rm{number}"))
        kept.add(refused(1, comm="find"))
    assert len(kept.by_requester) <= TOLD_APART
    assert kept.by_requester.most_common(1) == [(Requester("find", 1001, "bob"), 10 * TOLD_APART)]
