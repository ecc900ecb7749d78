"""Runs a command as if this process were not in between: its exit code is passed on, and signals are passed down."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def run(command: Sequence[str]) -> int:
    """Runs the command, found in PATH, to its end and returns its exit code; 128+N if signal N ended it.

    Signals that were sent to this process are sent on to it. Those of the terminal are not: it has got them itself.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    waited_for = _PASSED_DOWN | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        try:
            child = os.posix_spawnp(command[0], list(command), os.environ, setsigmask=before, setsigdef=_OWN_OF_PYTHON)
        except FileNotFoundError as error:
            return _complain(command, error, NOT_FOUND)
        except OSError as error:
            return _complain(command, error, CANNOT_RUN)
        return _wait(child, waited_for)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(child: int, waited_for: frozenset[signal.Signals]) -> int:
    while True:
        told = signal.sigwaitinfo(waited_for)
        if told.si_signo != signal.SIGCHLD:
            if told.si_code != _SI_KERNEL:
                os.kill(child, told.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _complain(command: Sequence[str], error: OSError, status: int) -> int:
    from exclfs.cli.output import shown

    print(f"exclfs: {shown(command[0])}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
    return status
