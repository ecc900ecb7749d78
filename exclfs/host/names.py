"""Names as the host has them, in one line for people.

The rule that this module owns: a file name, a comm or a reason may hold anything, and what a person or a log reads of
it is one line that commands no terminal, forges no second line, and can be told apart from every other name.
"""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    r"""The text with everything but printable characters escaped as in Python: \n, \x1b, \u202e, and \\ for itself.

    A byte that is no UTF-8 (a surrogate of os.fsdecode) becomes \x and its two digits.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(character) for character in text)


def quoted(text: str) -> str:
    """The printable text in double quotes, with those that it has itself escaped."""
    return '"' + printable(text).replace('"', '\\"') + '"'


def typed(name: str) -> str:
    """The name as a word of a command for a shell, in one printable line."""
    return printable(shlex.quote(name))


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")
