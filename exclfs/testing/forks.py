"""Programs of ours that are forked from a process which has imported them, and so begin at once.

Importing is nearly all that a server does before it serves: a third of a second, for each test that has a mount. The
rule that this module owns: what is forked is the program as it is, from its `main()` on, with arguments, environment,
working directory and descriptors of its own, and its arguments are in /proc/PID/cmdline, where `ps` and `exclfs why`
look. What Python and the loader read when they start is that of the fork server: for other values of those there is
another one. A fork server ends when the process does that began it, however that does.

Run as a program (`python -P -m exclfs.testing.forks FD MODULE ROOM`) it is the fork server. Each packet on the socket
FD is one program: JSON, with its stdin, stdout, stderr, the descriptor on which its exit code is told, and perhaps one
that its last argument names. The answer is its pid, with a pidfd.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from selectors import EVENT_READ, DefaultSelector
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOM: Final = 1 << 15
"""Bytes that the arguments of a program may have."""
_PACKET: Final = 1 << 20
_EVERY_START: Final = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
"""How the variables begin that matter before `main()`."""
_LOST: Final = 255
"""The exit code of a program whose fork server was killed."""


class Fork:
    """A program that was forked. Its methods are those of subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], pid: int, pidfd: int, told: int) -> None:
        self.args: Final = arguments
        self.pid: Final = pid
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._told = told

    def poll(self) -> int | None:
        """Its exit code, or None while it runs; that of a signal is negative."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Args:
            timeout: seconds to wait; None: without end.

        Raises:
            subprocess.TimeoutExpired: it has not ended.
        """
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._told, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            self.returncode = int(os.read(self._told, 16) or _LOST)
            os.close(self._told)
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends it a signal; nothing happens if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process that has imported a module, and forks programs that run its `main()`.

    Args:
        module: its name.
        environment: of the server; the programs have their own.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._module = module
        self._environment = dict(environment)
        self._owner = os.getpid()
        self._asking = threading.Lock()  # each gets the answer to what it asked
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), module, " " * ROOM],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the test
                env=self._environment,
            )

    @property
    def pid(self) -> int:
        """The parent of what it forks."""
        return self._process.pid

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether it can fork, for this process, programs with this environment."""
        alike = _at_start(environment) == _at_start(self._environment)
        return alike and self._owner == os.getpid() and not self._has_hung_up()

    def _has_hung_up(self) -> bool:
        """Whether it has ended, as who asks it to fork would notice: its end of the socket is closed."""
        if self._end.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._end, 0)
        return bool(poll.poll(0))

    def fork(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        passed: int | None = None,
        cwd: str = "/",
        new_session: bool = False,
    ) -> Fork:
        """Begins a program; its stdin is empty.

        Args:
            arguments: those after its name.
            environment: all of it.
            stdout: where it goes.
            stderr: where that goes.
            passed: a descriptor that it also gets, and whose number is its last argument.
            cwd: its working directory.
            new_session: whether it leaves the terminal (setsid(2)).

        Raises:
            OSError: the fork server has ended.
        """
        wanted = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "cwd": cwd,
            "new_session": new_session,
        }
        told, telling = os.pipe()
        try:
            with open(os.devnull, "rb") as nothing:
                streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdout, stderr)]
                descriptors = [nothing.fileno(), *streams, telling, *([] if passed is None else [passed])]
                with self._asking:
                    socket.send_fds(self._end, [json.dumps(wanted).encode()], descriptors)
                    answer, pidfds, _, _ = socket.recv_fds(self._end, 64, 1, socket.MSG_CMSG_CLOEXEC)
            if not answer:
                raise BrokenPipeError(errno.EPIPE, "the fork server has ended")
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(telling)
        return Fork(arguments, int(answer), pidfds[0], told)

    def close(self) -> None:
        """Ends it; what it has forked goes on, unless that ends with its parent."""
        self._end.close()
        if self._owner == os.getpid():
            self._process.wait()


_servers: Final[dict[tuple[str, frozenset[tuple[str, str]]], ForkServer]] = {}


def server_of(module: str, environment: Mapping[str, str]) -> ForkServer:
    """The fork server of this process for a module and an environment; begun when it is first needed.

    It ends with this process, and not before: it alone hears how its programs end.
    """
    key = module, frozenset(_at_start(environment).items())
    found = _servers.get(key)
    if found is not None and not found.serves(environment):
        found.close()  # it has been killed, or is that of the process from which this one was forked
        found = None
    if found is None:
        found = _servers[key] = ForkServer(module, environment)
    return found


@atexit.register
def _close_all() -> None:
    for server in _servers.values():
        server.close()


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_EVERY_START)}


# --- the fork server --------------------------------------------------------------------------------------------------


def _serve(end: socket.socket, module: str) -> None:
    """Forks what it is asked to, and tells of each how it ended."""
    program: Callable[[], int] = importlib.import_module(module).main
    gc.collect()
    gc.freeze()  # what all forks have in common stays common
    with DefaultSelector() as selector, open(os.pidfd_open(os.getppid()), "rb") as parent:
        selector.register(end, EVENT_READ)
        selector.register(parent, EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is parent:
                    return
                if key.fileobj is not end:
                    selector.unregister(key.fileobj)
                    _tell_the_end(int(key.fd), *key.data)
                    continue
                message, descriptors, _, _ = socket.recv_fds(end, _PACKET, 5, socket.MSG_CMSG_CLOEXEC)
                if not message:
                    return
                pid, pidfd = _fork(program, module, json.loads(message), descriptors)
                socket.send_fds(end, [str(pid).encode()], [pidfd])
                selector.register(pidfd, EVENT_READ, (pid, descriptors[3]))


def _tell_the_end(pidfd: int, pid: int, telling: int) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):  # nobody wants to know any more
        os.write(telling, str(os.waitstatus_to_exitcode(status)).encode())
    os.close(telling)
    os.close(pidfd)


def _fork(program: Callable[[], int], module: str, wanted: dict[str, Any], descriptors: list[int]) -> tuple[int, int]:
    """The pid and a pidfd of a new program. Of its descriptors only that for its exit code is kept here."""
    pid = os.fork()
    if pid == 0:
        _run(program, module, wanted, descriptors)
    for descriptor in (*descriptors[:3], *descriptors[4:]):
        os.close(descriptor)
    return pid, os.pidfd_open(pid)


def _run(program: Callable[[], int], module: str, wanted: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """What is forked. It never returns into the fork server."""
    status = 1
    try:
        kept = descriptors[4:]
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        for name in os.listdir("/proc/self/fd"):
            if (number := int(name)) > 2 and number not in kept:
                with suppress(OSError):  # of the listing itself
                    os.close(number)
        if wanted["new_session"]:
            os.setsid()
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["environment"])
        arguments = [*wanted["arguments"], *map(str, kept)]
        _show([sys.executable, "-P", "-m", module, *arguments])
        sys.argv = [module, *arguments]
        status = program()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def _show(arguments: list[str]) -> None:
    """Has /proc/PID/cmdline show these arguments, where those of the fork server lie (arg_start, arg_end)."""
    with open("/proc/self/stat", "rb") as file:
        begin, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
    told = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)[: end - begin - 1]
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, told, len(told))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
