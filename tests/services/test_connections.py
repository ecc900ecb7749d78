"""A connection is its process: when that has died the connection has ended, and its holds with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import trio
from serving import Client, Running, descriptors_open, hold_parameters, message, serving

import unserved

if TYPE_CHECKING:
    from pathlib import Path


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
        await server.until(lambda: not server.peers)
        assert not select.select([process.stdout], [], [], 0)[0]  # for the child lives, and has what it inherited


BECOME_ANOTHER = """if True:
    import socket, sys
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    for name in "first", "second":
        open("/proc/self/comm", "w").write(name)
        connection.sendall(sys.argv[2].encode() + bytes(1))
        connection.recv(65536)
"""


async def test_a_process_is_described_as_what_it_is_at_each_call(server: Running) -> None:
    parameters = hold_parameters(objects=[{"path": "a"}], flags=["NO_REMOVE"], lifetime={"unmount": True})
    call = message("org.exclfs.Hold", **parameters)[:-1].decode()
    await trio.run_process([sys.executable, "-c", BECOME_ANOTHER, server.socket, call])
    assert [hold.holder.process.comm for hold in server.keeper.registry.all()] == ["first", "second"]


async def test_a_dead_connection_is_known_as_dead_at_once(server: Running, top: Path) -> None:
    client = await Client.connect(server.socket)
    await client.hold(top / "a")
    (liveness,) = server.peers
    assert liveness.is_alive()
    client.stream.socket.close()
    assert not liveness.is_alive()
    await server.until(lambda: not server.peers)
    assert not liveness.is_alive()


async def test_nothing_is_left_when_the_server_ends(top: Path) -> None:
    before = descriptors_open()
    with unserved.server(top) as behind:
        async with serving(behind) as running:
            client = await Client.connect(running.socket)
            await client.hold(top / "a")
        assert behind.keeper.registry.all() == ()
    await client.ended()
    await client.stream.aclose()
    assert set(os.listdir(top.parent)) - {".lock"} == {"tree"}
    assert descriptors_open() <= before + 2  # trio's own, made when they are first needed
