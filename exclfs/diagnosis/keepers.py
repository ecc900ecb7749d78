"""Mount namespaces in sentences: which one, and who keeps it alive.

The rule that this module owns: a namespace is told by its number and by a process that would have to end before it
does, with the container or unit that started the process; and what could not be seen of namespaces is told as a gap.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread
from exclfs.host import namespaces, privileges, processes
from exclfs.host.names import printable, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.holds.holder import Process
    from exclfs.host.namespaces import Namespace
    from exclfs.host.view import Host

_NAMED: Final = 3
"""How many namespaces a sentence names."""
_DESCRIBED: Final = 10
"""How many of their processes a cause describes."""


def named(where: Sequence[Namespace]) -> str:
    """These namespaces: `mount namespace 4026532200 (kept by pid 812, sleep, docker:0123456789ab)`, and the like."""
    told = [_named(namespace) for namespace in where[:_NAMED]]
    more = len(where) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def processes_of(where: Sequence[Namespace]) -> tuple[Process, ...]:
    """The processes that keep these alive: of each one, then more of them."""
    first = [namespace.keepers[0] for namespace in where if namespace.keepers]
    rest = [pid for namespace in where for pid in namespace.keepers[1:]]
    return tuple(processes.describe(pid) for pid in (first + rest)[:_DESCRIBED])


def only_number(where: Sequence[Namespace]) -> int | None:
    """The number of the namespace, if it is one and shows it."""
    return where[0].number if len(where) == 1 else None


def unread(host: Host, may_block: tuple[Attempt, ...]) -> Iterator[Unread]:
    """What of the namespaces of this host could not be seen.

    Args:
        host: as this process sees it.
        may_block: what something that is mounted there might keep from being done.
    """
    # A process that is not seen can use any mount of here: by a descriptor, or by /proc/PID/root.
    with_uses = may_block if Attempt.UMOUNT in may_block else (Attempt.UMOUNT, *may_block)
    if not namespaces.sees_all_processes(host):
        yield Unread("namespaces", _OUTSIDE, with_uses)
    if namespaces.hides_processes(host):
        yield Unread("namespaces", _HIDDEN, with_uses)
    closed = [str(namespace.number) for namespace in host.namespaces if not namespace.mounts and namespace.number]
    if closed:
        yield Unread("namespaces", _CLOSED.format(", ".join(closed[:_DESCRIBED])), may_block)
    if may_block and not privileges.capable("CAP_SYS_ADMIN"):
        yield Unread("namespaces", _WITHOUT_PROCESSES, may_block)


_OUTSIDE: Final = (
    "This is a pid namespace of its own: processes outside it, and what is mounted in their mount namespaces, are not "
    "seen. Run it on the host."
)
_HIDDEN: Final = (
    "/proc is mounted with hidepid here: other users' processes, and what is mounted in their mount namespaces, are "
    "not seen; root sees them: run it with sudo."
)
_CLOSED: Final = (
    "What is mounted in mount namespace {} could not be read; root on the host can: run it there, with sudo."
)
_WITHOUT_PROCESSES: Final = (
    "Mount namespaces that no process is in, kept by a descriptor or a bind mount, are not seen; root sees them: run "
    "it with sudo."
)


def _named(namespace: Namespace) -> str:
    name = "a mount namespace" if namespace.number is None else f"mount namespace {namespace.number}"
    if namespace.keepers:
        return f"{name} (kept alive by {_process(processes.describe(namespace.keepers[0]))}{_others(namespace)})"
    if namespace.bound_at:
        return f"{name} (kept alive by its bind mount on {quoted(os.fsdecode(namespace.bound_at[0]))})"
    return name


def _others(namespace: Namespace) -> str:
    others = len(namespace.keepers) - 1
    by = ", by a descriptor" if namespace.descriptors and not namespace.pids else ""
    return by + (f" and {others} more" if others else "")


def _process(process: Process) -> str:
    words = [f"pid {process.pid}", printable(process.comm or "unknown")]
    if process.container is not None:
        words.append(printable(process.container))
    return ", ".join(words)
