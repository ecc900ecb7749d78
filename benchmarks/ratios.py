"""Ratios of what was measured in the same round: their median, its confidence interval, and their range.

Times of a shared machine mean little, for a slow minute of it makes everything slow. What was measured one right after
the other is compared instead: each round gives one ratio, and a slow minute is in both of its sides. Nothing here
measures or reads anything.
"""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES: Final = 1_000
CONFIDENCE: Final = 0.95


@frozen
class Ratio:
    """A ratio that was measured in several rounds.

    Args:
        median: of the rounds.
        low: lower end of the 95 % interval of the median.
        high: its upper end.
        least: the lowest of the rounds.
        most: the highest.
    """

    median: float
    low: float
    high: float
    least: float
    most: float

    def __str__(self) -> str:
        """As the tables show it: the median, and its interval."""
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def paired(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio of each round.

    Raises:
        ValueError: not as many rounds of the one as of the other.
    """
    return [one / other for one, other in zip(above, below, strict=True)]


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """What the rounds say about `above` divided by `below`, paired round by round.

    Raises:
        ValueError: no round at all, or not as many of the one as of the other.
    """
    ratios = paired(above, below)
    if not ratios:
        raise ValueError("nothing was measured")
    low, high = interval(ratios)
    return Ratio(statistics.median(ratios), low, high, min(ratios), max(ratios))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the median, by percentile bootstrap (Efron 1979); the same for the same values.

    Of fewer than six values it is their whole range: the range of five covers the median with 94 %.
    """
    if len(values) < 6:
        return min(values), max(values)
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    outside = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return medians[outside], medians[-1 - outside]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies (nearest rank).

    Raises:
        ValueError: there are no values, or the share is not above 0 and at most 1.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)]
