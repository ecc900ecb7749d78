"""Real processes and their pidfds, a real keeper; only the clock of the event loop is set by the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from exclfs.holds.errors import BadHold, NotPermitted
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.hold import Hold
from exclfs.holds.lifetime import Exit, StateFile, Unmount
from exclfs.host import processes
from exclfs.services.reaper import Reaper
from unserved import Server, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from exclfs.holds.events import Event

NOBODY = 65534
SHARED = Flags.NO_REMOVE


@contextmanager
def sleeping(**named: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing until it is killed."""
    with subprocess.Popen(["sleep", "600"], **named) as process:  # type: ignore[call-overload]
        try:
            while (
                processes.describe(process.pid).comm != "sleep"
            ):  # Popen returns a moment before execve(2) has done so
                time.sleep(0.001)
            yield process
        finally:
            process.kill()


@contextmanager
def pidfd_of(pid: int) -> Iterator[int]:
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Server]:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abcdefgh":
        (tree / name).mkdir()
    with server(tree) as made:
        yield made


def watch(one: Server, pid: int, uid: int = 0) -> Exit:
    with pidfd_of(pid) as pidfd:
        end, _ = one.reaper.watch(pidfd, uid)
    return end


async def hold_with(one: Server, name: str, pid: int, flags: Flags = SHARED) -> Hold:
    """A hold that ends with a process, placed as the control socket does."""
    end = watch(one, pid)
    try:
        return await one.hold(name, end, flags=flags)
    finally:
        one.reaper.settle(end)


async def until(one: Server, *events: str) -> None:
    told = trio.Event()
    unsubscribe = one.keeper.subscribe(lambda _: told.set())
    while one.told != list(events):
        await told.wait()
        told = trio.Event()
    unsubscribe()


