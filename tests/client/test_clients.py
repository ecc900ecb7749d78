"""Both clients against a server that speaks the wire: one set of tests, so that neither lacks what the other can."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

import exclfs
from exclfs.client import sync_client, trio_client
from exclfs.client.calls import default_holder
from exclfs.client.discovery import Server
from exclfs.client.errors import BadAnswer, Disconnected, NoAnswer
from exclfs.client.sockets import MOST_DESCRIPTORS
from exclfs.holds.errors import BadHold, Gone, Held, HoldError, NoSuchHold, NotPermitted
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, Unmount
from exclfs.holds.registry import Registry
from exclfs.wire.errors import MethodNotFound, VarlinkError, error_to_json
from exclfs.wire.framing import Decoder, encode
from exclfs.wire.messages import (
    Call,
    Cause,
    HoldCall,
    HoldReply,
    HoldsCall,
    HoldsReply,
    ReleaseCall,
    ReleaseReply,
    WhyCall,
    WhyReply,
    read_call,
    write_reply,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path


class TestServer:
    """A server of holds on ordinary files: the real rules and the real wire, and no mount."""

    __test__ = False

    def __init__(self, path: str) -> None:
        self.where = Server("/mnt", path, os.getuid(), whole=True)
        self.registry = Registry()
        self.calls: list[Call[Any]] = []
        self.ended = threading.Semaphore(0)
        """Released each time when a connection has ended."""
        self.answer: Callable[[socket.socket], None] | None = None
        """What is done instead of answering a call."""
        self.greet: Callable[[socket.socket], None] | None = None
        """What is done instead of reading calls."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        for number in range(1, 1000):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, number))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(ConnectionError):
            if self.greet is not None:
                self.greet(connection)
            else:
                self._converse(connection, number)
        for hold in self.registry.of_connection(number):
            self.registry.unlock(hold.id)
        self.ended.release()

    def _converse(self, connection: socket.socket, number: int) -> None:
        decoder, passed = Decoder(), []
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * 4)
        while True:
            data, ancillary, _, _ = connection.recvmsg(65536, room)
            if not data:
                return
            for _, _, content in ancillary:
                passed += array.array("i", content)
            for message in decoder.feed(data):
                if self.answer is not None:
                    self.answer(connection)
                    return
                connection.sendall(encode(self._reply(read_call(message).typed(), passed, number)))
                while passed:
                    os.close(passed.pop())

    def _reply(self, call: Call[Any], passed: Sequence[int], number: int) -> dict[str, Any]:
        self.calls.append(call)
        try:
            return write_reply(self._do(call, passed, number))
        except (HoldError, VarlinkError) as error:
            return error_to_json(error)

    def _do(self, call: Call[Any], passed: Sequence[int], number: int) -> object:
        match call:
            case HoldCall():
                return HoldReply(self._lock_all(call, passed, number))
            case ReleaseCall(id=str() as chosen):
                return ReleaseReply((self.registry.unlock(chosen),))
            case ReleaseCall():
                holds = self.registry.on(inode_of(passed[0]))
                return ReleaseReply(tuple(self.registry.unlock(hold.id) for hold in holds))
            case HoldsCall():
                holds = self.registry.on(inode_of(passed[0])) if call.object else self.registry.all()
                return HoldsReply(tuple(hold for hold in holds if call.holder in {None, hold.holder.name}))
            case WhyCall():
                holds = self.registry.on(inode_of(passed[0]))
                causes = tuple(Cause("hold", f"{hold.holder.name} holds it", ("unlink",), hold) for hold in holds)
                return WhyReply(path_of(passed[0]), bool(holds), causes)
        raise MethodNotFound(call.method)

    def _lock_all(self, call: HoldCall, passed: Sequence[int], number: int) -> tuple[Hold, ...]:
        placed: list[Hold] = []
        try:
            placed.extend(self._lock(call, passed[named.fd or 0], number) for named in call.objects)
        except HoldError:
            for hold in placed:
                self.registry.unlock(hold.id)
            raise
        return tuple(placed)

    def _lock(self, call: HoldCall, descriptor: int, number: int) -> Hold:
        if os.fstat(descriptor).st_nlink == 0:
            raise Gone
        return self.registry.trylock(
            inode_of(descriptor),
            path=path_of(descriptor),
            flags=call.flags,
            holder=Holder(call.holder, Process(os.getpid(), os.getuid())),
            reason=call.reason,
            since=datetime.now(UTC),
            ends=(Unmount() if call.until_unmount else Connection(number),),
        )


