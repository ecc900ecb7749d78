"""Gates: a program is stopped at an operation, the test does what it wants meanwhile, and lets it go on.

    with exclfs_mount.gate("unlink", "objects/*", by=culler) as gate:
        stopped = gate.wait()
        with exclfs_mount.hold(stopped.path):
            gate.open()

The rule that this module owns: a test that forces a race has met it. A gate that nobody came to, and a program that
still stands at a gate when its block ends, fail the test, with what did happen instead; and whatever happens, nobody is
left standing. How programs are stopped is the business of each kind of gate: see server_gates and seccomp.
"""

from __future__ import annotations

import errno as errnos
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from attrs import field, frozen

from exclfs.gating import Operation, When

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from exclfs.gating import Selection

TIMEOUT: Final = 30.0
"""Seconds for which a wait waits unless it is told otherwise."""
MOST_TOLD: Final = 30
"""How many of the operations that happened instead are told."""


@frozen(kw_only=True)
class Stopped:
    """Who stands at a gate, and at what."""

    operation: Operation
    path: str
    """Relative to the mount's root; "" is the root. A name that is not UTF-8 has surrogates (os.fsdecode)."""
    second_path: str | None = None
    """Of a rename, a link, or a copy: to where."""
    pid: int
    """Of the thread, as the kernel tells it; 0 if it is in a pid namespace that cannot be seen from here."""
    comm: str
    """What the program is called (/proc/PID/comm); "" if it has gone."""
    when: When
    number: int
    """Tells it from all others at the gates of its kind."""
    root: Path = field(repr=False)
    """The mountpoint."""

    @property
    def absolute(self) -> Path:
        """The path in the mount."""
        return self.root / self.path

    def __str__(self) -> str:
        """As in "rm (pid 7) stands before unlink of 'a'"."""
        return f"{self.comm or '?'} (pid {self.pid}) stands {self.when} {_worded(self)}"


@frozen(kw_only=True)
class Happened:
    """An operation that was seen while a gate stood."""

    operation: Operation
    path: str
    second_path: str | None = None
    pid: int
    comm: str
    errno: int | None = None
    """What it ended with: 0, or an error; None: it has not ended, or how is not known."""

    def __str__(self) -> str:
        """As in "rm (pid 7) unlink of 'a': EBUSY"."""
        end = ""
        if self.errno is not None:
            end = ": done" if self.errno == 0 else f": {errnos.errorcode.get(self.errno, self.errno)}"
        return f"{self.comm or '?'} (pid {self.pid}) {_worded(self)}{end}"


@frozen(kw_only=True)
class Left:
    """How it was with a gate when it was taken away."""

    reached: int
    """How many stood at it, or passed when it was open."""
    waiting: tuple[Stopped, ...]
    """Who stood there still, and was let go."""
    happened: tuple[Happened, ...]
    """What was seen meanwhile, the last of it."""
    missed: int = 0
    """How much was seen before that and is not kept."""


class GateError(AssertionError):
    """A race was not met as the test has it. `happened` is what was seen instead."""

    def __init__(self, message: str, happened: Sequence[Happened] = (), missed: int = 0) -> None:
        super().__init__(message + _told(happened, missed))
        self.happened = tuple(happened)


class GateNotReached(GateError):
    """Nobody came to a gate: not in time, or not before it was left."""


class LeftAtGate(GateError):
    """Somebody still stood at a gate when it was left. They were let go, so that nothing hangs."""

    def __init__(self, message: str, waiting: Sequence[Stopped], happened: Sequence[Happened] = ()) -> None:
        super().__init__(message, happened)
        self.waiting = tuple(waiting)


class NobodyWaits(GateError):
    """Somebody was to be let go, or to be answered, and nobody stands there."""


class CannotBeGated(ValueError):
    """A gate that nobody could ever come to."""


