"""Puts a seccomp filter on itself, hands the listener over, and becomes the program that is to be watched.

Run as a program (`python -I -S launch.py FD`), so it imports the standard library only. The rule that it owns: nothing
of this Python remains. The program gets the arguments, environment and signal dispositions that it was to get, the
pid stays, and no descriptor is left over.

The starter sends, over the socket FD: the length of the rest (8 bytes), and marshal of (filter, arguments,
environment). It gets: one byte with the listener (SCM_RIGHTS); then the end of the file, once the program runs, or the
errno of what failed, as digits.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import signal
import socket
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
NUMBER_OF_SECCOMP = {"x86_64": 317, "aarch64": 277}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def install(instructions: bytes) -> int:
    """Puts a filter on this thread and what it will start (seccomp(2)); gives the listener, closed at exec.

    Without CAP_SYS_ADMIN it sets no_new_privs first, as the kernel wants it. With WAIT_KILLABLE_RECV (5.19), where the
    kernel has it: a call that has been read is interrupted by nothing but its death.

    Raises:
        OSError: EBUSY: there is a listener already; EINVAL: a kernel before 5.0; EACCES, ENOSYS.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = NUMBER_OF_SECCOMP[os.uname().machine]
    kept = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.cast(kept, ctypes.c_void_p))
    flags, privileged = FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV, True
    while True:
        listener = libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
        if listener >= 0:
            return int(listener)
        code = ctypes.get_errno()
        if code == errno.EINVAL and flags & FLAG_WAIT_KILLABLE_RECV:
            flags = FLAG_NEW_LISTENER
        elif code == errno.EACCES and privileged:
            privileged = False
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        else:
            raise OSError(code, os.strerror(code))


def hand_over(starter: socket.socket, instructions: bytes) -> None:
    """Installs the filter and sends the listener. From here on, what is filtered waits for whoever has it."""
    listener = install(instructions)
    socket.send_fds(starter, [b"L"], [listener])
    os.close(listener)


def become(arguments: list[bytes], environment: dict[bytes, bytes]) -> None:
    """Executes a program, looked for in the PATH of its environment."""
    # Python ignores these two, and what is ignored stays ignored across an exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execvpe(arguments[0], arguments, environment)  # noqa: S606 - that is the point


def main() -> None:
    """See the top."""
    starter = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(starter.fileno(), False)
    try:
        (length,) = struct.unpack("=Q", starter.recv(8, socket.MSG_WAITALL))
        instructions, arguments, environment = marshal.loads(starter.recv(length, socket.MSG_WAITALL))  # noqa: S302
        hand_over(starter, instructions)
        become(arguments, environment)
    except OSError as error:
        starter.sendall(str(error.errno).encode())
    except BaseException:
        starter.sendall(str(errno.EPROTO).encode())
    os._exit(127)


if __name__ == "__main__":
    main()