def inode_of(descriptor: int) -> Inode:
    status = os.fstat(descriptor)
    return Inode(status.st_dev, status.st_ino)


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


class Blocking:
    """The blocking client, called from trio as any blocking thing is."""

    def __init__(self, client: sync_client.Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        async def call(*args: Any, **named: Any) -> Any:
            return await trio.to_thread.run_sync(lambda: method(*args, **named))

        return call


@contextlib.asynccontextmanager
async def blocking(server: TestServer) -> AsyncIterator[Any]:
    with await trio.to_thread.run_sync(sync_client.reach, server.where) as client:
        yield Blocking(client)


@contextlib.asynccontextmanager
async def on_trio(server: TestServer) -> AsyncIterator[Any]:
    async with await trio_client.reach(server.where) as client:
        yield client


@pytest.fixture(params=[blocking, on_trio])
def connected(request: pytest.FixtureRequest, server: TestServer) -> Callable[[], Any]:
    return lambda: request.param(server)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TestServer]:
    made = TestServer(str(tmp_path / "socket"))
    yield made
    made.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "directory").mkdir()
    return tmp_path / "directory"


# --- what both clients do ---------------------------------------------------------------------------------------------


async def test_places_lists_explains_and_releases(connected: Any, file: Path) -> None:
    async with connected() as client:
        (hold,) = await client.hold(file, holder="cache", reason="being served")
        assert (hold.path, hold.flags, hold.holder.name, hold.reason) == (str(file), DEFAULT, "cache", "being served")
        assert await client.holds(file) == (hold,)
        answer = await client.why(file)
        assert answer.blocked
        assert answer.causes[0].hold == hold
        assert await client.release(hold) == (hold,)
        assert await client.holds(file) == ()
        assert not (await client.why(file)).blocked


async def test_holds_several_in_their_order(connected: Any, file: Path, directory: Path) -> None:
    async with connected() as client:
        placed = await client.hold([directory, str(file)], holder="x", claim=False)
        assert [hold.path for hold in placed] == [str(directory), str(file)]
        assert {hold.flags for hold in placed} == {Flags.NO_REMOVE}
        assert await client.holds() == placed
        assert await client.holds(holder="y") == ()


