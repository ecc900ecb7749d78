"""Events, on both clients: none is missed, and a stream ends as it should, whoever ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

import exclfs
from exclfs.client import sync_client, trio_client
from exclfs.client.errors import BadAnswer, Disconnected, EventsLost, Listening
from exclfs.holds.errors import BadObject
from exclfs.holds.events import Locked, ModeChanged, Unlocked
from exclfs.holds.holder import Process
from exclfs.holds.mode import Mode
from exclfs.wire.envelope import write_reply
from exclfs.wire.errors import error_to_json
from exclfs.wire.framing import encode
from exclfs.wire.messages import EventsCall, EventsReply

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from hold_server import HoldServer

EVENT = ModeChanged(datetime(2022, 1, 31, tzinfo=UTC), Mode.ENFORCE, Mode.WARN, Process(7, 0))


async def test_what_happens_once_it_is_made_is_not_missed(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client, client.events() as stream:
        (hold,) = await client.hold(file)
        await client.release(hold)
        assert await anext(stream) == Locked(hold.since, hold)
        event = await anext(stream)
        assert isinstance(event, Unlocked)
        assert event.hold == hold
    (call,) = server.called(EventsCall)
    assert call.object is None
    assert not call.own


async def test_of_one_object(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client, client.events(file):
        pass
    (call,) = server.called(EventsCall)
    assert call.object.fd == 0


async def test_several_that_come_at_once(connected: Any, server: HoldServer) -> None:
    def answer(connection: socket.socket) -> None:
        reply = encode(write_reply(EventsReply(), continues=True))
        event = encode(write_reply(EventsReply(EVENT), continues=True))
        connection.sendall(reply + 2 * event + event[:7])
        connection.sendall(event[7:])

    server.answer = answer
    async with connected() as client, client.events() as stream:
        assert [await anext(stream) for _ in range(3)] == [EVENT] * 3
        with pytest.raises(Disconnected):
            await anext(stream)


async def test_a_stream_of_its_own_leaves_the_client_alone(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        async with client.events():
            await client.hold(file)
        await trio.to_thread.run_sync(server.ended.acquire)
        assert len(await client.holds()) == 1


async def test_with_own_it_takes_the_connection(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        (hold,) = await client.hold(file)
        async with client.events(own=True) as stream:
            for call in (client.holds, client.status, client.wait_until_closed):
                with pytest.raises(Listening):
                    await call()
            server.tell(EVENT)
            assert await anext(stream) == EVENT
            assert server.registry.all()
        await trio.to_thread.run_sync(server.ended.acquire)
        assert server.registry.all() == ()
        with pytest.raises(Disconnected):
            await client.release(hold)
    (call,) = server.called(EventsCall)
    assert call.own


async def test_a_stream_that_is_refused_takes_no_connection(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        for own in (True, False):
            with pytest.raises(FileNotFoundError):
                async with client.events(file.parent / "none", own=own):
                    pass
        assert await client.holds() == ()
        server.answer = lambda connection: connection.sendall(encode(error_to_json(BadObject("no"))))
        with pytest.raises(BadObject):
            async with client.events():
                pass
        server.answer = None
        assert await client.holds() == ()


async def test_the_end_of_the_server(connected: Any, server: HoldServer) -> None:
    async with connected() as client, client.events() as stream:
        server.tell(EVENT)
        server.hang_up()
        assert await anext(stream) == EVENT
        for _ in range(2):
            with pytest.raises(Disconnected):
                await anext(stream)


async def test_events_that_are_lost(connected: Any, server: HoldServer) -> None:
    async with connected() as client, client.events() as stream:
        server.tell(EVENT)
        server.lose(17)
        server.tell(EVENT)
        assert await anext(stream) == EVENT
        with pytest.raises(EventsLost) as caught:
            await anext(stream)
        assert caught.value.number == 17
        assert await anext(stream) == EVENT, "it goes on"


# --- the past --------------------------------------------------------------------------------------------------------


async def test_the_past_is_asked_for(connected: Any, server: HoldServer) -> None:
    async with connected() as client, client.events(since=EVENT.at, follow=False) as stream:
        assert stream.missed == 0
    async with connected() as client, client.events():
        pass
    past, present = server.called(EventsCall)
    assert (past.since, past.follow) == (EVENT.at, False)
    assert (present.since, present.follow) == (None, True)


async def test_how_much_of_it_is_not_known(connected: Any, server: HoldServer) -> None:
    server.answer = lambda connection: connection.sendall(encode(write_reply(EventsReply(missed=7), continues=True)))
    async with connected() as client, client.events(since=EVENT.at) as stream:
        assert stream.missed == 7


@pytest.mark.parametrize("own", [True, False])
async def test_a_stream_that_does_not_follow_ends(connected: Any, server: HoldServer, own: bool) -> None:
    async with connected() as client, client.events(own=own, follow=False) as stream:
        server.tell(EVENT)
        server.end_streams()
        assert [event async for event in stream] == [EVENT]
        assert [event async for event in stream] == []
        await client.holds()  # the connection is free again


async def test_a_stream_that_has_ended_before_it_began(connected: Any, server: HoldServer) -> None:
    server.answer = lambda connection: connection.sendall(encode(write_reply(EventsReply())))
    async with connected() as client, client.events(follow=False) as stream:
        assert [event async for event in stream] == []


async def test_a_time_without_a_zone_is_none(connected: Any, server: HoldServer) -> None:
    async with connected() as client:
        with pytest.raises(ValueError, match="time zone"):
            async with client.events(own=True, since=datetime(2026, 11, 22)):
                pass
        await client.holds()


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_what_is_no_event(connected: Any, server: HoldServer) -> None:
    def answer(connection: socket.socket) -> None:
        reply = encode(write_reply(EventsReply(), continues=True))
        connection.sendall(reply + b'{"parameters":{"event":{"event":"what"}}}\0')

    server.answer = answer
    async with connected() as client, client.events() as stream:
        with pytest.raises(BadAnswer):
            await anext(stream)


async def test_who_closes_it_ends_the_iteration(connected: Any, server: HoldServer) -> None:
    async with connected() as client, client.events() as stream, trio.open_nursery() as nursery:
        reading = trio.Event()

        async def read() -> None:
            reading.set()
            assert [event async for event in stream] == []

        nursery.start_soon(read)
        await reading.wait()
        stream.close()
        assert [event async for event in stream] == []


def test_a_loop_of_the_blocking_client(found: HoldServer, file: Path) -> None:
    with exclfs.events(file) as stream:
        found.tell(EVENT, EVENT)
        for number, event in enumerate(stream):
            assert event == EVENT
            if number == 1:
                stream.close()
    assert list(stream) == []


def test_of_the_root_of_a_mount_everything_is_told(found: HoldServer, file: Path) -> None:
    with exclfs.events(file):  # `found` takes it for the root
        pass
    (call,) = found.called(EventsCall)
    assert call.object is None


def test_of_another_path_what_concerns_it(
    server: HoldServer, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = sync_client.discovery.Server("/mnt", server.where.socket, os.getuid(), whole=False, st_dev=0)
    monkeypatch.setattr("exclfs.client.discovery.find", lambda path: where)
    with exclfs.events(file, own=True):
        pass
    (call,) = server.called(EventsCall)
    assert (call.object.fd, call.own) == (0, True)
    with pytest.raises(FileNotFoundError):
        exclfs.events(tmp_path / "none")


async def test_the_function_of_trio(found: HoldServer, file: Path) -> None:
    async with trio_client.events(file) as stream:
        found.tell(EVENT)
        assert await anext(stream) == EVENT
        stream.close()
        assert [event async for event in stream] == []


async def test_on_trio_waiting_may_be_cancelled_and_nothing_is_lost(server: HoldServer) -> None:
    async with await trio_client.reach(server.where) as client, client.events() as stream:
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(stream)
            assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, stream)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        server.tell(EVENT)
        assert await anext(stream) == EVENT


def test_in_a_thread(server: HoldServer) -> None:
    with sync_client.reach(server.where) as client, client.events() as stream:
        seen: list[object] = []
        thread = threading.Thread(target=lambda: seen.extend(stream))
        thread.start()
        server.tell(EVENT)
        stream.close()
        thread.join()
        assert seen in ([], [EVENT])


FORKED = """
import os, sys
from exclfs.client.discovery import Server
from exclfs.client.errors import Disconnected
from exclfs.client.sync_client import reach

client = reach(Server("/mnt", sys.argv[1], os.getuid(), whole=True, st_dev=0))
stream = client.events()
child = os.fork()
if child == 0:
    try:
        next(stream)
    except Disconnected:
        stream.close()
        os._exit(7)
    os._exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(client.mode("warn"), flush=True)
print(next(stream).name)
"""


def test_after_a_fork_it_is_the_parents(server: HoldServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, server.where.socket], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "warn\n"
        server.tell(EVENT)
        assert parent.stdout.read() == "mode_changed\n"
