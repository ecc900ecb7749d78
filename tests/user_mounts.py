"""Mounts of an ordinary user, by fusermount3; the server is that user's from before it mounts."""

from __future__ import annotations

import fcntl
import os
import pwd
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import needs
from harness import Mounted, start
from twins import SHARED, User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY: Final = User("nobody", pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid, (SHARED,))
"""fusermount3 mounts only for users who have a name."""
BECOME_NOBODY: Final = f"""
os.setgroups([{SHARED}])
os.setresgid({NOBODY.gid}, {NOBODY.gid}, {NOBODY.gid})
os.setresuid({NOBODY.uid}, {NOBODY.uid}, {NOBODY.uid})
"""
AS_NOBODY: Final = f"""
import encodings.idna, os, sys
from exclfs.mount import main
{BECOME_NOBODY}
sys.exit(main())
"""
USERS_OPTIONS: Final[dict[str, Any]] = {"allow_other": False, "kernel_flags": ("nodev", "nosuid")}
"""Of a mount by fusermount3, without user_allow_other in /etc/fuse.conf."""


@contextmanager
def device_for_everybody() -> Iterator[None]:
    """/dev/fuse as udev makes it: bare machines have 0600. It is needed to mount, and by one run at a time."""
    needs.programs("fusermount3")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(device, fcntl.LOCK_EX)
        mode = stat.S_IMODE(os.fstat(device).st_mode)
        os.fchmod(device, 0o666)
        try:
            yield
        finally:
            os.fchmod(device, mode)
            fcntl.flock(device, fcntl.LOCK_UN)
    finally:
        os.close(device)


@contextmanager
def mounted_by_nobody(directory: Path) -> Iterator[Mounted]:
    """`directory`/tree at `directory`/mnt, with `directory`/shadow beside; all of it nobody's, who must get there."""
    directory.chmod(0o755)
    for name in ("tree", "mnt", "shadow", "run", "log"):
        (directory / name).touch() if name == "log" else (directory / name).mkdir()
        os.chown(directory / name, NOBODY.uid, NOBODY.gid)
    os.chown(directory, NOBODY.uid, NOBODY.gid)
    runtime = {"XDG_RUNTIME_DIR": str(directory / "run")}
    with device_for_everybody():
        mounted = start(directory, program=("-c", AS_NOBODY), environment=runtime, **USERS_OPTIONS)
    with mounted:
        yield mounted
