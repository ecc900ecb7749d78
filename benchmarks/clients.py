"""Clients: one that measures in this process, or several that begin together, each in a directory of its own."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOMENTS: Final = struct.Struct("dd")


class ClientFailed(Exception):
    """A client could not do what was to be measured."""


def alone(directory: str, work: Callable[[], None]) -> float:
    """Seconds that the work takes in the directory."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(directory)
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    finally:
        os.fchdir(here)
        os.close(here)


def together(directories: Sequence[str], work: Callable[[], None]) -> float:
    """Seconds from the first one's beginning to the last one's end; a client for each directory.

    Raises:
        ClientFailed: one of them did not come to its end.
    """
    go_reading, go_writing = os.pipe()
    children = [_fork(directory, work, go_reading, go_writing) for directory in directories]
    os.close(go_reading)
    for _, reading in children:
        os.read(reading, 1)  # it is in its directory
    os.close(go_writing)  # all of them go
    told = [os.read(reading, MOMENTS.size) for _, reading in children]
    for pid, reading in children:
        os.close(reading)
        os.waitpid(pid, 0)
    if any(len(moments) != MOMENTS.size for moments in told):
        raise ClientFailed("a client ended before it was done")
    moments = [MOMENTS.unpack(each) for each in told]
    return max(ended for _, ended in moments) - min(began for began, _ in moments)


def _fork(directory: str, work: Callable[[], None], go_reading: int, go_writing: int) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid > 0:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        os.close(go_writing)
        os.chdir(directory)
        os.write(writing, b".")
        os.read(go_reading, 1)
        began = time.perf_counter()
        work()
        os.write(writing, MOMENTS.pack(began, time.perf_counter()))
    finally:
        os._exit(0)
