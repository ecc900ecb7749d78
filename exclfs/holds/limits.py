"""What a hold may say, and how much of everything a user may have.

A holder's name and a reason are shown to other users, root among them, on terminals and in logs. So that nobody can
forge a line of a log or send a terminal a command, neither may contain control characters or line breaks; so that
nobody can fill the server's memory, both are short. They are counted in bytes of UTF-8, the size that they have in an
xattr and on the socket.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from attrs import frozen

from exclfs.holds.errors import BadHold

if TYPE_CHECKING:
    from exclfs.holds.flags import Flags
    from exclfs.holds.lifetime import End

MAX_NAME: Final = 255
"""The longest name of a holder, in bytes."""
MAX_REASON: Final = 1024
"""The longest reason that any mount takes, in bytes."""


@frozen(kw_only=True)
class Limits:
    """What one user may have of a mount, so that none can freeze it or fill its server's memory.

    Root and the owner of the mount have as many holds as they like, for as long as they like.
    """

    holds: int = 16_384
    """Holds of one uid at one time."""
    reason: int = MAX_REASON
    """Bytes of a reason; for everybody."""
    ttl: float = 7 * 86_400.0
    """Seconds that a hold may be placed or renewed for."""
    connections: int = 256
    """Connections of one uid to the control socket; for everybody."""
    waiting: int = 64
    """Calls of one uid that may queue for a claim at one time; for everybody."""


_CONTROL: Final = frozenset({"Cc", "Zl", "Zp"})
"""The Unicode categories of control characters and of line and paragraph separators."""


def check_name(name: str) -> None:
    """Accepts the name of a holder: 1 to 255 bytes of UTF-8 without control characters, not blank.

    Raises:
        BadHold: it is something else.
    """
    if not name.strip():
        raise BadHold("the holder's name is empty")
    _check_text("the holder's name", name, MAX_NAME)


def check_reason(reason: str, limit: int = MAX_REASON) -> None:
    """Accepts a reason: at most `limit` bytes of UTF-8 without control characters; it may be empty.

    Raises:
        BadHold: it is something else.
    """
    _check_text("the reason", reason, limit)


def check_hold(flags: Flags, name: str, reason: str, ends: tuple[End, ...], limits: Limits | None = None) -> None:
    """Accepts what is to become a hold: it forbids something, somebody holds it, and something ends it.

    Raises:
        BadHold: one of these is missing or not of its form.
    """
    if not flags:
        raise BadHold("a hold needs at least one flag")
    if not ends:
        raise BadHold("a hold must say what ends it")
    check_name(name)
    check_reason(reason, limits.reason if limits is not None else MAX_REASON)


def _check_text(what: str, text: str, limit: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadHold(f"{what} is not UTF-8") from None
    if size > limit:
        raise BadHold(f"{what} is {size} bytes long; at most {limit} are allowed")
    for character in text:
        if unicodedata.category(character) in _CONTROL:
            raise BadHold(f"{what} contains the control character U+{ord(character):04X}")
