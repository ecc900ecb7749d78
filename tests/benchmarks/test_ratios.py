"""What is made of measurements: medians, intervals, percentiles."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ratios import interval, paired, percentile, ratio

TIMES = st.floats(min_value=1e-7, max_value=10)


def test_a_slow_minute_that_hits_both_sides_is_not_in_the_ratio() -> None:
    quiet = [1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 1.1]
    slow_minutes = [1, 1, 7, 7, 1, 3, 1]
    above = [2 * time * slow for time, slow in zip(quiet, slow_minutes, strict=True)]
    below = [time * slow for time, slow in zip(quiet, slow_minutes, strict=True)]
    found = ratio(above, below)
    assert found.median == pytest.approx(2)
    assert found.low == pytest.approx(2)
    assert found.high == pytest.approx(2)


def test_rounds_are_paired_and_none_is_left_over() -> None:
    assert paired([2, 9], [1, 3]) == [2, 3]
    with pytest.raises(ValueError, match="zip"):
        ratio([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="nothing was measured"):
        ratio([], [])


@settings(max_examples=30)
@given(st.lists(TIMES, min_size=1, max_size=30))
def test_the_median_lies_in_its_interval_and_the_interval_in_the_range(values: list[float]) -> None:
    found = ratio(values, [1.0] * len(values))
    assert found.least <= found.low <= found.median <= found.high <= found.most


def test_few_rounds_prove_nothing_that_their_range_does_not() -> None:
    assert interval([3, 1, 2]) == (1, 3)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    draw = random.Random(7)
    tries = 60
    covered = 0
    for _ in range(tries):
        low, high = interval([draw.lognormvariate(0, 0.3) for _ in range(15)])  # its median is 1
        covered += low <= 1 <= high
    assert covered / tries > 0.85  # 95 % less what a bootstrap of 15 values and 60 tries may lack


def test_more_rounds_make_it_narrower() -> None:
    draw = random.Random(1)
    values = [draw.lognormvariate(0, 0.3) for _ in range(200)]
    few, many = interval(values[:10]), interval(values)
    assert many[1] - many[0] < few[1] - few[0]


def test_percentiles_by_nearest_rank() -> None:
    hundred = list(range(1, 101))
    assert percentile(hundred, 0.99) == 99
    assert percentile(hundred, 0.5) == 50
    assert percentile(hundred, 1) == 100
    assert percentile([5.0], 0.99) == 5
    with pytest.raises(ValueError, match="no percentile"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="no percentile"):
        percentile(hundred, 0)
