"""What the finders find: causes, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from attrs import frozen

from exclfs.diagnosis.attempts import Attempt  # in the fields of Unread, which cattrs reads at run time
from exclfs.wire.causes import Cause

if TYPE_CHECKING:
    from exclfs.diagnosis.subject import Subject
    from exclfs.holds.holder import Process
    from exclfs.host.view import Host

__all__ = ["Cause", "Diagnosis", "Finder", "Finding", "Unread", "caused"]


@frozen
class Unread:
    """Something that might have told of a cause, and could not be read."""

    kind: str
    """One word or two for programs: processes, namespaces, holds, …"""
    text: str
    """What could not be read, how much of it, why, and as whom it can be: a sentence."""
    may_block: tuple[Attempt, ...] = ()
    """What might fail because of something that is told there."""


@frozen
class Diagnosis:
    """All that was found of one path."""

    path: str
    """As it was asked about."""
    attempt: Attempt | None
    """What was asked about it; None: whatever makes sense."""
    blocked: bool | None
    """Whether that fails; None if nothing that was found makes it fail, and not everything could be read."""
    errno: str | None
    """The name of the error with which it fails: EBUSY, EPERM, …; None without an attempt, or if it does not fail."""
    causes: tuple[Cause, ...]
    """First those that block something."""
    unread: tuple[Unread, ...]


Finding = Cause | Unread


def caused(
    kind: str,
    text: str,
    blocks: Iterable[Attempt] = (),
    errno: str | None = None,
    *,
    processes: Iterable[Process] = (),
    where: str | None = None,
    namespace: int | None = None,
) -> Cause:
    """A cause, as a finder makes it: what it allows depends on the subject, and is filled in where that is known."""
    return Cause(
        kind, text, tuple(blocks), (), tuple(processes), errno=errno, hold=None, where=where, namespace=namespace
    )


Finder = Callable[["Subject", "Host"], Iterator[Finding]]
"""Looks for causes of one sort. It asks no filesystem but the subject's, so that one that hangs hangs nobody here."""
