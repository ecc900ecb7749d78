"""The testing kit: races between a program that removes and one that uses, met every time.

Importing this is cheap; it loads neither trio, pyfuse3 nor the mirror.
"""

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

__all__ = [
    "BadSelection",
    "CannotBeGated",
    "Gate",
    "GateError",
    "GateNotReached",
    "Happened",
    "LeftAtGate",
    "NobodyWaits",
    "Operation",
    "Stopped",
    "When",
]