def pidfds() -> int:
    """How many this process has open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[pidfd]"
    return found


# --- who is watched ---------------------------------------------------------------------------------------------------


def test_it_knows_the_process_of_a_pidfd(one: Server) -> None:
    with sleeping() as process, pidfd_of(process.pid) as pidfd:
        end, described = one.reaper.watch(pidfd, os.getuid())
        assert described == processes.describe(process.pid)
        assert end == Exit(process.pid, described.start_time, processes.boot_id())
        assert one.keeper.present[end].is_alive()


def test_it_does_not_need_the_callers_descriptor(one: Server) -> None:
    with sleeping() as process:
        end = watch(one, process.pid)
        assert one.keeper.present[end].is_alive()
        process.kill()
        process.wait()
        assert not one.keeper.present[end].is_alive()


def test_it_asks_at_once(one: Server) -> None:
    """A process that has exited is not alive, though nobody has waited for it and the loop has had no turn."""
    with sleeping() as process:
        end = watch(one, process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not one.keeper.present[end].is_alive()


@pytest.mark.parametrize("waited_for", [False, True])
def test_one_that_has_exited_is_refused(one: Server, waited_for: bool) -> None:
    with sleeping() as process, pidfd_of(process.pid) as pidfd:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        if waited_for:
            process.wait()
        with pytest.raises(BadHold, match="has exited"):
            one.reaper.watch(pidfd, 0)
    assert len(one.reaper) == 0


def test_what_is_no_pidfd_is_refused(one: Server) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(BadHold, match="not that of a process"):
        one.reaper.watch(file.fileno(), 0)
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb"), pytest.raises(BadHold, match="not that of a process"):
        one.reaper.watch(reading, 0)
    with pytest.raises(BadHold, match="not that of a process"):
        one.reaper.watch(12345, 0)


def test_a_thread_is_not_a_process(one: Server) -> None:
    thread_of_another = """if True:
        import threading, time
        thread = threading.Thread(target=time.sleep, args=(600,))
        thread.start()
        print(thread.native_id, flush=True)
    """
    pidfd_thread = os.O_EXCL  # <linux/pidfd.h>, Linux 6.9
    with subprocess.Popen([sys.executable, "-c", thread_of_another], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        try:
            pidfd = os.pidfd_open(thread, pidfd_thread)
        except OSError as error:
            pytest.skip(f"this kernel has no pidfds of threads: {error}")
        finally:
            process.kill()
        try:
            with pytest.raises(BadHold, match=f"thread {thread}|exited"):
                one.reaper.watch(pidfd, 0)
        finally:
            os.close(pidfd)


@pytest.mark.root
def test_a_process_of_another_pid_namespace_is_not_visible() -> None:
    """Seen from a server in a namespace of its own, this process has no pid."""
    watch_outside = """if True:
        import os, sys
        from pathlib import Path
        from exclfs.holds.errors import BadHold
        from unserved import server
        with server(Path(sys.argv[1])) as one:
            try:
                one.reaper.watch(int(sys.argv[2]), 0)
            except BadHold as error:
                print(error)
    """
    with pidfd_of(os.getpid()) as pidfd, tempfile.TemporaryDirectory() as tree:
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", watch_outside, tree, str(pidfd)],
            pass_fds=[pidfd],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert "not visible in the server's pid namespace" in done.stdout, done.stderr


@pytest.mark.root
def test_a_user_watches_their_own(one: Server) -> None:
    with sleeping(user=NOBODY) as theirs, sleeping() as roots:
        assert watch(one, theirs.pid, NOBODY).pid == theirs.pid
        assert watch(one, theirs.pid, 0).pid == theirs.pid
        for pid, uid in ((roots.pid, NOBODY), (theirs.pid, 1000)):
            with pytest.raises(NotPermitted, match=f"process {pid}"):
                watch(one, pid, uid)


@pytest.mark.root
def test_it_is_the_real_user_that_counts(one: Server) -> None:
    """What runs as root because of a set-user-ID bit belongs to who started it, and counts as theirs."""
    become = "import os, sys; os.setresuid(65534, 0, 0); print(flush=True); sys.stdin.read()"
    with (
        subprocess.Popen([sys.executable, "-c", become], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        pidfd_of(process.pid) as pidfd,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        assert processes.describe(process.pid).uid == 0
        _, described = one.reaper.watch(pidfd, NOBODY)
        assert described.uid == NOBODY
        process.kill()


@pytest.mark.root
def test_a_user_has_so_many_watched(tmp_path: Path) -> None:
    with server(tmp_path / "tree") as one, sleeping(user=NOBODY) as first, sleeping(user=NOBODY) as second:
        few = Reaper(one.keeper, most=1)
        try:
            with pidfd_of(first.pid) as pidfd, pidfd_of(second.pid) as another:
                end, _ = few.watch(pidfd, NOBODY)
                few.watch(pidfd, NOBODY)
                with pytest.raises(NotPermitted, match="limit"):
                    few.watch(another, NOBODY)
                few.watch(another, 0)
                few.settle(end)
                few.settle(end)
                assert end not in one.keeper.present
        finally:
            few.close()


# --- for how long -----------------------------------------------------------------------------------------------------


async def test_one_descriptor_for_each_process(one: Server) -> None:
    before = pidfds()
    with sleeping() as process:
        for name in "abcdefgh":
            await hold_with(one, name, process.pid)
        assert len(one.reaper) == 1
        assert pidfds() == before + 1
        for hold in one.keeper.registry.all():
            assert len(one.reaper) == 1
            await one.keeper.unlock([hold.id], requester=hold.holder.process)
        assert len(one.reaper) == 0
        assert pidfds() == before
        assert one.keeper.present == {}


async def test_who_is_not_held_with_in_the_end_is_let_go(one: Server) -> None:
    await one.hold("a", Unmount(), flags=DEFAULT)
    with sleeping() as process:
        with pytest.raises(Exception, match="held"):
            await hold_with(one, "a", process.pid, DEFAULT)
        assert len(one.reaper) == 0


async def test_two_calls_may_watch_one_process(one: Server) -> None:
    with sleeping() as process:
        first, second = watch(one, process.pid), watch(one, process.pid)
        assert first == second
        one.reaper.settle(first)
        assert one.keeper.present[second].is_alive()
        await one.hold("a", second, flags=SHARED)
        one.reaper.settle(second)
        assert one.keeper.present[second].is_alive()


def test_close_lets_go_of_everything(one: Server) -> None:
    before = pidfds()
    other = Reaper(one.keeper)
    with sleeping() as process, pidfd_of(process.pid) as pidfd:
        end, _ = other.watch(pidfd, 0)
        alive = one.keeper.present[end]
        other.close()
        assert not alive.is_alive()
    assert one.keeper.present == {}
    assert pidfds() == before


async def test_its_holds_end_with_the_process(one: Server, nursery: trio.Nursery) -> None:
    nursery.start_soon(one.reaper.run)
    with sleeping() as process, sleeping() as other:
        first = await hold_with(one, "a", process.pid)
        await hold_with(one, "b", process.pid)
        kept = await hold_with(one, "a", other.pid)
        process.kill()
        await until(one, "locked", "locked", "locked", "reaped", "reaped")
        assert one.keeper.registry.all() == (kept,)
        assert [end.pid for end in one.keeper.present if isinstance(end, Exit)] == [other.pid]
        assert first.ends[0] not in one.keeper.present


async def test_who_was_watched_before_it_ran_is_watched(one: Server, nursery: trio.Nursery) -> None:
    with sleeping() as process:
        await hold_with(one, "a", process.pid)
        process.kill()
        process.wait()
        nursery.start_soon(one.reaper.run)
        await until(one, "locked", "reaped")


async def test_a_client_that_keeps_its_pidfd_does_not_keep_the_hold(one: Server, nursery: trio.Nursery) -> None:
    """The descriptor that was passed shares its open file with the server's: closing one leaves the other in place."""
    nursery.start_soon(one.reaper.run)
    with sleeping() as process, pidfd_of(process.pid) as pidfd:
        for _ in range(3):
            end, _ = one.reaper.watch(pidfd, 0)
            await one.hold("a", end, flags=SHARED)
            one.reaper.settle(end)
            await one.keeper.unlock([one.keeper.registry.all()[0].id], requester=processes.describe(os.getpid()))
        process.kill()
        process.wait()
        with sleeping() as other:
            await hold_with(one, "b", other.pid)
            other.kill()
            await until(one, *["locked", "unlocked"] * 3, "locked", "reaped")


