"""Real processes in every schedule; most need no mount: any directory can be explored."""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import re
import signal
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import exclfs
import exclfs.client.functions  # before there are actors, so that each need not import it
from exclfs.testing import runs
from exclfs.testing.actors import Actor
from exclfs.testing.exploration import (
    Directory,
    NotReproduced,
    Scenario,
    ScheduleFailed,
    Steps,
    exclfs_explore,
    explore,
)
from exclfs.testing.schedules import BadSeed
from program import logged


@pytest.fixture
def here(tmp_path: Path) -> Directory:
    """A directory in the place of a mount."""
    return Directory(tmp_path)


@pytest.fixture(autouse=True)
def nothing_left() -> object:
    """No descriptor, child or thread outlives an exploration."""
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads, "those that others had left idle may have ended"


def counter(scenario: Scenario) -> Steps:
    """Two add one each to a counter."""
    (scenario.path / "counter").write_text("0")
    yield
    assert (scenario.path / "counter").read_text() == "2"


def add_one(tree: Path) -> None:
    counted = int((tree / "counter").read_text())
    (tree / "counter").write_text(str(counted + 1))


def add_one_locked(tree: Path) -> None:
    with open(tree / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        add_one(tree)


def anything(scenario: Scenario) -> Steps:
    """Nothing is wanted of it."""
    yield


def make(*names: str) -> Actor:
    def mkdirs(tree: Path) -> None:
        for name in names:
            os.mkdir(name)

    return Actor(mkdirs, name="make " + names[0])


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_lost_update_is_found_with_one_preemption_and_replayed(here: Directory) -> None:
    with pytest.raises(ScheduleFailed) as found:
        explore(counter, [add_one, add_one], mount=here)
    failed = found.value
    assert [(step.task, step.actor, step.operation, step.path) for step in failed.steps] == [
        ("a", "add_one", "open", "counter"),
        ("b", "add_one-2", "open", "counter"),
        ("b", "add_one-2", "open", "counter"),
        ("a", "add_one", "open", "counter"),
    ]
    assert [step.preempts for step in failed.steps] == [None, "a", None, None]
    assert isinstance(failed.__cause__, AssertionError)
    assert [(entry.program, entry.path) for entry in failed.trail.since()] == [
        (step.actor, "explored/counter") for step in failed.steps
    ]
    text = str(failed)
    assert "with 1 preemption" in text
    assert "1 b   add_one-2  open  counter    <- preempts a" in text
    assert f"--exclfs-seed={failed.seed}" in text
    for _ in range(2):
        with pytest.raises(ScheduleFailed) as again:
            explore(counter, [add_one, add_one], mount=here, seed=failed.seed)
        assert again.value.seed == failed.seed
        assert [(s.task, s.operation) for s in again.value.steps] == [(s.task, s.operation) for s in failed.steps]


def test_a_lock_mends_it_and_what_it_makes_impossible_is_told(here: Directory) -> None:
    done = explore(counter, [add_one_locked, add_one_locked], mount=here, preemptions=1)
    assert done.complete
    assert done.asleep > 0
    assert "an actor fell asleep" in str(done)
    assert "that is all of them" in str(done)


def test_without_a_bound_every_order_runs_once(here: Directory) -> None:
    """As many as there are interleavings of three operations with two."""
    orders = []

    def scenario(scenario: Scenario) -> Steps:
        yield
        orders.append("".join(step.task for step in scenario.steps))

    done = explore(scenario, [make("a", "b", "c"), make("d", "e")], mount=here, preemptions=10)
    assert (done.schedules, done.complete, done.beyond) == (math.comb(5, 2), True, 0)
    assert len(set(orders)) == len(orders) == math.comb(5, 2)
    assert "every order there is" in str(done)


def test_a_limit_is_told(here: Directory) -> None:
    done = explore(anything, [make("a", "b", "c"), make("d", "e")], mount=here, limit=3)
    assert (done.schedules, done.complete) == (3, False)
    assert "that is not all of them" in str(done)


def test_programs_that_check_and_then_remove(here: Directory) -> None:
    """Nothing fails without a preemption: the object is replaced by one in use between check and removal."""

    def scenario(scenario: Scenario) -> Steps:
        (scenario.path / "old").write_text("")
        (scenario.path / "new").write_text("used")
        yield
        assert (scenario.path / "old").exists() or not (scenario.path / "taken").exists()

    culler = ["sh", "-c", "test -e taken || rm old"]
    user = ["sh", "-c", ": >taken"]
    with pytest.raises(ScheduleFailed, match=r"sh-2 +create +taken") as found:
        explore(scenario, [culler, user], mount=here)
    removal = [step for step in found.value.steps if step.operation == "unlink"]
    assert [(step.task, step.comm) for step in removal] == [("a1", "rm")]


def test_threads_of_one_process_are_scheduled(here: Directory) -> None:
    def both(tree: Path) -> None:
        threads = [threading.Thread(target=add_one, args=(tree,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with pytest.raises(ScheduleFailed) as found:
        explore(counter, [both], mount=here)
    assert {step.task for step in found.value.steps} == {"a", "a1"}
    assert len({step.pid for step in found.value.steps}) == 2


def test_children_are_scheduled(here: Directory) -> None:
    """By fork, and by vfork, whose parent sleeps uninterruptibly until the child executes a program."""

    def family(tree: Path) -> None:
        child = os.fork()
        if child == 0:
            os.mkdir("forked")
            os._exit(0)
        # The file is opened in the child, before it executes true.
        opened = (os.POSIX_SPAWN_OPEN, 1, "spawned", os.O_CREAT | os.O_WRONLY, 0o600)
        spawned = os.posix_spawn("/bin/true", ["true"], {}, file_actions=[opened])
        os.waitpid(spawned, 0)
        os.waitpid(child, 0)

    orders = set()

    def scenario(scenario: Scenario) -> Steps:
        yield
        assert (scenario.path / "forked").is_dir()
        orders.add(tuple(step.path for step in scenario.steps))

    assert explore(scenario, [family], mount=here).complete
    assert orders == {("forked", "spawned"), ("spawned", "forked")}


def test_a_deadlock_is_a_failure(here: Directory) -> None:
    def one_after_the_other(*names: str) -> Actor:
        def lock(tree: Path) -> None:
            locks = [open(tree / name, "w") for name in names]  # noqa: SIM115
            for one in locks:
                fcntl.flock(one, fcntl.LOCK_EX)

        return Actor(lock, name=" then ".join(names))

    with pytest.raises(ScheduleFailed, match=r"nobody can go on: x then y .* sleeps in flock") as found:
        explore(
            anything, [one_after_the_other("x", "y"), one_after_the_other("y", "x")], mount=here, operations="flock"
        )
    assert "with 1 preemption" in str(found.value)


def test_a_function_that_raises_fails_the_schedule(here: Directory) -> None:
    def reader(tree: Path) -> None:
        if (tree / "x").exists():
            (tree / "x").read_text()

    def scenario(scenario: Scenario) -> Steps:
        (scenario.path / "x").write_text("")
        yield

    with pytest.raises(ScheduleFailed, match=r"reader gave 1(.|\n)*FileNotFoundError"):
        explore(scenario, [reader, ["rm", "x"]], mount=here)
    assert explore(scenario, [Actor(reader, check=False), ["rm", "x"]], mount=here).complete
    with pytest.raises(ScheduleFailed, match="rm gave 1"):
        explore(anything, [Actor(["rm", "x"], check=True)], mount=here)


def test_what_is_killed_fails_the_schedule(here: Directory) -> None:
    with pytest.raises(ScheduleFailed, match=f"sh was killed by signal {int(signal.SIGSEGV)}"):
        explore(anything, [["sh", "-c", "mkdir x; kill -SEGV $$"]], mount=here)


def test_one_that_is_killed_where_it_stands(here: Directory) -> None:
    """By another actor; the mkdir never happens."""

    def victim(tree: Path) -> None:
        (tree / "pid").write_text(str(os.getpid()))
        os.mkdir("never")

    def killer(tree: Path) -> None:
        if os.path.exists("pid") and (pid := (tree / "pid").read_text()):
            os.kill(int(pid), signal.SIGKILL)

    seen = set()

    def scenario(scenario: Scenario) -> Steps:
        yield
        made = (scenario.path / "never").exists()
        assert made == ("mkdir" in [step.operation for step in scenario.steps])
        seen.add((scenario.ended["victim"].returncode, made))

    explore(scenario, [Actor(victim, check=False), Actor(killer, check=False)], mount=here)
    assert (-signal.SIGKILL, False) in seen
    assert (0, True) in seen


# --- those that wait -------------------------------------------------------------------------------------------------


def test_one_that_polls_with_sleep_lets_the_other_go_on(here: Directory) -> None:
    def poll(tree: Path) -> None:
        while not os.path.exists("ready"):
            time.sleep(0.001)

    done = explore(anything, [poll, make("ready")], mount=here, preemptions=0)
    assert done.complete


def test_one_that_spins_is_given_up(here: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_STEPS", 50)

    def spin(tree: Path) -> None:
        while not os.path.exists("ready"):
            pass

    with pytest.raises(ScheduleFailed, match="50 operations, and no end"):
        explore(anything, [spin, make("ready")], mount=here, preemptions=0)


def test_one_that_does_not_end_is_given_up_and_killed(here: Directory) -> None:
    # How it says that it sleeps depends on how far it has come in this time.
    with pytest.raises(ScheduleFailed, match=r"nothing has happened for 1 s: sh \(pid \d+\) ") as found:
        explore(anything, [["sh", "-c", "sleep 1000 & mkdir x"]], mount=here, timeout=1)
    pid = re.search(r"pid (\d+)", str(found.value))
    assert pid is not None
    while os.path.exists(f"/proc/{pid[1]}"):
        time.sleep(0.01)


def test_a_pipe_between_actors_is_waited_for(here: Directory) -> None:
    """One sleeps in the opening of a FIFO until the other has opened it."""

    def scenario(scenario: Scenario) -> Steps:
        os.mkfifo(scenario.path / "fifo")
        yield
        assert scenario.ended["cat"].stdout == "word\n"

    done = explore(scenario, [["cat", "fifo"], ["sh", "-c", "echo word >fifo"]], mount=here, operations="open")
    assert done.complete
    assert done.asleep == done.schedules


# --- what cannot be, and what is not the same ------------------------------------------------------------------------


def test_each_run_has_a_fresh_tree_and_only_it_is_watched(here: Directory) -> None:
    (here.path / "beside").mkdir()

    def scenario(scenario: Scenario) -> Steps:
        assert os.listdir(scenario.path) == []
        yield
        assert [step.path for step in scenario.steps] == ["left behind", "left behind/x"]

    def leave(tree: Path) -> None:
        os.mkdir(tree / "left behind")
        os.stat(here.path / "beside")
        os.mkdir(tree / "left behind" / "x")

    assert explore(scenario, [leave], mount=here).schedules == 1


def test_one_that_is_not_the_same_each_time_is_told(here: Directory) -> None:
    times = itertools.count()

    def moody(tree: Path) -> None:
        if number == 0:
            os.mkdir("x")
        else:
            os.symlink("target", "x")
        os.stat(".")

    def scenario(scenario: Scenario) -> Steps:
        nonlocal number
        number = next(times)
        yield

    number = 0
    done = explore(scenario, [moody, make("y", "z")], mount=here)
    assert not done.complete
    assert done.diverged > 0
    assert "the actors do not do the same each time" in str(done)


def test_a_seed_of_something_else(here: Directory) -> None:
    with pytest.raises(NotReproduced, match="b cannot go on"):
        explore(counter, [add_one], mount=here, seed="0b.1234")
    with pytest.raises(NotReproduced, match=r"not those that it was made from:\n +0 a +make x +mkdir +x"):
        explore(anything, [make("x")], mount=here, seed="0.1234")
    with pytest.raises(BadSeed):
        explore(anything, [make("x")], mount=here, seed="nonsense")
    assert explore(anything, [make("x")], mount=here, seed="0").schedules == 1


def test_mistakes_are_told(here: Directory) -> None:
    def no_yield(scenario: Scenario) -> Steps:
        return
        yield

    def two_yields(scenario: Scenario) -> Steps:
        yield
        yield

    with pytest.raises(FileNotFoundError, match="exclfs-no-such-program"):
        explore(anything, [["exclfs-no-such-program"], make("x")], mount=here)
    for wrong in (no_yield, two_yields):
        with pytest.raises(ValueError, match="yield once"):
            explore(wrong, [make("x")], mount=here)
    with pytest.raises(ValueError, match="1 to 26 actors"):
        explore(anything, [], mount=here)


# --- as a test -------------------------------------------------------------------------------------------------------


@pytest.fixture
def exclfs_mount(here: Directory) -> Directory:
    return here


@pytest.mark.parametrize("name", ["x", "y"])
@exclfs_explore(preemptions=1, actors=[["mkdir", "from the decorator"]])
def test_the_decorator(scenario: Scenario, name: str, exclfs_mount: Directory) -> Steps:
    """With fixtures, parameters, and an actor of its own."""
    assert scenario.mount is exclfs_mount
    assert scenario.actor(["mkdir", name]) == "mkdir-2"
    yield
    assert sorted(os.listdir(scenario.path)) == sorted(["from the decorator", name])


# --- on a mount ------------------------------------------------------------------------------------------------------


class Served:
    """A mount, with the server that explore() watches too."""

    def __init__(self, mounted: object) -> None:
        self.path: Path = mounted.path  # type: ignore[attr-defined]
        self.backing: Path = mounted.backing  # type: ignore[attr-defined]
        self.server_pid: int = mounted.process.pid  # type: ignore[attr-defined]


def use(tree: Path) -> None:
    with open(tree / "object"):
        pass


def hold_and_use(tree: Path) -> None:
    with suppress(FileNotFoundError, exclfs.Gone):
        held = ExitStack()
        held.enter_context(exclfs.hold(tree / "object"))
        with held:
            use_what_is_held(tree)


def use_what_is_held(tree: Path) -> None:
    try:
        use(tree)
    except FileNotFoundError:
        raise AssertionError("it was held, and is gone") from None


def one_object(scenario: Scenario) -> Steps:
    (scenario.path / "object").write_text("")
    yield


def check_and_use(tree: Path) -> None:
    if (tree / "object").exists():
        use(tree)


@pytest.mark.mount
def test_a_hold_mends_the_race_of_a_culler(mount) -> None:  # type: ignore[no-untyped-def]
    """The same culler: against one that checks and then uses it fails, against one that holds it never does."""
    mounted = mount(entry_timeout=0, attr_timeout=0)
    mounted.expect("refused")
    culler = ["rm", "-f", "object"]
    served = Served(mounted)
    with pytest.raises(ScheduleFailed, match="FileNotFoundError") as found:
        explore(one_object, [culler, check_and_use], mount=served)
    assert "with 1 preemption" in str(found.value)
    done = explore(one_object, [culler, hold_and_use], mount=served, preemptions=1)
    assert done.complete
    assert done.diverged == 0
    logged(mounted, "refused")
