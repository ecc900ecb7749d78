"""Who holds, and who asked: a process as it was when it was seen."""

from __future__ import annotations

from attrs import frozen


@frozen
class Process:
    """A process as it was when it was seen. What could not be read is None, never a guess."""

    pid: int | None
    """The process (thread group) id in the server's pid namespace; None for the kernel and for a foreign namespace."""
    uid: int
    comm: str | None = None
    exe: str | None = None
    user: str | None = None
    container: str | None = None
    start_time: int | None = None
    """Clock ticks since boot: with the pid, the identity of the process (proc_pid_stat(5), field 22)."""


@frozen
class Holder:
    """Who holds: a name, and the process that placed the hold."""

    name: str
    process: Process