FAMILY = """
import os, signal
for _ in range(100):
    if os.fork() == 0:
        signal.pause()
    print(_, flush=True)
signal.pause()
"""


@pytest.fixture
def family() -> Iterator[list[int]]:
    """A hundred processes of one group, whose leader is the first."""
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, process_group=0) as parent:
        assert parent.stdout is not None
        for _ in range(100):
            parent.stdout.readline()
        with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        try:
            yield [parent.pid, *children]
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


async def test_many_die_at_once(one: Server, nursery: trio.Nursery, family: list[int]) -> None:
    nursery.start_soon(one.reaper.run)
    for pid in family:
        await hold_with(one, "a", pid)
    assert len(one.reaper) == 101
    os.killpg(family[0], signal.SIGKILL)
    await until(one, *["locked"] * 101, *["reaped"] * 101)
    assert len(one.reaper) == 0


# --- after a restart --------------------------------------------------------------------------------------------------


def test_the_same_process_is_watched_again(tmp_path: Path) -> None:
    with sleeping() as process:
        with server(tmp_path / "tree") as one:
            end = watch(one, process.pid)
        with server(tmp_path / "tree") as one:
            assert one.reaper.watch_again(end, 0)
            assert one.keeper.present[end].is_alive()
            process.kill()
            process.wait()
            assert not one.keeper.present[end].is_alive()
        with server(tmp_path / "tree") as one:
            assert not one.reaper.watch_again(end, 0)
            assert one.keeper.present == {}


def test_another_process_with_its_pid_is_not_the_same(one: Server) -> None:
    with sleeping() as process:
        start_time = processes.describe(process.pid).start_time
        assert start_time is not None
        boot = processes.boot_id()
        for other in (
            Exit(process.pid, start_time - 1, boot),
            Exit(process.pid, start_time, "another boot"),
            Exit(process.pid, None, boot),
            Exit(process.pid, start_time),
        ):
            assert not one.reaper.watch_again(other, 0)
        assert one.reaper.watch_again(Exit(process.pid, start_time, boot), 0)


# --- time -------------------------------------------------------------------------------------------------------------


# The keeper's clock is the loop's here, and the loop's jumps to when something is to happen (autojump_clock).


@pytest.fixture
def timed(one: Server, tmp_path: Path) -> Iterator[Server]:
    with server(one.tree, tmp_path / "state", clock=trio.current_time) as made:
        yield made


