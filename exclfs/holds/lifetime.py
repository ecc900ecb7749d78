"""What ends a hold. A hold always says what ends it; of several ends the first wins."""

from __future__ import annotations

from datetime import datetime

from attrs import field, frozen


@frozen
class Unmount:
    """The hold ends when the mount does, or when it is released by name."""


@frozen
class Connection:
    """The hold ends when this connection closes or the process that opened it dies."""

    number: int
    """The server's own numbering, from 1; 0 in a hold that was read from JSON, which does not carry it."""


@frozen
class Exit:
    """The hold ends when this process does. Never the bare pid: pids are used again."""

    pid: int
    """In the server's pid namespace."""
    start_time: int | None = None
    """Clock ticks since boot (proc_pid_stat(5), field 22); None in a hold that was read from JSON."""
    boot: str | None = None
    """The boot that the start time counts from (/proc/sys/kernel/random/boot_id)."""


@frozen
class Time:
    """The hold ends at this time, unless it is renewed before."""

    at: datetime
    """Aware, UTC; as it was reckoned when the hold was placed or renewed last."""
    deadline: float = field(default=0.0, eq=False)
    """The same on the clock that decides: seconds of CLOCK_BOOTTIME, which nobody can set back."""


@frozen
class StateFile:
    """The hold is kept in the server's state file: a restart of the server does not end it."""


@frozen
class Close:
    """The hold is a file that is open (--hold-open): it ends when the file is closed."""


End = Unmount | Connection | Exit | Time | StateFile | Close
"""Anything that can end a hold."""

OF_A_PROCESS = Connection | Exit
"""The ends that come with the death of a process."""
