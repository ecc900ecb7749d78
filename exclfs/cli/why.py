"""`exclfs why`: what keeps a path from being removed, renamed or unmounted, on any filesystem.

Exit code 0 says that something does, 1 that nothing does, 5 that nothing was found and not all could be read.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import path_to_json, say, say_json, shown
from exclfs.diagnosis.asking import why as ask
from exclfs.diagnosis.attempts import number

if TYPE_CHECKING:
    from exclfs.diagnosis.attempts import Attempt
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
    from exclfs.wire.shapes import to_json

    say_json(
        path=path_to_json(found.path),
        attempt=found.attempt,
        blocked=found.blocked,
        errno=found.errno,
        causes=[to_json(cause) for cause in found.causes],
        unread=[to_json(gap) for gap in found.unread],
    )


def _say(found: Diagnosis) -> None:
    """First the answer, then what is in the way, what is in the way of something else, what is not, what is missing.

    A cause that blocks something is two lines, of which the second is indented: what fails, how, and what does not.
    What blocks nothing, and what could not be read, is one indented line for each under a line of its own. Where one
    attempt was asked about, what could not have told of anything in its way is left to --json.
    """
    if found.attempt is not None:
        say(_verdict(found.attempt, found))
    elif not found.blocked:
        say(_nothing(found))
    in_the_way = [cause for cause in found.causes if cause.blocks and found.attempt in (None, *cause.blocks)]
    elsewhere = [cause for cause in found.causes if cause.blocks and cause not in in_the_way]
    for cause in in_the_way:
        _say_blocking(cause)
    if elsewhere:
        say(f"Not in the way of {found.attempt}, but of something else:")
        for cause in elsewhere:
            _say_blocking(cause, "  ")
    harmless = [cause for cause in found.causes if not cause.blocks]
    if harmless:
        say(f"Blocks none of {', '.join(harmless[0].allows)}:")
        for cause in harmless:
            say(f"  {shown(cause.text)}")
    gaps = [gap for gap in found.unread if found.attempt in (None, *gap.may_block)]
    if gaps:
        say("Could not be read:")
        for gap in gaps:
            say(f"  {shown(gap.text)}")


def _say_blocking(cause: Cause, indented: str = "") -> None:
    others = f"; not {', '.join(cause.allows)}" if cause.allows else ""
    say(f"{indented}{shown(cause.text)}")
    say(f"{indented}  blocks {', '.join(cause.blocks)} ({cause.errno}){others}")


def _verdict(attempt: Attempt, found: Diagnosis) -> str:
    what = f"{attempt} of {shown(found.path)}"
    if found.errno is not None:
        return f"{what} would fail now: {found.errno}, {os.strerror(number(found.errno)).lower()}."
    if found.blocked is None:
        return f"Nothing was found that makes {what} fail, but not all could be read."
    return f"{what} would succeed now."


def _nothing(found: Diagnosis) -> str:
    if found.blocked is None:
        return f"Nothing was found that keeps {shown(found.path)} from being removed or renamed, but not all was read."
    return f"Nothing keeps {shown(found.path)} from being removed or renamed."
