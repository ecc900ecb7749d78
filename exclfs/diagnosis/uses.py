"""Who uses the subject; and, of a mountpoint, who uses anything on the mount.

The rule that this module owns: to be used keeps nothing from being removed or renamed, and every mount from being
unmounted: umount(2) counts who has a reference to the mount (do_refcount_check(), fs/namespace.c), and so does this.
What only watches a file, or locks it, adds no reference. One process is told once for each way in which it uses
something; very many together.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis import silly_renames, who
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import namespaces, processes, uses
from exclfs.host.locks import Kind as LockKind
from exclfs.host.names import quoted
from exclfs.host.uses import Kind, Sought

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.holds.holder import Process
    from exclfs.host.locks import Lock
    from exclfs.host.uses import Found, Use
    from exclfs.host.view import Host

KINDS: Final = (*map(str, Kind), *map(str, LockKind), "silly rename")
"""What this finder may yield."""

_PHRASES: Final = {
    Kind.DESCRIPTOR: "open{for_writing} by",
    Kind.WORKING_DIRECTORY: "the working directory of",
    Kind.ROOT_DIRECTORY: "the root directory of",
    Kind.EXECUTABLE: "the executable of",
    Kind.MAPPING: "mapped into the memory of",
    Kind.SOCKET: "bound to a socket of",
    Kind.INOTIFY: "watched with inotify by",
    Kind.FANOTIFY: "watched with fanotify by",
}
_MOST_TOLD_APART: Final = 10
"""More processes than these, with one kind of use, are one cause."""


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """Everybody who uses the subject, or anything on the mount that it is the root of."""
    mounts = _taken_off_with(subject, host)
    ours = frozenset({subject.descriptor, subject.parent})
    found = uses.find(
        Sought(
            identity=subject.identity,
            path=subject.canonical,
            is_directory=stat.S_ISDIR(subject.status.st_mode),
            mounts=mounts,
            ours=ours,
        ),
        host,
    )
    yield from silly_renames.find(subject, found, host)
    for (kind, keeps_busy), users in _grouped(found.uses, mounts).items():
        yield from _causes(subject, kind, users, host, keeps_busy=keeps_busy)
    for lock, pids in found.locks.items():
        yield _locked(subject, lock, pids, host)
    yield from _unread(subject, found, host)


def _taken_off_with(subject: Subject, host: Host) -> frozenset[int]:
    """The mounts whose users umount(2) counts. Of / it counts none: it never takes that off (do_umount())."""
    if not subject.is_mountpoint or subject.canonical == "/":
        return frozenset()
    return frozenset(namespaces.copies(subject.mount, host))


def _grouped(found: Sequence[Use], mounts: frozenset[int]) -> dict[tuple[Kind, bool], dict[int, list[Use]]]:
    """The uses by their kind and by whether they keep the mount busy; of each sort, those of each process together."""
    groups: dict[tuple[Kind, bool], dict[int, list[Use]]] = {}
    for use in found:
        keeps_busy = use.mount in mounts
        if use.is_it or keeps_busy:
            groups.setdefault((use.kind, keeps_busy), {}).setdefault(use.pid, []).append(use)
    return groups


# --- Uses ------------------------------------------------------------------------------------------------------------


def _causes(
    subject: Subject, kind: Kind, users: dict[int, list[Use]], host: Host, *, keeps_busy: bool
) -> Iterator[Cause]:
    if len(users) > _MOST_TOLD_APART:
        yield _of_many(subject, kind, users, host, keeps_busy=keeps_busy)
        return
    for pid, used in users.items():
        what, where = _what(subject, used, host)
        process = processes.describe(pid)
        text = f"{what} {_phrase(kind, used)} {who.named(process, host)}{_times(kind, used)}."
        text += _way_out(pid, kind) if keeps_busy else _consequence(subject, kind)
        yield _cause(kind, text, (process,), where, keeps_busy=keeps_busy)


def _of_many(subject: Subject, kind: Kind, users: dict[int, list[Use]], host: Host, *, keeps_busy: bool) -> Cause:
    everybody = tuple(processes.describe(pid) for pid in users)
    is_it = all(use.is_it for used in users.values() for use in used)
    what = quoted(subject.path) if is_it else f"Something on {quoted(subject.path)}"
    phrase = _PHRASES[kind].format(for_writing="")
    text = f"{what} is {phrase} {who.listed(everybody, host)}. `exclfs why --json` tells them all."
    return _cause(kind, text, everybody, None, keeps_busy=keeps_busy)


def _cause(kind: Kind, text: str, users: tuple[Process, ...], where: str | None, *, keeps_busy: bool) -> Cause:
    if keeps_busy:
        return caused(kind, text, (Attempt.UMOUNT,), "EBUSY", processes=users, where=where)
    return caused(kind, text, processes=users, where=where)


def _what(subject: Subject, used: Sequence[Use], host: Host) -> tuple[str, str | None]:
    """What one process uses: in words, and where it is if that is not the subject."""
    if all(use.is_it for use in used):
        return quoted(subject.path), None
    where = next(filter(None, (uses.path_of(use, host) for use in used if not use.is_it)), None)
    what = f"Something on {quoted(subject.path)}" if where is None else quoted(where)
    return (what if len(used) == 1 else f"{what} and {len(used) - 1} more on this mount"), where


def _phrase(kind: Kind, used: Sequence[Use]) -> str:
    verb = "is" if len(used) == 1 or all(use.is_it for use in used) else "are"
    for_writing = " for writing" if any(use.writing for use in used) else ""
    return f"{verb} {_PHRASES[kind].format(for_writing=for_writing)}"


def _times(kind: Kind, used: Sequence[Use]) -> str:
    several = kind is Kind.DESCRIPTOR and len(used) > 1 and all(use.is_it for use in used)
    return f", {len(used)} times" if several else ""


def _way_out(pid: int, kind: Kind) -> str:
    if pid == os.getpid():
        return " Change to another directory first." if kind is Kind.WORKING_DIRECTORY else ""
    if kind is Kind.WORKING_DIRECTORY:
        return f" It has to change to another directory, or to end: `kill {pid}`."
    return f" `kill {pid}` ends it."


def _consequence(subject: Subject, kind: Kind) -> str:
    if kind is Kind.DESCRIPTOR and stat.S_ISREG(subject.status.st_mode):
        return " If it is removed, its space is free only once it is closed."
    return ""


# --- Locks -----------------------------------------------------------------------------------------------------------


def _locked(subject: Subject, lock: Lock, pids: Sequence[int], host: Host) -> Cause:
    users = tuple(processes.describe(pid) for pid in pids)
    whose = who.listed(users, host) if users else "a process that could not be seen"
    article = "an" if lock.kind is LockKind.OFD else "a"
    what = f"{article} {lock.kind} for {'writing' if lock.writing else 'reading'}{_range(lock)}"
    if lock.waits:
        text = f"{quoted(subject.path)} is to have {what}, too: {whose} waits for it."
    else:
        text = f"{quoted(subject.path)} has {what}, of {whose}. It binds only those who ask for such a lock."
    return caused(lock.kind, text, processes=users)


def _range(lock: Lock) -> str:
    if (lock.start, lock.end) == (0, None):
        return ""
    return f" from byte {lock.start} on" if lock.end is None else f" of bytes {lock.start} to {lock.end}"


# --- What could not be read ------------------------------------------------------------------------------------------


def _unread(subject: Subject, found: Found, host: Host) -> Iterator[Unread]:
    may_block = (Attempt.UMOUNT, *(silly_renames.BLOCKED if silly_renames.is_one(subject) else ()))
    if found.unread:
        yield Unread("processes", f"{_unread_processes(found.unread)} {_by_whom()}", may_block)
    if found.sockets_unread is not None:
        reason = found.sockets_unread.strerror or str(found.sockets_unread)
        yield Unread(
            "sockets", f"The kernel did not tell which sockets have their names here: {reason}.", (Attempt.UMOUNT,)
        )
    if subject.is_mountpoint:
        for use in found.uses:
            if use.kind is Kind.SOCKET and use.mount is None:
                whose = who.named(processes.describe(use.pid), host)
                where = "has its name on this filesystem; on which of its mounts the kernel does not tell"
                yield Unread("sockets", f"A socket of {whose} {where}.", (Attempt.UMOUNT,))


def _unread_processes(pids: Sequence[int]) -> str:
    if len(pids) == 1:
        return f"What pid {pids[0]} has open, works in, runs and maps could not be read"
    return f"What {len(pids)} processes have open, work in, run and map could not be read"


def _by_whom() -> str:
    # That of one's own user is guarded too if it has more privileges, and so is that of a set-user-ID program.
    if os.geteuid() == 0:
        return "although this is root: CAP_SYS_PTRACE is missing, or a security module forbids it."
    return "by this user; root can: run it with sudo."
