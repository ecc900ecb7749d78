"""Who asks for events gets those that concern it, until it hangs up or does not read."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from serving import NOBODY, Client, Running, descriptors_open, descriptors_with, hold_parameters, message, opened

from exclfs.holds.events import ModeChanged, UnlockBad
from exclfs.holds.holder import Process
from exclfs.holds.mode import Mode
from exclfs.keeper.past import BYTES, Past
from exclfs.services.event_streams import EventStream
from exclfs.wire.messages import EventsReply

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 22, tzinfo=UTC)
BOB = Process(20, 1001, start_time=2)


async def subscribe(client: Client, *passed: int, missed: int = 0, **parameters: Any) -> None:
    """Asks for events, and sees that the subscription stands."""
    call = {"method": "org.exclfs.Events", "parameters": parameters, "more": True}
    await client.send(json.dumps(call).encode() + b"\0", passed)
    assert await client.receive() == {"parameters": {"event": None, "missed": missed}, "continues": True}


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
    monkeypatch.setattr(server.keeper.record, "past", Past(most=10))
    deaf = await Client.connect(server.socket)
    await deaf.hold(top / "b", holder="deaf")
    await subscribe(deaf)
    for _ in range(500):  # more than goes into the socket's buffer
        reply = await client.hold(top / "a", reason="x" * 1000)
        await client.call("org.exclfs.Release", ids=[reply["parameters"]["holds"][0]["id"]])
    told = missed = 0
    while told + missed < 1000:
        reply = await deaf.receive()
        assert reply["continues"]
        told += reply["parameters"]["event"] is not None
        missed += reply["parameters"]["missed"]
    assert missed
    assert told + missed == 1000
    assert server.refusing("b") == ["deaf"]
    refused = (await deaf.receive())["parameters"]["event"]  # the stream has gone on
    assert (refused["event"], refused["path"]) == ("refused", "b")
    await deaf.stream.aclose()


async def test_the_memory_of_the_server_is_bounded_whoever_does_not_read(server: Running, top: Path) -> None:
    deaf = await Client.connect(server.socket)
    await subscribe(deaf)
    past = server.keeper.record.past
    begin, number = past.next, 100_000
    gc.collect()
    tracemalloc.start()
    try:
        for each in range(number):
            why = f"{each:>2000}"
            server.keeper.record.tell(UnlockBad(NOW, "h1", BOB, why))
            if each % 100 == 0:
                server.server.events.clear()  # of the test's own
                await trio.lowlevel.checkpoint()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 1.5 * BYTES < number * 2000
    told = 0
    while not (missed := (await deaf.receive())["parameters"]["missed"]):
        told += 1
    assert begin + told + missed == past.first
    await deaf.stream.aclose()


# --- the past --------------------------------------------------------------------------------------------------------


async def test_first_what_has_happened_and_then_what_happens(server: Running, client: Client, top: Path) -> None:
    begin = datetime.now(UTC)
    for holder in "first", "second":
        reply = await client.hold(top / "a", holder=holder)
        await client.call("org.exclfs.Release", ids=[reply["parameters"]["holds"][0]["id"]])
    subscriber = await Client.connect(server.socket)
    await subscribe(subscriber, since=begin.isoformat())
    await client.hold(top / "a", holder="third")
    for holder in "first", "second":
        assert await next_event(subscriber) == ("locked", holder)
        assert await next_event(subscriber) == ("unlocked", holder)
    assert await next_event(subscriber) == ("locked", "third")
    await subscriber.stream.aclose()


async def test_the_past_alone_ends_and_the_connection_serves_on(server: Running, client: Client, top: Path) -> None:
    await client.hold(top / "a", holder="first")
    (second,) = (await client.hold(top / "b", holder="second"))["parameters"]["holds"]
    for since, told in (None, ["first", "second"]), (second["since"], ["second"]), ("9999-01-01T00:00:00Z", []):
        await subscribe(client, since=since, follow=False)
        assert [(await next_event(client))[1] for _ in told] == told
        assert await client.receive() == {"parameters": {"event": None, "missed": 0}}
    assert "error" not in await client.call("org.exclfs.Status")


async def test_of_the_past_is_told_how_much_is_not_kept(
    server: Running, client: Client, top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.keeper.record, "past", Past(most=2))
    holds = [(await client.hold(top / name))["parameters"]["holds"][0] for name in ("a", "b", "private/c")]
    for since, missed in (None, 1), (holds[0]["since"], 1), (holds[2]["since"], 0):
        await subscribe(client, missed=missed, since=since, follow=False)
        while (await client.receive()).get("continues"):
            pass


async def test_the_past_of_one_inode(server: Running, client: Client, top: Path) -> None:
    for name in "a", "b":
        await client.hold(top / name, holder=name)
    await subscribe(client, object={"path": "b"}, follow=False)
    assert await next_event(client) == ("locked", "b")
    assert "continues" not in await client.receive()


@pytest.mark.parametrize("since", ["yesterday", "2026-11-22T14:00:00", 7])
async def test_a_past_that_begins_at_no_time(client: Client, since: object) -> None:
    call = {"method": "org.exclfs.Events", "more": True, "parameters": {"since": since}}
    await client.send(json.dumps(call).encode() + b"\0")
    assert (await client.receive())["parameters"] == {"parameter": "since"}


async def test_between_past_and_present_nothing_is_lost_or_told_twice(
    server: Running, client: Client, top: Path
) -> None:
    """Subscribers come all the time while a thousand holds come and go: each is told of all of them, in order."""
    begin, rounds = datetime.now(UTC).isoformat(), 500
    ids: list[str] = []

    async def hammer() -> None:
        for _ in range(rounds):
            (hold,) = (await client.hold(top / "a"))["parameters"]["holds"]
            await client.call("org.exclfs.Release", ids=[hold["id"]])
            ids.append(hold["id"])

    async def listen() -> None:
        subscriber = await Client.connect(server.socket)
        await subscribe(subscriber, since=begin)
        events = [(await subscriber.receive())["parameters"]["event"] for _ in range(2 * rounds)]
        await subscriber.stream.aclose()
        told.append([(event["event"], event["hold"]["id"]) for event in events])

    told: list[list[tuple[str, str]]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hammer)
        for number in range(20):
            await server.until(lambda: len(ids) >= number * rounds // 20)  # noqa: B023 - awaited in this very round
            nursery.start_soon(listen)
    assert told == 20 * [[(name, each) for each in ids for name in ("locked", "unlocked")]]


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
    async with process.stdout as told:

        async def line() -> bytes:
            read = b""
            while not read.endswith(b"\n"):
                read += await told.receive_some(1)
            return read

        assert b"null" in await line()
        await client.hold(top / "a")
        theirs = hold_parameters(objects=[{"path": "b"}], holder="theirs", lifetime={"pid": process.pid})
        assert "error" not in await client.call("org.exclfs.Hold", **theirs)
        event = json.loads(await line())["parameters"]["event"]
        assert (event["event"], event["hold"]["holder"]["name"]) == ("locked", "theirs")
    await process.wait()


# --- the stream itself -----------------------------------------------------------------------------------------------


def switched(pid: int) -> ModeChanged:
    return ModeChanged(NOW, Mode.OFF, Mode.WARN, Process(pid, 0))


async def test_what_is_still_kept_is_told_after_what_was_missed() -> None:
    past = Past(most=2)
    stream = EventStream(past, lambda event: True)
    for pid in range(1, 6):
        past.add(switched(pid))
        stream.tell(switched(pid))
    assert await stream.next() == EventsReply(missed=3)
    assert [await stream.next(), await stream.next()] == [EventsReply(switched(pid)) for pid in (4, 5)]


async def test_a_past_that_is_forgotten_while_it_is_told_was_missed_as_far_as_it_was_wanted() -> None:
    past = Past(most=2)
    for pid in (1, 2):
        past.add(switched(pid))
    stream = EventStream(past, lambda event: True, follow=False)
    assert await stream.next() == EventsReply(switched(1))
    for pid in range(3, 7):
        past.add(switched(pid))
    assert await stream.next() == EventsReply(missed=1)
    assert await stream.next() is None


async def test_who_waits_is_woken_by_what_it_wants_and_misses_nothing_that_comes_before_its_turn() -> None:
    past = Past(most=3)
    stream = EventStream(past, lambda event: event.requester.pid == 7)  # type: ignore[attr-defined]
    replies: list[EventsReply | None] = []

    async def read() -> None:
        replies.append(await stream.next())

    def tell(*pids: int) -> None:
        for pid in pids:
            past.add(switched(pid))
            stream.tell(switched(pid))

    for before, after in ((1, 2, 3, 4, 5, 6), ()), ((), (8, 9)), ((1, 2), (3,)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            tell(*before, 7, *after)
    assert replies == 3 * [EventsReply(switched(7))]


async def test_much_that_is_not_wanted_gives_others_a_turn() -> None:
    past = Past()
    for _ in range(1000):
        past.add(switched(1))
    stream = EventStream(past, lambda event: False, follow=False)
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.next()
    assert scope.cancelled_caught
