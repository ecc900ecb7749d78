"""Which schedule comes next: all interleavings of operations with few preemptions, fewest first.

As in CHESS (Musuvathi and Qadeer, "Iterative context bounding for systematic testing of multithreaded programs", PLDI
2007): without a reason to switch the same task goes on; to switch away from one that could go on is a preemption. All
schedules without any come first, then those with one, and so on, so that the first that fails has the fewest.

The rule that this module owns: every schedule within the bound is proposed exactly once, and it is the same for the
same seed. It is pure: tasks are names, operations are words, and somebody else runs them.
"""

from __future__ import annotations

import re
import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class BadSeed(ValueError):
    """A text that is no seed."""


def place(task: str) -> tuple[str, int]:
    """Where a task is among others: a, a1, a2, …, a10, b."""
    return task[0], int(task[1:] or 0)


@frozen
class Point:
    """A moment at which somebody has to be chosen: nobody runs."""

    enabled: tuple[str, ...]
    """The tasks that stand before an operation, in their order (see place()). At least one."""
    current: str | None = None
    """Who was let go last."""
    yielding: frozenset[str] = frozenset()
    """Those whose operation is to sleep for a time: to switch away from them is no preemption."""

    @property
    def default(self) -> str:
        """Who goes on if nothing else is wanted: the same as before, or else the first that has something to do."""
        if self.current in self.enabled and self.current not in self.yielding:
            return self.current
        busy = [task for task in self.enabled if task not in self.yielding]
        if busy:
            return busy[0]
        # All of them sleep for a time: in turn, so that nobody spins for ever while another could help.
        later = [task for task in self.enabled if self.current is not None and place(task) > place(self.current)]
        return (later or self.enabled)[0]

    def preempts(self, chosen: str) -> bool:
        """Whether this choice is a preemption: of one that could go on, or of everybody who is busy by a sleeper."""
        if chosen == self.default:
            return False
        if self.current in self.enabled and self.current not in self.yielding:
            return True
        return chosen in self.yielding and len(self.yielding) < len(self.enabled)


@frozen
class Choice:
    """What was chosen at a point, and what that was."""

    point: Point
    chosen: str
    operation: str = ""
    """The kind of operation that was let go."""
    slept: bool = False
    """It fell asleep in the kernel, and others had to go first."""

    @property
    def preempts(self) -> bool:
        """Whether it was a preemption."""
        return self.point.preempts(self.chosen)


@frozen
class Schedule:
    """At some steps, counted from 0, somebody else than the default is chosen."""

    switches: tuple[tuple[int, str], ...] = ()
    """Which step, and who; in order."""
    expected: tuple[tuple[str, str], ...] = field(default=(), eq=False, repr=False)
    """Who did what in the run that it was thought of in. Before its last switch it has to be the same."""
    fingerprint: str | None = field(default=None, eq=False)
    """Of the whole run that the seed was made from."""

    def choose(self, step: int, point: Point) -> str | None:
        """Who is to go on at this step; None: somebody who does not stand there."""
        for at, task in self.switches:
            if at == step:
                return task if task in point.enabled else None
        return point.default


def diverged(schedule: Schedule, choices: Sequence[Choice]) -> int | None:
    """The first step at which a run was not what it was when the schedule was thought of; None: it was the same."""
    same = schedule.switches[-1][0] if schedule.expected else 0
    for step, expected in enumerate(schedule.expected[:same]):
        if step >= len(choices) or (choices[step].chosen, choices[step].operation) != expected:
            return step
    return None


def preemptions(choices: Sequence[Choice]) -> int:
    """How many preemptions a run had."""
    return sum(choice.preempts for choice in choices)


class Search:
    """All schedules with at most so many preemptions.

    Args:
        bound: how many preemptions at most.
        limit: how many schedules at most are kept of those that wait with as many preemptions; more cannot be run.
    """

    def __init__(self, bound: int, limit: int = 1_000_000) -> None:
        self._bound = bound
        self._limit = limit
        self._waiting: list[deque[Schedule]] = [deque() for _ in range(bound + 1)]
        self._waiting[0].append(Schedule())
        self.beyond = 0
        """How many schedules were left out because they have more preemptions; what would follow from them is not
        counted."""

    def next(self) -> Schedule | None:
        """The next to run, one with the fewest preemptions; None: that was all."""
        for waiting in self._waiting:
            if waiting:
                return waiting.popleft()
        return None

    def ran(self, schedule: Schedule, choices: Sequence[Choice]) -> None:
        """Learns from a run what else could have been chosen after the last switch of its schedule."""
        first = schedule.switches[-1][0] + 1 if schedule.switches else 0
        so_far = preemptions(choices[:first])
        done = tuple((choice.chosen, choice.operation) for choice in choices)
        for step in range(first, len(choices)):
            point, chosen = choices[step].point, choices[step].chosen
            for task in point.enabled:
                if task == chosen:
                    continue
                cost = so_far + point.preempts(task)
                if cost > self._bound:
                    self.beyond += 1
                elif len(self._waiting[cost]) < self._limit:
                    self._waiting[cost].append(Schedule((*schedule.switches, (step, task)), done))
            so_far += choices[step].preempts


def shrink(
    schedule: Schedule, choices: Sequence[Choice], run: Callable[[Schedule], Sequence[Choice] | None]
) -> tuple[Schedule, Sequence[Choice]]:
    """The same failure with fewer switches: each is left out if it fails without it.

    Args:
        schedule: one that fails.
        choices: what was chosen in it.
        run: runs a schedule; gives what was chosen if it fails, None if not.
    """
    at = 0
    while at < len(schedule.switches):
        fewer = Schedule((*schedule.switches[:at], *schedule.switches[at + 1 :]))
        failed = run(fewer)
        if failed is None or preemptions(failed) > preemptions(choices):
            at += 1
        else:
            schedule, choices, at = fewer, failed, 0
    return schedule, choices


# --- seeds -----------------------------------------------------------------------------------------------------------

_SEED: Final = re.compile(r"(?:0|(?P<switches>\d+[a-z]\d*(?:_\d+[a-z]\d*)*))(?:\.(?P<fingerprint>[0-9a-f]{4}))?")
_SWITCH: Final = re.compile(r"(\d+)([a-z]\d*)")


def fingerprint(choices: Sequence[Choice]) -> str:
    """Four digits that tell whether another run did the same operations in the same order."""
    text = "\n".join(f"{choice.chosen} {choice.operation}" for choice in choices)
    return f"{zlib.crc32(text.encode()) & 0xFFFF:04x}"


def seed_of(schedule: Schedule, choices: Sequence[Choice]) -> str:
    """The seed of a run: "7b_12a.3f9c" chooses b at step 7 and a at step 12."""
    switches = "_".join(f"{step}{task}" for step, task in schedule.switches)
    return f"{switches or '0'}.{fingerprint(choices)}"


def from_seed(seed: str) -> Schedule:
    """The schedule of a seed.

    Raises:
        BadSeed: it is none.
    """
    found = _SEED.fullmatch(seed.strip())
    if found is None:
        raise BadSeed(f"{seed!r} is no seed; one is like 7b_12a.3f9c")
    switches = tuple((int(step), task) for step, task in _SWITCH.findall(found["switches"] or ""))
    if [step for step, _ in switches] != sorted({step for step, _ in switches}):
        raise BadSeed(f"the steps of {seed!r} are not in order")
    return evolve(Schedule(switches), fingerprint=found["fingerprint"])
