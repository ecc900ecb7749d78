"""`exclfs mode`: whether a mount enforces its holds; asked, and switched while it serves."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

from exclfs.cli import advice
from exclfs.cli.output import path_to_json, say, say_json
from exclfs.client import sync_client
from exclfs.holds.mode import Mode

_MEANS: Final = {
    Mode.ENFORCE: "what is held is not removed",
    Mode.WARN: "what would be refused is recorded, and happens",
    Mode.OFF: "what would be refused happens, and nothing is recorded",
}


def mode(
    mnt: str,
    new: Annotated[Mode | None, Parameter(metavar="enforce|warn|off")] = None,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show the mode of the mount at MNT, or switch it: enforce, warn or off.

    enforce refuses; warn records what it would have refused, and lets it happen; off lets it happen.

    Parameters
    ----------
    mnt
        Any path in an exclfs mount.
    new
        The mode from now on. Root and the owner of the mount may switch it; it is recorded.
    as_json
        As JSON.
    """
    with sync_client.connect(mnt) as client:
        now = client.mode(new)
        mountpoint = client.mountpoint
    if as_json:
        say_json(mountpoint=path_to_json(mountpoint), mode=now.value)
    else:
        say(f"{now.value}: {_MEANS[now]}")
    return advice.OK
