"""What ends a hold. A hold always says what ends it; of several ends the first wins."""

from __future__ import annotations

from attrs import frozen


@frozen
class Unmount:
    """The hold ends when the mount does, or when it is released by name."""


@frozen
class Connection:
    """The hold ends when this connection closes or the process that opened it dies."""

    number: int
    """The server's own numbering, from 1; 0 in a hold that was read from JSON, which does not carry it."""


End = Unmount | Connection
"""Anything that can end a hold. (Process, Time and StateFile have their place here.)"""
