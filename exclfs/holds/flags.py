"""What a hold forbids, to which operation, and which holds it keeps out.

The flags of a hold are the user-space equivalents of the kernel's S_KERNEL_FILE (commit 1bd9c4e4f049) and of
I_EXCL_INUSE and I_NO_REMOVE as proposed on 31 January 2022; three more reach beyond their inode. Their values are the
bits of the mirror's flags word.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import UnknownFlag

if TYPE_CHECKING:
    from collections.abc import Iterable


class Flags(enum.Flag):
    """The flags of one hold, or of all holds of one inode together."""

    EXCL_INUSE = 1 << 0
    """A claim: at most one claim per inode. Refuses other claims and no removal."""
    NO_REMOVE = 1 << 1
    """The inode cannot be unlinked, removed, renamed, replaced or exchanged, by any of its hard links."""
    KERNEL_FILE = 1 << 2
    """A claim that refuses rmdir only, exactly as S_KERNEL_FILE does since 5.17."""
    EXCL_SUBTREE = 1 << 3
    """A claim on a directory and all below it: keeps out the claims of others above and below, too."""
    NO_REMOVE_BELOW = 1 << 4
    """As NO_REMOVE on a directory, and no name below it can be removed or renamed."""
    PIN_PATH = 1 << 5
    """As NO_REMOVE, and no directory above it can be renamed, so that the path stays true."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the flags that are set, in the order of their bits."""
        return tuple(flag.name for flag in self if flag.name is not None)


NOTHING: Final = Flags(0)
CLAIMS: Final = Flags.EXCL_INUSE | Flags.KERNEL_FILE | Flags.EXCL_SUBTREE
DEFAULT: Final = Flags.EXCL_INUSE | Flags.NO_REMOVE
OF_DIRECTORIES: Final = Flags.EXCL_SUBTREE | Flags.NO_REMOVE_BELOW
"""What only a directory can have."""
PINNED: Final = 1 << 6
"""In the mirror's word of an inode: a PIN_PATH hold lies below it. No flag of a hold on this inode."""
BARE: Final = 1 << 7
"""In the mirror's word of an inode whose holds have no flags: claims that are none (Mode.WARN). It refuses nothing, but
an inode with a word is one that the mirror goes on knowing."""


class Operation(enum.StrEnum):
    """A removal, by what it does to the inode that it meets."""

    RMDIR = "rmdir"
    UNLINK = "unlink"
    RENAME = "rename"
    """The inode would get another name."""
    REPLACE = "replace"
    """Another inode would be renamed over it."""
    EXCHANGE = "exchange"
    """It would change places with another inode (RENAME_EXCHANGE)."""
    WHITEOUT = "whiteout"
    """It would be renamed and leave a whiteout behind (RENAME_WHITEOUT)."""


class Place(enum.StrEnum):
    """Where an inode lies, seen from the inode of a hold."""

    HERE = "here"
    """It is that inode."""
    BELOW = "below"
    """It has a name somewhere below that directory."""
    ABOVE = "above"
    """It is a directory on the way from the root to that inode."""


EVERYTHING: Final = frozenset(Operation)
MOVES: Final = frozenset({Operation.RENAME, Operation.EXCHANGE, Operation.WHITEOUT})

REFUSES: Final[dict[Place, dict[Flags, frozenset[Operation]]]] = {
    Place.HERE: {
        Flags.NO_REMOVE: EVERYTHING,
        Flags.KERNEL_FILE: frozenset({Operation.RMDIR}),
        Flags.NO_REMOVE_BELOW: EVERYTHING,
        Flags.PIN_PATH: EVERYTHING,
    },
    Place.BELOW: {Flags.NO_REMOVE_BELOW: EVERYTHING},
    Place.ABOVE: {Flags.PIN_PATH: MOVES},
}
"""The one table that says which flag refuses which operation, and where. What it does not name is not refused."""


def refuses(flags: Flags, operation: Operation, place: Place = Place.HERE) -> bool:
    """Whether a hold with these flags refuses this operation on what lies there."""
    table = REFUSES[place]
    return any(operation in table.get(flag, frozenset()) for flag in flags)


def conflicts(held: Flags, wanted: Flags, place: Place = Place.HERE) -> bool:
    """Whether a hold with the flags `held` keeps out one with the flags `wanted` whose inode lies there.

    Only claims conflict: on one inode any two, above and below one another if either claims its whole subtree.
    """
    if not (held & CLAIMS and wanted & CLAIMS):
        return False
    return place is Place.HERE or Flags.EXCL_SUBTREE in held | wanted


def parse(names: Iterable[str]) -> Flags:
    """The flags of these names, in any case.

    Raises:
        UnknownFlag: a name is not one of Flags.
    """
    flags = NOTHING
    for name in names:
        try:
            flags |= Flags[name.upper()]
        except KeyError:
            raise UnknownFlag(name, tuple(Flags.__members__)) from None
    return flags
