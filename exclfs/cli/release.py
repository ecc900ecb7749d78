"""`exclfs release`: lets go of a hold, by its id or by its path."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.advice import SeveralMounts
from exclfs.cli.output import say, say_json, shown, warn, who
from exclfs.client import sync_client
from exclfs.client.errors import ClientError, NotAMount
from exclfs.holds.errors import NoSuchHold
from exclfs.host import mounts
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold


def release(
    what: Annotated[str, Parameter(metavar="PATH|ID")],
    /,
    *,
    break_it: Annotated[bool, Parameter(name="--break")] = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Release your holds on a path, or the hold with an id as `exclfs holds` lists them.

    Parameters
    ----------
    what
        A path in an exclfs mount, or the id of a hold.
    break_it
        Somebody else's, too. Root, the mount's owner and the holder's own user may; it is recorded.
    as_json
        Say as JSON what was released.
    """
    released = _release(what, break_it=break_it)
    if as_json:
        say_json(released=[hold_to_json(hold) for hold in released])
    else:
        for hold in released:
            say(f"released {hold.id} on {shown(hold.path)}, held by {who(hold)}")
    if not released:
        warn(f"{shown(what)}: there is no hold of yours to release; `exclfs holds {shown(what)}` lists those there are")
    return advice.OK if released else advice.NO


def _release(what: str, *, break_it: bool) -> tuple[Hold, ...]:
    if not os.path.lexists(what) and "/" not in what:
        return _release_by_id(what, break_it=break_it)
    try:
        with sync_client.connect(what) as client:
            return client.release(path=what, break_it=break_it)
    except NotAMount as no_mount:
        # It may be a file here that has the name of a hold elsewhere.
        try:
            return _release_by_id(what, break_it=break_it)
        except NoSuchHold:
            raise no_mount from None


def _release_by_id(id: str, *, break_it: bool) -> tuple[Hold, ...]:
    with contextlib.ExitStack() as stack:
        those_with_it = [client for client in _every_server(stack) if any(hold.id == id for hold in client.holds())]
        if not those_with_it:
            raise NoSuchHold(id)
        if len(those_with_it) > 1:
            raise SeveralMounts(id, tuple(client.mountpoint for client in those_with_it))
        return those_with_it[0].release(id, break_it=break_it)


def _every_server(stack: contextlib.ExitStack) -> list[Client]:
    clients = {}
    for mount in mounts.exclfs_mounts():
        if mount.device not in clients:
            with contextlib.suppress(ClientError, OSError):
                clients[mount.device] = stack.enter_context(sync_client.connect(os.fsdecode(mount.mountpoint)))
    return list(clients.values())
