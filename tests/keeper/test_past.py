"""What has happened is kept, numbered, as far as there is room for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exclfs.holds.events import Locked, Refused, UnlockBad
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Unmount
from exclfs.keeper.past import Past, weight

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BOB = Process(20, 1001, "rm", start_time=7)


def at(minutes: float, text: str = "") -> UnlockBad:
    return UnlockBad(NOON + timedelta(minutes=minutes), "h1", BOB, text)


def hold(path: str = "/mnt/a", reason: str = "") -> Hold:
    return Hold("h1", Inode(7, 1), path, DEFAULT, Holder("alice", BOB), reason, NOON, (Unmount(),))


def kept(past: Past) -> list[UnlockBad]:
    return [past[number] for number in range(past.first, past.next)]  # type: ignore[misc]


def past_of(*events: UnlockBad, most: int = 100, most_bytes: int = 1 << 20) -> Past:
    past = Past(most, most_bytes)
    for event in events:
        past.add(event)
    return past


@given(st.integers(0, 30), st.integers(1, 10))
def test_the_last_are_kept_and_the_numbers_have_no_gap(number: int, most: int) -> None:
    events = [at(minute) for minute in range(number)]
    past = past_of(*events, most=most)
    assert past.next == number + 1
    assert past.first == max(1, number + 1 - most)
    assert kept(past) == events[-most:]


@given(st.lists(st.integers(0, 20_000), max_size=30), st.integers(1, 50_000))
def test_they_do_not_weigh_more_than_is_allowed_but_for_one(sizes: list[int], most_bytes: int) -> None:
    past = past_of(*(at(0, "x" * size) for size in sizes), most_bytes=most_bytes)
    weights = [weight(event) for event in kept(past)]
    assert sum(weights) <= most_bytes or len(weights) == 1
    assert bool(weights) == bool(sizes)


def test_it_weighs_what_is_long() -> None:
    short, long = hold(), hold("/mnt/" + "p" * 4000, "r" * 1000)
    assert weight(Locked(NOON, long)) >= weight(Locked(NOON, short)) + 4900
    refused = Refused(NOON, Operation.UNLINK, "/mnt/a", Inode(7, 1), BOB, (long,) * 100)
    assert weight(refused) >= 100 * 5000
    assert weight(at(0, "w" * 9000)) >= 9000


@pytest.mark.parametrize(
    ("since", "first", "missed"),
    [(None, 3, 2), (-1, 3, 2), (1, 3, 2), (1.5, 3, 0), (2, 3, 0), (3.5, 5, 0), (4.5, 6, 0)],
)
def test_it_begins_where_it_is_asked_to(since: float | None, first: int, missed: int) -> None:
    past = past_of(*map(at, range(5)), most=3)  # that of minute 2 has number 3
    assert past.since(None if since is None else at(since).at) == (first, missed)


def test_of_an_empty_past_nothing_was_missed() -> None:
    assert Past().since(None) == Past().since(NOON) == (1, 0)


def test_after_the_clock_was_set_back_too_much_is_told_rather_than_too_little() -> None:
    past = past_of(at(0), at(60), at(30), at(31))
    assert past.since(at(45).at) == (2, 0)
