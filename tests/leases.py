"""Files whose openers have to wait (fcntl(2), F_SETLEASE): the way to keep a worker of a server."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Whoever opens this file, the server too, has to wait until the lease is given back."""
    ignored = "import fcntl, os, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
    lease = "fd = os.open(sys.argv[1], os.O_RDWR); fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", ignored + lease, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.communicate(b"\n")


def is_waited_for(path: Path) -> bool:
    """Whether somebody waits for the lease of this file."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any(f":{path.stat().st_ino} " in lock and "BREAKING" in lock for lock in locks)
