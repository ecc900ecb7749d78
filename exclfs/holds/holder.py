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
    own_uid: int | None = None
    """Whose the process is, where it asks as somebody else; None where it asks as itself. A filesystem in the kernel
    may ask for it with the ids of whoever mounted it (overlayfs: override_creds() in fs/overlayfs)."""

    def is_same(self, other: Process) -> bool:
        """Whether the two are certainly one process of one user, seen twice."""
        known = self.pid is not None and self.start_time is not None
        return known and (self.pid, self.uid, self.start_time) == (other.pid, other.uid, other.start_time)


@frozen
class Credentials:
    """As whom somebody asks (credentials(7)), as the kernel says it."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """The supplementary groups."""


@frozen
class Holder:
    """Who holds: a name, and the process that placed the hold."""

    name: str
    process: Process

    def is_same(self, other: Holder) -> bool:
        """Whether the two are one holder: the same name and the same process."""
        return self.name == other.name and self.process.is_same(other.process)
