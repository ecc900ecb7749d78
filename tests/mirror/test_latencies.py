"""How long verdicts took: the histogram that the mirror counts, and what is made of it."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel import Op, rig

from exclfs.mirror.latencies import first, last, percentile

if TYPE_CHECKING:
    from pathlib import Path

    from kernel import Rig

BUCKETS = 124
"""As in mirror.h."""


def bucket_of(microseconds: int) -> int:
    return next(bucket for bucket in range(BUCKETS) if first(bucket) <= microseconds <= last(bucket))


def histogram(*took: int) -> list[int]:
    buckets = [0] * BUCKETS
    for microseconds in took:
        buckets[bucket_of(microseconds)] += 1
    return buckets


# --- percentiles ------------------------------------------------------------------------------------------------------


def test_the_buckets_are_of_all_numbers_of_32_bits_without_a_gap() -> None:
    assert first(0) == 0
    assert all(first(bucket + 1) == last(bucket) + 1 for bucket in range(BUCKETS))
    assert last(BUCKETS - 1) == 2**32 - 1


def test_a_bucket_is_a_quarter_wide_at_most() -> None:
    assert all(last(bucket) < 1.25 * first(bucket) for bucket in range(4, BUCKETS))


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile(histogram(), 50) is None


@pytest.mark.parametrize(
    ("percent", "most"), [(1, 1), (25, 1), (26, 2), (50, 2), (75, 3), (76, 111), (99, 111), (100, 111)]
)
def test_so_many_took_at_most_that(percent: float, most: int) -> None:
    assert percentile(histogram(1, 2, 3, 100), percent) == most


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1), st.floats(0.1, 100), st.floats(0.1, 100))
def test_it_holds_of_any_histogram(took: list[int], one: float, other: float) -> None:
    buckets = histogram(*took)
    low, high = (percentile(buckets, percent) for percent in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high
    for percent, most in zip(sorted((one, other)), (low, high), strict=True):
        assert sum(each <= most for each in took) >= len(took) * percent / 100 - 1e-9
        assert sum(each < first(bucket_of(most)) for each in took) < len(took) * percent / 100 + 1e-9
    assert max(took) <= (percentile(buckets, 100) or 0) <= 1.25 * max(took) + 1


# --- what is counted --------------------------------------------------------------------------------------------------


def answered(made: Rig, delay: float) -> tuple[float, float]:
    """Has a removal refused so many seconds after it was asked about; between which microseconds that took."""
    path, inode = made.file()
    made.mirror.set_word(inode, 1, wait=False)
    before = time.monotonic()
    asked = made.unlink(path)
    question = made.policy.question()
    between = time.monotonic()
    time.sleep(delay)
    least = time.monotonic() - between
    made.policy.refuse(question)
    with pytest.raises(OSError, match="busy"):
        made.kernel.reply(asked)
    return least * 1e6, (time.monotonic() - before) * 1e6


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.003, 0.05])
def test_each_verdict_is_counted_where_it_belongs(tmp_path: Path, delay: float) -> None:
    with rig(tmp_path) as made:
        assert sum(made.mirror.latencies()) == 0
        least, most = answered(made, delay)
        (bucket,) = (bucket for bucket, number in enumerate(made.mirror.latencies()) if number)
        assert made.mirror.latencies()[bucket] == 1
        assert least - 1 <= last(bucket)
        assert first(bucket) <= most + 1


def test_what_is_carried_out_is_counted_too_and_each_time_it_is_asked_again(tmp_path: Path) -> None:
    with rig(tmp_path, ask_always=True) as made:
        path, inode = made.file()
        asked = made.unlink(path)
        question = made.policy.question()
        made.mirror.set_word(inode, 3, wait=True)
        made.policy.proceed(question)
        made.policy.proceed(made.policy.question())
        made.kernel.reply(asked)
        assert sum(made.mirror.latencies()) == 2


def test_what_finds_no_answer_in_time_and_what_is_no_removal_is_not_counted(tmp_path: Path) -> None:
    with rig(tmp_path, decision_timeout=0.01) as made:
        path, inode = made.file()
        asked = made.kernel.ask(Op.GETXATTR, inode.nodeid, struct.pack("=II", 100, 0) + b"user.exclfs.holders\0")
        made.policy.answer(made.policy.question(), body=b"nobody")
        made.kernel.reply(asked)
        made.mirror.set_word(inode, 1, wait=False)
        asked = made.unlink(path)
        made.policy.question()
        with pytest.raises(OSError, match="busy"):
            made.kernel.reply(asked)
        assert sum(made.mirror.latencies()) == 0
