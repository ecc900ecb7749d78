"""Runs a command as if this process were not in between: its exit code is passed on, and signals are passed down.

The rule that this module owns: the command's process is there before the command is, and waits. What has its pid can
be settled first; and if this process dies, however it dies, one that still waits ends without having begun.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127
"""The exit codes of env(1) and of shells for a command that cannot be run, and that is not there."""

_SI_KERNEL: Final = 0x80
"""The si_code of a signal that the kernel sent, as a terminal does for Ctrl-C (sigaction(2))."""

_PASSED_DOWN: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH}
)
_OWN_OF_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores and a command expects at its default."""


@contextlib.contextmanager
def waiting(command: Sequence[str]) -> Iterator[Waiting]:
    """The process of a command that has not begun; it ends with the block, unless run() has let it begin."""
    process = Waiting(command)
    try:
        yield process
    finally:
        process.dismiss()


class Waiting:
    """A child process that will become `command`, found in PATH. Until then it waits, under the command's name."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        gate, self._gate = os.pipe()
        self._outcome, outcome = os.pipe()
        # A signal must meet either this process or one that has forgotten this one's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_DOWN)
        self.pid: Final = os.fork()
        if self.pid == 0:
            self._become(gate, outcome, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(gate)
        os.close(outcome)
        os.read(self._outcome, 1)  # it has taken the name
        self._ended = False

    def _become(self, gate: int, outcome: int, mask: set[int | signal.Signals]) -> NoReturn:
        """In the child: waits for a byte through the gate, and is the command from then on."""
        try:
            os.close(self._gate)
            os.close(self._outcome)
            for number in _PASSED_DOWN:
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            for number in _OWN_OF_PYTHON:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as name:
                name.write(os.fsencode(os.path.basename(self._command[0])))
            os.write(outcome, b"!")
            if os.read(gate, 1):
                os.execvp(self._command[0], self._command)  # noqa: S606  # as typed: no shell is what is wanted
        except OSError as error:
            os.write(outcome, str(error.errno).encode())
        finally:
            os._exit(NOT_FOUND)

    def run(self) -> int:
        """Lets the command begin, and returns its exit code once it has ended; 128+N if signal N ended it.

        Signals that were sent to this process are sent on to it. Those of the terminal are not: it has got them itself.
        """
        waited_for = _PASSED_DOWN | {signal.SIGCHLD}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        try:
            with contextlib.suppress(BrokenPipeError):  # it was killed while it waited
                os.write(self._gate, b"!")
            if failure := os.read(self._outcome, 16):  # nothing, once it runs: the pipe is closed on exec
                return self._complain(OSError(int(failure), os.strerror(int(failure))))
            return self._pass_on(waited_for)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def dismiss(self) -> None:
        """Ends it if it has not begun, and forgets it."""
        os.close(self._gate)
        os.close(self._outcome)
        if not self._ended:
            os.waitpid(self.pid, 0)

    def _pass_on(self, waited_for: frozenset[signal.Signals]) -> int:
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._ended = True
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            told = signal.sigwaitinfo(waited_for)
            if told.si_signo != signal.SIGCHLD and told.si_code != _SI_KERNEL:
                os.kill(self.pid, told.si_signo)

    def _complain(self, error: OSError) -> int:
        from exclfs.cli.output import shown

        print(f"exclfs: {shown(self._command[0])}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
