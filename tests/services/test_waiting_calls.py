"""Calls that queue for a claim end when they are served, when their time is over, or when their caller has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from serving import Client, Running, descriptors_open, descriptors_with, hold_parameters, message, opened

from exclfs.holds.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

FOR_EVER = 1e9


def wish(wait: float, **others: Any) -> dict[str, Any]:
    return hold_parameters(objects=[{"path": "a"}], wait=wait, **others)


async def begin(client: Client, server: Running, **others: Any) -> None:
    """Calls, and returns when the call waits."""
    before = server.keeper.waiting
    await client.send(message("org.exclfs.Hold", **wish(FOR_EVER, **others)))
    await server.until(lambda: server.keeper.waiting > before)


async def test_who_waits_holds_when_the_claim_is_free(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    other = await Client.connect(server.socket)
    await begin(other, server, holder="next")
    await client.call("org.exclfs.Release", ids=[held["id"]])
    assert server.refusing("a") == ["next"]
    assert (await other.receive())["parameters"]["holds"][0]["holder"]["name"] == "next"
    assert "error" not in await other.call("org.exclfs.Status")
    await other.stream.aclose()


async def test_a_wait_comes_to_its_end(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a")
    reply = await client.call("org.exclfs.Hold", **wish(0.001))
    assert (reply["error"], reply["parameters"]["hold"]["holder"]["name"]) == ("org.exclfs.Held", "tester")
    assert "error" not in await client.call("org.exclfs.Status")
    assert server.server.told == ["locked", "lock_failed"]


async def test_who_hangs_up_waits_no_longer(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a")
    other = await Client.connect(server.socket)
    await begin(other, server)
    await other.stream.aclose()
    await server.until(lambda: server.keeper.waiting == 0 and len(server.peers) == 1)
    assert [hold.holder.name for hold in server.keeper.registry.all()] == ["tester"]


async def test_who_hangs_up_after_more_calls_waits_no_longer(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a")
    other = await Client.connect(server.socket)
    await begin(other, server)
    await other.send(message("org.exclfs.Status"))
    await other.stream.aclose()
    await server.until(lambda: server.keeper.waiting == 0 and len(server.peers) == 1)


async def test_what_was_sent_while_a_call_waited_is_answered_after_it(
    server: Running, client: Client, top: Path
) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    other = await Client.connect(server.socket)
    await begin(other, server)
    with opened(top / "b") as passed:
        await other.send(message("org.exclfs.Why", object={"fd": 0}), passed)
    await client.call("org.exclfs.Release", ids=[held["id"]])
    assert "holds" in (await other.receive())["parameters"]
    assert (await other.receive())["parameters"]["path"] == str(top / "b")
    await other.stream.aclose()


async def test_who_dies_waits_no_longer_whoever_has_inherited_the_connection(
    server: Running, client: Client, top: Path
) -> None:
    await client.hold(top / "a")
    code = """if True:
        import os, socket, sys
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(sys.argv[1])
        connection.sendall(sys.argv[2].encode() + bytes(1))
        if os.fork() == 0:
            os.read(0, 1)
            os._exit(0)
        os.read(0, 1)
    """
    call = message("org.exclfs.Hold", **wish(FOR_EVER))[:-1].decode()
    command = [sys.executable, "-c", code, server.socket, call]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        await server.until(lambda: server.keeper.waiting == 1)
        process.kill()
        await server.until(lambda: server.keeper.waiting == 0 and len(server.peers) == 1)


async def test_the_mount_is_not_busy_because_somebody_waits(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    other = await Client.connect(server.socket)
    before = await descriptors_with(other)
    with opened(top / "a") as passed:
        await other.send(message("org.exclfs.Hold", **hold_parameters(wait=FOR_EVER)), passed)
        await server.until(lambda: server.keeper.waiting == 1)
    assert descriptors_open() == before
    assert server.lookups.known.total() == 1  # so that the inode stays known
    await client.call("org.exclfs.Release", ids=[held["id"]])
    assert "error" not in await other.receive()
    await server.until(lambda: server.lookups.known.total() == 0)
    await other.stream.aclose()


@pytest.mark.parametrize("settings", [{"owner": os.geteuid(), "limits": evolve(Limits(), waiting=2)}])
async def test_of_one_user_so_many_calls_may_wait(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a")
    others = [await Client.connect(server.socket) for _ in range(3)]
    for other in others[:2]:
        await begin(other, server)
    reply = await others[2].call("org.exclfs.Hold", **wish(FOR_EVER))
    assert reply["error"] == "org.exclfs.NotPermitted"
    assert reply["parameters"]["why"] == (
        f"2 calls of uid {os.getuid()} wait for a claim, which is the limit; end one and try again"
    )
    await others[0].stream.aclose()
    await server.until(lambda: server.keeper.waiting == 1)
    await begin(others[2], server)
    for other in others[1:]:
        await other.stream.aclose()
