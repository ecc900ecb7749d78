"""Control groups: one that has processes or groups in it cannot be removed, and its files never (cgroups(7))."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread, caused
from exclfs.host import cgroups, processes
from exclfs.host.names import printable, quoted, typed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exclfs.diagnosis.findings import Cause, Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.holds.holder import Process
    from exclfs.host.view import Host

KINDS: Final = ("cgroup", "cannot be removed")

_MOST_NAMED: Final = 10


def find(subject: Subject, host: Host) -> Iterator[Finding]:
    """What is in it, if it is a control group; that it stays, if it is a file of one."""
    if not subject.name:
        return
    fstype = host.mount_of(subject.parent).fstype
    if fstype not in cgroups.FSTYPES or subject.is_mountpoint:
        return
    if not stat.S_ISDIR(subject.status.st_mode):
        yield from _of_a_file(subject, fstype)
        return
    if fstype == "cgroup2":
        text = f"{quoted(subject.path)} is a control group of version 2, which cannot be renamed."
        yield caused("cannot be removed", text, (Attempt.RENAME,), "EPERM")
    yield from _of_a_group(subject)


def _of_a_file(subject: Subject, fstype: str) -> Iterator[Cause]:
    text = f"{quoted(subject.path)} is a file of a control group. It goes when the group does:"
    text += f" `rmdir {typed(os.path.dirname(subject.canonical))}`."
    yield caused("cannot be removed", text, (Attempt.RMDIR, Attempt.UNLINK), "EPERM")
    # In version 1 groups can be renamed, so rename(2) is there, and finds that this is none (cgroup1_rename()).
    error = "ENOTDIR" if fstype == "cgroup" else "EPERM"
    yield caused("cannot be removed", f"{text} It cannot be renamed.", (Attempt.RENAME,), error)


def _of_a_group(subject: Subject) -> Iterator[Finding]:
    try:
        group = cgroups.opened(subject.descriptor)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        what = f"What is in the control group {quoted(subject.path)}"
        yield Unread("cgroup", f"{what} could not be read ({why}); root can: run it with sudo.", (Attempt.RMDIR,))
        return
    if group.pids:
        members = [processes.describe(pid) for pid in group.pids[:_MOST_NAMED]]
        text = (
            f"The control group {quoted(subject.path)} has {_counted(len(group.pids), 'process', 'processes')}:"
            f" {_named(members, len(group.pids))}. It cannot be removed until they have ended or are in another group:"
            f" `echo PID > {typed(_another(subject))}` moves one."
        )
        yield caused("cgroup", text, (Attempt.RMDIR,), "EBUSY", processes=members)
    if group.children:
        text = (
            f"The control group {quoted(subject.path)} has {_counted(len(group.children), 'group', 'groups')} in it:"
            f" {_listed(group.children)}. Remove what is in it first: `rmdir {typed(_first(subject, group.children))}`."
        )
        yield caused("cgroup", text, (Attempt.RMDIR,), "EBUSY", where=_first(subject, group.children))


def _another(subject: Subject) -> str:
    return os.path.join(os.path.dirname(subject.canonical), "cgroup.procs")


def _first(subject: Subject, children: Sequence[str]) -> str:
    return os.path.join(subject.canonical, children[0])


def _counted(number: int, one: str, several: str) -> str:
    return f"1 {one}" if number == 1 else f"{number} {several}"


def _named(members: Sequence[Process], number: int) -> str:
    words = [
        f"pid {member.pid} ({printable(member.comm or '?')})" if member.pid else "one not seen from here"
        for member in members
    ]
    return ", ".join(words) + _and_more(number - len(words))


def _listed(children: Sequence[str]) -> str:
    return ", ".join(map(quoted, children[:_MOST_NAMED])) + _and_more(len(children) - _MOST_NAMED)


def _and_more(number: int) -> str:
    return f" and {number} more" if number > 0 else ""
