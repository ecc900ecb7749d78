"""Who asks for events gets those that concern it, until it hangs up or does not read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio
from serving import NOBODY, Client, Running, descriptors_open, descriptors_with, hold_parameters, message, opened

from exclfs.holds.events import EVENTS, LockFailed, ModeChanged, Refused, UnlockBad
from exclfs.holds.flags import DEFAULT, Operation
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection
from exclfs.holds.mode import Mode
from exclfs.services import event_streams
from exclfs.services.event_streams import (
    EventStream,
    concerns_holder,
    concerns_inode,
    concerns_user,
    holds_of,
    requester_of,
)
from exclfs.wire.errors import EventsLost

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, tzinfo=UTC)
HELD, OTHER = Inode(1, 2, 2), Inode(1, 3, 3)
ALICE, BOB, CAROL = Process(10, 1000, start_time=1), Process(20, 1001, start_time=2), Process(30, 1002, start_time=3)
HOLD = Hold("h1", HELD, "/mnt/a", DEFAULT, Holder("alice", ALICE), "", NOW, (Connection(7),))


async def subscribe(client: Client, *passed: int, **parameters: Any) -> None:
    """Asks for events, and sees that the subscription stands."""
    call = {"method": "org.exclfs.Events", "parameters": parameters, "more": True}
    await client.send(json.dumps(call).encode() + b"\0", passed)
    assert await client.receive() == {"parameters": {"event": None}, "continues": True}


async def next_event(client: Client) -> tuple[str, str]:
    """What happened, and whose hold it was."""
    reply = await client.receive()
    assert reply["continues"]
    event = reply["parameters"]["event"]
    return event["event"], event["hold"]["holder"]["name"]


async def test_tells_everything_from_now_on(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "b", holder="before")
    async with (await Client.connect(server.socket)).stream as stream:
        subscriber = Client(stream)
        await subscribe(subscriber)
        (held,) = (await client.hold(top / "a"))["parameters"]["holds"]
        await client.call("org.exclfs.Release", ids=[held["id"]])
        assert await next_event(subscriber) == ("locked", "tester")
        assert await next_event(subscriber) == ("unlocked", "tester")
    await server.until(lambda: len(server.peers) == 1)
    await client.hold(top / "a")  # of which nobody is told


async def test_a_holder_is_told_of_what_concerns_its_holds(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a", holder="ours")
    others = await Client.connect(server.socket)
    with_pid = hold_parameters(objects=[{"path": "private/c"}], holder="bound", lifetime={"pid": os.getppid()})
    await subscribe(client, own=True)
    await others.call("org.exclfs.Hold", **with_pid)
    await others.call("org.exclfs.Release", object={"path": "a"})
    assert await next_event(client) == ("unlocked", "ours")
    await others.stream.aclose()


async def test_tells_of_one_inode(server: Running, client: Client, top: Path) -> None:
    for_path, for_descriptor = [await Client.connect(server.socket) for _ in range(2)]
    before = await descriptors_with(for_descriptor)
    await subscribe(for_path, object={"path": "a"})
    with opened(top / "a") as passed:
        await subscribe(for_descriptor, *passed, object={"fd": 0})
    assert descriptors_open() == before  # or it would keep the mount busy
    await client.hold(top / "b", holder="elsewhere")
    await client.hold(top / "a")
    for subscriber in for_path, for_descriptor:
        assert await next_event(subscriber) == ("locked", "tester")
        await subscriber.stream.aclose()
    await server.until(lambda: server.lookups.known.total() == 0)


@pytest.mark.parametrize(
    ("call", "error", "parameters"),
    [
        ({"method": "org.exclfs.Events"}, "org.varlink.service.ExpectedMore", {}),
        (
            {"method": "org.exclfs.Events", "more": True, "parameters": {"object": {"path": "none"}}},
            "org.exclfs.BadObject",
            None,
        ),
    ],
)
async def test_a_stream_that_cannot_be(
    client: Client, call: dict[str, Any], error: str, parameters: dict[str, Any] | None
) -> None:
    await client.send(json.dumps(call).encode() + b"\0")
    reply = await client.receive()
    assert reply["error"] == error
    assert parameters in (None, reply["parameters"])
    assert "continues" not in reply
    assert "error" not in await client.call("org.exclfs.Status")


async def test_a_stream_that_nobody_reads_is_not_begun(client: Client) -> None:
    await client.send(json.dumps({"method": "org.exclfs.Events", "more": True, "oneway": True}).encode() + b"\0")
    assert "error" not in await client.call("org.exclfs.Status")


@pytest.mark.parametrize("patience", [0.01])
async def test_who_does_not_read_delays_nobody_and_is_told_what_it_missed(
    server: Running, client: Client, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_streams, "CAPACITY", 10)
    deaf = await Client.connect(server.socket)
    await deaf.hold(top / "b", holder="deaf")
    await subscribe(deaf)
    for _ in range(500):  # more than goes into the socket's buffer
        reply = await client.hold(top / "a", reason="x" * 1000)
        await client.call("org.exclfs.Release", ids=[reply["parameters"]["holds"][0]["id"]])
    told = 0
    while "error" not in (reply := await deaf.receive()):
        assert reply["continues"]
        told += 1
    assert reply["error"] == "org.exclfs.EventsLost"
    assert "continues" not in reply
    assert told + reply["parameters"]["number"] == 1000
    assert "error" not in await deaf.call("org.exclfs.Status")
    assert server.refusing("b") == ["deaf"]
    await deaf.stream.aclose()


async def test_a_stream_ends_with_its_subscriber(server: Running, client: Client) -> None:
    for more in b"", message("org.exclfs.Status"):
        subscriber = await Client.connect(server.socket)
        await subscribe(subscriber)
        await subscriber.send(more)
        await subscriber.stream.aclose()
        await server.until(lambda: len(server.peers) == 1)


ASK = """if True:
    import os, socket, sys
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[2])
    connection.sendall(sys.argv[3].encode() + bytes(1))
    replies = connection.makefile("rb")
    def reply():
        message = b""
        while not message.endswith(bytes(1)):
            message += replies.read(1)
        print(message[:-1].decode(), flush=True)
    reply()
    reply()
