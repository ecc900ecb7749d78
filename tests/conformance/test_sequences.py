"""Users who do this and that, one after the other, find no difference, and leave the same tree behind.

In a plain run a fixed set of examples. `make sequences EXAMPLES=…` tries others, each time.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from comparing import COARSE_CLOCK, everything, let_time_pass, told
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequences import ACTING, STEPS, Hands, Step

from harness import start
from twins import ALICE, BOB, ROOT, SHARED, TIMES, Actor, Twins

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.timeout(0)]

EXAMPLES = int(os.environ.get("EXCLFS_SEQUENCES", "0"))
LONGEST = 60 if EXAMPLES else 30
FAILURES = {*errno.errorcode.values(), "no such descriptor"}
_numbers = itertools.count()


class Company:
    """Everybody who acts, on a mount and beside it."""

    def __init__(self, twins: Twins, *, reads_are_seen: bool) -> None:
        self.twins = twins
        self.places = (twins.mount, twins.shadow)
        self.times = TIMES if reads_are_seen else TIMES[1:]
        self.taken = {True: 0, False: 0}
        """How many steps have come to something, and how many to nothing."""
        self._tops = {place: os.open(place, os.O_PATH | os.O_DIRECTORY) for place in self.places}
        self._actors = {(name, place): Actor(user, place) for name, user in ACTING.items() for place in self.places}
        self._lookers = {place: Actor(ROOT, place) for place in (*self.places, twins.behind)}

    def leave(self) -> None:
        """All go."""
        for actor in (*self._actors.values(), *self._lookers.values()):
            actor.leave()
        for fd in self._tops.values():
            os.close(fd)

    def compare(self, steps: Sequence[Step]) -> None:
        """Takes these steps in a new directory; each has the same outcome, and all end equal."""
        name = f"sequence{next(_numbers)}"
        hands = {key: Hands() for key in self._actors}
        for place in self.places:
            self._lookers[place].do(lambda: begin(name))
        try:
            for (_, place), actor in self._actors.items():
                actor.do(lambda: self._enter(place, name, hands[actor.user.name, place]))  # noqa: B023
            began = [self._take(step, hands) for step in steps]
            let_time_pass()
            began.append(time.clock_gettime_ns(COARSE_CLOCK))
            self._must_be_equal(name, began)
        finally:
            for one in hands.values():
                one.empty()
            for (_, place), actor in self._actors.items():
                actor.do(lambda: os.fchdir(self._tops[place]))  # noqa: B023
            for place in (self.twins.behind, self.twins.shadow):
                self._lookers[place].do(lambda: shutil.rmtree(name))

    def _enter(self, place: Path, name: str, hands: Hands) -> None:
        os.fchdir(self._tops[place])
        os.chdir(name)
        for slot, file in enumerate(("a", "d/b")):
            hands.take(slot, os.open(file, os.O_RDWR))

    def _take(self, step: Step, hands: dict[tuple[str, Path], Hands]) -> int:
        """When it began, by the clock that filesystems use."""
        let_time_pass()
        began = time.clock_gettime_ns(COARSE_CLOCK)
        here, beside = (
            self._actors[step.user, place].do(lambda: outcome_of(step, hands[step.user, place]))  # noqa: B023
            for place in self.places
        )
        self.taken[not (isinstance(here, str) and here in FAILURES)] += 1
        assert here == beside, f"{step}: {here!r} on the mount, {beside!r} beside it"
        return began

    def _must_be_equal(self, name: str, began: list[int]) -> None:
        behind, shadow, mount = (
            self._lookers[place].do(lambda: statuses_below(name))
            for place in (self.twins.behind, self.twins.shadow, self.twins.mount)
        )
        assert shown(mount) == shown(behind), "what is shown is not what is there"
        assert self._when(behind, began) == self._when(shadow, began), "other times were touched"
        found = {place: looker.do(lambda: everything_below(name)) for place, looker in self._lookers.items()}
        for place in (self.twins.mount, self.twins.behind):
            assert found[place] == found[self.twins.shadow]

    def _when(self, statuses: dict[str, os.stat_result], began: list[int]) -> dict[tuple[str, str], int]:
        """In which step each time was touched; the time itself if some step has set it."""
        return {
            (name, field): step_of(getattr(status, field), began)
            for name, status in statuses.items()
            for field in self.times
        }


def begin(name: str) -> None:
    """Everybody's, and a little in it, which everybody has open."""
    for directory in (name, f"{name}/d", f"{name}/d/e"):
        os.mkdir(directory)
        os.chmod(directory, 0o777)
    for file, user in (("a", ALICE), ("d/b", BOB)):
        with open(f"{name}/{file}", "wb") as made:
            made.write(b"text" * 2000)
        os.chown(f"{name}/{file}", user.uid, SHARED)
        os.chmod(f"{name}/{file}", 0o666)


