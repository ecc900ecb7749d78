"""What a hold may say: how long its holder's name and its reason are, and of which characters.

Both are shown to other users, root among them, on terminals and in logs. So that nobody can forge a line of a log or
send a terminal a command, neither may contain control characters or line breaks; so that nobody can fill the server's
memory, both are short. They are counted in bytes of UTF-8, the size that they have in an xattr and on the socket.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Final

from exclfs.holds.errors import BadHold

if TYPE_CHECKING:
    from exclfs.holds.flags import Flags
    from exclfs.holds.lifetime import End

MAX_NAME: Final = 255
"""The longest name of a holder, in bytes."""
MAX_REASON: Final = 1024
"""The longest reason, in bytes."""

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


def check_reason(reason: str) -> None:
    """Accepts a reason: at most 1024 bytes of UTF-8 without control characters; it may be empty.

    Raises:
        BadHold: it is something else.
    """
    _check_text("the reason", reason, MAX_REASON)


def check_hold(flags: Flags, name: str, reason: str, ends: tuple[End, ...]) -> None:
    """Accepts what is to become a hold: it forbids something, somebody holds it, and something ends it.

    Raises:
        BadHold: one of these is missing or not of its form.
    """
    if not flags:
        raise BadHold("a hold needs at least one flag")
    if not ends:
        raise BadHold("a hold must say what ends it")
    check_name(name)
    check_reason(reason)


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