"""


@pytest.mark.root
async def test_others_are_told_of_what_they_take_part_in(server: Running, client: Client, top: Path) -> None:
    os.chown(top / "b", NOBODY, NOBODY)
    call = json.dumps({"method": "org.exclfs.Events", "more": True})
    command = [sys.executable, "-c", ASK, str(NOBODY), server.socket, call]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with process.stdout as lines:
        assert b"null" in await lines.receive_some()
        await client.hold(top / "a")
        theirs = hold_parameters(objects=[{"path": "b"}], holder="theirs", lifetime={"pid": process.pid})
        assert "error" not in await client.call("org.exclfs.Hold", **theirs)
        event = json.loads(await lines.receive_some())["parameters"]["event"]
        assert (event["event"], event["hold"]["holder"]["name"]) == ("locked", "theirs")
    await process.wait()


# --- the stream itself -----------------------------------------------------------------------------------------------


async def test_what_could_wait_is_told_before_what_was_lost() -> None:
    stream = EventStream(lambda event: True, capacity=2)
    events = [ModeChanged(NOW, Mode.OFF, Mode.WARN, Process(pid, 0)) for pid in range(1, 6)]
    for event in events:
        stream.tell(event)
    assert [await stream.next(), await stream.next()] == events[:2]
    stream.tell(events[0])  # too late: what comes after a gap could mislead
    with pytest.raises(EventsLost) as caught:
        await stream.next()
    assert caught.value.number == 4


def test_what_is_not_wanted_takes_no_room() -> None:
    stream = EventStream(lambda event: False, capacity=0)
    stream.tell(UnlockBad(NOW, "h1", BOB, "gone"))
    assert stream._lost == 0


def test_of_every_event_is_known_whom_it_concerns() -> None:
    for kind in EVENTS:
        fields = {"hold": HOLD, "conflict": HOLD, "holds": (HOLD,), "path": "/mnt/a", "inode": HELD, "id": "h1"}
        fields |= {"operation": Operation.RMDIR, "requester": BOB, "why": "", "before": Mode.OFF, "after": Mode.WARN}
        event = kind(NOW, **{name: value for name, value in fields.items() if name in kind.__annotations__})
        has_hold = bool({"hold", "conflict", "holds"} & kind.__annotations__.keys())
        assert holds_of(event) == ((HOLD,) if has_hold else ())
        assert requester_of(event) == (BOB if "requester" in kind.__annotations__ else None)
        assert concerns_user(event, ALICE.uid) is has_hold
        assert concerns_user(event, BOB.uid) is ("requester" in kind.__annotations__)
        assert not concerns_user(event, CAROL.uid)
        assert concerns_holder(event, Connection(7), CAROL) is has_hold
        assert concerns_holder(event, Connection(8), ALICE) is has_hold
        assert not concerns_holder(event, Connection(8), BOB)
        assert concerns_inode(event, HELD) is has_hold
        assert not concerns_inode(event, OTHER)


def test_what_is_refused_from_above_concerns_both_inodes() -> None:
    refused = Refused(NOW, Operation.RENAME, "/mnt/a/b", OTHER, BOB, (HOLD,))
    failed = LockFailed(NOW, "/mnt/a/b", OTHER, BOB, HOLD)
    for event in refused, failed:
        assert concerns_inode(event, OTHER)
        assert concerns_inode(event, HELD)
