"""The testing kit: races between a program that removes and one that uses, met every time.

Importing this is cheap; it loads neither trio, pyfuse3 nor the mirror, and some of it when it is first used. The
fixtures come with the pytest plugin, exclfs.testing.plugin; the simulated holders are modules of their own, cachefiles
and overlayfs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from exclfs.gating import BadSelection, Operation, When
from exclfs.testing.gates import (
    CannotBeGated,
    Gate,
    GateError,
    GateNotReached,
    Happened,
    LeftAtGate,
    NobodyWaits,
    Stopped,
)

if TYPE_CHECKING:
    from exclfs.testing.mounting import CannotMount, Mount
    from exclfs.testing.programs import Program

__all__ = [
    "BadSelection",
    "CannotBeGated",
    "CannotMount",
    "Gate",
    "GateError",
    "GateNotReached",
    "Happened",
    "LeftAtGate",
    "Mount",
    "NobodyWaits",
    "Operation",
    "Program",
    "Stopped",
    "When",
]

_HOMES: Final = {
    "CannotMount": "exclfs.testing.mounting",
    "Mount": "exclfs.testing.mounting",
    "Program": "exclfs.testing.programs",
}
"""Where those are that are loaded when they are first used."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
