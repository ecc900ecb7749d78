"""Which processes a process descends from.

The rule that this module owns: a lineage is what /proc says now. A process whose parent has died belongs to whoever
took it over (prctl(2), PR_SET_CHILD_SUBREAPER), so a daemon descends from nobody that it began
with.
"""

from __future__ import annotations

import os
import re
from typing import Final

_FIELDS: Final = re.compile(rb"^(Tgid|PPid):\s*(\d+)$", re.MULTILINE)


def lineage(pid: int) -> frozenset[int]:
    """The id itself, that of its process if it is a thread's, its parent's, and so on upwards. Never raises."""
    seen: set[int] = set()
    while pid > 0 and pid not in seen:
        seen.add(pid)
        try:
            with open(f"/proc/{pid}/status", "rb") as status:
                fields = dict(_FIELDS.findall(status.read()))
        except OSError:
            break
        seen.add(int(fields[b"Tgid"]))
        pid = int(fields[b"PPid"])
    return frozenset(seen)


def comm(pid: int) -> str:
    """What the thread is called (proc_pid_comm(5)); "" if it cannot be seen. Never raises."""
    if pid <= 0:
        return ""
    try:
        with open(f"/proc/{pid}/comm", "rb") as name:
            return os.fsdecode(name.read().removesuffix(b"\n"))
    except OSError:
        return ""
