"""The habits of mount(8): `exclfs SRC MNT -o OPTIONS`, and `mount.exclfs SRC MNT [-sfnv] [-N NS] [-o OPTIONS]`.

mount(8) runs the first for `-t fuse.exclfs` (through mount.fuse3(8)), and the second, if somebody has linked it into
/sbin, for `-t exclfs`. Both mean `exclfs mount`, and are done only once the mount serves.
"""

from __future__ import annotations

import getopt
import os
from typing import TYPE_CHECKING, Final

from exclfs.cli.advice import OK, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "mount.exclfs"
"""The name that mount(8) looks for in /sbin (mount(8), EXTERNAL HELPERS)."""

_LETTERS: Final = "fnsvN:o:t:"


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether this is `SRC MNT …`, and no mistyped subcommand: SRC is a path, and none is written like a subcommand."""
    if len(arguments) < 2 or arguments[0].startswith("-"):
        return False
    return "/" in arguments[0] or os.path.isdir(arguments[0])


def mount_as_told(arguments: Sequence[str], *, by_name: bool) -> int:
    """Mounts as mount(8) tells it to, and returns the exit code.

    Args:
        arguments: the command line without the program's name.
        by_name: whether this is mount.exclfs: then -f means to do all but the mount (mount(8), --fake); for a program
            of FUSE it means to stay in the foreground (mount.fuse3(8)).

    Raises:
        Usage: they are not of that form.
        MountError: nothing was mounted.
    """
    try:
        options, paths = getopt.gnu_getopt(list(arguments), _LETTERS)
    except getopt.GetoptError as error:
        raise Usage(error.msg, "mount") from None
    if len(paths) != 2:
        raise Usage("SRC and MNT are needed, and nothing else", "mount")
    letters = {letter for letter, _ in options}
    from exclfs.cli.mount import mount, validated

    texts = [value for letter, value in options if letter == "-o"]
    if by_name and "-f" in letters:
        validated(paths[0], paths[1], texts)
        return OK
    return mount(paths[0], paths[1], options=texts, foreground="-f" in letters)
