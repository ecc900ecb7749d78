"""`exclfs events`: what happened in a mount, and what happens; one line each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import advice, event_lines
from exclfs.cli.output import say_json, say_now
from exclfs.client import discovery, sync_client
from exclfs.wire.shapes import event_to_json

if TYPE_CHECKING:
    from exclfs.client.discovery import Server
    from exclfs.holds.events import Event, Refused


def events(
    path: Annotated[str, Parameter(name="MNT|PATH")],
    /,
    *,
    follow: Annotated[bool, Parameter(name=["-f", "--follow"])] = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show the last refusals in the mount at MNT, or of PATH; with -f everything that happens from now on.

    Parameters
    ----------
    path
        The mountpoint, for everything in the mount; or any path in one, for what concerns that.
    follow
        Until Ctrl-C.
    as_json
        Each event as one JSON object on a line of its own.
    """
    server = discovery.find(path)
    about = None if server.whole else path
    if not follow:
        for refused in _remembered(server, about):
            _tell(refused, as_json=as_json)
        return advice.OK
    try:
        with sync_client.reach(server) as client, client.events(about) as stream:
            for event in stream:
                _tell(event, as_json=as_json)
    except KeyboardInterrupt:
        pass
    return advice.OK


def _remembered(server: Server, about: str | None) -> list[Refused]:
    with sync_client.reach(server) as client:
        refusals = client.status().last_refusals
    inode = os.lstat(about).st_ino if about is not None else None
    return [refused for refused in refusals if inode in (None, refused.inode.ino)]


def _tell(event: Event, *, as_json: bool) -> None:
    if as_json:
        say_json(**event_to_json(event))
    else:
        say_now(event_lines.line(event))