async def test_a_hold_ends_with_its_time(
    timed: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(timed.reaper.run)
    await timed.hold("a", timed.keeper.time_in(60), flags=SHARED)
    await timed.hold("b", timed.keeper.time_in(5), flags=SHARED)
    await timed.hold("c", Unmount(), flags=SHARED)
    await until(timed, "locked", "locked", "locked", "expired")
    assert 5 <= trio.current_time() < 60
    await until(timed, "locked", "locked", "locked", "expired", "expired")
    assert 60 <= trio.current_time() < 61
    assert [hold.path for hold in timed.keeper.registry.all()] == ["/mnt/c"]


async def test_a_nearer_time_wakes_it(
    timed: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(timed.reaper.run)
    await timed.hold("a", timed.keeper.time_in(25), flags=SHARED)
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    await timed.hold("b", timed.keeper.time_in(1), flags=SHARED)
    await until(timed, "locked", "locked", "expired")
    assert trio.current_time() < 3


async def test_a_renewed_hold_ends_later(
    timed: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(timed.reaper.run)
    hold = await timed.hold("a", timed.keeper.time_in(10), flags=SHARED)
    await trio.sleep(9)
    await timed.keeper.renew([hold.id], 100, requester=hold.holder.process)
    await trio.sleep(90)
    assert timed.told == ["locked"]
    await until(timed, "locked", "expired")
    assert 109 <= trio.current_time() < 110


async def test_time_goes_on_while_the_machine_sleeps(
    one: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """After it wakes up, the loop's clock is behind; a hold whose time is over ends soon all the same."""
    slept = 0.0
    with server(one.tree, clock=lambda: trio.current_time() + slept) as made:
        nursery.start_soon(made.reaper.run)
        await made.hold("a", made.keeper.time_in(7200), flags=SHARED)
        await trio.sleep(1)
        slept = 7200.0
        await until(made, "locked", "expired")
        assert trio.current_time() < 60


async def test_waiting_is_not_looking(
    one: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """An hour with a hold that ends later takes a few looks, and a deadline that is always near no endless row."""
    looks = 0

    def look() -> float:
        nonlocal looks
        looks += 1
        return trio.current_time()

    with server(one.tree, clock=look) as made:
        nursery.start_soon(made.reaper.run)
        await made.hold("a", made.keeper.time_in(7200), flags=SHARED)
        await trio.sleep(3600)
        assert looks < 500


async def test_what_was_removed_behind_the_mount_is_noticed(
    timed: Server, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    nursery.start_soon(timed.reaper.run)
    await timed.hold("a", Unmount(), flags=SHARED)
    await timed.hold("b", Unmount(), flags=SHARED)
    (timed.tree / "a").rmdir()
    await until(timed, "locked", "locked", "orphaned")
    assert [hold.path for hold in timed.keeper.registry.all()] == ["/mnt/b"]


async def test_what_cannot_be_written_ends_all_the_same(
    timed: Server, nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    """The disk of the state file fails."""
    nursery.start_soon(timed.reaper.run)
    for name, seconds in (("a", 5), ("b", 50)):
        await timed.hold(name, timed.keeper.time_in(seconds), StateFile(), flags=SHARED)
    assert timed.state is not None
    timed.state.close()
    mock_clock.autojump_threshold = 0
    await until(timed, "locked", "locked", "expired", "expired")
    assert timed.keeper.registry.all() == ()


class Bug(Exception):
    pass


async def test_a_failure_is_logged_and_the_rest_goes_on(
    timed: Server, nursery: trio.Nursery, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is told of an event fails at it."""

    tell, told = trio.open_memory_channel[str](10)

    def fail(event: Event) -> None:
        tell.send_nowait(event.name)
        raise Bug

    nursery.start_soon(timed.reaper.run)
    await timed.hold("a", timed.keeper.time_in(5), flags=SHARED)
    await timed.hold("b", timed.keeper.time_in(50), flags=SHARED)
    with sleeping() as first, sleeping() as second:
        await hold_with(timed, "c", first.pid)
        await hold_with(timed, "d", second.pid)
        timed.keeper.subscribe(fail)
        mock_clock.autojump_threshold = 0
        assert [await told.receive(), await told.receive()] == ["expired", "expired"]
        first.kill()
        assert await told.receive() == "reaped"
        second.kill()
        assert await told.receive() == "reaped"
    assert timed.keeper.registry.all() == ()
    await trio.sleep(1)
    logged = [record.getMessage() for record in caplog.records if record.name == "exclfs.reaper"]
    assert logged == ["the reaper failed, and goes on"] * 4
