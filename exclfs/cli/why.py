"""`exclfs why`: what keeps a path from being removed, renamed or unmounted, on any filesystem.

Exit code 0 says that something does, 1 that nothing does, 5 that nothing was found and not all could be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import path_to_json, say, say_json, shown
from exclfs.diagnosis.asking import why as ask
from exclfs.wire.shapes import to_json

if TYPE_CHECKING:
    from exclfs.diagnosis.findings import Cause, Diagnosis

_STATUS = {True: advice.OK, False: advice.NO, None: advice.NOT_PERMITTED}


def why(
    path: str,
    /,
    *,
    attempt: Annotated[
        Literal["rmdir", "unlink", "rename", "umount", "overlay-mount"] | None, Parameter(name="--for")
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Explain what keeps PATH from being removed, renamed or unmounted: exit code 0 if something does, 1 if not.

    Parameters
    ----------
    path
        Any path, on any filesystem; a symlink is itself.
    attempt
        Only this, and with which error it would fail, for you, now.
    as_json
        As JSON.
    """
    found = ask(path, attempt=attempt)
    if as_json:
        _say_json(found)
    else:
        _say(found)
    return _STATUS[found.blocked]


def _say_json(found: Diagnosis) -> None:
    say_json(
        path=path_to_json(found.path),
        attempt=found.attempt,
        blocked=found.blocked,
        errno=found.errno,
        causes=[to_json(cause) for cause in found.causes],
        unread=[to_json(gap) for gap in found.unread],
    )


def _say(found: Diagnosis) -> None:
    if found.attempt is not None:
        say(_verdict(found))
    for cause in found.causes:
        say(shown(cause.text))
        say(f"  {_labels(cause)}")
    for gap in found.unread:
        say(f"Not read: {shown(gap.text)}")
    if found.attempt is None and not found.blocked:
        say(_nothing(found))


def _verdict(found: Diagnosis) -> str:
    if found.blocked:
        return f"{found.attempt} of {shown(found.path)} would fail now: {found.errno}."
    if found.blocked is None:
        return f"Nothing was found that makes {found.attempt} of {shown(found.path)} fail, but not all could be read."
    return f"{found.attempt} of {shown(found.path)} would succeed now."


def _nothing(found: Diagnosis) -> str:
    if found.blocked is None:
        return f"Nothing was found that keeps {shown(found.path)} from being removed or renamed, but not all was read."
    return f"Nothing keeps {shown(found.path)} from being removed or renamed."


def _labels(cause: Cause) -> str:
    if not cause.blocks:
        return f"blocks nothing: not {', not '.join(cause.allows)}"
    others = f"; not {', not '.join(cause.allows)}" if cause.allows else ""
    return f"blocks {', '.join(cause.blocks)} ({cause.errno}){others}"
