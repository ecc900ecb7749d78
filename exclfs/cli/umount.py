"""`exclfs umount`: refuses while a living process holds something, and is done once the server has ended."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from exclfs.cli import advice, unmounting
from exclfs.cli.advice import StillHeld, Usage
from exclfs.cli.output import path_to_json, say_json, shown, warn, who
from exclfs.client import sync_client
from exclfs.client.errors import NoServer, NotAMount
from exclfs.holds.lifetime import OF_A_PROCESS
from exclfs.host import mounts
from exclfs.wire.shapes import hold_to_json

if TYPE_CHECKING:
    from exclfs.client.sync_client import Client
    from exclfs.holds.hold import Hold
    from exclfs.host.mounts import Mount

PATIENCE: Final = 15_000
"""Milliseconds in which a server ends once its mount is gone. One that is still used elsewhere lives on."""


def umount(
    mnt: str,
    /,
    *,
    force: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Unmount MNT, unless a living process holds something in it.

    Parameters
    ----------
    mnt
        The mountpoint.
    force
        Unmount although something is held. What has files open still keeps the mount busy.
    as_json
        Say as JSON what was unmounted, or what is in the way.
    """
    mount = _mount_at(mnt)
    mountpoint = os.fsdecode(mount.mountpoint)
    if mounts.is_stale(mountpoint):
        unmounting.unmount(mountpoint, lazy=True)
    else:
        with contextlib.ExitStack() as stack:
            client = _connect(stack, mountpoint, force=force)
            if client is not None and not force:
                _refuse_if_held(client, as_json=as_json)
            ended = _end_of_server(stack, client)
            unmounting.unmount(mountpoint)
            _wait(mountpoint, ended)
    if as_json:
        say_json(mountpoint=path_to_json(mountpoint), unmounted=True, holds=[])
    return advice.OK


def _mount_at(path: str) -> Mount:
    mount = mounts.at(path)
    if mount is not None and mount.fstype == mounts.FSTYPE:
        return mount
    around = mounts.mount_of(path)
    if around.fstype == mounts.FSTYPE:
        raise Usage(f"{path} is inside an exclfs mount; its mountpoint is {os.fsdecode(around.mountpoint)}", "umount")
    raise NotAMount(path)


def _connect(stack: contextlib.ExitStack, mountpoint: str, *, force: bool) -> Client | None:
    try:
        return stack.enter_context(sync_client.connect(mountpoint))
    except NoServer:
        if force:
            return None
        raise


def _refuse_if_held(client: Client, *, as_json: bool) -> None:
    held = [hold for hold in client.holds() if _lives(hold)]
    if not held:
        return
    if as_json:
        mountpoint = path_to_json(client.mountpoint)
        say_json(mountpoint=mountpoint, unmounted=False, holds=[hold_to_json(hold) for hold in held])
    else:
        for hold in held:
            warn(f"{shown(hold.path)} is held by {who(hold)}")
    raise StillHeld(client.mountpoint, len(held))


def _lives(hold: Hold) -> bool:
    # The server drops what ends with a process when that dies: such a holder lives. What ends with a time or the mount
    # has nobody who would notice, and what is in the state file will be back. An open file keeps the mount busy itself.
    return any(isinstance(end, OF_A_PROCESS) for end in hold.ends)


def _end_of_server(stack: contextlib.ExitStack, client: Client | None) -> int | None:
    """A descriptor that becomes readable when the server ends: its pidfd, or its connection where it cannot be seen."""
    if client is None:
        return None
    try:
        pidfd = os.pidfd_open(client.peer.pid)
    except OSError:
        return client.fileno()
    stack.callback(os.close, pidfd)
    return pidfd


def _wait(mountpoint: str, ended: int | None) -> None:
    if ended is None:
        return
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    if not poll.poll(PATIENCE):
        warn(f"{mountpoint}: unmounted here; its server lives on, for another mount namespace or a bind mount uses it")