async def test_a_symlink_is_held_itself(connected: Any, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    async with connected() as client:
        (hold,) = await client.hold(tmp_path / "link")
        assert hold.inode.ino == os.lstat(tmp_path / "link").st_ino
        assert await client.holds(file) == ()


async def test_a_name_that_is_not_utf_8(connected: Any, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    os.mkdir(strange)
    async with connected() as client:
        (hold,) = await client.hold(strange)
        assert hold.path == strange


async def test_a_claim_that_is_taken_says_by_whom(connected: Any, file: Path) -> None:
    async with connected() as client, connected() as other:
        (hold,) = await client.hold(file, holder="first")
        with pytest.raises(Held) as caught:
            await other.hold(file, holder="second")
        assert caught.value.hold == hold
        (shared,) = await other.hold(file, holder="second", claim=False)
        assert shared.flags == Flags.NO_REMOVE


async def test_release_by_id_and_by_path(connected: Any, file: Path) -> None:
    async with connected() as client:
        (one,) = await client.hold(file)
        assert await client.release(one.id) == (one,)
        (two,) = await client.hold(file, until_unmount=True)
        assert two.ends == (Unmount(),)
        assert await client.release(path=file) == (two,)
        with pytest.raises(NoSuchHold):
            await client.release(two)
        with pytest.raises(TypeError):
            await client.release()


async def test_the_holds_of_a_connection_end_with_it(connected: Any, file: Path, server: TestServer) -> None:
    async with connected() as client:
        await client.hold(file)
        assert len(server.registry) == 1
    await trio.to_thread.run_sync(server.ended.acquire)
    assert len(server.registry) == 0


async def test_what_is_not_there_is_an_os_error_and_the_connection_stays(connected: Any, file: Path) -> None:
    async with connected() as client:
        with pytest.raises(FileNotFoundError) as caught:
            await client.hold([file, file.parent / "none"])
        assert caught.value.filename == str(file.parent / "none")
        assert await client.holds() == ()


async def test_nothing_to_hold(connected: Any) -> None:
    async with connected() as client:
        with pytest.raises(BadHold):
            await client.hold([])


async def test_two_answers_to_one_question(connected: Any, file: Path) -> None:
    async with connected() as client:
        with pytest.raises(BadHold):
            await client.hold(file, flags=Flags.NO_REMOVE, claim=False)


async def test_more_objects_than_one_message_carries(connected: Any, directory: Path, server: TestServer) -> None:
    paths = [directory / str(number) for number in range(MOST_DESCRIPTORS + 2)]
    for path in paths:
        path.touch()
    async with connected() as client, connected() as other:
        placed = await client.hold(paths)
        assert [hold.path for hold in placed] == [str(path) for path in paths]
        assert len([call for call in server.calls if isinstance(call, HoldCall)]) == 2
        await client.end(placed)
        # The last one is taken: all or none.
        (taken,) = await other.hold(paths[-1])
        with pytest.raises(Held):
            await client.hold(paths)
        assert await client.holds() == (taken,)


async def test_many_calls_at_once_get_each_its_answer(connected: Any, directory: Path) -> None:
    async with connected() as client, trio.open_nursery() as nursery:

        async def hold_and_look(path: Path) -> None:
            (hold,) = await client.hold(path)
            assert hold.path == str(path)
            assert await client.holds(path) == (hold,)

        for number in range(20):
            (directory / str(number)).touch()
            nursery.start_soon(hold_and_look, directory / str(number))


async def test_ending_what_has_ended_is_no_error(connected: Any, file: Path, server: TestServer) -> None:
    async with connected() as client:
        (hold,) = await client.hold(file)
        server.registry.unlock(hold.id)
        await client.end((hold,))


# --- servers that misbehave, and that end -----------------------------------------------------------------------------


def hang_up(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def say(message: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(message)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (hang_up, Disconnected),
        (say(b'{"parameters":'), Disconnected),
        (say(b"nonsense\0"), BadAnswer),
        (say(b"[]\0"), BadAnswer),
        (say(b'{"parameters":{"holds":3}}\0'), BadAnswer),
        (say(b'{"parameters":[]}\0'), BadAnswer),
        (say(b'{"error":"org.exclfs.FromTheFuture","parameters":{}}\0'), BadAnswer),
        (say(b'{"error":"org.exclfs.ProtocolError","parameters":{"why":"bad"}}\0'), BadAnswer),
        (say(b'{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"x"}}\0'), BadAnswer),
        (say(b'{"error":"org.exclfs.NotPermitted","parameters":{"why":"not yours"}}\0'), NotPermitted),
        (say(b'{"error":"org.exclfs.Gone"}\0'), Gone),
    ],
)
async def test_a_bad_answer_is_an_error_of_its_own(
    connected: Any, file: Path, server: TestServer, answer: Callable[[socket.socket], None], error: type[Exception]
) -> None:
    server.answer = answer
    async with connected() as client:
        with pytest.raises(error):
            await client.hold(file)


async def test_a_server_that_turns_us_away_is_heard(connected: Any, file: Path, server: TestServer) -> None:
    server.greet = say(encode(error_to_json(NotPermitted("too many connections"))))
    async with connected() as client:
        await trio.to_thread.run_sync(server.ended.acquire)
        with pytest.raises(NotPermitted, match="too many"):
            await client.holds(file)


async def test_after_the_end_every_call_says_so(connected: Any, file: Path, server: TestServer) -> None:
    async with connected() as client:
        await client.hold(file)
    with pytest.raises(Disconnected):
        await client.holds(file)


async def test_no_answer_in_time_closes_the_connection(file: Path, server: TestServer) -> None:
    let_go = threading.Event()
    server.answer = lambda connection: let_go.wait() and None
    client = await trio.to_thread.run_sync(lambda: sync_client.reach(server.where, timeout=0.01))
    try:
        with pytest.raises(NoAnswer):
            await trio.to_thread.run_sync(client.holds, file)
        assert client.closed
    finally:
        let_go.set()


async def test_a_cancelled_call_closes_the_connection(file: Path, server: TestServer) -> None:
    asked, let_go = threading.Event(), threading.Event()

    def answer(connection: socket.socket) -> None:
        asked.set()
        let_go.wait()

    server.answer = answer
    try:
        async with await trio_client.reach(server.where) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.holds, file)
            await trio.to_thread.run_sync(asked.wait)
            nursery.cancel_scope.cancel()
        assert client.closed
    finally:
        let_go.set()


# --- hold(), with its connection of its own ---------------------------------------------------------------------------


@pytest.fixture
def found(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> TestServer:
    """Every path is taken to be in a mount of the server."""
    monkeypatch.setattr("exclfs.client.discovery.find", lambda path: server.where)
    return server


def test_hold_ends_with_its_block(found: TestServer, file: Path) -> None:
    with exclfs.hold(file, holder="me", reason="a test") as hold:
        assert exclfs.holds(file) == (hold,)
        assert exclfs.inuse(file)
        assert exclfs.why(file).blocked
        with pytest.raises(exclfs.Held), exclfs.hold(file):
            pass
    # At once: whoever leaves the block may remove the file.
    assert len(found.registry) == 0
    assert not exclfs.inuse(file)


def test_hold_ends_when_the_block_fails(found: TestServer, file: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclfs.hold(file):
        raise ZeroDivisionError
    assert len(found.registry) == 0


def test_hold_is_left_in_peace_when_it_has_ended_before(found: TestServer, file: Path) -> None:
    with exclfs.hold(file) as hold:
        assert exclfs.release(file) == (hold,)


async def test_hold_on_trio_ends_with_its_block_also_when_cancelled(found: TestServer, file: Path) -> None:
    async with trio_client.hold(file, holder="me"):
        assert len(found.registry) == 1
    assert len(found.registry) == 0
    with trio.CancelScope() as scope:
        async with trio_client.hold(file, holder="me"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert len(found.registry) == 0


def test_the_default_holder_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, name in [
        ("/usr/bin/culler", "culler"),
        ("./worker.py", "worker.py"),
        ("/x/package/__main__.py", "package"),
        (os.fsdecode(b"/x/\xff\n"), "?"),
        ("/x/" + "é" * 200, "é" * 127),
    ]:
        monkeypatch.setattr(sys, "argv", [program])
        assert default_holder().endswith(name)
    for nameless in ("", "-c"):
        monkeypatch.setattr(sys, "argv", [nameless])
        with open("/proc/self/comm") as comm:
            assert default_holder() == comm.read().strip()


# --- processes --------------------------------------------------------------------------------------------------------

FORKS = """
import os, sys
from exclfs.client.discovery import Server
from exclfs.client.errors import Disconnected
from exclfs.client.sync_client import reach

client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True))
(hold,) = client.hold(sys.argv[2])
child = os.fork()
if child == 0:
    try:
        client.release(hold)
    except Disconnected:
        os._exit(7 if client.closed else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.holds(sys.argv[2]) == (hold,)
lasting = os.fork()
if lasting == 0:
    os.read(0, 1)  # outlives its parent, without its connection
    os._exit(0)
print("held", flush=True)
os._exit(0)
"""


def test_a_forked_child_keeps_no_hold_alive(server: TestServer, file: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS, server.where.socket, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"held\n"
        assert parent.wait() == 0
        server.ended.acquire()
        assert len(server.registry) == 0
        assert parent.stdin is not None
        parent.stdin.close()


def test_no_descriptor_is_inherited(server: TestServer, file: Path) -> None:
    with sync_client.reach(server.where) as client:
        client.hold(file)
        assert not os.get_inheritable(client.fileno())


KEEPS_NOTHING = """
import contextlib, os, sys
from exclfs.client.discovery import Server
from exclfs.client.sync_client import reach

client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True))
before = os.listdir("/proc/self/fd")
for _ in range(10):
    client.end(client.hold(sys.argv[2]))
    with contextlib.suppress(FileNotFoundError):
        client.hold([sys.argv[2], sys.argv[2] + "none"])
    with contextlib.suppress(NotADirectoryError):
        client.hold([sys.argv[2], sys.argv[2] + "/none"])
assert os.listdir("/proc/self/fd") == before
"""


def test_no_descriptor_is_left_open(server: TestServer, file: Path) -> None:
    subprocess.run([sys.executable, "-c", KEEPS_NOTHING, server.where.socket, str(file)], check=True)


LIGHT = """
import sys
import exclfs
assert not {"trio", "pyfuse3", "attr", "cattrs", "socket", "rich", "cyclopts"} & set(sys.modules), "exclfs is heavy"
import exclfs.client.sync_client
assert not {"trio", "pyfuse3", "rich", "cyclopts", "structlog", "asyncio"} & set(sys.modules), "the client is heavy"
assert callable(exclfs.holds)
from exclfs.holds.flags import Flags
assert callable(exclfs.holds)
assert exclfs.Flags is Flags
for name in exclfs.__all__:
    getattr(exclfs, name)
    assert name in dir(exclfs)
try:
    exclfs.nonsense
except AttributeError:
    pass
else:
    raise AssertionError
"""


def test_importing_is_light_and_the_public_names_are_there() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
