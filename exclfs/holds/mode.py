"""Whether holds are enforced: set when the mount is made, and switched while it serves."""

from __future__ import annotations

import enum


class Mode(enum.StrEnum):
    """What a mount does where a hold would refuse."""

    ENFORCE = "enforce"
    """It refuses, and records it."""
    WARN = "warn"
    """It records what it would have refused, and lets it happen. A claim that conflicts is told, and is none."""
    OFF = "off"
    """As WARN, but nothing is recorded."""


class OpenFiles(enum.StrEnum):
    """Whose open files count as held against other processes (--hold-open)."""

    NONE = "off"
    OWN = "own"
    """Files opened by their owner or by root: those who could have placed a hold."""
    ALL = "all"
    """Files opened by anybody."""
