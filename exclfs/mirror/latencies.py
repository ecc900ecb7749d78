"""How long answers took: percentiles of a histogram that the mirror counts without a lock.

The rule that this module owns: which microseconds each bucket is of, as bucket_of() in questions.c has it. 0 to 3 have
one each; from there on four share an octave, so that the end of a bucket is at most a quarter above its beginning.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def percentile(buckets: Sequence[int], percent: float) -> int | None:
    """So many microseconds, to the end of their bucket, `percent` of all took at most; None if there was none.

    Args:
        buckets: how many fell into each.
        percent: more than 0, at most 100.
    """
    wanted = sum(buckets) * percent / 100
    for bucket, seen in enumerate(accumulate(buckets)):
        if seen and seen >= wanted:
            return last(bucket)
    return None


def first(bucket: int) -> int:
    """The least microseconds that fall into this bucket."""
    if bucket < 4:
        return bucket
    octave, quarter = divmod(bucket, 4)
    return (4 + quarter) << (octave - 1)


def last(bucket: int) -> int:
    """The most microseconds that fall into this bucket."""
    return first(bucket + 1) - 1
