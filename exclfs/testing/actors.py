"""The processes of a scenario: programs, and Python functions in a process of their own.

The rule that this module owns: an actor is a child of the test with a filter of its own, so that whoever stops is known
to be of this actor; and when a run is over nothing of it is left. What it writes is kept in memory, so that it never
waits for a reader.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import field, frozen

from exclfs.testing import launch
from exclfs.testing.gates import TIMEOUT
from exclfs.testing.seccomp import Listener
from exclfs.testing.tasks import children

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

What: TypeAlias = Callable[[Path], object] | Sequence[str | os.PathLike[str]]
"""A program with its arguments, or a function that is given the path of the tree."""


@frozen
class Actor:
    """One who takes part in a scenario."""

    what: What
    """A program with its arguments, which runs in the tree; or a function that is given its path, and runs in a process
    of its own: what it does to objects of the test stays there."""
    name: str = field(kw_only=True, default="")
    """What it is called; without, after the program or the function."""
    check: bool | None = field(kw_only=True, default=None)
    """Whether the schedule fails if it ends with anything but 0. Without: if a function raises an exception, or
    anything is killed by a signal."""
    env: Mapping[str, str] | None = field(kw_only=True, default=None)
    """Of a program: its environment; without, that of the test."""

    def called(self) -> str:
        """Its name."""
        if self.name:
            return self.name
        if callable(self.what):
            return getattr(self.what, "__name__", "function")
        return os.path.basename(os.fspath(self.what[0]))


@frozen
class Ended:
    """How an actor ended."""

    returncode: int
    """Its exit status; -N after signal N; 1 of a function that raised."""
    stdout: str
    stderr: str
    """What it wrote; of a function that raised, the traceback too."""

    def is_failure(self, actor: Actor) -> bool:
        """Whether the schedule fails by it."""
        if actor.check is None:
            return self.returncode < 0 or (callable(actor.what) and self.returncode != 0)
        return actor.check and self.returncode != 0


class Running:
    """An actor in one run.

    Args:
        actor: who.
        name: how it is told from the others.
        tree: where it works.
        instructions: the filter.
        close: descriptors of this process that it must not have: the listeners of others.

    Raises:
        OSError: the kernel takes no filter, or no process is to be had.
    """

    def __init__(self, actor: Actor, name: str, tree: Path, instructions: bytes, close: Sequence[int]) -> None:
        self.actor: Final = actor
        self.name: Final = name
        self.status: int | None = None
        """Its exit status, once it has ended."""
        self.watched = True
        """Somebody is left who has the filter."""
        self.seen: Final[set[int]] = set()
        """The processes that are its own, as far as they are known."""
        self._out = os.memfd_create("stdout", os.MFD_CLOEXEC)
        self._err = os.memfd_create("stderr", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair()
        with theirs, warnings.catch_warnings():
            # Python 3.12 warns of fork beside threads. The child takes no lock that they could have.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid: Final = os.fork()
            if self.pid == 0:
                self._be_it(theirs, tree, instructions, [ours.fileno(), *close])
        self._starter = ours
        self._starter.settimeout(TIMEOUT)
        self.pidfd: Final = os.pidfd_open(self.pid)
        self.seen.add(self.pid)
        self.listener = Listener(-1)
        try:
            self.listener = self._received()
        except BaseException:
            self.end()
            raise

    def _received(self) -> Listener:
        """What the child hands over."""
        said, descriptors, _, _ = socket.recv_fds(self._starter, 1, 1)
        if said == b"L":
            os.set_inheritable(descriptors[0], False)
            return Listener(descriptors[0])
        error = int((said + self._starter.recv(64)) or str(errno.EPROTO))
        raise OSError(error, os.strerror(error), self.name)

    # --- in the child -------------------------------------------------------------------------------------------

    def _be_it(self, starter: socket.socket, tree: Path, instructions: bytes, close: Sequence[int]) -> NoReturn:
        try:
            for descriptor in close:
                os.close(descriptor)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.default_int_handler if callable(self.actor.what) else signal.SIG_DFL)
            os.chdir(tree)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor, wanted in ((nothing, 0), (self._out, 1), (self._err, 2)):
                os.dup2(descriptor, wanted)
            launch.hand_over(starter, instructions)
            if not callable(self.actor.what):
                environment = os.environb if self.actor.env is None else _encoded(self.actor.env)
                launch.become([os.fsencode(argument) for argument in self.actor.what], dict(environment))
        except OSError as error:
            starter.sendall(str(error.errno).encode())
            os._exit(127)
        except BaseException:
            os._exit(126)
        starter.close()
        os._exit(self._call(tree))

    def _call(self, tree: Path) -> int:
        """Runs a function; its exit status."""
        status = 0
        gc.freeze()  # nothing of the test is finalized here
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        try:
            assert callable(self.actor.what)
            self.actor.what(tree)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            status = 1
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        return status & 0xFF

    # --- in the test --------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether it and all that it started have ended."""
        return self.status is not None and not self.watched

    def reap(self) -> None:
        """Its pidfd is readable: it has exited.

        Raises:
            OSError: the program could not be started.
        """
        if self.status is not None:
            return
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        said = self._starter.recv(64)
        if said:
            code = int(said)
            raise OSError(code, os.strerror(code), self.name)

    def processes(self) -> list[int]:
        """Its processes, as far as they can be found: a child that has left its tree is known once it has stopped."""
        rest = list(self.seen)
        while rest:
            new = set(children(rest.pop())) - self.seen
            self.seen.update(new)
            rest += new
        return sorted(self.seen)

    def how(self) -> Ended:
        """How it ended."""
        return Ended(self.status if self.status is not None else -signal.SIGKILL, _text(self._out), _text(self._err))

    def end(self) -> None:
        """Kills what is left of it, and forgets it. Who stands fails, or dies."""
        if self.watched or self.status is None:
            for pid in self.processes():
                if pid != self.pid or self.status is None:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self.listener.close()
        if self.status is None:
            os.waitpid(self.pid, 0)
            self.status = -signal.SIGKILL
        self._starter.close()
        for descriptor in (self.pidfd, self._out, self._err):
            os.close(descriptor)


def _encoded(environment: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="backslashreplace")
