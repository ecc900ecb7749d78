"""Exploration: a scenario runs once for each schedule of its actors' operations, until one fails or all have been.

    @exclfs_explore(preemptions=2, actors=[["find", "objects", "-type", "f", "-delete"], add_an_object])
    def test_nothing_is_lost(scenario):
        (scenario.path / "objects").mkdir()
        yield                                        # here the actors run, each time in another order
        assert (scenario.path / "objects/new").exists()

The rule that this module owns: each run begins with a fresh tree, and what is told of a failure is enough to have it
again: the schedule with the fewest preemptions that fails, in words, and its seed.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from attrs import define, field, frozen

from exclfs.gating import Operation
from exclfs.testing.actors import Actor, Ended, What
from exclfs.testing.calls import CallReader
from exclfs.testing.programs import stoppable
from exclfs.testing.runs import Deadlock, Endless, NotAsPlanned, Run, Step
from exclfs.testing.schedules import (
    Choice,
    Schedule,
    Search,
    diverged,
    fingerprint,
    from_seed,
    preemptions,
    seed_of,
    shrink,
)
from exclfs.testing.syscalls import USUAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PREEMPTIONS: Final = 2
LIMIT: Final = 1000
TIMEOUT: Final = 30.0
NAME: Final = "explored"
"""The directory of the mount in which the tree of a scenario is made."""
MOST_ACTORS: Final = 26
_SHOWN: Final = 200
"""How many steps of a schedule are told."""


class Tree(Protocol):
    """What a mount has to have: exclfs_mount does."""

    @property
    def path(self) -> Path:
        """The mountpoint."""

    @property
    def backing(self) -> Path:
        """The tree behind it."""


@frozen
class Directory:
    """A plain directory in the place of a mount, to explore without exclfs."""

    path: Path

    @property
    def backing(self) -> Path:
        """The same."""
        return self.path


@define
class Scenario:
    """What a scenario is given: a fresh tree, and afterwards what came of it."""

    path: Path
    """The tree, in the mount. Actors run there."""
    backing: Path
    """The same behind the mount."""
    mount: Tree
    ended: dict[str, Ended] = field(factory=dict, init=False)
    """After the run: how each actor ended, by its name."""
    steps: list[Step] = field(factory=list, init=False)
    """After the run: who did what, in order."""
    actors: list[Actor] = field(factory=list, init=False)

    def actor(self, what: What | Actor, **options: Any) -> str:
        """Before the run: one more takes part. Gives its name; the options are those of Actor."""
        actor = what if isinstance(what, Actor) else Actor(what, **options)
        self.actors.append(actor)
        return self.names()[-1][0]

    def names(self) -> list[tuple[str, Actor]]:
        """Names that tell all actors apart: of two with the same name the second is name-2."""
        told: list[tuple[str, Actor]] = []
        for actor in self.actors:
            number = sum(actor.called() == other.called() for _, other in told) + 1
            told.append((actor.called() if number == 1 else f"{actor.called()}-{number}", actor))
        return told


Steps: TypeAlias = Generator[None, None, None]
"""A scenario: sets the tree up, yields once, and checks what has become of it."""


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
        told = _counted(self.schedules, self.preemptions, self.asleep, self.diverged)
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


class NotReproduced(AssertionError):
    """A seed does not lead to what it was made from: the programs are other ones, or do not do the same each time."""


@define
class _Failure:
    reason: str
    error: BaseException | None


@define
class _Explorer:
    """One exploration."""

    scenario: Callable[[Scenario], Steps]
    actors: Sequence[What | Actor]
    mount: Tree
    operations: frozenset[Operation]
    timeout: float
    reader: CallReader
    ran: int = 0
    asleep: int = 0
    diverged: int = 0
    last_steps: list[Step] = field(factory=list)

    def run(self, schedule: Schedule) -> tuple[list[Choice], _Failure | None]:
        """One run on a fresh tree; what was chosen, and how it failed."""
        scenario = Scenario(self.mount.path / NAME, self.mount.backing / NAME, self.mount)
        _emptied(scenario.backing)
        for actor in self.actors:
            scenario.actor(actor)
        steps = self.scenario(scenario)
        if next(steps, self) is self:
            raise ValueError("a scenario has to yield once, where the actors are to run")
        if not 1 <= len(scenario.actors) <= MOST_ACTORS:
            raise ValueError(f"a scenario has 1 to {MOST_ACTORS} actors, and not {len(scenario.actors)}")
        run = Run(
            scenario.names(),
            scenario.path,
            self.reader,
            prefix=f"{NAME}/",
            operations=self.operations,
            server=getattr(self.mount, "server_pid", None),
            timeout=self.timeout,
        )
        failure = None
        try:
            run.go(schedule)
        except (Deadlock, Endless) as error:
            failure = _Failure(str(error), None)
        finally:
            self.last_steps = scenario.steps = run.steps
            run.close()
            if failure is not None or not run.ended:
                steps.close()
        self.ran += 1
        self.asleep += any(choice.slept for choice in run.choices)
        scenario.ended = run.ended
        return run.choices, failure or self._check(scenario, steps)

    def _check(self, scenario: Scenario, steps: Steps) -> _Failure | None:
        for name, actor in scenario.names():
            ended = scenario.ended[name]
            if ended.is_failure(actor):
                steps.close()
                how = (
                    f"was killed by signal {-ended.returncode}" if ended.returncode < 0 else f"gave {ended.returncode}"
                )
                said = ended.stderr.strip()
                return _Failure(f"{name} {how}" + (f":\n{_indented(said)}" if said else ""), None)
        try:
            next(steps)
        except StopIteration:
            return None
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return _Failure(said, error)
        steps.close()
        raise ValueError("a scenario has to yield once only")

    def fails(self, schedule: Schedule) -> list[Choice] | None:
        """For shrinking: what was chosen, if it fails."""
        try:
            choices, failure = self.run(schedule)
        except NotAsPlanned:
            return None
        return choices if failure is not None else None


def explore(
    scenario: Callable[[Scenario], Steps],
    actors: Sequence[What | Actor] = (),
    *,
    mount: Tree,
    preemptions: int = PREEMPTIONS,
    seed: str | None = None,
    limit: int = LIMIT,
    operations: str | Iterable[str] = USUAL,
    timeout: float = TIMEOUT,
) -> Exploration:
    """Runs a scenario in every schedule with at most so many preemptions, those with the fewest first.

    Args:
        scenario: a generator function: it sets the tree up, yields once, and checks it. It may add actors.
        actors: programs with their arguments, which run in the tree; functions, which are given its path; Actors.
        mount: where the tree is made: exclfs_mount, or a Directory.
        preemptions: at most how many times an actor that could go on has to wait for another.
        seed: run this schedule alone.
        limit: at most how many schedules run.
        operations: which operations are steps. The usual ones are all but read and write.
        timeout: seconds after which an actor that neither does an operation nor ends is given up.

    Raises:
        ScheduleFailed: the scenario fails in a schedule.
        NotReproduced: the seed is not of this scenario.
        BadSeed: it is no seed.
        OSError: a program could not be started, or this kernel cannot stop programs.
    """
    explorer = _Explorer(
        scenario, actors, mount, stoppable(operations), timeout, CallReader(mount.path, mount.backing)
    )  # fmt: skip
    if seed is not None:
        return _replay(explorer, from_seed(seed), seed)
    search = Search(preemptions)
    while explorer.ran < limit and (schedule := search.next()) is not None:
        try:
            choices, failure = explorer.run(schedule)
        except NotAsPlanned:
            explorer.ran += 1
            explorer.diverged += 1
            continue
        if failure is not None:
            raise _failed(explorer, schedule, choices, failure, preemptions)
        if diverged(schedule, choices) is not None:
            explorer.diverged += 1
        else:
            search.ran(schedule, choices)
    left = search.next() is not None
    return Exploration(
        schedules=explorer.ran,
        preemptions=preemptions,
        complete=not left and not explorer.diverged,
        asleep=explorer.asleep,
        diverged=explorer.diverged,
        beyond=search.beyond,
    )


def _failed(
    explorer: _Explorer, schedule: Schedule, choices: list[Choice], failure: _Failure, bound: int
) -> ScheduleFailed:
    found = explorer.ran
    told = _counted(found, bound, explorer.asleep, explorer.diverged)
    shrunk, made = shrink(schedule, choices, explorer.fails)
    # Once more, so that what is told is of this very run.
    again, fails_again = explorer.run(shrunk)
    if fails_again is None or fingerprint(again) != fingerprint(made):
        note = "\nIt did not fail the same way when it was run again: the actors do not do the same each time."
        return _told(failure, schedule, choices, explorer.last_steps, found, f"{told}{note}")
    return _told(fails_again, shrunk, again, explorer.last_steps, found, told)


def _replay(explorer: _Explorer, schedule: Schedule, seed: str) -> Exploration:
    try:
        choices, failure = explorer.run(schedule)
    except NotAsPlanned as error:
        why = "a lock makes it impossible" if error.sleeps else "the scenario is another one, or not the same each time"
        raise NotReproduced(f"{seed} cannot be run: {error}; {why}") from None
    if failure is not None:
        note = "1 schedule ran, that of the seed"
        if schedule.fingerprint not in (None, fingerprint(choices)):
            note += ", and the operations are not those that it was made from"
        raise _told(failure, schedule, choices, explorer.last_steps, 1, note)
    if schedule.fingerprint not in (None, fingerprint(choices)):
        raise NotReproduced(
            f"{seed} runs, and nothing fails, but the operations are not those that it was made from:\n"
            + _listed(explorer.last_steps)
        )
    return Exploration(
        schedules=1, preemptions=preemptions(choices), complete=False, asleep=explorer.asleep, diverged=0, beyond=0
    )


# --- in words --------------------------------------------------------------------------------------------------------


def _told(
    failure: _Failure, schedule: Schedule, choices: Sequence[Choice], steps: Sequence[Step], found: int, note: str
) -> ScheduleFailed:
    seed = seed_of(schedule, choices)
    count = preemptions(choices)
    message = (
        f"{failure.reason}\n"
        f"in this schedule, with {count} preemption{'' if count == 1 else 's'}:\n{_listed(steps)}\n"
        f"{note}\n"
        f"To run it again: --exclfs-seed={seed}"
    )
    failed = ScheduleFailed(message, seed, steps, found)
    failed.__cause__ = failure.error
    return failed


def _listed(steps: Sequence[Step]) -> str:
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


def _counted(ran: int, bound: int, asleep: int, diverged: int) -> str:
    schedules, most = "schedule" if ran == 1 else "schedules", "preemption" if bound == 1 else "preemptions"
    told = f"{ran} {schedules} ran, of those with at most {bound} {most}"
    if asleep:
        told += f"; in {asleep} of them an actor fell asleep, so the order that was wanted is impossible"
    if diverged:
        told += f"; {diverged} could not be followed: the actors do not do the same each time"
    return told


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _emptied(tree: Path) -> None:
    """A fresh tree, made behind the mount: no hold that an actor has left keeps it."""
    if os.path.lexists(tree):
        shutil.rmtree(tree)
    tree.mkdir()


# --- for pytest ------------------------------------------------------------------------------------------------------


def exclfs_explore(
    *,
    preemptions: int = PREEMPTIONS,
    actors: Sequence[What | Actor] = (),
    limit: int = LIMIT,
    operations: str | Iterable[str] = USUAL,
    timeout: float = TIMEOUT,
) -> Callable[[Callable[..., Steps]], Callable[..., None]]:
    """Makes a test of a scenario: a generator function with an argument `scenario`, and fixtures besides.

    The arguments are those of explore(). How many schedules ran is printed.
    """

    def decorate(scenario: Callable[..., Steps]) -> Callable[..., None]:
        wanted = inspect.signature(scenario).parameters

        def test(**fixtures: Any) -> None:
            request, mount = fixtures["request"], fixtures["exclfs_mount"]
            given = {name: value for name, value in fixtures.items() if name in wanted}

            def one(run: Scenario) -> Steps:
                return scenario(**given, scenario=run)

            seed = request.config.getoption("--exclfs-seed", None)
            done = explore(
                one,
                actors,
                mount=mount,
                preemptions=preemptions,
                seed=seed,
                limit=limit,
                operations=operations,
                timeout=timeout,
            )
            print(done)

        names = [*(name for name in wanted if name != "scenario"), "exclfs_mount", "request"]
        test.__name__, test.__qualname__ = scenario.__name__, scenario.__qualname__
        test.__doc__, test.__module__ = scenario.__doc__, scenario.__module__
        test.__dict__.update(scenario.__dict__)
        test.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in dict.fromkeys(names)]
        )
        return test

    return decorate
