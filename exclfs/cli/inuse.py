"""`exclfs inuse`: whether anything holds a path. Exit code 0 says yes, 1 no."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import path_to_json, say, say_json, shown, who
from exclfs.client import sync_client
from exclfs.wire.shapes import hold_to_json


def inuse(path: str, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Tell whether anything holds PATH: exit code 0 if so, 1 if not.

    It may be another answer a moment later. Do not check and then remove: remove, and handle EBUSY.

    Parameters
    ----------
    path
        Any path in an exclfs mount.
    as_json
        As JSON, with the holds.
    """
    with sync_client.connect(path) as client:
        found = client.holds(path)
    if as_json:
        say_json(path=path_to_json(path), inuse=bool(found), holds=[hold_to_json(hold) for hold in found])
    elif found:
        say(f"{shown(path)} is held by {' and by '.join(who(hold) for hold in found)}")
    else:
        say(f"{shown(path)} is not held")
    return advice.OK if found else advice.NO
