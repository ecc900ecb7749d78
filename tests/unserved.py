"""A server without a mount: the real mirror, keeper, reaper and state file of a tree, which no kernel asks anything.

Words are set, inodes are found and holds are kept as in a server. What is left out is whoever would remove something
through the mount.
"""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from exclfs.holds.holder import Holder
from exclfs.holds.registry import Registry
from exclfs.host import processes
from exclfs.keeper import Keeper
from exclfs.mirror import ROOT, Mirror
from exclfs.services.reaper import Reaper
from exclfs.services.state_file import StateFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exclfs.holds.events import Event
    from exclfs.holds.flags import Flags
    from exclfs.holds.hold import Hold, Inode
    from exclfs.holds.lifetime import End
    from exclfs.services.state_file import Report


@contextmanager
def mirror_of(tree: Path) -> Iterator[Mirror]:
    """A mirror that is never started."""
    tree.mkdir(exist_ok=True)
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as stack:
        stack.callback(os.close, source)
        for end in (*device, *channel):
            stack.enter_context(end)
        mirror = Mirror(
            source=source,
            device=device[0].fileno(),
            channel=channel[0].fileno(),
            entry_timeout=1.0,
            attr_timeout=1.0,
            negative_timeout=0,
            decision_timeout=10.0,
            threads=1,
            descriptors=64,
            passthrough=False,
            ask_always=False,
            privileged=os.geteuid() == 0,
        )
        stack.callback(mirror.stop)
        yield mirror


@attrs.frozen
class Server:
    """The parts of a server, wired as exclfs.mount does."""

    tree: Path
    mirror: Mirror
    keeper: Keeper
    reaper: Reaper
    state: StateFile | None
    events: list[Event]

    def inode(self, name: str) -> Inode:
        """The inode of a file of the tree, which is known from now on."""
        return self.mirror.resolve(os.fsencode(name), 0, 0, ())

    async def hold(self, name: str, *ends: End, flags: Flags, reason: str = "") -> Hold:
        """Has this process hold what is called so."""
        me = processes.describe(os.getpid())
        (hold,) = await self.keeper.trylock(
            [(self.inode(name), f"/mnt/{name}")],
            flags=flags,
            holder=Holder("tester", me),
            reason=reason,
            ends=ends,
            requester=me,
        )
        return hold

    async def restore(self) -> Report:
        """What a server does with its state file before it serves."""
        assert self.state is not None
        return await self.state.restore(self.keeper, self.mirror, self.reaper)

    @property
    def told(self) -> list[str]:
        """The names of the events so far."""
        return [event.name for event in self.events]


@contextmanager
def server(tree: Path, state: Path | None = None, mountpoint: str = "/mnt", **settings: Any) -> Iterator[Server]:
    """Builds one, its keeper with these settings; when the block ends it is gone as if it had been killed."""
    with ExitStack() as stack:
        mirror = stack.enter_context(mirror_of(tree))
        store = None
        if state is not None:
            store = StateFile.open(str(state), mirror.identity(mirror.identify(ROOT)), mirror.identity, mountpoint)
            stack.callback(store.close)
        numbers = itertools.count(store.next_number() if store else 1)
        keeper = Keeper(Registry(lambda: f"h{next(numbers)}"), mirror, mountpoint=mountpoint, store=store, **settings)
        reaper = Reaper(keeper)
        stack.callback(reaper.close)
        events: list[Event] = []
        keeper.subscribe(events.append)
        yield Server(tree, mirror, keeper, reaper, store, events)
