"""The threads of a process tree, and whether they sleep: from /proc.

The rule that this module owns: whether somebody still runs is decided by what the kernel says of every thread, and by
its count of context switches, never by how long it takes. See proc_pid_stat(5), proc_pid_schedstat(5) and
proc_pid_syscall(5).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable


def threads(pid: int) -> list[int]:
    """The threads of a process; none if it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return []


def process_of(thread: int) -> int:
    """The process that a thread is of; the thread itself if it is gone."""
    for line in (_read(f"/proc/{thread}/status") or b"").splitlines():
        if line.startswith(b"Tgid:"):
            return int(line.split()[1])
    return thread


def children(pid: int) -> list[int]:
    """The processes whose parent it is, those that have exited and are not waited for among them."""
    found: list[int] = []
    for thread in threads(pid):
        text = _read(f"/proc/{pid}/task/{thread}/children")
        if text is None:
            return _children_by_parent(pid)
        found += map(int, text.split())
    return found


def _children_by_parent(pid: int) -> list[int]:
    """The same on a kernel without CONFIG_PROC_CHILDREN, or if a thread has just gone."""
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    lines = [(process, _read(f"/proc/{process}/stat")) for process in processes]
    return [process for process, line in lines if line and int(line.rpartition(b")")[2].split()[1]) == pid]


def descendants(pid: int) -> list[int]:
    """All processes below a process, parents first."""
    found, rest = [], [pid]
    while rest:
        below = children(rest.pop(0))
        found += below
        rest += below
    return found


@frozen
class Task:
    """A thread at one moment."""

    pid: int
    """Of the thread."""
    process: int
    state: str
    """One letter, as proc_pid_stat(5) has it: R, S, D, T, t, Z, X, I."""
    started: int
    """Clock ticks after boot."""
    switches: int
    """How often it has been switched to, or away from."""
    call: int | None
    """The system call that it sleeps in; None: in none, or that cannot be read, or was not asked."""


def look_at(process: int, pid: int, *, calls: bool = True) -> Task | None:
    """A thread as it is now; None if it is gone. `calls` is whether its system call is asked."""
    where = f"/proc/{process}/task/{pid}/"
    line, switches = _read(where + "stat"), _switches(where)
    if not line or switches is None:
        return None
    words = line.rpartition(b")")[2].split()
    state = words[0].decode()
    call = None
    if calls and state in "SD":
        text = (_read(where + "syscall") or b"").split()
        call = int(text[0]) if text and text[0].lstrip(b"-").isdigit() else None
    return Task(pid, process, state, int(words[19]), switches, call)


def place(task: Task) -> str:
    """The function of the kernel that a thread sleeps in (wchan); "" if that cannot be read, or it does not."""
    return (_read(f"/proc/{task.process}/task/{task.pid}/wchan") or b"").decode().strip("0")


def _switches(where: str) -> int | None:
    """How often a thread has been given a processor (/proc/PID/schedstat); without CONFIG_SCHED_INFO, taken off one."""
    times = _read(where + "schedstat")
    if times:
        return int(times.split()[2])
    status = _read(where + "status") or b""
    counts = [int(line.split()[1]) for line in status.splitlines() if b"ctxt_switches" in line]
    return sum(counts) if counts else None


def all_of(processes: Iterable[int], *, calls: bool = True) -> list[Task]:
    """All threads of these processes as they are now."""
    found = [look_at(process, thread, calls=calls) for process in processes for thread in threads(process)]
    return [task for task in found if task is not None]


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return None
