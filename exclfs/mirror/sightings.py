"""What the mirror sees at gates: requests that stop there, and those that were done (gates.c).

The rule that this module owns: which of the kernel's requests are which operation. A system call may be several
requests, or none: a directory is looked up before a name in it is, and what the kernel has cached it asks nobody for.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.gating import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exclfs.mirror import _mirror

OPCODES: Final = {
    Operation.LOOKUP: (1,),
    Operation.GETATTR: (3, 52),  # and STATX
    Operation.SETATTR: (4,),
    Operation.READLINK: (5,),
    Operation.SYMLINK: (6,),
    Operation.MKNOD: (8,),
    Operation.MKDIR: (9,),
    Operation.UNLINK: (10,),
    Operation.RMDIR: (11,),
    Operation.RENAME: (12, 45),  # and RENAME2
    Operation.LINK: (13,),
    Operation.OPEN: (14,),
    Operation.READ: (15,),
    Operation.WRITE: (16,),
    Operation.STATFS: (17,),
    Operation.FSYNC: (20, 30),  # and FSYNCDIR
    Operation.SETXATTR: (21,),
    Operation.GETXATTR: (22,),
    Operation.LISTXATTR: (23,),
    Operation.REMOVEXATTR: (24,),
    Operation.OPENDIR: (27,),
    Operation.READDIR: (28, 44),  # and READDIRPLUS
    Operation.CREATE: (35, 51),  # and TMPFILE
    Operation.FALLOCATE: (43,),
    Operation.COPY_FILE_RANGE: (47,),
}
"""The opcodes of each operation that comes to a server (enum fuse_opcode of <linux/fuse.h>)."""

GIVING: Final = frozenset({
    Operation.LOOKUP, Operation.SYMLINK, Operation.MKNOD, Operation.MKDIR, Operation.LINK, Operation.OPEN,
    Operation.OPENDIR, Operation.CREATE, Operation.READDIR,
})  # fmt: skip
"""What cannot be answered otherwise once it is done: its reply gives the kernel what it will give back."""

_OPERATION_OF: Final = {opcode: operation for operation, opcodes in OPCODES.items() for opcode in opcodes}


class Stage(IntEnum):
    """What has become of a request (enum gate_event of mirror.h)."""

    BEFORE = 0
    """It stands, and has not been served."""
    AFTER = 1
    """It stands, and has been served."""
    DONE = 2


@frozen
class Sighting:
    """News of a request."""

    stage: Stage
    number: int
    """By which it is let go; 0 of one that never stopped."""
    operation: Operation
    pid: int
    """Of the thread; 0 from a pid namespace that cannot be seen from here."""
    uid: int
    errno: int
    """How it was done; 0 if it was not an error, or not yet."""
    path: str
    second_path: str | None


class Sightings:
    """The gates of one mirror. They exist only if the mirror was made with `gates`; else nothing is ever seen."""

    def __init__(self, mirror: _mirror.Mirror) -> None:
        self._mirror = mirror

    @property
    def news(self) -> int:
        """An eventfd that is readable while there are sightings to be taken."""
        return self._mirror.sighted()

    def watch(self, *, before: Iterable[Operation], after: Iterable[Operation], told: Iterable[Operation] = ()) -> None:
        """From now on these operations stop, before they are served or after, and it is told when these are done.

        What stops is told of when it is done, too. What stands already stands on.
        """
        self._mirror.watch(_bits(before), _bits(after), _bits(told))

    def take(self) -> tuple[list[Sighting], int]:
        """The news since the last time, and how many of what was done were dropped since then: nobody took them."""
        taken, dropped = self._mirror.sightings()
        return [
            Sighting(
                Stage(stage),
                number,
                _OPERATION_OF[opcode],
                pid,
                uid,
                error,
                os.fsdecode(path),
                None if second is None else os.fsdecode(second),
            )
            for stage, number, opcode, pid, uid, error, path, second in taken
        ], dropped

    def let_go(self, number: int, answer: int = 0) -> bool:
        """Lets go of a request that stands. False: it does not stand there any more.

        Args:
            number: of its sighting.
            answer: an errno that it fails with, unserved if it had not been served; 0: it goes on.

        Raises:
            ValueError: the answer is no errno, or the request has been served and is of GIVING.
        """
        try:
            self._mirror.let_go(number, answer)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise ValueError(f"a request that has been served cannot be answered with {answer}") from None
        return True

    def open(self) -> None:
        """Nothing is watched any more, and whatever stands is let go."""
        self._mirror.open_gates()


def _bits(operations: Iterable[Operation]) -> int:
    return sum(1 << opcode for operation in set(operations) for opcode in OPCODES[operation])
