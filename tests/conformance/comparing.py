"""The table at work: each case is made twice, done twice and looked at twice; whatever differs is told.

Cases are done many at a time. All are made, then time passes (so that every filesystem's clock can show a change), then
each user does its own, one after the other, on the mount and beside it; then root looks.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
from calls import CALLS
from victims import DIRECTORIES, LONG, USERS, VICTIMS, directory, link, write

from twins import ALICE, ROOT, TIMES, Actor, Twins, User, attributes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOKED_AT = ("d", "d/v", f"d/{LONG}", "d/v/x", "d/v/y", "w", "w/file", "w/empty", "w/twin", "w/full", "w/symlink")
"""What a case may have before the call."""
A_DAY = 86400 * 10**9
TOGETHER = 150
COARSE_CLOCK = 5
"""CLOCK_REALTIME_COARSE, which Python does not name."""
_numbers = itertools.count()


@attrs.frozen
class Case:
    """One cell of the table."""

    call: str
    victim: str
    directory: str
    user: str

    def __str__(self) -> str:
        return f"{self.call} on {self.victim!r} in {self.directory!r} by {self.user}"


def table(each: int, part: int = 0, parts: int = 1) -> list[Case]:
    """Every call with every victim in `each` combinations of directories and users, other ones for each pair.

    Of this the given part of so many, which has its share of every call.
    """
    ways = list(itertools.product(DIRECTORIES, USERS))
    cases = [
        Case(call, victim, *ways[(pair * 7 + way * 11) % len(ways)])
        for pair, (call, victim) in enumerate(itertools.product(CALLS, VICTIMS))
        for way in range(each)
    ]
    return cases[part::parts]


@attrs.define
class Done:
    """What a case came to in one place."""

    outcome: Any = None
    before: dict[str, os.stat_result] = attrs.field(factory=dict)
    after: dict[str, os.stat_result] = attrs.field(factory=dict)
    found: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    def touched(self) -> dict[tuple[str, str], Any]:
        """Which times of what was there before: same, now, or the value that was set."""
        told: dict[tuple[str, str], Any] = {}
        for name, before in self.before.items():
            after = self.after.get(name)
            for field in TIMES:
                value = getattr(after, field, 0)
                if after is None or after.st_ino != before.st_ino:
                    told[name, field] = "gone" if after is None else "another"
                elif value == getattr(before, field):
                    told[name, field] = "same"
                else:
                    told[name, field] = "now" if abs(value - getattr(before, field)) < A_DAY else value
        return told


def prepare(case: Case, owner: User) -> None:
    """In the working directory, by root. The owner's things are made alice's, and become those of another owner."""
    os.mkdir("d")
    os.mkdir("w")
    os.chmod("w", 0o777)
    write("w/file", b"a file", 0o666)
    directory("w/empty", 0o777)
    if case.call.startswith(("rename", "replace", "link")):
        directory("w/full", 0o777, inside=True)
        link("w/symlink", "file")
    VICTIMS[case.victim].make()
    DIRECTORIES[case.directory]()
    if owner is not ALICE:
        for where, directories, files in os.walk("."):
            for path in (os.path.join(where, name) for name in (*directories, *files)):
                status = os.lstat(path)
                if status.st_uid == ALICE.uid:
                    os.lchown(path, owner.uid, -1)
                    if not os.path.islink(path):
                        os.chmod(path, status.st_mode & 0o7777)


def statuses(names: Sequence[str]) -> dict[str, os.stat_result]:
    """Of those that are there."""
    found = {}
    for name in names:
        try:
            found[name] = os.lstat(name)
        except OSError:
            continue
    return found


def everything() -> dict[str, dict[str, Any]]:
    """All that is below, times excepted."""
    links: dict[int, str] = {}
    return {
        path: attributes_of(path, links)
        for where, directories, files in sorted_walk()
        for path in (os.path.join(where, name) for name in (*directories, *files))
    }


def sorted_walk() -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk in one order everywhere."""
    for where, directories, files in os.walk("."):
        directories.sort()
        yield where, directories, sorted(files)


def outcome_of(case: Case) -> Any:
    """The value of the call, or the name of its errno."""
    try:
        return CALLS[case.call](VICTIMS[case.victim].name)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except ValueError as error:  # Python itself looks at the sizes of mappings, and of names of sockets
        return str(error)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """There, and back."""
    os.chdir(name)
    try:
        yield
    finally:
        os.chdir("..")


@attrs.frozen
class Difference:
    """What of a case is not the same."""

    case: Case
    what: str
    here: Any
    beside: Any

    def __str__(self) -> str:
        return f"{self.case}: {self.what}: {self.here!r} on the mount, {self.beside!r} beside it"


