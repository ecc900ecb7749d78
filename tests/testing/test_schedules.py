"""Which schedules are proposed, against programs that are lists of operations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exclfs.testing.schedules import (
    BadSeed,
    Choice,
    Point,
    Schedule,
    Search,
    diverged,
    from_seed,
    preemptions,
    seed_of,
    shrink,
)

Program = Callable[[dict[str, int]], object]
"""A generator that does one operation at each step, and yields the kind of the next before it."""


def execute(schedule: Schedule, lengths: dict[str, int]) -> list[Choice]:
    """Tasks with so many operations each, which never wait for each other."""
    left, choices, current = dict(lengths), [], None
    while any(left.values()):
        point = Point(tuple(task for task in sorted(left) if left[task]), current)
        chosen = schedule.choose(len(choices), point)
        assert chosen is not None
        choices.append(Choice(point, chosen, f"op{lengths[chosen] - left[chosen]}"))
        left[chosen] -= 1
        current = chosen
    return choices


def all_runs(lengths: dict[str, int], bound: int) -> list[list[Choice]]:
    """What is run within a bound, in order."""
    search, runs = Search(bound), []
    while (schedule := search.next()) is not None:
        choices = execute(schedule, lengths)
        assert diverged(schedule, choices) is None
        search.ran(schedule, choices)
        runs.append(choices)
    return runs


def order(choices: Sequence[Choice]) -> str:
    return "".join(choice.chosen for choice in choices)


def preemptions_of(interleaving: Sequence[str]) -> int:
    """Counted another way: a task is left although it has something to do later."""
    return sum(
        here != after and here in interleaving[at + 1 :]
        for at, (here, after) in enumerate(itertools.pairwise(interleaving))
    )


def interleavings(lengths: dict[str, int]) -> set[str]:
    if not any(lengths.values()):
        return {""}
    return {
        task + rest
        for task, length in lengths.items()
        if length
        for rest in interleavings({**lengths, task: length - 1})
    }


@pytest.mark.parametrize("lengths", [{"a": 3, "b": 4}, {"a": 2, "b": 2, "c": 2}, {"a": 1, "b": 5}, {"a": 4}])
def test_without_a_bound_every_interleaving_runs_once(lengths: dict[str, int]) -> None:
    runs = [order(run) for run in all_runs(lengths, 100)]
    total = math.factorial(sum(lengths.values()))
    for length in lengths.values():
        total //= math.factorial(length)
    assert len(runs) == len(set(runs)) == total
    assert set(runs) == interleavings(lengths)


@pytest.mark.parametrize("bound", range(4))
@pytest.mark.parametrize("lengths", [{"a": 3, "b": 4}, {"a": 2, "b": 2, "c": 2}])
def test_within_a_bound_exactly_those_run_that_have_no_more(lengths: dict[str, int], bound: int) -> None:
    runs = [order(run) for run in all_runs(lengths, bound)]
    expected = {one for one in interleavings(lengths) if preemptions_of(one) <= bound}
    assert len(runs) == len(expected)
    assert set(runs) == expected


def test_those_with_fewer_preemptions_come_first() -> None:
    counts = [preemptions(run) for run in all_runs({"a": 3, "b": 3, "c": 1}, 3)]
    assert counts == sorted(counts)
    assert [preemptions_of(order(run)) for run in all_runs({"a": 3, "b": 3, "c": 1}, 3)] == counts


def test_what_is_beyond_the_bound_is_told() -> None:
    search = Search(0)
    schedule = search.next()
    assert schedule is not None
    search.ran(schedule, execute(schedule, {"a": 2, "b": 1}))
    assert search.beyond > 0
    search = Search(3)
    while (schedule := search.next()) is not None:
        search.ran(schedule, execute(schedule, {"a": 2, "b": 1}))
    assert search.beyond == 0


@given(
    lengths=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1),
    bound=st.integers(0, 3),
)
@settings(deadline=None, max_examples=30)
def test_any_lengths(lengths: dict[str, int], bound: int) -> None:
    runs = [order(run) for run in all_runs(lengths, bound)]
    assert len(runs) == len(set(runs))
    assert set(runs) == {one for one in interleavings(lengths) if preemptions_of(one) <= bound}


def test_no_more_wait_than_can_be_run() -> None:
    """The first that are run are the same; and as long as the limit is not reached nothing is missing."""
    lengths = {"a": 9, "b": 9}
    search, runs = Search(2, 20), []
    while len(runs) < 20 and (schedule := search.next()) is not None:
        choices = execute(schedule, lengths)
        search.ran(schedule, choices)
        runs.append(order(choices))
        assert all(len(waiting) <= 20 for waiting in search._waiting)
    assert runs == [order(run) for run in all_runs(lengths, 2)[:20]]
    assert search.next() is not None


# --- bugs ------------------------------------------------------------------------------------------------------------


class World:
    """Tasks that work on one dictionary; an operation may have to wait for a lock."""

    def __init__(self, programs: dict[str, list[tuple[str, Callable[[dict[str, int]], bool | None]]]]) -> None:
        self.programs = programs

    def run(self, schedule: Schedule) -> tuple[list[Choice], dict[str, int]]:
        """An operation that gives False could not be done: its task sleeps until another has done something."""
        state: dict[str, int] = {}
        at = dict.fromkeys(self.programs, 0)
        asleep: set[str] = set()
        choices: list[Choice] = []
        current = None
        while True:
            for task in sorted(asleep):
                if self.programs[task][at[task]][1](state) is not False:
                    asleep.discard(task)
                    at[task] += 1
            enabled = tuple(t for t in sorted(at) if at[t] < len(self.programs[t]) and t not in asleep)
            if not enabled:
                assert not asleep, "deadlock"
                return choices, state
            point = Point(enabled, current)
            chosen = schedule.choose(len(choices), point)
            assert chosen is not None
            kind, operation = self.programs[chosen][at[chosen]]
            done = operation(state) is not False
            choices.append(Choice(point, chosen, kind, slept=not done))
            if done:
                at[chosen] += 1
            else:
                asleep.add(chosen)
            current = chosen


def find(world: World, fails: Callable[[dict[str, int]], bool], bound: int) -> tuple[Schedule, list[Choice]] | None:
    search = Search(bound)
    while (schedule := search.next()) is not None:
        choices, state = world.run(schedule)
        if fails(state):
            return schedule, choices
        search.ran(schedule, choices)
    return None


def put(name: str, value: Callable[[dict[str, int]], int]) -> Callable[[dict[str, int]], None]:
    def operation(state: dict[str, int]) -> None:
        state[name] = value(state)

    return operation


def lock(state: dict[str, int]) -> bool:
    if state.get("locked"):
        return False
    state["locked"] = 1
    return True


LOST_UPDATE = {
    task: [
        ("read", put(task, lambda state: state.get("counter", 0))),
        ("write", put("counter", lambda state, task=task: state[task] + 1)),
    ]
    for task in "ab"
}


def test_a_lost_update_needs_one_preemption() -> None:
    world = World(LOST_UPDATE)
    assert find(world, lambda state: state["counter"] != 2, 0) is None
    found = find(world, lambda state: state["counter"] != 2, 3)
    assert found is not None
    assert preemptions(found[1]) == 1


def test_a_bug_that_needs_two() -> None:
    """a sees 1 and then 0 again: b has to come between twice."""
    world = World({
        "a": [
            ("look", put("first", lambda state: state.get("x", 0))),
            ("look", put("second", lambda state: state.get("x", 0))),
        ],
        "b": [("set", put("x", lambda _: 1)), ("clear", put("x", lambda _: 0))],
    })  # fmt: skip

    def fails(state: dict[str, int]) -> bool:
        return (state["first"], state["second"]) == (1, 0)

    assert find(world, fails, 1) is None
    found = find(world, fails, 2)
    assert found is not None
    assert order(found[1]) == "baba"
    assert preemptions(found[1]) == 2


def test_a_lock_that_is_waited_for_is_no_preemption_and_mends_the_bug() -> None:
    world = World({task: [("lock", lock), *LOST_UPDATE[task], ("unlock", put("locked", lambda _: 0))] for task in "ab"})
    search, orders, slept = Search(9), set(), 0
    while (schedule := search.next()) is not None:
        choices, state = world.run(schedule)
        assert state["counter"] == 2
        assert diverged(schedule, choices) is None
        search.ran(schedule, choices)
        orders.add(order(choices))
        slept += any(choice.slept for choice in choices)
    # Each goes first; the other is let go at its lock before the first is at its own, or at any step while it has it.
    assert "abbb" not in {one[:4] for one in orders}
    assert slept == 2 * 3
    assert len(orders) == slept + 2 * 1


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from("ab")), max_size=4, unique_by=lambda pair: pair[0]))
@settings(deadline=None, max_examples=40)
def test_shrinking_leaves_out_what_is_not_needed(switches: list[tuple[int, str]]) -> None:
    lengths = {"a": 4, "b": 4}

    def run(schedule: Schedule) -> list[Choice] | None:
        try:
            choices = execute(schedule, lengths)
        except AssertionError:
            return None
        return choices if "abb" in order(choices) else None

    schedule = Schedule(tuple(sorted(switches)))
    choices = run(schedule)
    if choices is None:
        return
    shrunk, made = shrink(schedule, choices, run)
    assert run(shrunk) == made
    assert preemptions(made) <= preemptions(choices)
    for at in range(len(shrunk.switches)):
        fewer = run(Schedule((*shrunk.switches[:at], *shrunk.switches[at + 1 :])))
        assert fewer is None or preemptions(fewer) > preemptions(made)


# --- those who sleep for a time ---------------------------------------------------------------------------------------


def test_one_that_sleeps_lets_the_others_go_first() -> None:
    asleep = Point(("a", "b", "c"), "a", frozenset("a"))
    assert asleep.default == "b"
    assert not asleep.preempts("c")
    assert asleep.preempts("a")
    all_asleep = Point(("a", "b", "c"), "b", frozenset("abc"))
    assert all_asleep.default == "c"
    assert Point(("a", "b"), "b", frozenset("ab")).default == "a"
    assert not all_asleep.preempts("a")


def test_one_that_polls_does_not_starve_the_others() -> None:
    """a looks until b has done three things; the first schedule ends."""
    done, choices, current, a_looks = 0, [], None, True
    while done < 3:
        yielding = frozenset() if a_looks else frozenset("a")
        point = Point(("a", "b"), current, yielding)
        current = point.default
        choices.append(current)
        if current == "a":
            a_looks = not a_looks
        else:
            done += 1
        assert len(choices) < 20
    assert choices[0] == "a"


# --- seeds -----------------------------------------------------------------------------------------------------------


TASKS = st.builds(lambda letter, number: f"{letter}{number or ''}", st.sampled_from("abz"), st.integers(0, 999))


@given(st.dictionaries(st.integers(0, 9999), TASKS, max_size=5))
@settings(deadline=None, max_examples=40)
def test_a_seed_is_its_schedule(switches: dict[int, str]) -> None:
    schedule = Schedule(tuple(sorted(switches.items())))
    choices = [Choice(Point(("a",)), "a", "unlink")]
    read = from_seed(seed_of(schedule, choices))
    assert read == schedule
    assert read.fingerprint == seed_of(schedule, choices)[-4:]


@pytest.mark.parametrize("text", ["", "x", "7", "7b_", "12a_7b", "7b_7a", "7b.12", "7B", "0.12345", "7b 8a"])
def test_what_is_no_seed(text: str) -> None:
    with pytest.raises(BadSeed):
        from_seed(text)


def test_a_seed_tells_runs_apart() -> None:
    a, b = Choice(Point(("a", "b")), "a", "open"), Choice(Point(("a", "b")), "b", "open")
    seeds = {seed_of(Schedule(), choices) for choices in ([a], [b], [a, b], [b, a])}
    assert len(seeds) == 4


def test_a_run_that_is_another_is_noticed() -> None:
    schedule = Schedule(((2, "b"),), (("a", "open"), ("a", "unlink"), ("a", "rmdir")))
    point = Point(("a", "b"))
    same = [Choice(point, "a", "open"), Choice(point, "a", "unlink"), Choice(point, "b", "open")]
    assert diverged(schedule, same) is None
    assert diverged(schedule, [same[0], Choice(point, "a", "rename")]) == 1
    assert diverged(schedule, same[:1]) == 1
    assert Schedule(((0, "c"),)).choose(0, point) is None
