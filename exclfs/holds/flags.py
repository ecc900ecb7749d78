"""What a hold forbids, and to which operation.

The flags of a hold are the user-space equivalents of the kernel's S_KERNEL_FILE (commit 1bd9c4e4f049) and of
I_EXCL_INUSE and I_NO_REMOVE as proposed on 31 January 2022. Their values are the bits of the mirror's flags word.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import UnknownFlag

if TYPE_CHECKING:
    from collections.abc import Iterable


class Flags(enum.Flag):
    """The flags of one hold, or of all holds of one inode together (its word)."""

    EXCL_INUSE = 1 << 0
    """A claim: at most one claim per inode. Refuses other claims and no removal."""
    NO_REMOVE = 1 << 1
    """The inode cannot be unlinked, removed, renamed, replaced or exchanged, by any of its hard links."""
    KERNEL_FILE = 1 << 2
    """A claim that refuses rmdir only, exactly as S_KERNEL_FILE does since 5.17."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the flags that are set, in the order of their bits."""
        return tuple(flag.name for flag in self if flag.name is not None)


NOTHING: Final = Flags(0)
CLAIMS: Final = Flags.EXCL_INUSE | Flags.KERNEL_FILE
DEFAULT: Final = Flags.EXCL_INUSE | Flags.NO_REMOVE


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


REFUSES: Final[dict[Flags, frozenset[Operation]]] = {
    Flags.EXCL_INUSE: frozenset(),
    Flags.NO_REMOVE: frozenset(Operation),
    Flags.KERNEL_FILE: frozenset({Operation.RMDIR}),
}
"""The one table that says which flag refuses which operation."""


def refuses(flags: Flags, operation: Operation) -> bool:
    """Whether a hold with these flags refuses this operation on its inode."""
    return any(operation in REFUSES[flag] for flag in flags)


def conflicts(held: Flags, wanted: Flags) -> bool:
    """Whether a hold with the flags `wanted` is kept out by one with the flags `held` on the same inode."""
    return bool(held & CLAIMS) and bool(wanted & CLAIMS)


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
