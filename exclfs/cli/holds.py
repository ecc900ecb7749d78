"""`exclfs holds`: what is held, by whom, since when, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from attrs import frozen
from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import HOLD_HEADINGS, hold_row, path_to_json, say_json, table, warn
from exclfs.client import discovery, sync_client
from exclfs.client.errors import ClientError
from exclfs.host import mounts
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exclfs.holds.hold import Hold


@frozen
class Found:
    """What one mount told, or why it told nothing."""

    mountpoint: str
    holds: tuple[Hold, ...] = ()
    error: Exception | None = None


def holds(
    path: str | None = None,
    /,
    *,
    holder: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """List the holds on PATH; of a whole mount, if PATH is a mountpoint; of every mount in reach, without PATH.

    Parameters
    ----------
    path
        Any path in an exclfs mount.
    holder
        Only the holds of the holder with this name.
    as_json
        As JSON.
    """
    found = [_of_path(path, holder)] if path is not None else list(_of_every_mount(holder))
    if as_json:
        say_json(mounts=[_to_json(one) for one in found])
    else:
        _draw(found)
    return max((_complain(one) for one in found), default=advice.OK)


def _of_path(path: str, holder: str | None) -> Found:
    server = discovery.find(path)
    with sync_client.reach(server) as client:
        return Found(server.mountpoint, client.holds(None if server.whole else path, holder=holder))


def _of_every_mount(holder: str | None) -> Iterator[Found]:
    seen = set()
    for mount in mounts.exclfs_mounts():
        mountpoint = os.fsdecode(mount.mountpoint)
        if mount.device in seen or mounts.at(mountpoint) != mount:
            continue  # another way to a mount that was asked already, or one that another covers
        seen.add(mount.device)
        try:
            with sync_client.connect(mountpoint) as client:
                yield Found(mountpoint, client.holds(holder=holder))
        except (ClientError, OSError) as error:
            yield Found(mountpoint, error=error)


def _draw(found: list[Found]) -> None:
    rows = [hold_row(hold) for one in found for hold in one.holds]
    if rows:
        table(HOLD_HEADINGS, rows)


def _to_json(found: Found) -> dict[str, Any]:
    document: dict[str, Any] = {
        "mountpoint": path_to_json(found.mountpoint),
        "holds": [hold_to_json(hold) for hold in found.holds],
    }
    if found.error is not None:
        document["error"] = advice.advise(found.error).line
    return document


def _complain(found: Found) -> int:
    if found.error is None:
        return advice.OK
    told = advice.advise(found.error)
    warn(told.line)
    return told.status
