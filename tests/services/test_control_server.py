"""Real sockets, real descriptors, the real registry and keeper; the mirror is a directory and a table of words."""

from __future__ import annotations

import array
import base64
import errno
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import varlink
from attrs import define, field

from exclfs import diagnosis
from exclfs.holds.errors import Gone
from exclfs.holds.flags import Operation
from exclfs.holds.hold import Inode
from exclfs.holds.holder import Process
from exclfs.holds.registry import Registry
from exclfs.keeper import Keeper
from exclfs.mirror import Attributes
from exclfs.services import connections, descriptors
from exclfs.services.control_server import ControlServer
from exclfs.services.listener import open_control_socket
from exclfs.services.objects import Objects
from exclfs.wire.messages import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
root = pytest.mark.root


@define
class Tree:
    """A directory in the place of the mirror: its inodes are the nodeids."""

    top: Path
    words: dict[Inode, int] = field(factory=dict)
    known: Counter[Inode] = field(factory=Counter)
    """What was looked up and not yet released."""

    @property
    def dev(self) -> int:
        return self.top.stat().st_dev

    def identify(self, nodeid: int, /) -> Inode:
        return Inode(self.dev, nodeid, nodeid)

    def resolve(self, path: bytes, uid: int, gid: int, groups: Sequence[int], /) -> Inode:
        if b"private" in path and uid != 0:
            raise PermissionError(errno.EACCES, "Permission denied")
        inode = self.identify((self.top / os.fsdecode(path)).lstat().st_ino)
        self.known[inode] += 1
        return inode

    def release(self, inode: Inode, /) -> None:
        self.known[inode] -= 1

    def path(self, inode: Inode, /) -> bytes:
        for found in self.top.rglob("*"):
            if found.lstat().st_ino == inode.ino:
                return os.fsencode(found.relative_to(self.top))
        raise Gone(inode)

    def attributes(self, inode: Inode) -> Attributes:
        found = (self.top / os.fsdecode(self.path(inode))).lstat()
        return Attributes(found.st_uid, found.st_gid, found.st_mode, found.st_nlink)

    def set_word(self, inode: Inode, word: int, *, wait: bool) -> None:
        self.words[inode] = word

    def fuse_handle(self, descriptor: int) -> tuple[int, int, int]:
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino, 0


@define
class Running:
    """A server, and what a test wants of it."""

    socket: str
    tree: Tree
    keeper: Keeper
    allowance: descriptors.Allowance

    def inode(self, name: str) -> Inode:
        return self.tree.identify((self.tree.top / name).lstat().st_ino)

    def refusing(self, name: str) -> list[str]:
        """Who refuses an unlink now; found out without giving the server time to notice anything."""
        cleaner = Process(1, 0, "cleaner")
        verdict = self.keeper.verdict(Operation.UNLINK, self.inode(name), name, lambda: cleaner)
        return [hold.holder.name for hold in verdict]

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - of the descriptors of a process nobody can tell
            await trio.sleep(0.001)


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
    ours = {"objects": objects, "flags": flags, "holder": "tester", "reason": "a test", "until_unmount": False}
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
        log="stderr",
        passthrough=False,
        ask_always=False,
        holds=0,
        holders={},
        refusals=0,
        last_refusals=(),
        requests={},
        answered_without_a_decision=0,
        verdicts_timed_out=0,
        inodes=0,
        descriptors=0,
        connections=0,
    )


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="exclfs-") as name:
        os.chmod(name, 0o755)
        top = Path(name) / "tree"
        (top / "private").mkdir(parents=True)
        for file in "a", "b", "private/c":
            (top / file).touch()
        yield top


@pytest.fixture
def patience() -> float:
    """Long: no test is to pass because the server has lost its patience."""
    return 1000


