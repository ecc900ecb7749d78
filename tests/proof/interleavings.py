"""Every interleaving of a few small processes, one after the other: an exhaustive search, and nothing left to chance.

A process is a generator. Between two `yield`s it runs alone, as one atomic step; at a `yield` any other may run. What
it yields names the step that comes next, and may say when that step is possible:

    yield "shares the stripe", lambda: not stripe.taken

What several processes share lies in objects of classes that say so (`Shared`); everything else that a process
remembers is in its local variables, and hashable. The search remembers the states that it has seen, so each is looked
at once, however many orders lead to it.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Generator, Hashable, Mapping
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

Step = str | tuple[str, Callable[[], bool]]
Process = Generator[Step, None, Hashable]
Scene = Callable[[], tuple["Shared", Mapping[str, Process]]]
"""Makes the shared state and the processes, by name, at their beginning."""
End = frozenset[tuple[str, Hashable]]
"""What each process returned."""


class Violation(Exception):
    """A step did what must never happen; the model says what."""


class Shared:
    """What several processes can see and change: an attrs class. Its fields are hashable, Shared, or lists of such."""

    def state(self) -> Hashable:
        """All of it, to be compared."""
        return tuple([_state(getattr(self, field.name)) for field in attrs.fields(type(self))])

    def at_the_end(self) -> None:
        """Called when every process has ended. May raise Violation."""


def _state(value: Any) -> Hashable:
    if isinstance(value, Shared):
        return value.state()
    if isinstance(value, list):
        return tuple([_state(item) for item in value])
    return value  # type: ignore[no-any-return]


@frozen
class Found:
    """What a search has found out."""

    states: int
    """How many different states there are."""
    ends: frozenset[End]
    """Every way in which it can end."""
    violation: str = ""
    """What goes wrong, if anything can."""
    trace: tuple[str, ...] = ()
    """The steps that lead there."""


@define
class _Run:
    """One run of a scene, up to some step."""

    shared: Shared
    processes: Mapping[str, Process]
    next: dict[str, Step]
    results: dict[str, Hashable]

    @classmethod
    def of(cls, scene: Scene, schedule: tuple[str, ...] = ()) -> _Run:
        shared, processes = scene()
        run = cls(shared, processes, {name: next(process) for name, process in processes.items()}, {})
        for name in schedule:
            run.step(name)
        return run

    def ready(self) -> list[str]:
        return [name for name, step in self.next.items() if isinstance(step, str) or step[1]()]

    def step(self, name: str) -> None:
        try:
            self.next[name] = next(self.processes[name])
        except StopIteration as end:
            del self.next[name]
            self.results[name] = end.value

    def state(self) -> Hashable:
        where = tuple([tuple(_where(self.processes[name])) for name in self.next])
        return self.shared.state(), tuple(self.next), where, frozenset(self.results.items())


def _where(process: Process) -> Iterator[Hashable]:
    """Where a process is, in its own code and in that which it has called, and what it remembers there."""
    at: Any = process
    while isinstance(at, GeneratorType):
        frame = at.gi_frame
        yield frame.f_lasti
        yield tuple([value for value in frame.f_locals.values() if not isinstance(value, Shared)])
        at = at.gi_yieldfrom


def search(scene: Scene) -> Found:
    """Goes through every interleaving, until a step violates what must hold or there are no more.

    A deadlock is a violation, and so is a way to go on for ever: a state that leads back to itself.
    """
    numbers: dict[Hashable, int] = {}
    led_to: dict[int, list[int]] = {}
    ends: set[End] = set()
    # Each is a way that has not been gone yet, and the number of the state that its last step is made from.
    schedules: list[tuple[tuple[str, ...], int]] = [((), -1)]
    while schedules:
        schedule, before = schedules.pop()
        try:
            run = _Run.of(scene, schedule)
            while True:
                state = run.state()
                is_new = state not in numbers
                number = numbers.setdefault(state, len(numbers))
                led_to.setdefault(before, []).append(number)
                if not is_new:
                    break
                if not run.next:
                    run.shared.at_the_end()
                    ends.add(frozenset(run.results.items()))
                    break
                ready = run.ready()
                if not ready:
                    raise Violation(f"deadlock: {', '.join(run.next)} cannot go on")
                schedules += [((*schedule, name), number) for name in ready[1:]]
                schedule, before = (*schedule, ready[0]), number
                run.step(ready[0])
        except Violation as violation:
            return Found(len(numbers), frozenset(ends), str(violation), tuple(_told(scene, schedule)))
    try:
        graphlib.TopologicalSorter(led_to).prepare()
    except graphlib.CycleError:
        return Found(len(numbers), frozenset(ends), "this can go on for ever")
    return Found(len(numbers), frozenset(ends))


def _told(scene: Scene, schedule: tuple[str, ...]) -> Iterator[str]:
    run = _Run.of(scene)
    for name in schedule:
        step = run.next[name]
        yield f"{name} {step if isinstance(step, str) else step[0]}"
        try:
            run.step(name)
        except Violation as violation:
            yield f"-- {violation}"
