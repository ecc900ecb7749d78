"""Calls and their answers, on both clients."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from exclfs.holds.errors import BadHold, Held, NoSuchHold
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.lifetime import Connection, Exit, StateFile, Time, Unmount
from exclfs.holds.mode import Mode
from exclfs.wire.messages import FOR_EVER, HoldCall, ReleaseCall

if TYPE_CHECKING:
    from pathlib import Path

    from hold_server import HoldServer


# --- what both clients do ---------------------------------------------------------------------------------------------


async def test_places_lists_explains_and_releases(connected: Any, file: Path) -> None:
    async with connected() as client:
        (hold,) = await client.hold(file, holder="cache", reason="being served")
        assert (hold.path, hold.flags, hold.holder.name, hold.reason) == (str(file), DEFAULT, "cache", "being served")
        assert await client.holds(file) == (hold,)
        answer = await client.why(file)
        assert answer.blocked
        assert answer.causes[0].hold == hold
        assert await client.release(hold) == (hold,)
        assert await client.holds(file) == ()
        assert not (await client.why(file)).blocked


async def test_holds_several_in_their_order(connected: Any, file: Path, directory: Path) -> None:
    async with connected() as client:
        placed = await client.hold([directory, str(file)], holder="x", claim=False)
        assert [hold.path for hold in placed] == [str(directory), str(file)]
        assert {hold.flags for hold in placed} == {Flags.NO_REMOVE}
        assert await client.holds() == placed
        assert await client.holds(holder="y") == ()


async def test_a_symlink_is_held_itself(connected: Any, file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    async with connected() as client:
        (hold,) = await client.hold(tmp_path / "link")
        assert hold.inode.ino == os.lstat(tmp_path / "link").st_ino
        assert await client.holds(file) == ()


async def test_a_name_that_is_not_utf_8(connected: Any, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    os.mkdir(strange)
    async with connected() as client:
        (hold,) = await client.hold(strange)
        assert hold.path == strange


async def test_a_claim_that_is_taken_says_by_whom(connected: Any, file: Path) -> None:
    async with connected() as client, connected() as other:
        (hold,) = await client.hold(file, holder="first")
        with pytest.raises(Held) as caught:
            await other.hold(file, holder="second")
        assert caught.value.hold == hold
        (shared,) = await other.hold(file, holder="second", claim=False)
        assert shared.flags == Flags.NO_REMOVE


async def test_release_by_id_and_by_path(connected: Any, file: Path) -> None:
    async with connected() as client:
        (one,) = await client.hold(file)
        assert await client.release(one.id) == (one,)
        (two,) = await client.hold(file, until_unmount=True)
        assert two.ends == (Unmount(),)
        assert await client.release(path=file) == (two,)
        with pytest.raises(NoSuchHold):
            await client.release(two)
        assert await client.release([]) == ()
        for named in ({}, {"holds": one, "path": file}):
            with pytest.raises(TypeError):
                await client.release(**named)


async def test_releases_several_all_or_none(connected: Any, file: Path, directory: Path, server: HoldServer) -> None:
    async with connected() as client:
        placed = await client.hold([file, directory])
        with pytest.raises(NoSuchHold):
            await client.release([placed[0], "h99"])
        assert len(server.registry) == 2
        assert await client.release((placed[1], placed[0].id), break_it=True, reason="enough") == placed[::-1]
        call = server.called(ReleaseCall)[-1]
        assert (call.break_it, call.reason) == (True, "enough")


async def test_the_holds_of_a_connection_end_with_it(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        await client.hold(file)
        assert len(server.registry) == 1
    await trio.to_thread.run_sync(server.ended.acquire)
    assert len(server.registry) == 0


async def test_what_is_not_there_is_an_os_error_and_the_connection_stays(connected: Any, file: Path) -> None:
    async with connected() as client:
        with pytest.raises(FileNotFoundError) as caught:
            await client.hold([file, file.parent / "none"])
        assert caught.value.filename == str(file.parent / "none")
        assert await client.holds() == ()


async def test_nothing_to_hold(connected: Any) -> None:
    async with connected() as client:
        with pytest.raises(BadHold):
            await client.hold([])


async def test_two_answers_to_one_question(connected: Any, file: Path) -> None:
    async with connected() as client:
        with pytest.raises(BadHold):
            await client.hold(file, flags=Flags.NO_REMOVE, claim=False)


async def test_whether_it_is_in_use(connected: Any, file: Path) -> None:
    async with connected() as client:
        assert not await client.inuse(file)
        await client.hold(file)
        assert await client.inuse(file)


async def test_the_mode_is_asked_and_switched(connected: Any, server: HoldServer) -> None:
    async with connected() as client:
        assert await client.mode() is Mode.ENFORCE
        assert await client.mode("warn") is Mode.WARN
        assert await client.mode(Mode.OFF) is Mode.OFF
        with pytest.raises(ValueError, match="perhaps"):
            await client.mode("perhaps")
    assert server.mode is Mode.OFF


# --- what ends a hold, and waiting for one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        ({}, {Connection}),
        ({"connection": True}, {Connection}),
        ({"until_unmount": True}, {Unmount}),
        ({"persistent": True}, {StateFile}),
        ({"ttl": 60}, {Time}),
        ({"pid": os.getpid()}, {Exit}),
        ({"connection": False, "persistent": True}, {StateFile}),
        (
            {"connection": True, "pid": os.getpid(), "ttl": 0.5, "until_unmount": True},
            {Connection, Exit, Time, Unmount},
        ),
    ],
)
async def test_every_end_that_is_named_is_one(
    connected: Any, file: Path, named: dict[str, Any], ends: set[type]
) -> None:
    async with connected() as client:
        (hold,) = await client.hold(file, **named)
        assert {type(end) for end in hold.ends} == ends


async def test_a_process_is_passed_along_and_not_its_number(connected: Any, file: Path, directory: Path) -> None:
    async with connected() as client:
        for hold in await client.hold([file, directory], pid=os.getppid()):
            assert hold.ends == (Exit(os.getppid()),)


async def test_a_process_that_is_not_there(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client:
        with pytest.raises(ProcessLookupError):
            await client.hold(file, pid=2**22 + 1)  # above PID_MAX_LIMIT, proc_sys_kernel(5)
        assert not await client.inuse(file)


@pytest.mark.parametrize(
    "named",
    [
        {"connection": False},
        {"ttl": 0},
        {"ttl": -1.0},
        {"ttl": float("inf")},
        {"ttl": float("nan")},
        {"timeout": -1},
        {"timeout": float("nan")},
    ],
)
async def test_what_never_ends_or_ended_before(connected: Any, file: Path, named: dict[str, Any]) -> None:
    async with connected() as client:
        with pytest.raises(BadHold):
            await client.hold(file, **named)
        assert await client.holds() == ()


async def test_renewing(connected: Any, file: Path, directory: Path) -> None:
    async with connected() as client:
        placed = await client.hold([file, directory], ttl=60)
        renewed = await client.renew(placed, 3600)
        assert [hold.id for hold in renewed] == [hold.id for hold in placed]
        assert all(new.ends[0].at > old.ends[0].at for new, old in zip(renewed, placed, strict=True))
        assert [hold.id for hold in await client.renew(placed[0].id, 60)] == [placed[0].id]
        assert await client.renew((), 60) == ()
        with pytest.raises(NoSuchHold):
            await client.renew("h99", 60)
        with pytest.raises(BadHold):
            await client.renew(placed, 0)


@pytest.mark.parametrize(("seconds", "wait"), [(0, 0), (0.01, 0.01), (None, FOR_EVER), (float("inf"), FOR_EVER)])
async def test_how_long_it_waits_is_told(
    connected: Any, file: Path, server: HoldServer, seconds: float | None, wait: float
) -> None:
    async with connected() as client:
        await client.hold(file, timeout=seconds)
    assert server.called(HoldCall)[0].wait == wait


async def test_waits_until_the_claim_is_free(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client, connected() as other, trio.open_nursery() as nursery:
        (first,) = await client.hold(file, holder="first")

        async def wait() -> None:
            (hold,) = await other.hold(file, holder="second", timeout=None)
            assert hold.holder.name == "second"

        nursery.start_soon(wait)
        await trio.to_thread.run_sync(server.waits.acquire)
        await client.release(first)


async def test_waits_no_longer_than_it_is_told(connected: Any, file: Path, server: HoldServer) -> None:
    async with connected() as client, connected() as other:
        (first,) = await client.hold(file)
        with pytest.raises(Held) as caught:
            await other.hold(file, timeout=0.01)
        assert caught.value.hold == first
        assert await other.holds(file) == (first,)


async def test_many_calls_at_once_get_each_its_answer(connected: Any, directory: Path) -> None:
    async with connected() as client, trio.open_nursery() as nursery:

        async def hold_and_look(path: Path) -> None:
            (hold,) = await client.hold(path)
            assert hold.path == str(path)
            assert await client.holds(path) == (hold,)

        for number in range(20):
            (directory / str(number)).touch()
            nursery.start_soon(hold_and_look, directory / str(number))


async def test_ending_what_has_ended_is_no_error(connected: Any, directory: Path, server: HoldServer) -> None:
    paths = [directory / str(number) for number in range(9)]
    for path in paths:
        path.touch()
    async with connected() as client:
        for ended in ((), (0,), (8,), (2, 3, 7), range(9)):
            placed = await client.hold(paths)
            for index in ended:
                server.registry.unlock(placed[index].id)
            await client.end(iter(placed))
            assert len(server.registry) == 0
        await client.end(())
