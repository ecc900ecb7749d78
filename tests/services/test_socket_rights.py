"""Who may know and do what on the socket."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from serving import NOBODY, Client, Running, hold_parameters, message

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.root
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
    await server.until(lambda: server.lookups.known.total() == 0)
    ours = await client.call("org.exclfs.Holds")
    assert len(ours["parameters"]["holds"]) == 2


@pytest.mark.root
async def test_others_release_and_place_nothing_of_ours(server: Running, client: Client, top: Path) -> None:
    (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
    by_id, by_object, broken, placed = await ask_as_nobody(
        server,
        message("org.exclfs.Release", ids=[held["id"]]),
        message("org.exclfs.Release", object={"path": "a"}),
        message("org.exclfs.Release", object={"path": "a"}, break_it=True),
        message("org.exclfs.Hold", **hold_parameters(objects=[{"path": "a"}], flags=["NO_REMOVE"])),
    )
    for reply in by_id, by_object, broken, placed:
        assert reply["error"] == "org.exclfs.NotPermitted"
    assert by_object["parameters"]["why"].startswith("hold h1 is tester's, and only root, the owner of the mount, ")
    assert server.refusing("a") == ["tester"]
