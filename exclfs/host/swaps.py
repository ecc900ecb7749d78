"""Where the kernel swaps to, from /proc/swaps (proc_swaps(5))."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_DELETED: Final = b" (deleted)"


@frozen
class Swap:
    """A file or a device that the kernel swaps to."""

    path: bytes
    """As seen from this process's root; of a file that has been removed, as it was."""
    is_file: bool


def swaps(proc: str = "/proc") -> tuple[Swap, ...]:
    """All of them.

    Raises:
        OSError: it cannot be read. A kernel without swap has no such file (ENOENT).
    """
    with open(f"{proc}/swaps", "rb") as file:
        return parse(file.read())


def parse(text: bytes) -> tuple[Swap, ...]:
    """Every line but the first, which has the headings. Space, tab, newline and backslash stand there in octal."""
    lines = [line.split() for line in text.split(b"\n")[1:] if line]
    return tuple(Swap(_unescape(path).removesuffix(_DELETED), kind == b"file") for path, kind, *_ in lines)


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), field)
