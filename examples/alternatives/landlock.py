"""Landlock as a guard against removal: a cleaner that restricts itself, and one that does not.

Run it as anybody, on Linux 5.13 or later::

    python3 examples/alternatives/landlock.py

The numbers are those of <linux/landlock.h> and of the system call table that all architectures but alpha share.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_ADD_RULE = 445
SYS_LANDLOCK_RESTRICT_SELF = 446
LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_ACCESS_FS_REMOVE_DIR = 1 << 4
LANDLOCK_ACCESS_FS_REMOVE_FILE = 1 << 5
PR_SET_NO_NEW_PRIVS = 38

REMOVALS = LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE

libc = ctypes.CDLL(None, use_errno=True)


class RulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr, as far as the first ABI has it."""

    _fields_: ClassVar = [("handled_access_fs", ctypes.c_uint64)]


class PathBeneathAttr(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_: ClassVar = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def checked(result: int) -> int:
    """The result of a call of the C library; raises OSError with its errno where it is negative."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def abi() -> int:
    """The Landlock ABI of the running kernel."""
    return checked(libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION))


def forbid_removals_except_below(*allowed: Path) -> None:
    """Take from this process, and from all it will start, the right to remove anything outside `allowed`."""
    handled = RulesetAttr(REMOVALS)
    ruleset = checked(libc.syscall(SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0))
    for directory in allowed:
        parent = os.open(directory, os.O_PATH)
        rule = PathBeneathAttr(REMOVALS, parent)
        checked(libc.syscall(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0))
        os.close(parent)
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    checked(libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def attempt(what: str, path: Path) -> None:
    """Remove `path` as `rm` would, and tell what came of it."""
    try:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    except OSError as error:
        print(f"{what}: {type(error).__name__}: {error.strerror}")
    else:
        print(f"{what}: removed")


def in_a_child_allowed_below(top: Path, *allowed: str) -> None:
    """Start this script again as a cleaner that may remove only below `allowed`."""
    subprocess.run([sys.executable, __file__, "clean", str(top), *allowed], check=True)


def clean(top: Path, allowed: list[str]) -> None:
    """The restricted cleaner: it tries every object of the cache."""
    forbid_removals_except_below(*(top / name for name in allowed))
    for name in ("cache/in-use", "cache/free"):
        attempt(f"  restricted cleaner, may remove below {' and '.join(allowed) or 'nothing'}: {name}", top / name)


def main() -> None:
    """Set the scene and play it."""
    print(f"Landlock ABI {abi()}")
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        for name in ("in-use", "free"):
            (top / "cache" / name).mkdir(parents=True)
        print("No right to remove anything in the cache: both stay.")
        in_a_child_allowed_below(top)
        print("The right to remove below cache/: both go. A rule only ever adds rights; none can except cache/in-use.")
        in_a_child_allowed_below(top, "cache")
        for name in ("in-use", "free"):
            with contextlib.suppress(FileExistsError):
                (top / "cache" / name).mkdir()
        print("Some other process, which restricted nothing:")
        attempt("  any cleaner: cache/in-use", top / "cache/in-use")


if __name__ == "__main__":
    if sys.argv[1:2] == ["clean"]:
        clean(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
