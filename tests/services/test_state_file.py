"""Real SQLite files, a real mirror of a real tree, real processes; a restart is a second server on the same file."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
from attrs import evolve

from exclfs.holds.errors import Gone, NotKept
from exclfs.holds.flags import DEFAULT, Flags
from exclfs.holds.hold import Hold, Inode
from exclfs.holds.holder import Holder, Process
from exclfs.holds.lifetime import Connection, End, Exit, StateFile, Time, Unmount
from exclfs.services import state_file
from exclfs.services.state_database import Kept, StateFileError, holds_in, sealed
from unserved import Server, server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

SHARED = Flags.NO_REMOVE
KEPT = StateFile()
NAMES = "abcdefgh"
SINCE = datetime(2026, 11, 22, 13, 2, 15, 123456, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in NAMES:
        (tree / name).mkdir()
    return tree


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def in_file(state: Path) -> list[Kept]:
    """What is in a state file that no server has."""
    with closing(sqlite3.connect(state)) as database:
        return list(holds_in(database))


def names_in(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def with_row(state: Path, kept: Kept) -> None:
    """Writes a row as it would be if it had been written at another time."""
    with closing(sqlite3.connect(state)) as database, database:
        database.execute(
            "INSERT INTO hold (id, document, digest) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET document = excluded.document, digest = excluded.digest",
            (kept.hold.id, *sealed(kept)),
        )


@contextmanager
def opened(path: Path) -> Iterator[None]:
    with open(path):
        yield


def without_inode(hold: Hold) -> Hold:
    return evolve(hold, inode=Inode(0, 0))


async def restarted(tree: Path, state: Path) -> state_file.Report:
    with server(tree, state) as again:
        return await again.restore()


def boottime_in(seconds: float) -> Time:
    return Time(datetime.now(UTC) + timedelta(seconds=seconds), time.clock_gettime(time.CLOCK_BOOTTIME) + seconds)


@contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


def exit_of(one: Server, pid: int) -> Exit:
    pidfd = os.pidfd_open(pid)
    try:
        return one.reaper.watch(pidfd, 0)[0]
    finally:
        os.close(pidfd)


# --- holds come back --------------------------------------------------------------------------------------------------


async def test_a_hold_is_back_after_a_restart(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        placed = await first.hold("a", KEPT, flags=DEFAULT, reason="for good")
        await first.hold("b", Unmount(), flags=DEFAULT)
    with server(tree, state) as second:
        report = await second.restore()
        assert report == state_file.Report(restored=second.keeper.registry.all(), gone=(), over=())
        (hold,) = report.restored
        assert without_inode(hold) == without_inode(placed)
        assert hold.inode == second.inode("a")
        assert second.told == []
        with pytest.raises(Exception, match="held"):
            await second.hold("a", Unmount(), flags=DEFAULT)


async def test_its_word_is_set_before_anything_is_served(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        await first.hold("a", KEPT, flags=DEFAULT)
    with server(tree, state) as second:
        await second.restore()
        inode = second.inode("a")
        second.mirror.release(inode)
        assert second.mirror.identify(inode.nodeid) == inode  # it would be forgotten if nothing pinned it


async def test_everything_of_it_is_back(tree: Path, state: Path) -> None:
    """Also what is not UTF-8, and every kind of end."""
    (tree / "d\udcffr").mkdir()
    with sleeping() as process:
        with server(tree, state) as first:
            ends: tuple[End, ...] = (boottime_in(3600), KEPT, exit_of(first, process.pid), Unmount())
            hold = Hold(
                id="h7",
                inode=first.inode("d\udcffr"),
                path="/mnt/d\udcffr",
                flags=Flags.PIN_PATH | Flags.NO_REMOVE_BELOW | Flags.EXCL_SUBTREE,
                holder=Holder("wächter", Process(4711, 33, "a\nb\udcfe", "/x (deleted)", None, "docker:0123", 99)),
                reason="because of “this”",
                since=SINCE,
                ends=ends,
            )
            assert first.state is not None
            await first.state.add([hold])
        report = await restarted(tree, state)
    assert [without_inode(one) for one in report.restored] == [without_inode(hold)]
    (restored,) = report.restored
    assert restored.ends == ends
    assert [end.deadline for end in restored.ends if isinstance(end, Time)] == [ends[0].deadline]  # type: ignore[union-attr]


async def test_they_are_back_in_their_order(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        placed = [await first.hold(name, KEPT, first.keeper.time_in(100), flags=SHARED) for name in reversed(NAMES)]
        await first.keeper.renew([placed[0].id], 500, requester=placed[0].holder.process)
        await first.keeper.unlock([placed[1].id], requester=placed[0].holder.process)
        left = first.keeper.registry.all()
    report = await restarted(tree, state)
    assert [without_inode(hold) for hold in report.restored] == [without_inode(hold) for hold in left]


async def test_after_many_restarts_nothing_has_changed(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        placed = [await first.hold(name, KEPT, flags=SHARED) for name in NAMES]
    before = in_file(state)
    for _ in range(3):
        report = await restarted(tree, state)
        assert [hold.id for hold in report.restored] == [hold.id for hold in placed]
    assert in_file(state) == before


async def test_what_is_released_does_not_come_back(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        kept = await first.hold("a", KEPT, flags=SHARED)
        await first.keeper.unlock([kept.id], requester=kept.holder.process)
    assert in_file(state) == []


async def test_new_ids_go_on_behind_the_old_ones(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        assert first.state is not None
        assert first.state.next_number() == 1
        for name in NAMES:
            await first.hold(name, KEPT, flags=SHARED)
    with server(tree, state) as second:
        await second.restore()
        assert (await second.hold("a", KEPT, flags=SHARED)).id == f"h{len(NAMES) + 1}"
    report = await restarted(tree, state)
    assert len({hold.id for hold in report.restored}) == len(NAMES) + 1


async def test_the_tree_may_be_mounted_elsewhere(tree: Path, state: Path) -> None:
    with server(tree, state, "/mnt") as first:
        await first.hold("a", KEPT, flags=SHARED)
        root = await first.hold(".", KEPT, flags=SHARED)
        assert first.state is not None
        await first.state.add([evolve(root, path="/mnt")])
    with server(tree, state, "/somewhere/else") as second:
        report = await second.restore()
    assert [hold.path for hold in report.restored] == ["/somewhere/else/a", "/somewhere/else"]


async def test_many_at_once(tree: Path, state: Path) -> None:
    """Tasks that write at the same time take turns; each is told when its own is on the disk."""
    with server(tree, state) as first:
        async with trio.open_nursery() as nursery:
            for name in NAMES * 10:
                nursery.start_soon(lambda name=name: first.hold(name, KEPT, flags=SHARED))
        assert len(first.keeper.registry) == 10 * len(NAMES)
    assert len(in_file(state)) == 10 * len(NAMES)


@pytest.mark.parametrize("name", ["what? #1%41&mode=ro", "wäre", "\udcff\udcfe", "a b\n'c\""])
async def test_it_may_be_called_anything(tree: Path, tmp_path: Path, name: str) -> None:
    with server(tree, tmp_path / name) as first:
        await first.hold("a", KEPT, flags=SHARED)
    assert names_in(tmp_path) == {"tree", name}
    assert len((await restarted(tree, tmp_path / name)).restored) == 1


# --- on the same inode, or not at all ---------------------------------------------------------------------------------


@pytest.mark.root
async def test_it_is_the_same_inode_under_another_name(tree: Path, state: Path) -> None:
    """By its handle: what has taken its old name is not held."""
    (tree / "a" / "deep").mkdir()
    (tree / "a" / "deep" / "file").write_text("content")
    with server(tree, state) as first:
        placed = await first.hold("a/deep/file", KEPT, flags=DEFAULT)
    (tree / "a" / "deep").rename(tree / "b" / "moved")
    (tree / "b" / "moved" / "file").rename(tree / "b" / "moved" / "renamed")
    (tree / "a" / "deep").mkdir()
    (tree / "a" / "deep" / "file").write_text("another")
    with server(tree, state) as second:
        report = await second.restore()
        assert [hold.id for hold in report.restored] == [placed.id]
        assert second.keeper.on(second.inode("b/moved/renamed")) == report.restored
        assert second.keeper.on(second.inode("a/deep/file")) == ()


async def test_one_whose_inode_is_gone_is_reported_and_not_guessed(
    tree: Path, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(tree, state) as first:
        placed = [await first.hold(name, KEPT, flags=SHARED, reason=name) for name in "abc"]
    (tree / "a").rmdir()
    (tree / "a").mkdir()  # another one of that name
    (tree / "b").rmdir()
    with server(tree, state) as second:
        report = await second.restore()
        assert [hold.id for hold in report.gone] == [placed[0].id, placed[1].id]
        assert [hold.path for hold in report.gone] == ["/mnt/a", "/mnt/b"]
        assert [hold.id for hold in report.restored] == [placed[2].id]
        assert second.keeper.on(second.inode("a")) == ()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        f'hold {hold.id} of "tester" (pid {os.getpid()}) on "{hold.path}" was not restored: '
        "its inode is not in the tree any more"
        for hold in report.gone
    ]
    assert [kept.hold.id for kept in in_file(state)] == [placed[2].id]


async def test_a_file_whose_last_link_is_gone_is_gone(tree: Path, state: Path) -> None:
    """Though somebody has it open, so that its handle still leads to it."""
    (tree / "file").write_text("content")
    with server(tree, state) as first:
        await first.hold("file", KEPT, flags=SHARED)
    with opened(tree / "file"):
        (tree / "file").unlink()
        report = await restarted(tree, state)
    assert [hold.path for hold in report.gone] == ["/mnt/file"]


async def test_a_pinned_path_that_is_another_is_gone(tree: Path, state: Path) -> None:
    """Or else it is pinned where it is now: never is another directory pinned in its place."""
    (tree / "a" / "deep").mkdir()
    with server(tree, state) as first:
        await first.hold("a/deep", KEPT, flags=Flags.PIN_PATH)
    (tree / "a" / "deep").rename(tree / "b" / "deep")
    with server(tree, state) as second:
        report = await second.restore()
        pins = [second.keeper.registry.pinned(hold) for hold in report.restored]
        assert pins in ([], [(second.inode("b"), second.inode("."))])


async def test_what_cannot_be_looked_for_is_not_gone(tree: Path, state: Path) -> None:
    """The server runs out of descriptors: it does not start, and the file still has every hold."""
    if os.geteuid() != 0:
        pytest.skip("without handles there is only the path to look at")
    with server(tree, state) as first:
        await first.hold("a", KEPT, Unmount(), flags=SHARED)
    (tree / "a").rename(tree / "b" / "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with server(tree, state) as second:
        assert second.state is not None
        await trio.to_thread.run_sync(len, "")  # a thread is there
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(StateFileError, match=r'has hold h1 of "tester".*Too many open files'):
                await second.restore()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(second.keeper.registry) == 0
        await second.state.forget_unmounted()  # nor does its end count as an unmount
    assert [kept.hold.id for kept in in_file(state)] == ["h1"]
    assert len((await restarted(tree, state)).restored) == 1


# --- only if it is not over -------------------------------------------------------------------------------------------


async def test_a_time_goes_on_while_no_server_runs(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        assert first.state is not None
        hold = await first.hold("a", KEPT, flags=SHARED)
        await first.state.add([evolve(hold, id="h10", ends=(KEPT, boottime_in(-1)))])
        await first.state.add([evolve(hold, id="h11", ends=(KEPT, boottime_in(1000)))])
    report = await restarted(tree, state)
    assert [hold.id for hold in report.over] == ["h10"]
    assert [hold.id for hold in report.restored] == ["h1", "h11"]
    assert [kept.hold.id for kept in in_file(state)] == ["h1", "h11"]


async def test_in_the_same_boot_nobody_can_set_the_clock(tree: Path, state: Path) -> None:
    """The deadline counts, not the date; after a boot there is only the date."""
    behind, ahead = boottime_in(-1000), boottime_in(1000)
    with server(tree, state) as first:
        assert first.state is not None
        hold = await first.hold("a", KEPT, flags=SHARED)
        await first.state.add([evolve(hold, id="h2", ends=(KEPT, Time(behind.at, ahead.deadline)))])
        await first.state.add([evolve(hold, id="h3", ends=(KEPT, Time(ahead.at, behind.deadline)))])
    for kept in in_file(state)[1:]:
        with_row(state, Kept(evolve(kept.hold, id=kept.hold.id + "0"), kept.identity, boot="another"))
    report = await restarted(tree, state)
    assert [hold.id for hold in report.restored] == ["h1", "h2", "h30"]
    assert [hold.id for hold in report.over] == ["h3", "h20"]
    (_, end) = report.restored[2].ends
    assert isinstance(end, Time)
    assert boottime_in(0).deadline < end.deadline <= boottime_in(1000).deadline


async def test_a_process_is_watched_again(tree: Path, state: Path, nursery: trio.Nursery) -> None:
    with sleeping() as process:
        with server(tree, state) as first:
            end = exit_of(first, process.pid)
            await first.hold("a", KEPT, end, flags=SHARED)
        with server(tree, state) as second:
            nursery.start_soon(second.reaper.run)
            report = await second.restore()
            assert [hold.ends for hold in report.restored] == [(KEPT, end)]
            assert second.keeper.present[end].is_alive()
            reaped = trio.Event()
            second.keeper.subscribe(lambda _: reaped.set())
            process.kill()
            await reaped.wait()
            assert second.told == ["reaped"]
            while in_file_of(second):
                await trio.testing.wait_all_tasks_blocked(0.001)
            nursery.cancel_scope.cancel()


def in_file_of(one: Server) -> bool:
    """Whether a running server still has anything to remove from its file."""
    assert one.state is not None
    with one.state._in_use:  # its own connection: another would be refused
        return bool(list(holds_in(one.state._database)))


async def test_one_whose_process_has_exited_is_over(tree: Path, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with sleeping() as process:
        with server(tree, state) as first:
            await first.hold("a", KEPT, exit_of(first, process.pid), flags=SHARED)
            await first.hold("b", KEPT, flags=SHARED)
        process.kill()
        process.wait()
    with server(tree, state) as second:
        report = await second.restore()
        assert [hold.path for hold in report.over] == ["/mnt/a"]
        assert second.keeper.present == {}
    assert f"process {process.pid} has exited" in caplog.text


async def test_a_pid_is_no_proof(tree: Path, state: Path) -> None:
    """Another process has it now, or it is of another boot."""
    with sleeping() as process, server(tree, state) as first:
        assert first.state is not None
        hold = await first.hold("a", KEPT, flags=SHARED)
        end = exit_of(first, process.pid)
        assert end.start_time is not None
        others = [evolve(end, start_time=end.start_time - 1), evolve(end, boot="another"), Exit(end.pid)]
        await first.state.add([evolve(hold, id=f"h1{i}", ends=(KEPT, other)) for i, other in enumerate(others)])
        await first.state.remove([hold.id])
        first.state.close()
        report = await restarted(tree, state)
    assert [hold.id for hold in report.over] == ["h10", "h11", "h12"]
    assert in_file(state) == []


async def test_a_connection_does_not_outlive_the_server(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        assert first.state is not None
        hold = await first.hold("a", KEPT, flags=SHARED)
        await first.state.add([evolve(hold, ends=(KEPT, Connection(1)))])
    report = await restarted(tree, state)
    assert [hold.id for hold in report.over] == [hold.id]


async def test_a_clean_unmount_ends_what_ends_with_it(tree: Path, state: Path) -> None:
    with server(tree, state) as first:
        assert first.state is not None
        await first.hold("a", KEPT, Unmount(), flags=SHARED)
        await first.hold("b", KEPT, flags=SHARED)
    assert len((await restarted(tree, state)).restored) == 2  # it was killed, not unmounted
    with server(tree, state) as second:
        assert second.state is not None
        await second.restore()
        await second.hold("c", KEPT, Unmount(), flags=SHARED)
        await second.state.forget_unmounted()
    assert [hold.path for hold in (await restarted(tree, state)).restored] == ["/mnt/b"]


# --- when it cannot be written ----------------------------------------------------------------------------------------


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """The limit of setrlimit(2) that write(2) fails at with EFBIG; Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def must_fail_and_recover(one: Server, full: AbstractContextManager[None]) -> None:
    """While the disk is full nothing is placed and nothing is lost; afterwards all is as before."""

    async def hold_until_it_fails() -> None:
        while True:
            await one.hold("b", KEPT, flags=SHARED, reason="x" * 1000)

    kept = await one.hold("a", KEPT, one.keeper.time_in(100), flags=SHARED)
    with full:
        with pytest.raises(NotKept, match="state"):
            await hold_until_it_fails()
        held = one.keeper.registry.all()
        with pytest.raises(NotKept, match="state"):
            await one.hold("c", KEPT, flags=SHARED, reason="x" * 1000)
        assert one.keeper.registry.all() == held
        assert one.keeper.registry.on(one.inode("c")) == ()
        await one.hold("c", Unmount(), flags=DEFAULT)  # what need not be written goes on
    await one.hold("d", KEPT, flags=SHARED, reason="x" * 1000)
    await one.keeper.renew([kept.id], 500, requester=kept.holder.process)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    with suppress(OSError), open(disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(disk).f_bavail == 0
    yield
    (disk / "ballast").unlink()


@pytest.mark.root
async def test_a_full_disk(tree: Path, disk: Path) -> None:
    with server(tree, disk / "state") as one:
        await must_fail_and_recover(one, filled(disk))
        placed = [hold for hold in one.keeper.registry.all() if KEPT in hold.ends]
    report = await restarted(tree, disk / "state")
    assert [without_inode(hold) for hold in report.restored] == [without_inode(hold) for hold in placed]


@pytest.mark.root
def test_on_a_full_disk_no_file_is_made(tree: Path, disk: Path) -> None:
    with filled(disk):
        with pytest.raises(StateFileError, match=r"No space left|full"), server(tree, disk / "state"):
            pass
        assert names_in(disk) == {"ballast"}


async def test_a_file_that_may_not_grow(tree: Path, state: Path) -> None:
    with server(tree, state) as one:
        await must_fail_and_recover(one, no_file_grows_beyond(40_000))
        placed = [hold for hold in one.keeper.registry.all() if KEPT in hold.ends]
    report = await restarted(tree, state)
    assert [without_inode(hold) for hold in report.restored] == [without_inode(hold) for hold in placed]


async def test_what_cannot_be_removed_is_still_held(tree: Path, state: Path) -> None:
    with server(tree, state) as one:
        assert one.state is not None
        hold = await one.hold("a", KEPT, flags=SHARED)
        with no_file_grows_beyond(1), pytest.raises(NotKept):
            await one.keeper.unlock([hold.id], requester=hold.holder.process)
        assert one.keeper.registry.all() == (hold,)
        await one.keeper.unlock([hold.id], requester=hold.holder.process)
    assert in_file(state) == []


async def test_an_inode_that_goes_meanwhile_is_not_kept(tree: Path, state: Path) -> None:
    with server(tree, state) as one:
        assert one.state is not None
        hold = await one.hold("a", Unmount(), flags=SHARED)
        unknown = evolve(hold, id="h99", inode=Inode(1, 2, 3))
        with pytest.raises(Gone):
            await one.state.add([evolve(hold, id="h98"), unknown])
    assert in_file(state) == []
