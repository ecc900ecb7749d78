"""An estate on a real mount: the landlord's directories, with the owner's things, and everybody who may want them.

Its mounts are where everybody can go, as pytest's own directories are not.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import exclfs
from harness import start
from twins import ROOT, SHARED, User, as_user, outcome_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs import Hold
    from exclfs.client.sync_client import Client
    from harness import Mounted

OWNER: Final = User("owner", 61001, 61001)
"""Of the files."""
LANDLORD: Final = User("landlord", 61002, 61002)
"""Of the directory that they are in."""
MEMBER: Final = User("member", 61003, 61003, (SHARED,))
"""Of the group that files and directory have."""
STRANGER: Final = User("stranger", 61004, 61004)
EVERYBODY: Final = (ROOT, OWNER, LANDLORD, MEMBER, STRANGER)
KINDS: Final = ("file", "linked", "directory")
MODES: Final = (0o755, 0o775, 0o777, 0o1777, 0o1775, 0o2775)

_numbers = itertools.count()


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that everybody can enter."""
    directory = Path(tempfile.mkdtemp(prefix="exclfs-estate-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def estate(**options: Any) -> Iterator[Mounted]:
    """A mount in a directory that everybody can enter, with these fields of MountOptions."""
    with open_directory() as directory, start(directory, **options) as mounted:
        mounted.expect("unlock_bad", "broken", "refused")
        yield mounted


def make(mounted: Mounted, mode: int = 0o755) -> Path:
    """The landlord's directory, with the owner's things; of "linked" the stranger has a link in a directory of his."""
    directory = mounted.backing / f"directory{next(_numbers)}"
    directory.mkdir()
    (directory / "file").touch()
    (directory / "linked").touch()
    (directory / "directory").mkdir()
    (directory / "strangers").mkdir()
    os.link(directory / "linked", directory / "strangers/linked")
    for name in KINDS:
        os.chown(directory / name, OWNER.uid, SHARED)
        (directory / name).chmod(0o750 if name == "directory" else 0o640)
    os.chown(directory / "strangers", STRANGER.uid, STRANGER.gid)
    os.chown(directory, LANDLORD.uid, SHARED)
    directory.chmod(mode)
    return mounted.path / directory.name


def kernel_lets_remove(mounted: Mounted, who: User, thing: Path) -> bool:
    """Whether this user can rename it, behind the mount; it has its name again afterwards."""
    name = mounted.backing / thing.relative_to(mounted.path)
    moved = name.with_name("moved")
    if outcome_of(who, lambda: os.rename(name, moved), mounted.backing) is not None:
        return False
    moved.rename(name)
    return True


def kernel_lets_read(who: User, thing: Path) -> bool:
    """Whether this user can open it for reading."""

    def read() -> None:
        os.close(os.open(thing, os.O_RDONLY))

    return outcome_of(who, read, thing.parent) is None


@contextmanager
def connected(who: User, thing: Path) -> Iterator[Client]:
    """A client who is somebody, and stays it whoever uses it: the kernel knows who has connected."""
    with as_user(who, lambda: exclfs.connect(thing)) as client:
        yield client


def place(thing: Path, **wanted: Any) -> Hold:
    """Holds it for a moment."""
    with exclfs.hold(thing, **wanted) as hold:
        return hold