@pytest.fixture
async def server(top: Path, patience: float, nursery: trio.Nursery) -> AsyncIterator[Running]:
    tree = Tree(top)
    keeper = Keeper(Registry(), tree)
    objects = Objects(tree, tree.fuse_handle, str(top), tree.dev)
    control = open_control_socket(tree.dev, str(top.parent))
    serving = ControlServer(keeper, objects, status, diagnosis.why, patience)
    nursery.start_soon(serving.serve, control.listener)
    yield Running(control.path, tree, keeper, serving._allowance)
    nursery.cancel_scope.cancel()


@pytest.fixture
async def client(server: Running) -> AsyncIterator[Client]:
    async with (await Client.connect(server.socket)).stream as stream:
        yield Client(stream)


# --- the methods -----------------------------------------------------------------------------------------------------


async def test_introduces_itself(client: Client) -> None:
    info = (await client.call("org.varlink.service.GetInfo"))["parameters"]
    assert (info["vendor"], info["product"]) == ("exclfs", "exclfs")
    assert info["interfaces"] == ["org.varlink.service", "org.exclfs"]
    for interface in info["interfaces"]:
        reply = await client.call("org.varlink.service.GetInterfaceDescription", interface=interface)
        assert f"interface {interface}\n" in reply["parameters"]["description"]


async def test_a_varlink_client_that_is_not_ours_understands_it(server: Running, top: Path) -> None:
    def use() -> None:
        with varlink.Client(f"unix:{server.socket}") as client, client.open("org.exclfs") as service:
            assert service.Status()["status"]["log"] == "stderr"
            held = service.Hold([{"path": "a"}], ["NO_REMOVE"], "theirs", "", False)
            assert held["holds"][0]["path"] == str(top / "a")
            assert service.Why({"path": "a"})["blocked"]
            with pytest.raises(varlink.VarlinkError) as caught:
                service.Release("h9", None, False)
            assert caught.value.error() == "org.exclfs.NoSuchHold"

    await trio.to_thread.run_sync(use)
    await server.until(lambda: not server.keeper.registry.all())