class Gate(ABC):
    """A gate that stands. As a context manager it is taken away at the end of its block.

    Several threads may use it: one waits, another opens. On trio, wait in a thread: trio.to_thread.run_sync(gate.wait).
    """

    def __init__(self, selection: Selection) -> None:
        self.selection: Final = selection

    def wait(self, timeout: float = TIMEOUT) -> Stopped:
        """Waits until somebody stands at the gate who was not told of before, and says who.

        Raises:
            GateNotReached: nobody came within `timeout` seconds.
        """
        stopped = self._next(timeout)
        if stopped is None:
            happened, missed = self._happened()
            raise GateNotReached(f"nobody came to {self} within {timeout:g} s", happened, missed)
        return stopped

    @property
    @abstractmethod
    def waiting(self) -> tuple[Stopped, ...]:
        """Who stands at the gate now, the first to come first."""

    @abstractmethod
    def open(self) -> None:
        """Lets everybody go on who waits, and from now on everybody who comes."""

    def open_one(self, stopped: Stopped | None = None) -> Stopped:
        """Lets one go on, the first that waits or this one, and says who. The others wait.

        Raises:
            NobodyWaits: nobody does, or this one does not.
        """
        return self._chosen(self._let_go(stopped, None), stopped)

    def answer(self, errno: int, stopped: Stopped | None = None) -> Stopped:
        """Has the operation fail for one, the first that waits or this one: before a gate it is not done at all.

        Args:
            errno: what it fails with, as errno.EBUSY; more than 0.
            stopped: who.

        Raises:
            NobodyWaits: nobody does, or this one does not.
            ValueError: this is no errno.
        """
        if not 0 < errno < 512:
            raise ValueError(f"{errno} is no errno that a program could be told")
        return self._chosen(self._let_go(stopped, errno), stopped)

    @abstractmethod
    def _next(self, timeout: float) -> Stopped | None:
        """The next that comes and was not told of; None if it takes longer."""

    @abstractmethod
    def _happened(self) -> tuple[Sequence[Happened], int]:
        """What was seen since the gate stands, the last of it, and how much more there was before that."""

    @abstractmethod
    def _let_go(self, stopped: Stopped | None, errno: int | None) -> Stopped | None:
        """Lets one go on, or fail with an errno; gives who it was, None if nobody is there."""

    @abstractmethod
    def _leave(self) -> Left:
        """Takes the gate away and lets go of everybody. Does nothing the second time, and gives the same."""

    def _chosen(self, found: Stopped | None, wanted: Stopped | None) -> Stopped:
        if found is not None:
            return found
        happened, missed = self._happened()
        who = "nobody waits" if wanted is None else f"{wanted.comm or '?'} (pid {wanted.pid}) does not wait"
        raise NobodyWaits(f"{who} at {self}", happened, missed)

    def __enter__(self) -> Self:
        """Itself: it stands already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Takes it away. If the block did not fail already:

        Raises:
            LeftAtGate: somebody still stood there.
            GateNotReached: nobody ever came.
        """
        left = self._leave()
        if kind is not None:
            return
        if left.waiting:
            who = "; ".join(str(stopped) for stopped in left.waiting)
            raise LeftAtGate(f"{self} was left while {who}", left.waiting)
        if left.reached == 0:
            raise GateNotReached(f"nobody came to {self}", left.happened, left.missed)

    def __str__(self) -> str:
        """As in "the gate before unlink of 'objects/*'"."""
        selection = self.selection
        who = "" if selection.pids is None else f" by {', '.join(str(pid) for pid in sorted(selection.pids))}"
        nth = "" if selection.nth is None else f", number {selection.nth}"
        kinds = ", ".join(sorted(selection.operations))
        return f"the gate {selection.when} {kinds} of {selection.pattern!r}{who}{nth}"


def _worded(what: Stopped | Happened) -> str:
    to = "" if what.second_path is None else f" to {what.second_path!r}"
    return f"{what.operation} of {what.path!r}{to}"


def _told(happened: Sequence[Happened], missed: int) -> str:
    if not happened:
        return "; nothing else was seen"
    shown = happened[-MOST_TOLD:]
    missed += len(happened) - len(shown)
    lines = [f"({missed} more before that)"] if missed else []
    return "; what did happen:" + "".join(f"\n    {line}" for line in [*lines, *map(str, shown)])
