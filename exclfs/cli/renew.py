"""`exclfs renew`: puts off the time at which holds end."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import advice, targets
from exclfs.cli.output import lifetime, say, say_json, shown, warn
from exclfs.cli.targets import Servers, duration
from exclfs.holds.lifetime import Connection, Time
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold


def renew(
    *what: Annotated[str, Parameter(name="ID|PATH")],
    ttl: Annotated[str, Parameter(metavar="DUR")],
    listed: Annotated[str | None, Parameter(name="--from", metavar="FILE", allow_leading_hyphen=True)] = None,
    null: Annotated[bool, Parameter(name=["-0", "--null"])] = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Have holds that end at a time end DUR from now instead. Of ids all or none.

    Parameters
    ----------
    what
        The id of a hold, or a path in an exclfs mount: your holds on it that end at a time.
    ttl
        How long from now: 90, 90s, 5m, 2h, 1d or 1h30m.
    listed
        Renew what this file names, too, one a line; - is standard input.
    null
        In --from a NUL ends each name.
    as_json
        Say as JSON how the holds are now.
    """
    seconds = duration("--ttl", ttl, "renew")
    words = targets.named(what, listed=listed, null=null, what="ID|PATH", command="renew")
    renewed: list[Hold] = []
    nothing: list[str] = []
    for word, holds in _renewed(words, seconds):
        renewed += holds
        if not as_json:
            for hold in holds:
                say(f"renewed {hold.id} on {shown(hold.path)}: {lifetime(hold)}")
        if not holds:
            nothing.append(word)
    if as_json:
        say_json(holds=[hold_to_json(hold) for hold in renewed])
    for word in nothing:
        warn(
            f"{shown(word)}: there is no hold of yours on it that ends at a time;"
            f" `exclfs holds {shown(word)}` lists those there are"
        )
    return advice.NO if nothing else advice.OK


def _renewed(words: tuple[str, ...], seconds: float) -> Iterator[tuple[str, tuple[Hold, ...]]]:
    with Servers() as servers:
        paths, ids = servers.sorted_out(words)
        for client, some in ids.items():
            yield some[0], client.renew(some, seconds)
        for client, path in paths:
            yield path, client.renew(_timed(client, path), seconds)


def _timed(client: Client, path: str) -> list[str]:
    """The ids of the holds that were placed on this very inode, by this user, and by no connection that lives on."""
    user, inode = os.geteuid(), os.lstat(path).st_ino
    return [
        hold.id
        for hold in client.holds(path)
        if hold.holder.process.uid == user
        and hold.inode.ino == inode
        and any(isinstance(end, Time) for end in hold.ends)
        and not any(isinstance(end, Connection) for end in hold.ends)
    ]
