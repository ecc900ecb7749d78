"""Calls about more objects than descriptors can go along with: by path, in one call."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.client.sockets import MOST_DESCRIPTORS
from exclfs.holds.errors import BadObject, Held
from exclfs.holds.lifetime import Exit, Time
from exclfs.wire.messages import MAX_OBJECTS, HoldCall, ReleaseCall, RenewCall

if TYPE_CHECKING:
    from pathlib import Path

    from hold_server import HoldServer


def files(directory: Path, number: int) -> list[Path]:
    paths = [directory / str(name) for name in range(number)]
    for path in paths:
        path.touch()
    return paths


async def test_as_long_as_they_go_along_objects_are_descriptors(
    connected: Any, directory: Path, server: HoldServer
) -> None:
    paths = files(directory, MOST_DESCRIPTORS)
    async with connected() as client:
        placed = await client.hold(paths)
        assert [hold.path for hold in placed] == [str(path) for path in paths]
        await client.end(placed)
        await client.hold(paths[1:], pid=os.getpid())
    for call in server.called(HoldCall):
        assert [named.fd for named in call.objects] == list(range(len(call.objects)))


async def test_more_go_by_path_in_one_call(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = files(directory, MOST_DESCRIPTORS + 1)
    async with connected() as client:
        placed = await client.hold(paths)
        assert [hold.path for hold in placed] == [str(path) for path in paths]
        (call,) = server.called(HoldCall)
        assert all(named.path is not None for named in call.objects)


async def test_a_process_takes_the_place_of_one_object(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = files(directory, MOST_DESCRIPTORS)
    async with connected() as client:
        placed = await client.hold(paths, pid=os.getpid())
        assert {hold.ends for hold in placed} == {(Exit(os.getpid()),)}
        (call,) = server.called(HoldCall)
        assert call.objects[0].path is not None
        assert call.lifetime.pidfd == 0


async def test_all_or_none(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = files(directory, MOST_DESCRIPTORS + 1)
    async with connected() as client, connected() as other:
        (taken,) = await other.hold(paths[-1])
        with pytest.raises(Held) as caught:
            await client.hold(paths)
        assert caught.value.hold == taken
        assert await client.holds() == (taken,)


async def test_one_that_is_elsewhere_is_named_before_anything_is_asked(
    connected: Any, directory: Path, server: HoldServer
) -> None:
    paths = files(directory, MOST_DESCRIPTORS)
    async with connected() as client:
        with pytest.raises(BadObject, match='"/proc/version" is not in the mount'):
            await client.hold([*paths, "/proc/version"])
        with pytest.raises(FileNotFoundError):
            await client.hold([*paths, directory / "none"])
        assert server.called(HoldCall) == []


async def test_ten_thousand_in_one_call_each(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = files(directory, MAX_OBJECTS)
    async with connected() as client:
        placed = await client.hold(paths, ttl=60)
        assert [hold.path for hold in placed] == [str(path) for path in paths]
        renewed = await client.renew(placed, 3600)
        assert all(isinstance(hold.ends[0], Time) for hold in renewed)
        assert await client.release([hold.id for hold in renewed]) == renewed
        assert [len(server.called(kind)) for kind in (HoldCall, RenewCall, ReleaseCall)] == [1, 1, 1]
        assert await client.holds() == ()


async def test_more_than_ten_thousand(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = files(directory, MAX_OBJECTS + 1)
    async with connected() as client:
        with pytest.raises(BadObject, match="at most 10000"):
            await client.hold(paths)
        placed = await client.hold(paths[1:])
        placed += await client.hold(paths[0])
        with pytest.raises(BadObject, match="at most 10000"):
            await client.release(placed)
        # Not all or none, so it can be several calls.
        await client.end(placed)
        assert len(server.registry) == 0


async def test_more_than_a_server_reads(connected: Any, directory: Path, server: HoldServer) -> None:
    deep = directory
    for _ in range(4):
        deep = deep / ("d" * 250)
        deep.mkdir()
    paths = files(deep, 5000)
    async with connected() as client:
        with pytest.raises(BadObject, match="at most 4194304 are allowed"):
            await client.hold(paths)
        # Nothing was sent.
        assert await client.holds() == ()
