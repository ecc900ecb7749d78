"""Descriptors that clients pass along: whose they are, and that each is closed once."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from serving import Client, Running, descriptors_open, descriptors_with, message, opened

from exclfs.services import descriptors


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


async def test_descriptors_are_closed_before_the_answer_is_there(server: Running, client: Client, top: Path) -> None:
    """An answer larger than a socket takes, which nobody reads: while it is under way, they are closed already."""
    await client.hold(top / "a", objects=[{"fd": 0}] * 2000, flags=["NO_REMOVE"])
    before = await descriptors_with(client)
    with opened(top / "a") as passed:
        await client.send(message("org.exclfs.Why", object={"fd": 0}), passed)
    await client.stream.socket.recv(1)
    assert descriptors_open() <= before


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
