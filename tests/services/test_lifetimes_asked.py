"""What a client may name as the end of its holds, and who holds then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from serving import NOBODY, Client, Running, descriptors_open, descriptors_with, hold_parameters, opened, serving

import unserved

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is killed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            os.write(process.stdin.fileno(), b"!")
            os.read(process.stdout.fileno(), 1)  # so it has its comm, which execve(2) gives it last
            yield process
        finally:
            process.kill()


async def hold(client: Client, *passed: int, name: str = "a", **lifetime: Any) -> dict[str, Any]:
    """The reply to a call that holds this path with this lifetime."""
    parameters = hold_parameters(objects=[{"path": name}], flags=["NO_REMOVE"], lifetime=lifetime)
    return await client.call("org.exclfs.Hold", passed=passed, **parameters)


def kinds(reply: dict[str, Any]) -> list[str]:
    assert "error" not in reply, reply
    return [end["kind"] for end in reply["parameters"]["holds"][0]["ends"]]


async def test_without_any_it_is_the_connection(client: Client) -> None:
    assert kinds(await hold(client)) == ["connection"]
    assert kinds(await hold(client, ttl=None, unmount=False)) == ["connection"]
    reply = await client.call("org.exclfs.Hold", **hold_parameters(objects=[{"path": "b"}], lifetime=None))
    assert kinds(reply) == ["connection"]


async def test_naming_one_replaces_the_connection_and_several_may_be_named(client: Client) -> None:
    assert kinds(await hold(client, unmount=True)) == ["unmount"]
    assert kinds(await hold(client, ttl=60)) == ["time"]
    assert kinds(await hold(client, unmount=True, connection=True)) == ["connection", "unmount"]
    assert kinds(await hold(client, pid=os.getpid(), ttl=60, connection=True)) == ["connection", "process", "time"]


async def test_a_hold_that_nothing_ends_is_none(client: Client) -> None:
    reply = await hold(client, connection=False)
    assert (reply["error"], reply["parameters"]["why"]) == ("org.exclfs.BadHold", "a hold must say what ends it")


HOUR_HAND = [0.0]


@pytest.mark.parametrize("settings", [{"owner": os.geteuid(), "clock": lambda: HOUR_HAND[0]}])
async def test_a_time_comes_and_ends_it(server: Running, client: Client) -> None:
    HOUR_HAND[0] = 1000.0
    reply = await hold(client, ttl=3600.5)
    assert kinds(reply) == ["time"]
    assert reply["parameters"]["holds"][0]["ends"][0]["at"].endswith("Z")
    HOUR_HAND[0] += 3600
    assert server.refusing("a") == ["tester"]
    HOUR_HAND[0] += 1
    assert server.refusing("a") == []
    assert server.server.told[-1] == "expired"


async def test_persistent_holds_need_a_state_file(client: Client, top: Path) -> None:
    reply = await hold(client, persistent=True)
    assert (reply["error"], "--state FILE" in reply["parameters"]["why"]) == ("org.exclfs.BadHold", True)
    with unserved.server(top, top.parent / "state", mountpoint=str(top)) as behind:
        async with serving(behind) as running:
            other = await Client.connect(running.socket)
            assert kinds(await hold(other, persistent=True, ttl=60)) == ["time", "state file"]
            await other.stream.aclose()


# --- processes -------------------------------------------------------------------------------------------------------


async def test_with_a_process_by_its_number(server: Running, client: Client) -> None:
    with sleeping() as process:
        reply = await hold(client, pid=process.pid)
        (held,) = reply["parameters"]["holds"]
        assert held["ends"] == [{"kind": "process", "pid": process.pid, "at": None}]
        assert (held["holder"]["name"], held["holder"]["pid"], held["holder"]["comm"]) == (
            "tester",
            process.pid,
            "cat",
        )
        process.kill()
        process.wait()  # in this thread, so that the server has no time to notice
        assert server.refusing("a") == []
    await server.until(lambda: not len(server.server.reaper))


async def test_with_a_process_by_a_descriptor_of_it_beside_those_of_the_objects(
    server: Running, client: Client, top: Path
) -> None:
    before = await descriptors_with(client)
    with sleeping() as process, opened(top / "a", top / "b") as passed:
        pidfd = os.pidfd_open(process.pid)
        reply = await client.call(
            "org.exclfs.Hold", passed=[*passed, pidfd], **hold_parameters(2, lifetime={"pidfd": 2})
        )
        os.close(pidfd)
        assert kinds(reply) == ["process"]
        assert {held["holder"]["pid"] for held in reply["parameters"]["holds"]} == {process.pid}
        assert len(server.server.reaper) == 1
        process.kill()
        process.wait()
        assert server.refusing("a") == server.refusing("b") == []
    await server.until(lambda: descriptors_open() == before)


async def test_a_hold_outlives_the_connection_that_bound_it_to_a_process(server: Running) -> None:
    client = await Client.connect(server.socket)
    assert kinds(await hold(client, pid=os.getpid())) == ["process"]
    await client.stream.aclose()
    await server.until(lambda: not server.peers)
    assert server.refusing("a") == ["tester"]


async def test_a_process_is_not_watched_for_a_hold_that_was_not_placed(
    server: Running, client: Client, top: Path
) -> None:
    before = await descriptors_with(client)
    reply = await hold(client, name="none", pid=os.getpid())
    assert reply["error"] == "org.exclfs.BadObject"
    await server.until(lambda: len(server.server.reaper) == 0 and descriptors_open() == before)


@pytest.mark.parametrize(
    ("lifetime", "why"),
    [
        ({"pid": 4_194_304}, "process 4194304: No such process"),
        ({"pidfd": 0}, "the descriptor is not that of a process; pidfd_open(2) makes one"),
        ({"pidfd": 1}, "there is no descriptor 1: 1 came with the call"),
    ],
)
async def test_a_process_that_is_none(
    server: Running, client: Client, top: Path, lifetime: dict[str, Any], why: str
) -> None:
    before = await descriptors_with(client)
    with opened(top / "a") as passed:
        reply = await hold(client, *passed, **lifetime)
    assert reply == {"error": "org.exclfs.BadHold", "parameters": {"why": why}}
    await server.until(lambda: descriptors_open() == before)


async def test_a_thread_is_no_process(client: Client) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        reply = await hold(client, pid=thread.native_id)
    finally:
        over.set()
        thread.join()
    assert reply["parameters"]["why"] == f"{thread.native_id} is a thread; name its process"


async def test_a_pidfd_is_no_object(client: Client) -> None:
    pidfd = os.pidfd_open(os.getpid())
    reply = await client.call("org.exclfs.Hold", passed=[pidfd], **hold_parameters(lifetime={"pidfd": 0}))
    os.close(pidfd)
    assert reply["error"] == "org.exclfs.BadObject"


@pytest.mark.root
async def test_processes_of_others_end_no_hold(server: Running, top: Path) -> None:
    os.chown(top / "a", NOBODY, NOBODY)
    code = """if True:
        import os, socket, sys
        os.setresuid(*[65534] * 3)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(sys.argv[1])
        connection.sendall(sys.argv[2].encode() + bytes(1))
        print(connection.recv(65536)[:-1].decode())
    """
    parameters = hold_parameters(objects=[{"path": "a"}], lifetime={"pid": os.getpid()})
    call = await as_a_program(code, server, parameters)
    assert b"only root and its own user may have a hold end with process" in call
    assert b"org.exclfs.NotPermitted" in call


@pytest.mark.root
async def test_a_number_from_another_pid_namespace_is_not_taken_for_one_of_ours(server: Running) -> None:
    code = """if True:
        import os, socket, sys
        unshare = __import__("ctypes").CDLL(None).unshare
        assert unshare(0x20000000) == 0  # CLONE_NEWPID
        if os.fork() == 0:
            assert os.getpid() == 1
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(sys.argv[1])
            connection.sendall(sys.argv[2].encode() + bytes(1))
            print(connection.recv(65536)[:-1].decode(), flush=True)
            os._exit(0)
        os.wait()
    """
    parameters = hold_parameters(objects=[{"path": "a"}], lifetime={"pid": 1})
    reply = await as_a_program(code, server, parameters)
    assert b"process 1 cannot be named by its number from another pid namespace; pass a pidfd of it along" in reply
    assert server.refusing("a") == []


async def as_a_program(code: str, server: Running, parameters: dict[str, Any]) -> bytes:
    """What a program prints that makes this Hold call."""
    call = json.dumps({"method": "org.exclfs.Hold", "parameters": parameters})
    done = await trio.run_process([sys.executable, "-c", code, server.socket, call], capture_stdout=True)
    return done.stdout
