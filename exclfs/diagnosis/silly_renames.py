"""Silly renames: what NFS and AFS make of a file that is removed while it is open.

The rule that this module owns: such a file stays, under a name of its own, until the last process of this host that had
it open has closed it. As long as that is so nobody can remove it or rename it (DCACHE_NFSFS_RENAMED in may_delete(),
fs/namei.c; set by nfs_sillyrename(), fs/nfs/unlink.c, and afs_sillyrename(), fs/afs/dir_silly.c). If nobody here has it
open it is a leftover, or of another host, and can be removed like any file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from exclfs.diagnosis import who
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import caused
from exclfs.host import processes, uses
from exclfs.host.names import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Cause
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.uses import Found
    from exclfs.host.view import Host

_NFS: Final = re.compile(r"\.nfs[0-9a-f]{24}")
"""The fileid and a counter, in hexadecimal."""
_AFS: Final = re.compile(r"\.__afs[0-9A-F]{4,}")
_NAMES: Final = {"nfs": _NFS, "nfs4": _NFS, "afs": _AFS}

BLOCKED: Final = (Attempt.UNLINK, Attempt.RENAME)
"""What fails because of it."""


def is_one(subject: Subject) -> bool:
    """Whether the subject has such a name, on a filesystem that gives them."""
    names = _NAMES.get(subject.mount.fstype)
    return names is not None and names.fullmatch(subject.name) is not None


def find(subject: Subject, found: Found, host: Host) -> Iterator[Cause]:
    """What the subject is if it has such a name: who keeps it, or that it is a leftover."""
    if not is_one(subject):
        return
    by_this_name = (use for use in found.uses if use.is_it and _names(use, subject, host))
    keepers = tuple(processes.describe(pid) for pid in sorted({use.pid for use in by_this_name}))
    text = f"{quoted(subject.path)} was removed while it was open: {subject.mount.fstype} keeps the file by this name"
    if keepers:
        text += f" until it is closed by {who.listed(keepers, host)}. Then it goes by itself."
        yield caused("silly rename", text, BLOCKED, "EBUSY", processes=keepers)
    else:
        text += ". No process that could be seen here has it open now: it is a leftover, or another host has it open."
        yield caused("silly rename", text)


def _names(use: uses.Use, subject: Subject, host: Host) -> bool:
    """Whether it is used by this name, not by another hard link of the same file."""
    path = uses.path_of(use, host)
    return path is not None and path.endswith(f"/{subject.name}")
