"""Seccomp user notification: a filter that stops system calls, and the listener that says what becomes of them.

The rule that this module owns: what the kernel's interface is. See seccomp_unotify(2) and
Documentation/userspace-api/seccomp_filter.rst. It knows nothing of gates; calls.py reads what a call is about.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exclfs.testing.syscalls import SystemCall

ARCHITECTURES: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 (linux/audit.h)."""

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _NOTIFY = 0x7FFF_0000, 0x7FC0_0000
_X32: Final = 0x4000_0000

_RECEIVE, _SEND, _VALID = 0xC050_2100, 0xC018_2101, 0x4008_2102
_CONTINUE: Final = 1


class NotSupported(OSError):
    """This kernel, or this machine, has no seccomp user notification."""


def filter_of(calls: Mapping[int, SystemCall], others: Iterable[int] = ()) -> bytes:
    """A filter (struct sock_filter[]) that stops these calls and lets everything else through.

    Calls of another architecture pass: i386 and x32 programs are not stopped.

    Args:
        calls: by number.
        others: numbers of calls that are stopped as well.

    Raises:
        NotSupported: this architecture has no table.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise NotSupported(errno.ENOSYS, f"programs are stopped on x86_64 and aarch64, and this is {machine}")
    code = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _instruction(_RETURN, _ALLOW),
        _instruction(_LOAD, _NUMBER),
        _instruction(_JUMP_AT_LEAST, _X32, 0, 1),
        _instruction(_RETURN, _ALLOW),
    ]
    plain = sorted([*others, *(number for number, call in calls.items() if call.commands is None)])
    for number in plain:
        code += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, _NOTIFY)]
    for number, call in sorted(calls.items()):
        if call.commands is not None:
            code += _only_with(number, *call.commands)
    code.append(_instruction(_RETURN, _ALLOW))
    return b"".join(code)


def _only_with(number: int, argument: int, values: Iterable[int]) -> list[bytes]:
    """Stops a call whose argument has one of these values; reads its lower half, as the kernel does an int."""
    tests: list[bytes] = []
    for value in sorted(values):
        tests += [_instruction(_JUMP_EQUAL, value, 0, 1), _instruction(_RETURN, _NOTIFY)]
    tests.append(_instruction(_RETURN, _ALLOW))
    return [
        _instruction(_JUMP_EQUAL, number, 0, len(tests) + 1),
        _instruction(_LOAD, _ARGUMENTS + 8 * argument),
        *tests,
    ]


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


@frozen
class Notification:
    """A system call that stands before the kernel."""

    id: int
    pid: int
    """Of the thread; 0 if its pid namespace cannot be seen from here."""
    number: int
    arguments: tuple[int, ...]
    """All six, as registers have them."""


class Listener:
    """What a filter's calls wait for. When it is closed they all fail with ENOSYS, so nobody hangs.

    Args:
        descriptor: the listener's, which becomes this object's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """To poll: POLLIN when a call waits to be received, POLLHUP when nobody is left that has the filter."""
        return self._descriptor

    def receive(self) -> Notification | None:
        """The next call; None if the one that there was has gone (its thread was killed, or a signal came)."""
        got = bytearray(80)
        try:
            fcntl.ioctl(self._descriptor, _RECEIVE, got, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        request, pid, _flags, number, _architecture, _at, *arguments = struct.unpack("=QIIiIQ6Q", got)
        return Notification(request, pid, number, tuple(arguments))

    def stands(self, id: int) -> bool:
        """Whether this call still waits: what was read of its thread was read of the right one (ID_VALID)."""
        try:
            fcntl.ioctl(self._descriptor, _VALID, struct.pack("=Q", id))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def let_go(self, id: int) -> bool:
        """The kernel executes the call; False if it has gone."""
        return self._send(id, 0, _CONTINUE)

    def answer(self, id: int, error: int) -> bool:
        """The call fails with this errno and is not executed; 0: it returns 0. False if it has gone."""
        return self._send(id, -error, 0)

    def _send(self, id: int, error: int, flags: int) -> bool:
        try:
            fcntl.ioctl(self._descriptor, _SEND, bytearray(struct.pack("=QqiI", id, 0, error, flags)), True)
        except OSError as failure:
            if failure.errno == errno.ENOENT:
                return False
            raise
        return True

    def close(self) -> None:
        """Lets go of everything: what waits fails with ENOSYS."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
