"""`exclfs why`: what keeps a path from being removed. Exit code 0 says that something does, 1 that nothing does."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import path_to_json, say, say_json, shown
from exclfs.client import sync_client
from exclfs.wire.shapes import to_json


def why(path: str, /, *, as_json: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """Explain what keeps PATH from being removed or renamed: exit code 0 if something does, 1 if nothing does.

    Parameters
    ----------
    path
        Any path in an exclfs mount.
    as_json
        As JSON.
    """
    with sync_client.connect(path) as client:
        answer = client.why(path)
    if as_json:
        causes = [to_json(cause) for cause in answer.causes]
        say_json(path=path_to_json(path), blocked=answer.blocked, causes=causes, unread=[])
    else:
        for cause in answer.causes:
            say(shown(cause.text))
        if not answer.blocked:
            say(f"No hold keeps {shown(path)} from being removed.")
    return advice.OK if answer.blocked else advice.NO
