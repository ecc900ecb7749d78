"""Clients that break the protocol, do not read or come in crowds harm nobody but themselves."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from serving import Client, Running, descriptors_open, hung_up, message

if TYPE_CHECKING:
    from pathlib import Path


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
        (b"x" * 10_000_000, "a message is longer than 4194304 bytes"),
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
    limit = server.keeper.limits.connections
    clients = [await Client.connect(server.socket) for _ in range(1000)]
    for client in clients[:limit]:
        assert "error" not in await client.call("org.exclfs.Status")
    for client in clients[limit:]:
        reply = await client.receive()
        assert reply["error"] == "org.exclfs.NotPermitted"
        assert f"uid {os.getuid()} has 256 connections open, which is the limit" in reply["parameters"]["why"]
        await client.ended()
    await clients[0].hold(top / "a")
    assert server.refusing("a") == ["tester"]
    for client in clients:
        await client.stream.aclose()
    await server.until(lambda: not server.peers)
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
    await server.until(lambda: len(server.peers) == 1)
    assert server.keeper.registry.all() == ()
    await deaf.stream.aclose()


async def test_a_fault_of_the_server_is_told_and_logged_and_ends_nothing_else(
    server: Running, client: Client, top: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.hold(top / "a")
    other = await Client.connect(server.socket)
    monkeypatch.setattr(server.keeper, "authority", None)
    with caplog.at_level(logging.ERROR):
        reply = await other.hold(top / "b")
    assert reply["parameters"]["why"] == "the server failed at this call; its log says how"
    assert "AttributeError" in caplog.text
    await other.ended()
    await other.stream.aclose()
    monkeypatch.undo()
    assert "error" not in await client.call("org.exclfs.Status")
    assert server.refusing("a") == ["tester"]
