"""Gates and faults for a program that the test has started: they stop the system call before the kernel begins it.

The rule that this module owns: while somebody stands at such a gate nothing is locked, so anything can happen in the
same directory. There is no "after": the kernel executes the call when it is let go, and tells nobody what it gave.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Self

from exclfs.gating import TELLING, Occurrences, Selection, When
from exclfs.testing.gates import TIMEOUT, Gate, GateNotReached, Happened, Left, Stopped
from exclfs.testing.supervisor import Standing, Verdict, Watch
from exclfs.testing.trail import Fate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from exclfs.testing.calls import Call
    from exclfs.testing.programs import Program
    from exclfs.testing.supervisor import Supervisor


class _Selecting(Watch):
    """What a gate and a fault have in common: a selection, its counting, and what is seen while they stand."""

    def __init__(self, selection: Selection, supervisor: Supervisor) -> None:
        self._meant = selection
        self._occurrences = Occurrences(selection)
        self._supervisor = supervisor
        self._since = supervisor.trail.last
        self._missed = supervisor.trail.missed
        self._left: Left | None = None

    def selects(self, call: Call) -> bool:
        # The supervisor sees one program with all that descends from it, so `pids` has been answered already.
        found = self._meant.matches(call.operation, When.BEFORE, (call.path, call.second_path), lambda: ())
        return found and self._occurrences.next_is_meant()

    def _happened(self) -> tuple[Sequence[Happened], int]:
        trail = self._supervisor.trail
        told = TELLING | self._meant.operations
        found = [entry for entry in trail.since(self._since) if entry.number == entry.operation_number]
        return [entry.happened for entry in found if entry.operation in told], trail.missed - self._missed


class ProgramGate(_Selecting, Gate):
    """A gate for one program. Made by Program.gate()."""

    def __init__(self, selection: Selection, program: Program, supervisor: Supervisor, root: Path) -> None:
        Gate.__init__(self, selection)
        _Selecting.__init__(self, selection, supervisor)
        self._program = program
        self._root = root
        self._standing: dict[int, tuple[Stopped, Standing]] = {}
        self._untold: deque[Stopped] = deque()
        self._is_open = False
        self._reached = 0
        supervisor.place(self)

    def wait(self, timeout: float = TIMEOUT) -> Stopped:
        """As any gate's; and it does not wait for a program that has ended, or has not been started."""
        stopped = self._next(timeout)
        if stopped is not None:
            return stopped
        happened, missed = self._happened()
        if not self._program.started:
            raise GateNotReached(f"nobody came to {self}: {self._program} has not been started", happened, missed)
        if self._supervisor.ended:
            raise GateNotReached(f"nobody came to {self}: {self._program} has ended", happened, missed)
        raise GateNotReached(f"nobody came to {self} within {timeout:g} s", happened, missed)

    @property
    def waiting(self) -> tuple[Stopped, ...]:
        """Who stands at the gate now, the first to come first."""
        with self._supervisor.changed:
            self._forget_the_gone()
            return tuple(stopped for stopped, _ in self._standing.values())

    def open(self) -> None:
        """Lets everybody go on who waits, and from now on everybody who comes."""
        with self._supervisor.changed:
            self._is_open = True
            self._release_all()

    # --- for the supervisor: its lock is held -------------------------------------------------------------------

    def meet(self, standing: Standing) -> Verdict:
        """Stops it there, unless the gate is open."""
        self._reached += 1
        if self._is_open:
            return Verdict(Fate.WENT_ON)
        call = standing.call
        stopped = Stopped(
            operation=call.operation,
            path=call.path,
            second_path=call.second_path,
            pid=call.pid,
            comm=call.comm,
            when=When.BEFORE,
            number=standing.id,
            root=self._root,
        )
        self._standing[stopped.number] = (stopped, standing)
        self._untold.append(stopped)
        return Verdict(Fate.STOPPED)

    # --- for Gate -----------------------------------------------------------------------------------------------

    def _next(self, timeout: float) -> Stopped | None:
        changed, deadline = self._supervisor.changed, time.monotonic() + timeout
        with changed:
            while True:
                self._forget_the_gone()
                while self._untold:
                    stopped = self._untold.popleft()
                    if stopped.number in self._standing:
                        return stopped
                left = deadline - time.monotonic()
                if left <= 0 or self._supervisor.ended or not self._program.started:
                    return None
                changed.wait(left)

    def _let_go(self, stopped: Stopped | None, errno: int | None) -> Stopped | None:
        with self._supervisor.changed:
            for number in list(self._standing) if stopped is None else [stopped.number]:
                told, standing = self._standing.pop(number, (None, None))
                if standing is not None and self._supervisor.release(standing, errno, self):
                    return told
        return None

    def _leave(self) -> Left:
        with self._supervisor.changed:
            if self._left is None:
                waiting = self.waiting
                happened, missed = self._happened()
                self._is_open = True
                self._release_all()
                self._supervisor.take_away(self)
                self._left = Left(reached=self._reached, waiting=waiting, happened=tuple(happened), missed=missed)
            return self._left

    def _release_all(self) -> None:
        while self._standing:
            self._let_go(None, None)

    def _forget_the_gone(self) -> None:
        for number, (_, standing) in list(self._standing.items()):
            if not self._supervisor.stands(standing):
                del self._standing[number]
                self._supervisor.write(standing, Fate.GONE, self)


class ProgramFault(_Selecting):
    """Has what is selected fail, or wait, with nobody looking on. As a context manager it ends with its block.

    Made by Program.fault(); the arguments are explained there.
    """

    def __init__(self, selection: Selection, supervisor: Supervisor, errno: int | None, delay: float) -> None:
        super().__init__(selection, supervisor)
        self._errno = errno
        self._delay = delay
        self.struck = 0
        """How often it has struck."""
        supervisor.place(self)

    def meet(self, _: Standing) -> Verdict:
        """Answers it, or has it wait."""
        self.struck += 1
        if self._errno is not None:
            return Verdict(Fate.ANSWERED, errno=self._errno)
        return Verdict(Fate.DELAYED, seconds=self._delay)

    def close(self) -> None:
        """It strikes no more. What is delayed goes on."""
        with self._supervisor.changed:
            if self._left is None:
                self._supervisor.take_away(self)
                self._supervisor.hasten(self)
                happened, missed = self._happened()
                self._left = Left(reached=self.struck, waiting=(), happened=tuple(happened), missed=missed)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends it.

        Raises:
            GateNotReached: it struck nobody, and the block did not fail already.
        """
        self.close()
        if kind is None and self._left is not None and self._left.reached == 0:
            raise GateNotReached(f"{self} struck nobody", self._left.happened, self._left.missed)

    def __str__(self) -> str:
        """As a trail names it."""
        what = ", ".join(sorted(self._meant.operations))
        return f"the fault in {what} of {self._meant.pattern!r}"
