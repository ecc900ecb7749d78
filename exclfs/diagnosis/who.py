"""A process in a sentence.

The rule that this module owns: a process is told by what it calls itself and by its pid, with the container or unit
that started it. A server of exclfs is told by its mount, and whoever asks by what he can do about it himself.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from exclfs.host import mounts
from exclfs.host.names import printable, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.holds.holder import Process
    from exclfs.host.view import Host

NAMED: Final = 10
"""How many of many processes a sentence names."""


def named(process: Process, host: Host) -> str:
    """This process: `tail (pid 4711, in docker:0123456789ab)`, and the like."""
    if process.pid is None:
        return "a process that is not seen from here"
    if process.pid == os.getpid():
        return f"this very command (pid {process.pid})"
    served = _served(process, host)
    name = f"exclfs, serving {quoted(served)}" if served is not None else printable(process.comm or "a process")
    container = "" if process.container is None else f", in {printable(process.container)}"
    return f"{name} (pid {process.pid}{container})"


def listed(processes: Sequence[Process], host: Host) -> str:
    """All these: `412 processes: tail (pid 4711), …, and 402 more`; one is only named."""
    names = [named(process, host) for process in processes[:NAMED]]
    if len(processes) == 1:
        return names[0]
    more = f", and {len(processes) - NAMED} more" if len(processes) > NAMED else ""
    return f"{len(processes)} processes: {', '.join(names)}{more}"


def _served(process: Process, host: Host) -> str | None:
    """The mountpoint of the exclfs that this process serves.

    It says so in its arguments. Anybody may write that there, so it is believed only of the user whose mount that is.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        with open(f"{host.proc}/{process.pid}/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")
        options = json.loads(arguments[arguments.index(b"exclfs.mount") + 1])
        for mount in host.mounts:
            is_his = mount.fstype == mounts.FSTYPE and mount.super_option("user_id") == str(process.uid)
            if is_his and os.fsdecode(mount.mountpoint) == options["mountpoint"]:
                return str(options["mountpoint"])
    return None
