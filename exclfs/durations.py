"""Spans of time as they are typed, and shown: 90, 90s, 5m, 2h, 1d, 1h30m."""

from __future__ import annotations

import math
import re
from typing import Final

FORMS: Final = "90, 90s, 5m, 2h, 1d or 1h30m"
"""How a span of time is written, for messages."""

_FORM: Final = re.compile(
    r"(?P<plain>[0-9]+(\.[0-9]+)?)|(?=.)((?P<d>[0-9]+)d)?((?P<h>[0-9]+)h)?((?P<m>[0-9]+)m)?((?P<s>[0-9]+(\.[0-9]+)?)s)?"
)
_SECONDS: Final = {"plain": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """The seconds of a span of time.

    Raises:
        ValueError: it is not of that form, or no time at all.
    """
    found = _FORM.fullmatch(text)
    parts = {unit: float(number) for unit, number in found.groupdict().items() if number} if found else {}
    total = sum(number * _SECONDS[unit] for unit, number in parts.items())
    if not math.isfinite(total) or total <= 0:
        raise ValueError(f"{text!r} is not a time; write {FORMS}")
    return total


def spelled(span: float) -> str:
    """These seconds, in the two largest units that they have: 22s, 5m22s, 1h5m, 3d4h."""
    rest, parts = int(span), []
    for unit in ("d", "h", "m", "s"):
        number, rest = divmod(rest, _SECONDS[unit])
        parts.append(f"{number}{unit}" if number else "")
    begin = next((index for index, part in enumerate(parts) if part), 3)
    return "".join(parts[begin : begin + 2]) or "0s"