class Comparison:
    """A mount beside its twin, and everybody at work in both.

    `users` are those who may enter the mount; the mount of an ordinary user has that user alone, who takes the part of
    somebody else. Where root may not enter, what is seen through the mount is left to those who may.
    """

    def __init__(self, twins: Twins, users: dict[str, User], owner: User = ALICE) -> None:
        self.twins = twins
        self.owner = owner
        self.root_enters = ROOT in users.values()
        self.compared = 0
        self.once: list[Difference] = []
        self._looker = "root" if self.root_enters else next(iter(users))
        self._maker = Actor(ROOT, twins.shadow)
        self._behind = Actor(ROOT, twins.behind)
        self._actors = {
            (name, place): Actor(user, place) for name, user in users.items() for place in (twins.mount, twins.shadow)
        }

    def leave(self) -> None:
        """Everybody goes."""
        for actor in (self._maker, self._behind, *self._actors.values()):
            actor.leave()

    def differences(self, cases: Sequence[Case]) -> list[Difference]:
        """Does all of these; what was not the same, and was not when it was done once more.

        What was not the same only once is kept in `once`: two clocks are read, and others work on the machine.
        """
        found = {str(difference): difference for difference in self._all(cases)}
        again = {(difference.case, difference.what) for difference in self._all([d.case for d in found.values()])}
        self.once += [d for d in found.values() if (d.case, d.what) not in again]
        return [d for d in found.values() if (d.case, d.what) in again]

    def _all(self, cases: Sequence[Case]) -> list[Difference]:
        found: list[Difference] = []
        for start in range(0, len(cases), TOGETHER):
            found += self._together(cases[start : start + TOGETHER])
        return found

    def _together(self, cases: Sequence[Case]) -> list[Difference]:
        numbered = [(f"c{next(_numbers)}", case) for case in cases]
        places = (self.twins.mount, self.twins.shadow)
        done = {place: {name: Done() for name, _ in numbered} for place in (*places, self.twins.behind)}
        makers = {
            self.twins.mount: self._actors[self._looker, self.twins.mount] if self.root_enters else self._behind,
            self.twins.shadow: self._maker,
        }
        lookers = {place: self._actors[self._looker, place] for place in places}
        for maker in makers.values():
            maker.do(lambda: self._make(numbered))
        for place, looker in lookers.items():
            looker.do(lambda: self._look_before(numbered, done[place]))  # noqa: B023
        let_time_pass()
        for (user, place), actor in self._actors.items():
            own = [(name, case) for name, case in numbered if case.user == user]
            actor.do(lambda: self._act(own, done[place]))  # noqa: B023
        for place, looker in lookers.items():
            looker.do(lambda: self._look_after(numbered, done[place]))  # noqa: B023
        self._behind.do(lambda: self._look_after(numbered, done[self.twins.behind], done[self.twins.shadow]))
        for place, actor in ((self.twins.behind, self._behind), (self.twins.shadow, self._maker)):
            actor.do(lambda: self._look_at_all(numbered, done[place]))  # noqa: B023
        if self.root_enters:
            lookers[self.twins.mount].do(lambda: self._look_at_all(numbered, done[self.twins.mount]))
        found = [
            difference
            for name, case in numbered
            for difference in self._compare(case, *(done[place][name] for place in done))
        ]
        for actor in (self._behind, self._maker):
            actor.do(lambda: [shutil.rmtree(name) for name, _ in numbered])
        return found

    def _make(self, numbered: Sequence[tuple[str, Case]]) -> None:
        os.umask(0)
        for name, case in numbered:
            os.mkdir(name)
            with inside(name):
                prepare(case, self.owner if case.user == "owner" else ALICE)
        os.umask(0o022)

    def _look_before(self, numbered: Sequence[tuple[str, Case]], done: dict[str, Done]) -> None:
        for name, _ in numbered:
            with inside(name):
                done[name].before = statuses(LOOKED_AT)

    def _act(self, numbered: Sequence[tuple[str, Case]], done: dict[str, Done]) -> None:
        for name, case in numbered:
            with inside(name):
                done[name].outcome = outcome_of(case)

    def _look_after(
        self, numbered: Sequence[tuple[str, Case]], done: dict[str, Done], before: dict[str, Done] | None = None
    ) -> None:
        for name, _ in numbered:
            with inside(name):
                done[name].after = statuses(list((before or done)[name].before))

    def _look_at_all(self, numbered: Sequence[tuple[str, Case]], done: dict[str, Done]) -> None:
        for name, _ in numbered:
            with inside(name):
                done[name].found = everything()

    def _compare(self, case: Case, here: Done, beside: Done, behind: Done) -> Iterator[Difference]:
        yield from self._pairs(case, "outcome", {"": here.outcome}, {"": beside.outcome})
        yield from self._pairs(case, "times", here.touched(), beside.touched())
        shown, true = told(here.after), told(behind.after)
        yield from self._pairs(case, "what is shown", shown, {key: true.get(key) for key in shown})
        yield from self._pairs(case, "behind", flat(behind.found), flat(beside.found))
        if self.root_enters:
            yield from self._pairs(case, "through the mount", flat(here.found), flat(beside.found))

    def _pairs(self, case: Case, what: str, here: dict[Any, Any], beside: dict[Any, Any]) -> Iterator[Difference]:
        self.compared += len(here)
        if here == beside:
            return
        for key in sorted({*here, *beside}):
            if here.get(key) != beside.get(key):
                yield Difference(case, f"{what} {key}", here.get(key), beside.get(key))


def told(found: dict[str, os.stat_result]) -> dict[tuple[str, str], int]:
    """What the mount shows of an inode that must be what the backing tree shows at that moment."""
    fields = ("st_ino", "st_mode", "st_uid", "st_gid", "st_nlink", "st_size", *TIMES)
    return {(name, field): getattr(status, field) for name, status in found.items() for field in fields}


def flat(found: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """One key for each attribute of each name."""
    return {(name, key): value for name, values in found.items() for key, value in values.items()}


def let_time_pass() -> None:
    """Two ticks of the clock that filesystems use."""
    for _ in range(2):
        before = time.clock_gettime_ns(COARSE_CLOCK)
        while time.clock_gettime_ns(COARSE_CLOCK) == before:
            time.sleep(0.0005)
