"""Servers that misbehave, and that end: each client says so, and waits for nobody."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

from exclfs.client import sync_client, trio_client
from exclfs.client.errors import BadAnswer, Disconnected, NoAnswer
from exclfs.holds.errors import Gone, NotPermitted
from exclfs.wire.errors import error_to_json
from exclfs.wire.framing import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hold_server import HoldServer


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
    connected: Any, file: Path, server: HoldServer, answer: Callable[[socket.socket], None], error: type[Exception]
) -> None:
    server.answer = answer
    async with connected() as client:
        with pytest.raises(error):
            await client.hold(file)


async def test_a_server_that_turns_us_away_is_heard(connected: Any, file: Path, server: HoldServer) -> None:
    server.greet = say(encode(error_to_json(NotPermitted("too many connections"))))
    async with connected() as client:
        await trio.to_thread.run_sync(server.ended.acquire)
        with pytest.raises(NotPermitted, match="too many"):
            await client.holds(file)


async def test_after_the_end_every_call_says_so(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        await client.hold(file)
    with pytest.raises(Disconnected):
        await client.holds(file)


@pytest.fixture
def silent(server: HoldServer) -> Iterator[HoldServer]:
    """Takes calls and does not answer them."""
    let_go = threading.Event()
    server.answer = lambda connection: let_go.wait() and None
    yield server
    let_go.set()


async def test_no_answer_in_time_closes_the_connection(silent: HoldServer, file: Path) -> None:
    client = await trio.to_thread.run_sync(lambda: sync_client.reach(silent.where, timeout=0.01))
    with pytest.raises(NoAnswer) as caught:
        await trio.to_thread.run_sync(client.holds, file)
    assert client.closed
    assert caught.value.seconds == 0.01
    on_trio = await trio_client.reach(silent.where, timeout=0.01)
    with pytest.raises(NoAnswer) as caught:
        await on_trio.holds(file)
    assert on_trio.closed
    assert caught.value.seconds == 0.01


async def test_the_time_to_wait_is_added_to_that_for_the_answer(silent: HoldServer, file: Path) -> None:
    client = await trio.to_thread.run_sync(lambda: sync_client.reach(silent.where, timeout=0.0625))
    with pytest.raises(NoAnswer) as caught:
        await trio.to_thread.run_sync(lambda: client.hold(file, timeout=0.125))
    assert caught.value.seconds == 0.1875
    on_trio = await trio_client.reach(silent.where, timeout=0.0625)
    with pytest.raises(NoAnswer) as caught:
        await on_trio.hold(file, timeout=0.125)
    assert caught.value.seconds == 0.1875


async def test_who_closes_it_ends_the_call_that_waits(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client, connected() as other, trio.open_nursery() as nursery:
        await client.hold(file)

        async def wait() -> None:
            with pytest.raises(Disconnected):
                await other.hold(file, timeout=None)

        nursery.start_soon(wait)
        await trio.to_thread.run_sync(server.waits.acquire)
        await close(other)


async def close(client: Any) -> None:
    """Closes either client; that of trio in its own thread."""
    if isinstance(client, trio_client.AsyncClient):
        client.close()
    else:
        await client.close()


async def test_it_is_known_when_the_server_ends(connected: Any, file: Path, server: HoldServer) -> None:
    go = threading.Event()
    server.greet = lambda connection: go.wait() and None
    async with connected() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.wait_until_closed)
        go.set()


def test_an_interrupted_call_closes_the_connection(file: Path, server: HoldServer) -> None:
    """As Ctrl-C does, while the claim of somebody else is waited for."""
    with sync_client.reach(server.where) as client:
        client.hold(file)
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.where.socket, file], stdout=subprocess.PIPE
        ) as waiting:
            server.waits.acquire()
            waiting.send_signal(signal.SIGINT)
            assert waiting.communicate() == (b"closed\n", None)


INTERRUPTED = """
import os, signal, sys
from exclfs.client.discovery import Server
from exclfs.client.sync_client import reach

signal.signal(signal.SIGINT, signal.default_int_handler)
client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True, st_dev=0))
try:
    client.hold(sys.argv[2], timeout=None)
except KeyboardInterrupt:
    print("closed" if client.closed else "open")
"""


async def test_a_cancelled_call_closes_the_connection(file: Path, server: HoldServer) -> None:
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