async def test_a_hold_by_descriptor(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    assert held["path"] == str(top / "a")
    assert (held["dev"], held["inode"]) == (os.stat(top).st_dev, os.stat(top / "a").st_ino)
    assert (held["holder"]["name"], held["holder"]["pid"]) == ("tester", os.getpid())
    assert held["ends"] == ["connection"]
    assert server.refusing("a") == ["tester"]
    assert server.refusing("b") == []
    assert server.tree.words[server.inode("a")] == 3


async def test_a_hold_by_path(server: Running, client: Client, top: Path) -> None:
    name = os.fsencode(top / "b") + b"\xff"
    os.rename(top / "b", name)
    path = {"bytes": base64.b64encode(os.path.basename(name)).decode()}
    for spelling in [{"path": "a"}, {"path": "/private/../a"}, {"path": path}]:
        reply = await client.call(
            "org.exclfs.Hold", **hold_parameters(objects=[spelling], flags=["NO_REMOVE"], until_unmount=True)
        )
        assert reply["parameters"]["holds"][0]["ends"] == ["unmount"], reply
    paths = [hold.path for hold in server.keeper.registry.all()]
    assert paths == [str(top / "a"), str(top / "a"), os.fsdecode(name)]
    await server.until(lambda: server.tree.known.total() == 0)  # everything that was looked up is released


async def test_several_objects_are_held_together_or_not_at_all(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "b")
    reply = await client.hold(top / "a", top / "b")
    assert reply["error"] == "org.exclfs.Held"
    assert reply["parameters"]["hold"]["holder"]["name"] == "tester"
    assert server.refusing("a") == []


async def test_holds_end_with_the_connection(server: Running, top: Path) -> None:
    client = await Client.connect(server.socket)
    await client.hold(top / "a")
    await client.hold(top / "b", until_unmount=True, holder="lasting")
    await client.stream.aclose()
    assert server.refusing("a") == []  # at once, although the server has had no time to notice
    await server.until(lambda: not server.keeper.connections)
    assert [hold.holder.name for hold in server.keeper.registry.all()] == ["lasting"]


async def test_release_by_id_and_by_object(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    reply = await client.call("org.exclfs.Release", id=held["id"], break_it=False)
    assert [hold["id"] for hold in reply["parameters"]["released"]] == [held["id"]]
    reply = await client.call("org.exclfs.Release", id=held["id"], break_it=False)
    assert reply == {"error": "org.exclfs.NoSuchHold", "parameters": {"id": held["id"]}}
    await client.hold(top / "a")
    reply = await client.call("org.exclfs.Release", object={"path": "a"}, break_it=False)
    assert len(reply["parameters"]["released"]) == 1
    reply = await client.call("org.exclfs.Release", object={"path": "a"}, break_it=False)
    assert reply["parameters"]["released"] == []


async def test_lists_holds_and_says_why(client: Client, top: Path) -> None:
    await client.hold(top / "a")
    await client.hold(top / "b", holder="other", flags=["EXCL_INUSE"])
    every = await client.call("org.exclfs.Holds")
    assert [hold["holder"]["name"] for hold in every["parameters"]["holds"]] == ["tester", "other"]
    others = await client.call("org.exclfs.Holds", holder="other")
    assert [hold["path"] for hold in others["parameters"]["holds"]] == [str(top / "b")]
    with opened(top / "a") as passed:
        of_a = await client.call("org.exclfs.Holds", passed=passed, object={"fd": 0})
        why = (await client.call("org.exclfs.Why", passed=passed, object={"fd": 0}))["parameters"]
    assert [hold["path"] for hold in of_a["parameters"]["holds"]] == [str(top / "a")]
    assert (why["path"], why["blocked"]) == (str(top / "a"), True)
    assert why["causes"][0]["blocks"] == ["unlink", "rmdir", "rename"]
    why = (await client.call("org.exclfs.Why", object={"path": "b"}))["parameters"]
    assert (why["blocked"], len(why["causes"])) == (False, 1)


async def test_oneway_is_not_answered_and_more_is_answered_once(server: Running, client: Client, top: Path) -> None:
    hold = {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a"}]), "oneway": True}
    nonsense = {"method": "org.exclfs.Nonsense", "oneway": True}
    info = {"method": "org.varlink.service.GetInfo", "more": True}
    await client.send(b"".join(json.dumps(call).encode() + b"\0" for call in (hold, nonsense, info)))
    reply = await client.receive()
    assert reply["parameters"]["product"] == "exclfs"
    assert "continues" not in reply
    assert server.refusing("a") == ["tester"]


@pytest.mark.parametrize(
    ("call", "error", "parameters"),
    [
        ({"method": "org.exclfs.Nonsense"}, "org.varlink.service.MethodNotFound", {"method": "org.exclfs.Nonsense"}),
        ({"method": "org.other.X"}, "org.varlink.service.InterfaceNotFound", {"interface": "org.other"}),
        ({"method": "x"}, "org.varlink.service.InterfaceNotFound", {"interface": ""}),
        (
            {"method": "org.exclfs.Status", "upgrade": True},
            "org.varlink.service.InvalidParameter",
            {"parameter": "upgrade"},
        ),
        ({"method": "org.exclfs.Why"}, "org.varlink.service.InvalidParameter", {"parameter": "object"}),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(holder=7)},
            "org.varlink.service.InvalidParameter",
            {"parameter": "holder"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters()},
            "org.exclfs.BadObject",
            {"why": "there is no descriptor 0: 0 came with the call"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(0)},
            "org.exclfs.BadHold",
            {"why": "no object is named"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a"}], holder="")},
            "org.exclfs.BadHold",
            {"why": "the holder's name is empty"},
        ),
        (
            {"method": "org.exclfs.Hold", "parameters": hold_parameters(objects=[{"path": "a\0"}])},
            "org.exclfs.BadObject",
            {"why": "a path cannot hold a NUL byte"},
        ),
    ],
)
async def test_a_call_that_is_wrong_is_told_and_the_next_is_answered(
    client: Client, call: dict[str, Any], error: str, parameters: dict[str, Any]
) -> None:
    await client.send(json.dumps(call).encode() + b"\0")
    assert await client.receive() == {"error": error, "parameters": parameters}
    assert "error" not in await client.call("org.exclfs.Status")


async def test_a_path_that_is_not_there(client: Client, top: Path) -> None:
    reply = await client.call("org.exclfs.Why", object={"path": "none"})
    assert reply["error"] == "org.exclfs.BadObject"
    assert reply["parameters"]["why"] == f'"{top}/none": No such file or directory'


# --- descriptors -----------------------------------------------------------------------------------------------------


async def test_of_several_calls_in_one_go_each_has_its_own_descriptors(client: Client, top: Path) -> None:
    why = message("org.exclfs.Why", object={"fd": 0})
    with opened(top / "a", top / "b") as (a, b):
        await client.send(why, [a])
        await client.send(message("org.exclfs.Status"))
        await client.send(why[:10], [b])
        await client.send(why[10:])
        await client.send(why)
        replies = [await client.receive() for _ in range(4)]
    assert replies[0]["parameters"]["path"] == str(top / "a")
    assert "status" in replies[1]["parameters"]
    assert replies[2]["parameters"]["path"] == str(top / "b")
    assert replies[3]["error"] == "org.exclfs.BadObject"


async def test_a_descriptor_that_could_delay_us_is_refused(server: Running, client: Client, top: Path) -> None:
    before = await descriptors_with(client)
    with opened(top / "a", flags=os.O_RDONLY) as passed:
        reply = await client.call("org.exclfs.Why", passed=passed, object={"fd": 0})
    assert reply == {"error": "org.exclfs.BadObject", "parameters": {"why": "descriptor 0 was not opened with O_PATH"}}
    await server.until(lambda: descriptors_open() == before)


async def test_a_descriptor_of_another_mount_is_refused(server: Running, client: Client, top: Path) -> None:
    before = await descriptors_with(client)
    with opened(Path("/proc/version")) as passed:
        reply = await client.call("org.exclfs.Why", passed=passed, object={"fd": 0})
    assert reply["error"] == "org.exclfs.BadObject"
    assert (
        reply["parameters"]["why"] == f'descriptor 0 is not of the mount "{top}": it is "/proc/version", on another one'
    )
    await server.until(lambda: descriptors_open() == before)


async def test_descriptors_are_closed_when_the_call_is_over(server: Running, client: Client, top: Path) -> None:
    before = await descriptors_with(client)
    await client.hold(top / "a", top / "b")
    await server.until(lambda: descriptors_open() == before)


@pytest.mark.parametrize("data", [b"garbage\0", b'{"method":"org.exclfs.Status"}\0', b'{"method":1}\0'])
async def test_descriptors_that_nobody_wants_are_closed(server: Running, top: Path, data: bytes) -> None:
    before = descriptors_open()
    client = await Client.connect(server.socket)
    with opened(*[top / "a"] * 100) as passed:
        await client.send(data, passed)
    await client.receive()
    await server.until(lambda: descriptors_open() <= before + 3)
    await client.stream.aclose()
    await server.until(lambda: descriptors_open() == before)


async def test_descriptors_of_a_call_that_never_comes_are_closed(server: Running, top: Path) -> None:
    before = descriptors_open()
    client = await Client.connect(server.socket)
    with opened(*[top / "a"] * 100) as passed:
        await client.send(b"{", passed)
    await server.until(lambda: descriptors_open() == before + 3 + 100)
    await client.stream.aclose()
    await server.until(lambda: descriptors_open() == before)


async def test_of_who_has_passed_too_many_no_more_are_taken(
    server: Running, client: Client, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "MOST_OF_A_USER", 7)
    before = await descriptors_with(client)
    with opened(*[top / "a"] * 9) as passed:
        await client.send(message("org.exclfs.Status"), passed)
    reply = await client.receive()
    assert reply["parameters"]["why"] == "more descriptors came than the server can take"
    await client.ended()
    await server.until(lambda: descriptors_open() == before - 2)  # its socket and its pidfd
    other = await Client.connect(server.socket)
    assert "error" not in await other.hold(*[top / "a"] * 7, flags=["NO_REMOVE"])
    assert "error" not in await other.hold(*[top / "a"] * 7, flags=["NO_REMOVE"])
    await other.stream.aclose()


async def test_a_close_that_hangs_delays_nobody(
    server: Running, client: Client, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close(2) of a TCP socket that lingers waits until its peer has read everything: here, as long as we like."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        lingering = socket.create_connection(listening.getsockname())
        reader, _ = listening.accept()
    with reader:
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        lingering.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                lingering.send(bytes(65536))
        with socket.socket(fileno=os.dup(client.stream.socket.fileno())) as ours:
            # Without a pause, so that it is the server who closes last, and hangs.
            socket.send_fds(ours, [message("org.exclfs.Why", object={"fd": 0})], [lingering.fileno()])
            lingering.close()
        assert (await client.receive())["error"] == "org.exclfs.BadObject"
        assert "error" not in await client.call("org.exclfs.Status")
        assert "error" not in await client.hold(top / "a")
        monkeypatch.setattr(descriptors, "MOST_HANGING", 1)
        assert (await client.hold(top / "a"))["parameters"]["why"] == "more descriptors came than the server can take"
        await client.ended()
        await trio.to_thread.run_sync(lambda: [None for _ in iter(lambda: reader.recv(65536), b"")])
    await server.until(lambda: server.allowance.room(os.getuid()) > 0)
    async with (await Client.connect(server.socket)).stream as stream:
        assert "error" not in await Client(stream).hold(top / "a")


# --- clients that misbehave ------------------------------------------------------------------------------------------


async def test_half_a_message_is_told_at_its_end(client: Client) -> None:
    await client.send(b'{"method":"org.')
    await client.stream.send_eof()
    reply = await client.receive()
    assert reply["error"] == "org.exclfs.ProtocolError"
    assert reply["parameters"]["why"] == "the connection ended after 15 bytes of a message"
    await client.ended()


@pytest.mark.parametrize("patience", [0.01])
async def test_half_a_message_is_not_waited_for(client: Client) -> None:
    await client.send(message("org.exclfs.Status") + b'{"method":"org.')
    assert "status" in (await client.receive())["parameters"]
    reply = await client.receive()
    assert reply["parameters"]["why"] == "a message was not finished within 0.01 seconds"
    await client.ended()


@pytest.mark.parametrize("patience", [0.01])
async def test_who_is_silent_between_messages_is_waited_for(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a")
    other = await Client.connect(server.socket)
    await other.send(b"{")
    assert "not finished" in (await other.receive())["parameters"]["why"]  # so that long has passed
    await other.stream.aclose()
    assert server.refusing("a") == ["tester"]


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        (os.urandom(4) + b"\xff" * 10_000_000, None),
        (b"x" * 10_000_000, "a message is longer than 1048576 bytes"),
        (b"[" * 1_000_000 + b"\0", None),
        (b"\0" * 10_000_000, None),
        (b"[]\0", "a message is not a JSON object"),
        (b"\xff\0", "a message is not UTF-8: byte 0"),
        (b"{}\0", None),
        (b"GET / HTTP/1.1\r\n\r\n\0", None),
    ],
    ids=["random", "long", "deep", "NULs", "array", "bytes", "empty", "HTTP"],
)
async def test_garbage_gets_one_error_and_the_end(
    server: Running, client: Client, garbage: bytes, why: str | None, top: Path
) -> None:
    await client.hold(top / "a")
    bad = await Client.connect(server.socket)

    async def send() -> None:
        with suppress(trio.BrokenResourceError):  # it may be hung up on in the middle
            await bad.stream.send_all(garbage)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        reply = await bad.receive()
        assert reply["error"] == "org.exclfs.ProtocolError"
        assert why in (None, reply["parameters"]["why"])
        await bad.ended()
    await bad.stream.aclose()
    assert "error" not in await client.call("org.exclfs.Status")
    assert server.refusing("a") == ["tester"]


async def test_who_reads_late_still_finds_the_error_and_the_end(server: Running) -> None:
    before = descriptors_open()
    bad = await Client.connect(server.socket)

    async def send() -> None:
        with suppress(trio.BrokenResourceError):
            await bad.stream.send_all(b"x" * 10_000_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        # The server has hung up, and all that is left of the connection is the client's own end.
        await server.until(lambda: hung_up(bad) and descriptors_open() == before + 1)
    assert (await bad.receive())["error"] == "org.exclfs.ProtocolError"
    await bad.ended()
    await bad.stream.aclose()


async def test_a_thousand_connections_of_one_user(server: Running, top: Path) -> None:
    clients = [await Client.connect(server.socket) for _ in range(1000)]
    for client in clients[: connections.MOST_OF_A_USER]:
        assert "error" not in await client.call("org.exclfs.Status")
    for client in clients[connections.MOST_OF_A_USER :]:
        reply = await client.receive()
        assert reply["error"] == "org.exclfs.NotPermitted"
        assert f"uid {os.getuid()} has 256 connections open, which is the limit" in reply["parameters"]["why"]
        await client.ended()
    await clients[0].hold(top / "a")
    assert server.refusing("a") == ["tester"]
    for client in clients:
        await client.stream.aclose()
    await server.until(lambda: not server.keeper.connections)
    async with (await Client.connect(server.socket)).stream as stream:
        assert "error" not in await Client(stream).call("org.exclfs.Status")


@pytest.mark.parametrize("patience", [0.05])
async def test_who_does_not_read_is_dropped_and_delays_nobody(server: Running, client: Client, top: Path) -> None:
    deaf = await Client.connect(server.socket)
    await deaf.hold(top / "a")
    question = message("org.varlink.service.GetInterfaceDescription", interface="org.exclfs")

    async def ask_for_ever() -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await deaf.stream.send_all(question * 100)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_ever)
        for _ in range(100):
            assert "error" not in await client.call("org.exclfs.Status")
    await server.until(lambda: len(server.keeper.connections) == 1)
    assert server.keeper.registry.all() == ()
    await deaf.stream.aclose()


async def test_a_fault_of_the_server_is_told_and_logged_and_ends_nothing_else(
    server: Running, client: Client, top: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.hold(top / "a")
    other = await Client.connect(server.socket)
    monkeypatch.setattr(server.tree, "words", None)  # so that setting one raises TypeError
    with caplog.at_level(logging.ERROR):
        reply = await other.hold(top / "b")
    assert reply["parameters"]["why"] == "the server failed at this call; its log says how"
    assert "TypeError" in caplog.text
    await other.ended()
    await other.stream.aclose()
    monkeypatch.undo()
    assert "error" not in await client.call("org.exclfs.Status")
    assert server.refusing("a") == ["tester"]


# --- lives -----------------------------------------------------------------------------------------------------------

HOLD_AND_FORK = """if True:
    import os, socket, sys
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.sendall(sys.argv[2].encode() + bytes(1))
    assert b"holds" in connection.recv(65536)
    if os.fork() == 0:
        os.read(0, 1)
        os._exit(0)
    print(os.getpid(), flush=True)
    os.read(0, 1)
"""


async def test_an_inherited_connection_keeps_no_hold(server: Running) -> None:
    call = message("org.exclfs.Hold", **hold_parameters(objects=[{"path": "a"}]))[:-1].decode()
    command = [sys.executable, "-c", HOLD_AND_FORK, server.socket, call]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert int(await trio.to_thread.run_sync(process.stdout.readline)) == process.pid
        assert server.refusing("a") == ["tester"]
        process.send_signal(signal.SIGKILL)
        process.wait()  # in this thread, so that the server has no time to notice
        assert server.refusing("a") == []
        await server.until(lambda: not server.keeper.connections)
        assert not select.select([process.stdout], [], [], 0)[0]  # for the child lives, and has what it inherited


async def test_a_dead_connection_is_known_as_dead_at_once(server: Running, top: Path) -> None:
    client = await Client.connect(server.socket)
    await client.hold(top / "a")
    (liveness,) = server.keeper.connections.values()
    assert liveness.is_alive()
    client.stream.socket.close()
    assert not liveness.is_alive()
    await server.until(lambda: not server.keeper.connections)
    assert not liveness.is_alive()


async def test_nothing_is_left_when_the_server_ends(top: Path) -> None:
    before = descriptors_open()
    tree = Tree(top)
    keeper = Keeper(Registry(), tree)
    objects = Objects(tree, tree.fuse_handle, str(top), tree.dev)
    control = open_control_socket(tree.dev, str(top.parent))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlServer(keeper, objects, status, diagnosis.why).serve, control.listener)
        client = await Client.connect(control.path)
        await client.hold(top / "a")
        nursery.cancel_scope.cancel()
    await client.ended()
    await client.stream.aclose()
    await control.close()
    assert keeper.registry.all() == ()
    assert set(os.listdir(top.parent)) - {".lock"} == {"tree"}
    assert descriptors_open() <= before + 2  # trio's own, made when they are first needed


# --- who may know and do what ----------------------------------------------------------------------------------------

ASK = """if True:
    import os, socket, sys
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[2])
    for call in sys.argv[3:]:
        connection.sendall(call.encode() + bytes(1))
        reply = b""
        while not reply.endswith(bytes(1)):
            reply += connection.recv(65536)
        print(reply[:-1].decode(), flush=True)
"""


async def ask_as_nobody(server: Running, *calls: bytes) -> list[dict[str, Any]]:
    arguments = [call[:-1].decode() for call in calls]
    command = [sys.executable, "-c", ASK, str(NOBODY), server.socket, *arguments]
    done = await trio.run_process(command, capture_stdout=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@root
@needs_root
async def test_others_see_what_they_could_have_found(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a", top / "private" / "c")
    (top / "b").touch()
    os.chown(top / "b", NOBODY, NOBODY)
    place = message("org.exclfs.Hold", **hold_parameters(objects=[{"path": "b"}], holder="theirs"))
    private = message("org.exclfs.Why", object={"path": "private/c"})
    placed, every, why = await ask_as_nobody(server, place, message("org.exclfs.Holds"), private)
    assert placed["parameters"]["holds"][0]["holder"]["uid"] == NOBODY
    assert sorted(hold["path"] for hold in every["parameters"]["holds"]) == [str(top / "a"), str(top / "b")]
    assert why["parameters"]["why"] == f'"{top}/private/c": Permission denied'
    await server.until(lambda: server.tree.known.total() == 0)
    ours = await client.call("org.exclfs.Holds")
    assert len(ours["parameters"]["holds"]) == 2


@root
@needs_root
async def test_others_release_and_place_nothing_of_ours(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    by_id, by_object, broken, placed = await ask_as_nobody(
        server,
        message("org.exclfs.Release", id=held["id"], break_it=False),
        message("org.exclfs.Release", object={"path": "a"}, break_it=False),
        message("org.exclfs.Release", object={"path": "a"}, break_it=True),
        message("org.exclfs.Hold", **hold_parameters(objects=[{"path": "a"}], flags=["NO_REMOVE"])),
    )
    for reply in by_id, by_object, broken, placed:
        assert reply["error"] == "org.exclfs.NotPermitted"
    assert by_object["parameters"]["why"] == "hold h1 is tester's, and only root may break it"
    assert server.refusing("a") == ["tester"]
