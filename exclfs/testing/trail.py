"""What was seen of the programs of a test, in order: operations, and what became of each.

The rule that this module owns: one numbering for all trails, so that those of several programs can be merged into one
story. A trail keeps the last of a long story, and says how much is missing.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from exclfs.gating import When
from exclfs.testing.gates import Happened

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exclfs.gating import Operation

KEPT: Final = 50_000
"""How many entries a trail keeps."""

_numbers = itertools.count(1)


class Fate(StrEnum):
    """What became of an operation, or of somebody who stood at it."""

    WENT_ON = "went on"
    """Nobody stopped it: the kernel executed it at once. What it ended with is not known."""
    STOPPED = "stopped"
    """It stands at a gate."""
    LET_GO = "let go"
    """It stood at a gate, and the kernel executed it then."""
    ANSWERED = "answered"
    """It was not executed, and failed with `errno`: by a gate or a fault."""
    DELAYED = "delayed"
    """A fault has it wait; it goes on afterwards."""
    GONE = "gone"
    """Its thread died, or was interrupted by a signal, where it stood."""


@frozen(kw_only=True)
class Entry:
    """One line of the story."""

    number: int
    """Greater than that of everything that was seen before, in any trail."""
    time: int = field(factory=time.monotonic_ns)
    """CLOCK_MONOTONIC, in nanoseconds."""
    operation_number: int
    """The entry with which this operation began: its own number, or that of where it stopped."""
    program: str
    """A short name for the program that the test started; its children are under the same name."""
    pid: int
    """Of the thread."""
    comm: str
    operation: Operation
    path: str
    """Relative to the mount's root."""
    second_path: str | None = None
    fate: Fate
    when: When = When.BEFORE
    """On which side of its execution it stood, if it did."""
    gate: str | None = None
    """Which gate or fault it was."""
    errno: int | None = None
    """What it was answered with."""

    @property
    def happened(self) -> Happened:
        """As a gate tells it."""
        return Happened(
            operation=self.operation,
            path=self.path,
            second_path=self.second_path,
            pid=self.pid,
            comm=self.comm,
            errno=self.errno,
        )


class Trail:
    """Entries in the order of their numbers. Any thread may add to it and read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=KEPT)
        self.missed = 0
        """How many entries were too many and are not kept."""

    def add(self, *, operation_number: int | None = None, **fields: object) -> Entry:
        """One more entry; the fields are those of Entry. Without an operation's number it begins one."""
        with self._lock:
            number = next(_numbers)
            entry = Entry(
                number=number,
                operation_number=number if operation_number is None else operation_number,
                **fields,  # type: ignore[arg-type]
            )
            self.missed += len(self._entries) == KEPT
            self._entries.append(entry)
        return entry

    def since(self, number: int = 0) -> tuple[Entry, ...]:
        """All entries that are kept whose number is greater."""
        with self._lock:
            return tuple(entry for entry in self._entries if entry.number > number)

    @property
    def last(self) -> int:
        """The number of the last entry; 0: there is none."""
        with self._lock:
            return self._entries[-1].number if self._entries else 0


def merged(trails: Iterable[Trail]) -> list[Entry]:
    """The entries of several trails as one story."""
    return sorted((entry for trail in trails for entry in trail.since()), key=lambda entry: entry.number)
