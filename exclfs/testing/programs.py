"""A program that the test has started, and can stop at its operations on the mount.

The rule that this module owns: what runs is the program itself, unmodified, as if the test had started it with
subprocess.Popen; it only asks before each filesystem call. All that it starts is watched with it, threads and children
alike. It is gone when it has been closed.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from exclfs.gating import Selection, When, operations
from exclfs.testing import launch, seccomp
from exclfs.testing.calls import CallReader
from exclfs.testing.gates import TIMEOUT, CannotBeGated
from exclfs.testing.program_gates import ProgramFault, ProgramGate
from exclfs.testing.supervisor import Supervisor
from exclfs.testing.syscalls import STOPPABLE, USUAL, those_of
from exclfs.testing.tasks import descendants
from exclfs.testing.trail import Trail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from exclfs.gating import Operation

_ENDING: Final = 5.0
"""Seconds for which closing waits for killed processes to be gone."""


class Program:
    """A program, not yet running: start() starts it. Gates may be placed before and after.

    Args:
        args: the program and its arguments.
        root: the mountpoint.
        backing: the tree behind it. The same as `root` if nothing is mounted.
        operations: at which operations it can be stopped; more of them cost more. Without: all but read and write.
        env: its environment; None: that of this process.
        trail: where its operations are written down; None: in one of its own.
        popen: what else subprocess.Popen takes: cwd, stdin, stdout, stderr, text, encoding, umask, …

    Raises:
        NotSupported: this machine cannot do it.
        BadSelection, CannotBeGated: of `operations`.
    """

    def __init__(
        self,
        args: Sequence[str | bytes | os.PathLike[str]],
        *,
        root: Path,
        backing: Path,
        operations: str | Iterable[str] = USUAL,
        env: Mapping[str, str] | None = None,
        trail: Trail | None = None,
        **popen: Any,
    ) -> None:
        self.args: Final = [os.fspath(argument) for argument in args]
        self.operations: Final = stoppable(operations)
        self._root: Final = root
        self._env = dict(os.environ if env is None else env)
        self._popen_options = popen
        self._popen: subprocess.Popen[Any] | None = None
        calls = those_of(self.operations)
        self._filter = seccomp.filter_of(calls)
        name = os.path.basename(os.fsdecode(self.args[0]))
        self._supervisor = Supervisor(name, calls, CallReader(root, backing), Trail() if trail is None else trail)

    # --- its life -----------------------------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether it has been started."""
        return self._popen is not None

    def start(self) -> Self:
        """Starts it.

        Raises:
            OSError: as subprocess.Popen does; or the kernel takes no filter: EBUSY (this process is under one with a
                listener itself), EINVAL (before Linux 5.0), ENOSYS.
            RuntimeError: it was started before.
        """
        if self._popen is not None:
            raise RuntimeError(f"{self} has been started already")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [sys.executable, "-I", "-S", launch.__file__, str(theirs.fileno())]
            options = {**self._popen_options, "pass_fds": [*self._popen_options.get("pass_fds", ()), theirs.fileno()]}
            self._popen = popen = subprocess.Popen(command, env=self._env, **options)
            theirs.close()
            try:
                self._become(ours, popen)
            except BaseException:
                self._supervisor.end(0)
                popen.kill()
                popen.communicate()
                self._popen = None
                raise
        popen.args = self.args
        with self._supervisor.changed:
            self._supervisor.changed.notify_all()
        return self

    def _become(self, starter: socket.socket, popen: subprocess.Popen[Any]) -> None:
        """Has the launcher become the program, and the supervisor watch it."""
        starter.settimeout(TIMEOUT)
        environment = {os.fsencode(name): os.fsencode(value) for name, value in self._env.items()}
        message = marshal.dumps((self._filter, [os.fsencode(argument) for argument in self.args], environment))
        starter.sendall(struct.pack("=Q", len(message)) + message)
        said, descriptors, _, _ = socket.recv_fds(starter, 1, 1)
        if said == b"L":
            os.set_inheritable(descriptors[0], False)
            self._supervisor.start(seccomp.Listener(descriptors[0]), popen.pid, popen.poll)
            said = b""
        while more := starter.recv(64):
            said += more
        if said:
            code = int(said)
            raise OSError(code, os.strerror(code), os.fsdecode(self.args[0]))

    def close(self) -> None:
        """Kills it and all that it has started, and forgets them. Does nothing the second time."""
        if self._popen is None:
            return
        if self._popen.returncode is None or not self._supervisor.ended:
            # Those that have left its tree are met when they next ask for something.
            for pid in [*descendants(self._popen.pid), *([self._popen.pid] if self._popen.poll() is None else [])]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._supervisor.end(_ENDING)
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes it."""
        self.close()

    # --- gates and faults ---------------------------------------------------------------------------------------

    def can_be_stopped_at(self, selection: Selection) -> bool:
        """Whether a gate like this can ever be reached by system calls of this program."""
        return selection.when is When.BEFORE and selection.operations <= self.operations

    def gate(self, selection: Selection) -> ProgramGate:
        """A gate for this program, and all that it starts.

        Raises:
            CannotBeGated: it is not stopped at these operations.
        """
        self._check(selection)
        return ProgramGate(selection, self, self._supervisor, self._root)

    def fault(self, selection: Selection, *, errno: int | None = None, delay: float = 0.0) -> ProgramFault:
        """Has what is selected fail, or wait, from now on; with nth= in the selection, only that.

        Args:
            selection: what is meant.
            errno: with which error it fails, without being executed; None: it does not fail.
            delay: for how many seconds it waits before it is executed.

        Raises:
            CannotBeGated: it is not stopped at these operations, or not before them.
        """
        self._check(selection)
        return ProgramFault(selection, self._supervisor, errno, delay)

    def _check(self, selection: Selection) -> None:
        if selection.when is not When.BEFORE:
            raise CannotBeGated("a system call is stopped before it begins; what is after it is stopped at the mount")
        missing = selection.operations - self.operations
        if missing:
            wanted = ", ".join(sorted(missing))
            raise CannotBeGated(f"{self} is not stopped at {wanted}: name it in operations= when it is made")

    @property
    def trail(self) -> Trail:
        """What it did on the mount, in order."""
        return self._supervisor.trail

    # --- as subprocess.Popen ------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its process id; that of the test's own child."""
        return self._running.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, -N after signal N; None: it has not ended, or nobody has asked."""
        return self._running.returncode

    @property
    def stdin(self) -> IO[Any] | None:
        """With stdin=PIPE."""
        return self._running.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        """With stdout=PIPE."""
        return self._running.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        """With stderr=PIPE."""
        return self._running.stderr

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._running.poll()

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Waits for its end, and gives its exit status.

        Raises:
            subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
        """
        return self._running.wait(timeout)

    def communicate(self, input: Any = None, timeout: float = TIMEOUT) -> tuple[Any, Any]:
        """Feeds it, reads all that it writes to pipes, and waits for its end.

        Raises:
            subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
        """
        return self._running.communicate(input, timeout)

    def send_signal(self, signal: int) -> None:
        """Sends it a signal."""
        self._running.send_signal(signal)

    def terminate(self) -> None:
        """Sends it SIGTERM."""
        self._running.terminate()

    def kill(self) -> None:
        """Kills it, wherever it stands; not what it has started."""
        self._running.kill()

    @property
    def _running(self) -> subprocess.Popen[Any]:
        if self._popen is None:
            raise RuntimeError(f"{self} has not been started")
        return self._popen

    def __repr__(self) -> str:
        """What it is."""
        return f"Program({self.args!r})"

    def __str__(self) -> str:
        """As a message names it."""
        pid = "" if self._popen is None else f" (pid {self._popen.pid})"
        return f"{self._supervisor.program}{pid}"


def stoppable(names: str | Iterable[str]) -> frozenset[Operation]:
    """Operations by their names, all of which a program can be stopped at.

    Raises:
        BadSelection: there is none of that name.
        CannotBeGated: no system call is only that.
    """
    wanted = operations(names)
    if wanted - STOPPABLE:
        raise CannotBeGated(f"no system call can be stopped that is only {', '.join(sorted(wanted - STOPPABLE))}")
    return wanted
