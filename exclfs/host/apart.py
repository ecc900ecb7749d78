"""Work in a thread that shares its root with no other, so that it can go where they must not follow.

The rule that this module owns: setns(2) and unshare(2) move one thread, and it ends where it went: nothing moves back.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

CLONE_NEWNS: Final = 0x20000
_CLONE_FS: Final = 0x200


def apart(work: Callable[[ctypes.CDLL], T]) -> T:
    """What `work`, which is given libc, returns when such a thread does it.

    Raises:
        OSError: as `work` does; EPERM if no thread may leave the others.
    """
    given: list[T] = []
    raised: list[OSError] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            check(libc.unshare(_CLONE_FS))
            given.append(work(libc))
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="exclfs in another mount namespace")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return given[0]


def check(result: int) -> None:
    """Raises the OSError of a call of libc that failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
