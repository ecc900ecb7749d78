"""What can go wrong with a hold. Typed here; worded and numbered at the edges (fuse.errnos, cli.advice)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exclfs.holds.hold import Hold, Inode


class HoldError(Exception):
    """The base of everything that the rules refuse."""


class Held(HoldError):
    """Another hold is in the way; `hold` is that hold."""

    def __init__(self, hold: Hold) -> None:
        super().__init__(f"{hold.path} is held by {hold.holder.name}")
        self.hold = hold


class NoSuchHold(HoldError):
    """No hold has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"there is no hold {id}")
        self.id = id


class Gone(HoldError):
    """The last link of the inode has been removed: there is nothing left to hold (ESTALE)."""

    def __init__(self, inode: Inode | None = None) -> None:
        super().__init__("the last link of this inode has been removed")
        self.inode = inode


class NotPermitted(HoldError):
    """The caller may not do this; `why` says which right is missing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class NotKept(HoldError):
    """The hold could not be written to the state file, and so it was not placed; `why` says what failed."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class UnknownFlag(HoldError):
    """`name` is not a flag; `known` are those there are."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown flag {name!r}; the flags are {', '.join(known)}")
        self.name = name
        self.known = known


class BadHold(HoldError):
    """What was asked for is not a hold: malformed, too long, not UTF-8; `why` says which."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class BadObject(HoldError):
    """What was named is not an object of this mount; `why` says what it is instead."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