def outcome_of(step: Step, hands: Hands) -> Any:
    """The value, or the name of the errno."""
    try:
        return step.take(hands)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except ValueError as error:
        return str(error)
    except KeyError:
        return "no such descriptor"


def step_of(moment: int, began: list[int]) -> int:
    """The number of the step, -1 before them; else the moment."""
    if not began[0] - 60 * 10**9 < moment <= began[-1]:
        return moment
    return sum(moment >= start for start in began) - 1


def statuses_below(name: str) -> dict[str, os.stat_result]:
    """Each before what is in it is listed, and no symlink followed (os.walk does): looking must touch nothing first."""
    found = {}
    waiting = [name]
    while waiting:
        path = waiting.pop()
        found[os.path.relpath(path, name)] = status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            waiting += [os.path.join(path, one) for one in os.listdir(path)]
    return found


def shown(statuses: dict[str, os.stat_result]) -> dict[tuple[str, str], int]:
    """Without times of access: to list a directory is to touch it."""
    return {key: value for key, value in told(statuses).items() if key[1] != "st_atime_ns"}


def everything_below(name: str) -> dict[str, dict[str, Any]]:
    os.chdir(name)
    try:
        return everything()
    finally:
        os.chdir("..")


@contextmanager
def company(directory: Path, *, reads_are_seen: bool = True, **options: Any) -> Iterator[Company]:
    """A mount, and everybody there."""
    with start(directory, **options) as mounted:
        (directory / "shadow").mkdir()
        for top in (mounted.backing, directory / "shadow"):
            top.chmod(0o777)
        made = Company(Twins(mounted.path, mounted.backing, directory / "shadow"), reads_are_seen=reads_are_seen)
        try:
            yield made
        finally:
            made.leave()


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "nopassthrough"])
def everybody(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """Without passthrough the kernel may read what it knows already, which touches nothing behind."""
    directory = tmp_path_factory.mktemp("sequences")
    with company(directory, passthrough=request.param, reads_are_seen=request.param) as made:
        yield made
    done, failed = made.taken[True], made.taken[False]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nsteps that did something: {done}, that failed: {failed}")
    assert done * 3 > failed, "many steps should not fail"


@settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=st.lists(STEPS, min_size=8, max_size=LONGEST))
def test_sequences_end_equal(everybody: Company, steps: list[Step]) -> None:
    everybody.compare(steps)


def test_a_mirror_that_keeps_setuid_bits_does_not(tmp_path: Path, untrue: Path) -> None:
    steps = [
        Step("alice", "open", (0, "a", os.O_RDWR | os.O_CREAT)),
        Step("alice", "fchmod", (0, 0o6777)),
        Step("bob", "open", (1, "a", os.O_WRONLY)),
        Step("bob", "write", (1, 5, 1)),
        Step("alice", "unlink", ("a",)),
        Step("alice", "fstat", (0,)),
    ]
    with company(tmp_path, passthrough=False, environment={"PYTHONPATH": str(untrue)}) as made:
        with pytest.raises(AssertionError, match=r"fstat.*on the mount"):
            made.compare(steps)
        made.compare([step for step in steps if step.doing != "fchmod"])


def test_a_time_that_was_touched_in_another_step_is_seen() -> None:
    assert [step_of(moment, [10, 20, 30]) for moment in (10, 19, 20, 29, 5, -(10**12), 31)] == [
        *(0, 0, 1, 1, -1),
        *(-(10**12), 31),
    ]
