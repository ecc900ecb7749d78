"""Mounts of an ordinary user, by fusermount3; the server is that user's from before it mounts."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import needs
from harness import Mounted, start
from twins import SHARED, User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY: Final = User("nobody", pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid, (SHARED,))
"""fusermount3 mounts only for users who have a name."""
AS_NOBODY: Final = f"""
import encodings.idna, os, sys
from exclfs.mount import main
os.setgroups([{SHARED}])
os.setresgid({NOBODY.gid}, {NOBODY.gid}, {NOBODY.gid})
os.setresuid({NOBODY.uid}, {NOBODY.uid}, {NOBODY.uid})
sys.exit(main())
"""


@contextmanager
def mounted_by_nobody(directory: Path) -> Iterator[Mounted]:
    """`directory`/tree at `directory`/mnt, with `directory`/shadow beside; all of it nobody's, who must get there."""
    needs.programs("fusermount3")
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    os.chmod("/dev/fuse", 0o666)  # as udev makes it; bare machines have 0600
    try:
        directory.chmod(0o755)
        for name in ("tree", "mnt", "shadow", "run", "log"):
            (directory / name).touch() if name == "log" else (directory / name).mkdir()
            os.chown(directory / name, NOBODY.uid, NOBODY.gid)
        os.chown(directory, NOBODY.uid, NOBODY.gid)
        with start(
            directory,
            program=("-c", AS_NOBODY),
            environment={"XDG_RUNTIME_DIR": str(directory / "run")},
            allow_other=False,
            kernel_flags=("nodev", "nosuid"),
        ) as mounted:
            yield mounted
    finally:
        os.chmod("/dev/fuse", mode)
