"""Holds, as the server of the mount tells them: the causes that only exclfs knows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from exclfs.client.errors import ClientError
from exclfs.diagnosis.attempts import Attempt
from exclfs.diagnosis.findings import Unread
from exclfs.holds.errors import HoldError
from exclfs.host import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.diagnosis.findings import Finding
    from exclfs.diagnosis.subject import Subject
    from exclfs.host.view import Host
    from exclfs.wire.causes import Cause

KINDS: Final = ("hold", "open file")

_REMOVALS = (Attempt.RMDIR, Attempt.UNLINK, Attempt.RENAME)


def find(subject: Subject, _: Host) -> Iterator[Finding]:
    """The holds that cover the subject, if it lies in a mount of exclfs."""
    if subject.mount.fstype == mounts.FSTYPE:
        yield from told(subject.canonical)


def told(path: str) -> Iterator[Finding]:
    """What the server of the mount that this path is in tells of it, or why it tells nothing."""
    try:
        yield from _causes(path)
    except (ClientError, HoldError) as error:
        yield Unread("holds", f"The holds on it could not be asked for: {error}.", _REMOVALS)
    except OSError as error:
        yield Unread("holds", f"The holds on it could not be asked for: {error.strerror or error}.", _REMOVALS)


def _causes(path: str) -> tuple[Cause, ...]:
    # Only where there is a server to be asked: loading this takes as long as all the rest of `exclfs why`.
    from exclfs.client import discovery, sync_client

    with sync_client.reach(discovery.find(os.fspath(path))) as client:
        return client.why(path).causes
