"""`exclfs.why`: all that is known of why a path cannot be removed, renamed, unmounted or used for an overlay.

The rule that this module owns: it asks everybody who may know, once, as whoever asks: nothing is found here that the
asker could not have read. What could not be read is told, so that "nothing" is only said where nothing is.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from attrs import evolve

from exclfs.diagnosis import (
    backing,
    cgroups,
    contents,
    devices,
    mountpoints,
    overlays,
    permissions,
    servers,
    subject,
    unmounting,
    uses,
)
from exclfs.diagnosis.attempts import Attempt, outcome, rank
from exclfs.diagnosis.findings import Cause, Diagnosis, Unread
from exclfs.host.view import Host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exclfs.diagnosis.findings import Finder
    from exclfs.diagnosis.subject import Subject

Path = str | os.PathLike[str]

FINDERS: Final[tuple[Finder, ...]] = (
    servers.find,
    mountpoints.find,
    unmounting.find,
    overlays.find,
    permissions.find,
    contents.find,
    backing.find,
    devices.find,
    cgroups.find,
    uses.find,
)
"""Everybody who may know."""


def why(path: Path, *, attempt: str | None = None) -> Diagnosis:
    """Why `path` cannot be removed, renamed, unmounted or used for an overlay: on any filesystem, exclfs or not.

    Args:
        path: a symlink is itself, not what it leads to, unless it is asked about umount or overlay-mount, which follow.
        attempt: one of rmdir, unlink, rename, umount, overlay-mount: what the kernel would answer to that, now, to this
            process. Without it, all that makes sense with the path.

    Returns:
        `blocked`: whether the attempt, or any, would fail; None where nothing was found and not all could be read.
        `errno`: with an attempt, the name of the error. `causes`: first those that block something, then those that
        only use the path. `unread`: what could not be read, and as whom it can be.

    Raises:
        ValueError: there is no such attempt.
        OSError: the path cannot be looked up.
    """
    wanted = None if attempt is None else Attempt(attempt)
    host = Host()
    with ExitStack() as opened:
        try:
            looked_at = opened.enter_context(subject.looked_up(_followed(os.fspath(path), wanted), host))
        except PermissionError:
            return _out_of_reach(os.fspath(path), wanted)
        return diagnose(looked_at, host, wanted)


def _out_of_reach(path: str, attempt: Attempt | None) -> Diagnosis:
    """Of a path to which there is no way for this user: that is why, and all that can be known."""
    cause = _labelled(permissions.no_way(path), tuple(Attempt) if attempt is None else (attempt,))
    errno = None if attempt is None else cause.errno
    return Diagnosis(path, attempt, blocked=True, errno=errno, causes=(cause,), unread=())


def _followed(path: str, attempt: Attempt | None) -> str:
    """The path that is meant: mount(2) and umount(2) follow a symlink, those that remove or rename do not."""
    if attempt in (Attempt.UMOUNT, Attempt.OVERLAY_MOUNT):
        with suppress(OSError):  # EINVAL: it is none
            os.readlink(path)
            return os.path.realpath(path)
    return path


def diagnose(looked_at: Subject, host: Host, attempt: Attempt | None = None) -> Diagnosis:
    """What all finders find of this subject."""
    findings = [finding for find in FINDERS for finding in find(looked_at, host)]
    attempts = looked_at.attempts
    if attempt is not None and attempt not in attempts:
        attempts = (*attempts, attempt)
    causes = [_labelled(each, attempts) for each in findings if isinstance(each, Cause) and _matters(each, attempts)]
    causes.sort(key=lambda cause: (not cause.blocks, rank(cause)))
    unread = tuple(finding for finding in findings if isinstance(finding, Unread))
    if attempt is not None:
        expected = outcome(attempt, causes, unread)
        return Diagnosis(looked_at.path, attempt, expected.blocked, expected.errno, tuple(causes), unread)
    return Diagnosis(looked_at.path, None, _blocked(causes, unread, attempts), None, tuple(causes), unread)


def _matters(cause: Cause, attempts: Sequence[Attempt]) -> bool:
    """Whether it is worth telling: not if all that fails because of it is what makes no sense here and nobody asked."""
    return cause.hold is not None or not cause.blocks or any(attempt in cause.blocks for attempt in attempts)


def _labelled(cause: Cause, attempts: Sequence[Attempt]) -> Cause:
    """The cause, with every attempt that makes sense here either among those that it blocks or among the others."""
    blocks = tuple(attempt.value for attempt in attempts if attempt in cause.blocks)
    allows = tuple(attempt.value for attempt in attempts if attempt not in cause.blocks)
    return evolve(cause, blocks=blocks, allows=allows, errno=cause.errno if blocks else None)


def _blocked(causes: Sequence[Cause], unread: Sequence[Unread], attempts: Sequence[Attempt]) -> bool | None:
    if any(cause.blocks for cause in causes):
        return True
    uncertain = any(attempt in gap.may_block for gap in unread for attempt in attempts)
    return None if uncertain else False
