"""What an exploration has found, in words.

The rule that this module owns: what is told of a failure is enough to have it again: who did what, in order, and the
seed; and what is told of an exploration says whether it was all of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from attrs import define, frozen

from exclfs.gating import Operation
from exclfs.testing.runs import SLEEP
from exclfs.testing.scenarios import NAME
from exclfs.testing.schedules import preemptions, seed_of
from exclfs.testing.trail import Fate, Trail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.testing.runs import Step
    from exclfs.testing.schedules import Choice, Schedule

_SHOWN: Final = 200
"""How many steps of a schedule are told."""


@define
class Failure:
    """Why a run failed."""

    reason: str
    error: BaseException | None


@frozen(kw_only=True)
class Exploration:
    """What was explored, and nothing failed."""

    schedules: int
    """How many ran."""
    preemptions: int
    """With at most how many preemptions."""
    complete: bool
    """Whether that was all of them with so many preemptions."""
    asleep: int
    """In how many of them the order that was wanted was impossible: an actor fell asleep in a lock, or the like, and
    others had to go first."""
    diverged: int
    """How many were given up because the actors did something else than before in the same schedule."""
    beyond: int
    """How many more were met that have more preemptions; 0: the bound has left nothing out."""

    def __str__(self) -> str:
        """As it is told after a test."""
        told = counted(self.schedules, self.preemptions, self.asleep, self.diverged)
        if self.complete:
            every = "that is every order there is" if self.beyond == 0 else "that is all of them"
            return f"{told}; {every}"
        return f"{told}; that is not all of them"


class ScheduleFailed(AssertionError):
    """A schedule in which the scenario fails: the one with the fewest preemptions."""

    def __init__(self, message: str, seed: str, steps: Sequence[Step], schedules: int) -> None:
        super().__init__(message)
        self.seed = seed
        """Runs it again: explore(…, seed=…), pytest --exclfs-seed=…"""
        self.steps = tuple(steps)
        """Who did what, in order."""
        self.schedules = schedules
        """How many had run when it was found."""
        self.trail = Trail()
        """The same as `steps`, as gates and timelines have it."""
        write_down(steps, self.trail)


def write_down(steps: Sequence[Step], trail: Trail) -> None:
    """Adds steps to a trail; without those that only let time pass."""
    for step in steps:
        if step.operation == SLEEP:
            continue
        trail.add(
            time=step.time,
            program=step.actor,
            pid=step.pid,
            comm=step.comm,
            operation=Operation(step.operation),
            path=os.path.normpath(f"{NAME}/{step.path}"),
            second_path=None if step.second_path is None else os.path.normpath(f"{NAME}/{step.second_path}"),
            fate=Fate.LET_GO,
        )


class NotReproduced(AssertionError):
    """A seed does not lead to what it was made from: the programs are other ones, or do not do the same each time."""


def told_of(
    failure: Failure, schedule: Schedule, choices: Sequence[Choice], steps: Sequence[Step], found: int, note: str
) -> ScheduleFailed:
    """The error that tells of a failure. `found` is how many schedules had run, `note` what is said of them."""
    seed = seed_of(schedule, choices)
    count = preemptions(choices)
    message = (
        f"{failure.reason}\n"
        f"in this schedule, with {count} preemption{'' if count == 1 else 's'}:\n{listed(steps)}\n"
        f"{note}\n"
        f"To run it again: --exclfs-seed={seed}"
    )
    failed = ScheduleFailed(message, seed, steps, found)
    failed.__cause__ = failure.error
    return failed


def listed(steps: Sequence[Step]) -> str:
    """A schedule in words: who did what, in order."""
    width = max((len(step.actor) for step in steps), default=0)
    kinds = max((len(step.operation) for step in steps), default=0)
    lines = []
    for number, step in enumerate(steps):
        to = "" if step.second_path is None else f" to {step.second_path}"
        marks = [f"preempts {step.preempts}"] * (step.preempts is not None) + [
            "falls asleep, others first"
        ] * step.slept
        mark = f"    <- {', '.join(marks)}" if marks else ""
        line = f"{step.actor:{width}}  {step.operation:{kinds}}  {step.path}{to}".rstrip() + mark
        lines.append(f"  {number:3} {step.task:3} {line}")
    if len(lines) > _SHOWN:
        lines[_SHOWN // 2 : -_SHOWN // 2] = [f"  … {len(lines) - _SHOWN} more …"]
    return "\n".join(lines)


def counted(ran: int, bound: int, asleep: int, diverged: int) -> str:
    """How many schedules ran, and what came in the way."""
    schedules, most = "schedule" if ran == 1 else "schedules", "preemption" if bound == 1 else "preemptions"
    told = f"{ran} {schedules} ran, of those with at most {bound} {most}"
    if asleep:
        told += f"; in {asleep} of them an actor fell asleep, so the order that was wanted is impossible"
    if diverged:
        told += f"; {diverged} could not be followed: the actors do not do the same each time"
    return told


def indented(text: str) -> str:
    """Lines of somebody else, below a line of ours."""
    return "\n".join(f"    {line}" for line in text.splitlines())
