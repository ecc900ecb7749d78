"""Gates at the requests that a mount gets: for every program, however it was started.

The rule that this module owns: a gate stands from the moment that it is made, and on a connection of its own; so it
ends with this process, however that ends, and with it everybody's waiting.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exclfs.client.errors import ClientError
from exclfs.gating import Operation, When
from exclfs.testing.control import ask
from exclfs.testing.gates import CannotBeGated, Gate, Happened, Left, Stopped
from exclfs.testing.trail import Fate, Trail
from exclfs.wire.gate_messages import (
    BadGate,
    GateProblem,
    LetGoCall,
    OpenCall,
    PlaceCall,
    RemoveCall,
    SelectionRecord,
    StateCall,
    WaitCall,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.gating import Selection
    from exclfs.testing.control import Control
    from exclfs.wire.gate_messages import StateReply, StoppedRecord

_AT_ONCE: float = 10.0
"""Seconds of one call that waits; after that it is asked again."""


class ServerGate(Gate):
    """A gate in the mirror of a mount.

    Args:
        control: the mount's server.
        selection: who is stopped at what.
        answer: nobody is stopped; what comes fails with this errno.
        delay: nobody is stopped; what comes goes on after so many seconds.
        trail: where it is written down who stood here, when the test was told, and how they were let go.

    Raises:
        CannotBeGated: the server says so.
        NoServer, NotPermitted: the server cannot be reached, or is somebody else's.
    """

    def __init__(
        self,
        control: Control,
        selection: Selection,
        *,
        answer: int | None = None,
        delay: float | None = None,
        trail: Trail | None = None,
    ) -> None:
        super().__init__(selection)
        self._control = control
        self._trail = Trail() if trail is None else trail
        self._numbers: dict[int, int] = {}
        self._left: Left | None = None
        record = SelectionRecord(
            operations=tuple(sorted(selection.operations)),
            pattern=selection.pattern,
            when=selection.when,
            pids=None if selection.pids is None else tuple(sorted(selection.pids)),
            nth=selection.nth,
        )
        self._own = control.connect()
        try:
            self._name = ask(self._own, PlaceCall(selection=record, answer=answer, delay=delay)).gate
        except BadGate as error:
            self._own.close()
            raise CannotBeGated(error.why) from None
        except BaseException:
            self._own.close()
            raise

    @property
    def waiting(self) -> tuple[Stopped, ...]:
        """Who stands at the gate now, the first to come first."""
        if self._left is not None:
            return ()
        return tuple(map(self._stopped, self._state().waiting))

    @property
    def reached(self) -> int:
        """How many have come so far."""
        return self._state().reached if self._left is None else self._left.reached

    def open(self) -> None:
        """Lets everybody go on who waits, and from now on everybody who comes."""
        for stopped in self.waiting:
            self._write_down(stopped, Fate.LET_GO)
        self._control.ask(OpenCall(self._name))

    def close(self) -> None:
        """Takes it away, if that has not been done: whoever stands there goes on, and nobody is told."""
        if self._left is None:
            self._own.close()

    def _next(self, timeout: float) -> Stopped | None:
        deadline = time.monotonic() + timeout
        while True:
            left = min(max(deadline - time.monotonic(), 0.0), _AT_ONCE)
            reply = ask(self._own, WaitCall(gate=self._name, timeout=left), wait=left)
            if reply.stopped is not None:
                stopped = self._stopped(reply.stopped)
                self._numbers[stopped.number] = self._write_down(stopped, Fate.STOPPED)
                return stopped
            if time.monotonic() >= deadline:
                return None

    def _let_go(self, stopped: Stopped | None, errno: int | None) -> Stopped | None:
        number = None if stopped is None else stopped.number
        before = time.monotonic_ns()
        try:
            record = self._control.ask(LetGoCall(gate=self._name, number=number, answer=errno)).stopped
        except BadGate as error:
            raise CannotBeGated(error.why) from None
        if record is None:
            return None
        found = self._stopped(record)
        self._write_down(found, Fate.LET_GO if errno is None else Fate.ANSWERED, errno=errno, time=before)
        return found

    def _happened(self) -> tuple[Sequence[Happened], int]:
        if self._left is not None:
            return self._left.happened, self._left.missed
        state = self._state()
        return _all_that_happened(state), state.missed

    def _leave(self) -> Left:
        if self._left is None:
            try:
                state = self._control.ask(RemoveCall(self._name))
                self._left = Left(
                    reached=state.reached,
                    waiting=tuple(map(self._stopped, state.waiting)),
                    happened=_all_that_happened(state),
                    missed=state.missed,
                )
            except (ClientError, GateProblem):
                # The mount has ended, and whoever stood here with it: that is for the test to have noticed.
                self._left = Left(reached=1, waiting=(), happened=())
            finally:
                self._own.close()
        return self._left

    def _write_down(self, stopped: Stopped, fate: Fate, **more: Any) -> int:
        entry = self._trail.add(
            operation_number=self._numbers.get(stopped.number),
            program=stopped.comm,
            pid=stopped.pid,
            comm=stopped.comm,
            operation=stopped.operation,
            path=stopped.path,
            second_path=stopped.second_path,
            fate=fate,
            when=stopped.when,
            gate=str(self),
            **more,
        )
        return entry.number

    def _state(self) -> StateReply:
        return self._control.ask(StateCall(self._name))

    def _stopped(self, record: StoppedRecord) -> Stopped:
        return Stopped(
            operation=Operation(record.operation),
            path=record.path,
            second_path=record.second_path,
            pid=record.pid,
            comm=record.comm,
            when=When(record.when),
            number=record.number,
            root=Path(self._control.mountpoint),
        )


def _all_that_happened(state: StateReply) -> tuple[Happened, ...]:
    return tuple(
        Happened(
            operation=Operation(one.operation),
            path=one.path,
            second_path=one.second_path,
            pid=one.pid,
            comm=one.comm,
            errno=one.errno,
        )
        for one in state.happened
    )
