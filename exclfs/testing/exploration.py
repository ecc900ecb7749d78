"""Exploration: a scenario runs once for each schedule of its actors' operations, until one fails or all have been.

    @exclfs_explore(preemptions=2, actors=[["find", "objects", "-type", "f", "-delete"], add_an_object])
    def test_nothing_is_lost(scenario):
        (scenario.path / "objects").mkdir()
        yield                                        # here the actors run, each time in another order
        assert (scenario.path / "objects/new").exists()

The rule that this module owns: of all schedules that fail, the one with the fewest preemptions is told, and it is told
of a run in which it failed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from exclfs.gating import Operation
from exclfs.testing.actors import Actor, What
from exclfs.testing.calls import CallReader
from exclfs.testing.findings import (
    Exploration,
    Failure,
    NotReproduced,
    ScheduleFailed,
    counted,
    indented,
    listed,
    told_of,
    write_down,
)
from exclfs.testing.programs import stoppable
from exclfs.testing.runs import Deadlock, Endless, NotAsPlanned, Run, Step
from exclfs.testing.scenarios import NAME, Directory, Scenario, Steps, Storied, Tree, emptied
from exclfs.testing.schedules import (
    Choice,
    Schedule,
    Search,
    diverged,
    fingerprint,
    from_seed,
    preemptions,
    shrink,
)
from exclfs.testing.syscalls import USUAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Actor", "Directory", "Exploration", "NotReproduced", "Scenario", "ScheduleFailed", "Steps",
    "exclfs_explore", "explore",
]  # fmt: skip

PREEMPTIONS: Final = 2
LIMIT: Final = 1000
TIMEOUT: Final = 30.0
MOST_ACTORS: Final = 26


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

    def run(self, schedule: Schedule) -> tuple[list[Choice], Failure | None]:
        """One run on a fresh tree; what was chosen, and how it failed."""
        scenario = Scenario(self.mount.path / NAME, self.mount.backing / NAME, self.mount)
        emptied(scenario.backing)
        for actor in self.actors:
            scenario.actor(actor)
        if isinstance(self.mount, Storied):
            self.mount.begin_story()
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
            failure = Failure(str(error), None)
        finally:
            self.last_steps = scenario.steps = run.steps
            if isinstance(self.mount, Storied):
                write_down(run.steps, self.mount.trail)
            run.close()
            if failure is not None or not run.ended:
                steps.close()
        self.ran += 1
        self.asleep += any(choice.slept for choice in run.choices)
        scenario.ended = run.ended
        return run.choices, failure or self._check(scenario, steps)

    def _check(self, scenario: Scenario, steps: Steps) -> Failure | None:
        for name, actor in scenario.names():
            ended = scenario.ended[name]
            if ended.is_failure(actor):
                steps.close()
                how = (
                    f"was killed by signal {-ended.returncode}" if ended.returncode < 0 else f"gave {ended.returncode}"
                )
                said = ended.stderr.strip()
                return Failure(f"{name} {how}" + (f":\n{indented(said)}" if said else ""), None)
        try:
            next(steps)
        except StopIteration:
            return None
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return Failure(said, error)
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
    __tracebackhide__ = True
    reader = CallReader(mount.path, mount.backing)
    explorer = _Explorer(scenario, actors, mount, stoppable(operations), timeout, reader)
    if seed is not None:
        return _replay(explorer, from_seed(seed), seed)
    search = Search(preemptions, limit)
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
    explorer: _Explorer, schedule: Schedule, choices: list[Choice], failure: Failure, bound: int
) -> ScheduleFailed:
    found = explorer.ran
    told = counted(found, bound, explorer.asleep, explorer.diverged)
    shrunk, made = shrink(schedule, choices, explorer.fails)
    # Once more, so that what is told is of this very run.
    again, fails_again = explorer.run(shrunk)
    if fails_again is None or fingerprint(again) != fingerprint(made):
        note = "\nIt did not fail the same way when it was run again: the actors do not do the same each time."
        return told_of(failure, schedule, choices, explorer.last_steps, found, f"{told}{note}")
    return told_of(fails_again, shrunk, again, explorer.last_steps, found, told)


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
        raise told_of(failure, schedule, choices, explorer.last_steps, 1, note)
    if schedule.fingerprint not in (None, fingerprint(choices)):
        raise NotReproduced(
            f"{seed} runs, and nothing fails, but the operations are not those that it was made from:\n"
            + listed(explorer.last_steps)
        )
    return Exploration(
        schedules=1, preemptions=preemptions(choices), complete=False, asleep=explorer.asleep, diverged=0, beyond=0
    )


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
            __tracebackhide__ = True
            request, mount = fixtures["request"], fixtures["exclfs_mount"]
            given = {name: value for name, value in fixtures.items() if name in wanted}

            def one(run: Scenario) -> Steps:
                return scenario(**given, scenario=run)

            seed = request.config.getoption("exclfs_seed")
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
            request.node.user_properties.append(("exploration", str(done)))

        names = [*(name for name in wanted if name != "scenario"), "exclfs_mount", "request"]
        test.__name__, test.__qualname__ = scenario.__name__, scenario.__qualname__
        test.__doc__, test.__module__ = scenario.__doc__, scenario.__module__
        test.__dict__.update(scenario.__dict__)
        test.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in dict.fromkeys(names)]
        )
        return test

    return decorate
