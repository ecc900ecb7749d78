"""A control server with everything behind it real: mirror, keeper, reaper; only no kernel asks the mirror anything.

What the kernel would say of a descriptor of the mount is said here of one of the tree itself.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import threading
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field, frozen

from exclfs.diagnosis import holding
from exclfs.holds.flags import Operation
from exclfs.holds.holder import Process
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode, OpenFiles
from exclfs.services.control_server import ControlServer
from exclfs.services.listener import open_control_socket
from exclfs.services.objects import Objects
from exclfs.wire.messages import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from exclfs.holds.hold import Inode
    from exclfs.keeper import Keeper
    from exclfs.mirror import Mirror
    from exclfs.services import descriptors
    from exclfs.services.connections import Peer
    from unserved import Server

NOBODY = 65534


@define
class Counted:
    """A mirror, and what it was asked to know and not yet to forget."""

    mirror: Mirror
    known: Counter[Inode] = field(factory=Counter)
    threads: list[int] = field(factory=list)
    """The thread of each lookup."""

    def identify(self, nodeid: int, /) -> Inode:
        return self.mirror.identify(nodeid)

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int], /) -> Inode:
        self.threads.append(threading.get_ident())
        inode = self.mirror.resolve(path, uid, gid, groups)
        self.known[inode] += 1
        return inode

    def keep(self, inode: Inode, /) -> None:
        self.mirror.keep(inode)
        self.known[inode] += 1

    def release(self, inode: Inode, /) -> None:
        self.known[inode] -= 1
        self.mirror.release(inode)

    def path(self, inode: Inode, /) -> bytes:
        return self.mirror.path(inode)


@frozen
class Running:
    """A control server, and what a test wants of it."""

    socket: str
    server: Server
    control: ControlServer
    lookups: Counted

    @property
    def keeper(self) -> Keeper:
        return self.server.keeper

    @property
    def allowance(self) -> descriptors.Allowance:
        return self.control._allowance

    @property
    def peers(self) -> list[Peer]:
        """Whoever is connected."""
        return [there for end, there in self.keeper.present.items() if isinstance(end, Connection)]

    def word(self, name: str) -> int:
        return self.keeper.registry.word(self.server.inode(name))

    def refusing(self, name: str) -> list[str]:
        """Who refuses an unlink now; found out without giving the server time to notice anything."""
        cleaner = Process(1, 0, "cleaner")
        verdict = self.keeper.verdict(Operation.UNLINK, self.server.inode(name), name, lambda: cleaner)
        return [hold.holder.name for hold in verdict]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - of the descriptors of a process nobody can tell
            await trio.sleep(0.001)


@asynccontextmanager
async def serving(server: Server, patience: float = 1000) -> AsyncIterator[Running]:
    """Wires a control server to these parts as exclfs.mount does, and has it answer while the block lasts."""
    lookups = Counted(server.mirror)
    st_dev = os.stat(server.tree).st_dev

    def fuse_handle(descriptor: int) -> tuple[int, int, int]:
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), server.tree)
        return os.fstat(descriptor).st_dev, server.inode(name).nodeid, 0

    control = ControlServer(
        keeper=server.keeper,
        objects=Objects(lookups, fuse_handle, str(server.tree), st_dev),
        status=status,
        why=holding.why,
        watch=server.reaper.watch,
        settle=server.reaper.settle,
        patience=patience,
    )
    listening = open_control_socket(st_dev, str(server.tree.parent))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, listening.listener)
        nursery.start_soon(server.reaper.run)
        yield Running(listening.path, server, control, lookups)
        nursery.cancel_scope.cancel()
    await listening.close()


class Client:
    """A client that knows only what the protocol says."""

    def __init__(self, connection: trio.SocketStream) -> None:
        self.stream = connection
        self._buffer = b""

    @classmethod
    async def connect(cls, path: str) -> Client:
        connection = trio.socket.socket(socket.AF_UNIX)
        await connection.connect(path)
        return cls(trio.SocketStream(connection))

    async def send(self, data: bytes, passed: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else []
        sent = await self.stream.socket.sendmsg([data], rights)
        await self.stream.send_all(data[sent:])

    async def receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = await self.stream.receive_some()
            assert data, f"the connection ended after {self._buffer!r}"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        reply: dict[str, Any] = json.loads(message)
        return reply

    async def call(self, method: str, *, passed: Sequence[int] = (), **parameters: Any) -> dict[str, Any]:
        await self.send(message(method, **parameters), passed)
        return await self.receive()

    async def hold(self, *paths: Path, **parameters: Any) -> dict[str, Any]:
        """Holds these, named by descriptors."""
        with opened(*paths) as passed:
            return await self.call("org.exclfs.Hold", passed=passed, **hold_parameters(len(paths), **parameters))

    async def ended(self) -> None:
        """Waits for the end, and sees that nothing comes before it."""
        assert await self.stream.receive_some() == b""
        assert self._buffer == b""


class opened(ExitStack):  # noqa: N801 - reads as a verb
    """Descriptors of paths, as a client opens them."""

    def __init__(self, *paths: Path, flags: int = os.O_PATH | os.O_NOFOLLOW) -> None:
        super().__init__()
        self._paths = paths
        self._flags = flags

    def __enter__(self) -> list[int]:  # type: ignore[override]
        found = [os.open(path, self._flags) for path in self._paths]
        for descriptor in found:
            self.callback(os.close, descriptor)
        return found


def message(method: str, /, **parameters: Any) -> bytes:
    return json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"


def hold_parameters(number: int = 1, **others: Any) -> dict[str, Any]:
    objects = [{"fd": index} for index in range(number)]
    flags = ["EXCL_INUSE", "NO_REMOVE"]
    ours = {"objects": objects, "flags": flags, "holder": "tester", "reason": "a test"}
    return ours | others


def descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def hung_up(client: Client) -> bool:
    poll = select.poll()
    poll.register(client.stream.socket.fileno(), 0)
    return bool(poll.poll(0))


async def descriptors_with(client: Client) -> int:
    """How many descriptors there are once the server has met this client."""
    await client.call("org.exclfs.Status")
    return descriptors_open()


def status() -> Status:
    return Status(
        source="/srv/x",
        mountpoint="/mnt/x",
        pid=1,
        uid=0,
        since=datetime(2026, 11, 22, 13, 2, 15, tzinfo=UTC),
        uptime=60.0,
        log="stderr",
        passthrough=False,
        idle_poll=False,
        ask_always=False,
        mode=Mode.ENFORCE,
        hold_open=OpenFiles.NONE,
        holds=0,
        holders={},
        refusals=0,
        would_have_refused=0,
        refusals_by_operation={},
        refusals_by_requester=(),
        refusals_by_others=0,
        last_refusals=(),
        requests={},
        answered_without_a_decision=0,
        verdicts=0,
        verdicts_timed_out=0,
        inodes=0,
        descriptors=0,
        descriptor_budget=0,
        connections=0,
        waiting=0,
    )
