"""`exclfs events`: what happened in a mount, and what happens; one line each."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import advice, event_lines
from exclfs.cli.moments import moment
from exclfs.cli.output import say_json, say_now, warn
from exclfs.client import discovery, sync_client
from exclfs.client.errors import EventsLost
from exclfs.wire.shapes import event_to_json

if TYPE_CHECKING:
    from exclfs.client.sync_client import Events
    from exclfs.holds.events import Event


def events(
    path: Annotated[str, Parameter(name="MNT|PATH")],
    /,
    *,
    follow: Annotated[bool, Parameter(name=["-f", "--follow"])] = False,
    since: Annotated[str | None, Parameter(name="--since")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show what has happened in the mount at MNT, or to PATH; with -f what happens from now on.

    Parameters
    ----------
    path
        The mountpoint, for everything in the mount; or any path in one, for what concerns that.
    follow
        Until Ctrl-C; nothing of what was before, but with --since.
    since
        Only what happened in the last 10m, say, or since 14:03 today, or 2026-11-22T14:03:22Z; with -f that first.
    as_json
        Each event as one JSON object on a line of its own.
    """
    begin = _begin(since)
    server = discovery.find(path)
    about = None if server.whole else path
    with (
        contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext(),
        sync_client.listen(server, about, since=begin, follow=follow) as stream,
    ):
        if stream.missed:
            warn(f"{stream.missed} {_events(stream.missed)} no longer known that came before these")
        while not _tell(stream, as_json=as_json):
            pass
    return advice.OK


def _begin(since: str | None) -> datetime | None:
    try:
        return None if since is None else moment(since, datetime.now(UTC))
    except ValueError as error:
        raise advice.Usage(f"--since: {error}", "events") from None


def _tell(stream: Events, *, as_json: bool) -> bool:
    """Tells events until the stream ends, which is True, or some of them are lost, which is said."""
    try:
        for event in stream:
            _say(event, as_json=as_json)
    except EventsLost as lost:
        warn(f"{lost.number} {_events(lost.number)} lost here: they were not read fast enough")
        return False
    return True


def _events(number: int) -> str:
    return "event is" if number == 1 else "events are"


def _say(event: Event, *, as_json: bool) -> None:
    if as_json:
        say_json(**event_to_json(event))
    else:
        say_now(event_lines.line(event))
