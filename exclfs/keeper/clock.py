"""The clock: what time it is, and when a time is over.

The rule that this module owns: what is told to people is the time of day, and what decides is a clock that nobody can
set and that goes on while the machine sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from attrs import frozen

from exclfs.holds.errors import BadHold
from exclfs.holds.lifetime import Time


def boottime() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME, clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@frozen
class Clock:
    """The two clocks of one mount."""

    now: Callable[[], datetime]
    """The time of day; aware, UTC."""
    seconds: Callable[[], float]
    """Seconds on the clock that decides."""

    def time_in(self, seconds: float) -> Time:
        """The end that comes in so many seconds.

        Raises:
            BadHold: no calendar goes that far.
        """
        try:
            return Time(self.now() + timedelta(seconds=seconds), self.seconds() + seconds)
        except OverflowError:
            raise BadHold(f"{seconds:g} seconds from now is beyond every calendar") from None

    def has_come(self, end: Time) -> bool:
        """Whether this time is over."""
        return end.deadline <= self.seconds()
