"""The Python client on a real mount: what `with exclfs.hold(path)` promises, from threads, forks, trio, and Varlink."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio

import exclfs
from exclfs.client import trio_client
from exclfs.holds.flags import Flags

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


def test_the_three_lines(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    script = """
import exclfs
with exclfs.hold({path!r}, holder="build-42", reason="linking against it"):
    subprocess.call(["rmdir", {path!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", "import subprocess\n" + script.format(path=str(path))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "busy" in done.stderr
    path.rmdir()


def test_it_is_held_in_the_block_and_not_after_it(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    manager = exclfs.hold(path, holder="us", reason="because")
    assert not exclfs.inuse(path)
    with manager as hold:
        assert (hold.path, hold.holder.name, hold.reason) == (str(path), "us", "because")
        assert hold.flags == Flags.EXCL_INUSE | Flags.NO_REMOVE
        assert (hold.inode.dev, hold.inode.ino) == (mounted.backing.stat().st_dev, path.stat().st_ino)
        assert exclfs.inuse(path)
        assert exclfs.holds(path)[0].id == hold.id
        assert exclfs.why(path).blocked
        refused(path)
    assert not exclfs.why(path).blocked
    path.rmdir()


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_it_ends_however_the_block_does(mounted: Mounted, end: type[BaseException]) -> None:
    path = mounted.setup("directory")
    with pytest.raises(end), exclfs.hold(path):
        raise end
    path.rmdir()


def test_held_carries_who_is_in_the_way(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="first", reason="was here first") as hold:
        with pytest.raises(exclfs.Held) as caught, exclfs.hold(path):
            raise AssertionError("two claims on one inode")
        in_the_way = caught.value.hold
        assert (in_the_way.id, in_the_way.holder.name, in_the_way.reason) == (hold.id, "first", "was here first")
        assert (in_the_way.holder.process.pid, in_the_way.since) == (os.getpid(), hold.since)
    with exclfs.hold(path):
        pass


def test_what_was_removed_cannot_be_held(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with pytest.raises(FileNotFoundError):
        exclfs.hold(path / "nothing").__enter__()
    descriptor = os.open(path, os.O_PATH)
    path.rmdir()
    try:
        with exclfs.connect(mounted.path) as client, pytest.raises(exclfs.Gone):
            client.hold(f"/proc/self/fd/{descriptor}/.")
    finally:
        os.close(descriptor)


def test_holds_that_share(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="claims"), exclfs.hold(path, claim=False, holder="one"):
        with exclfs.hold(path, claim=False, holder="two"):
            assert [hold.holder.name for hold in exclfs.holds(path)] == ["claims", "one", "two"]
            assert [hold.holder.name for hold in exclfs.holds(path, holder="two")] == ["two"]
        refused(path)
    path.rmdir()


def test_holds_in_holds(mounted: Mounted) -> None:
    mounted.expect("refused")
    outer = mounted.setup("outer")
    inner = mounted.setup("outer/inner")
    with exclfs.hold(outer):
        with exclfs.hold(inner):
            refused(inner)
            with pytest.raises(OSError, match="busy"):
                outer.rename(mounted.path / "elsewhere")
        inner.rmdir()
        refused(outer)
    outer.rmdir()


def test_every_thread_holds_for_itself(mounted: Mounted) -> None:
    mounted.expect("refused")
    paths = [mounted.setup(f"directory{number}") for number in range(8)]
    all_hold, enough = threading.Barrier(len(paths) + 1), threading.Event()

    def work(path: Path) -> None:
        with exclfs.hold(path, holder=path.name):
            all_hold.wait(30)
            enough.wait(30)

    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    all_hold.wait(30)
    for path in paths:
        refused(path)
    enough.set()
    for thread in threads:
        thread.join()
    for path in paths:
        path.rmdir()


def test_threads_share_a_client(mounted: Mounted) -> None:
    with exclfs.connect(mounted.path) as client:

        def work(number: int) -> None:
            path = mounted.setup(f"directory{number}")
            for _ in range(20):
                (hold,) = client.hold(path)
                assert hold.path == str(path)
                client.end((hold,))
            path.rmdir()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(mounted.backing.iterdir()) == []


def test_after_a_fork_it_is_the_parents(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    script = """
import os, sys
import exclfs
client = exclfs.connect(sys.argv[1])
with exclfs.hold(sys.argv[1]):
    child = os.fork()
    if child == 0:
        try: client.holds()
        except exclfs.Disconnected: pass
        else: os._exit(1)
        sys.exit(0)  # leaves the block, as programs do that fork; the parent's hold must not care
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(client.holds(sys.argv[1])) == 1
    try: os.rmdir(sys.argv[1])
    except OSError as error: print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("16\n", "", 0)
    path.rmdir()


def test_where_there_is_no_mount_or_no_server(mounted: Mounted, tmp_path: Path) -> None:
    for call in (exclfs.holds, exclfs.why, exclfs.release, exclfs.connect, exclfs.inuse):
        with pytest.raises(exclfs.NotAMount):
            call(tmp_path)
        with pytest.raises(FileNotFoundError):
            call(mounted.path / "nothing")


# --- trio ------------------------------------------------------------------------------------------------------------


async def test_on_trio(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    async with trio_client.hold(path, holder="us", reason="because") as hold:
        refused(path)
        async with await trio_client.connect(path) as client:
            assert [one.id for one in await client.holds(path)] == [hold.id]
            with pytest.raises(exclfs.Held) as caught:
                await client.hold(path)
            assert caught.value.hold.id == hold.id
            assert (await client.why(path)).blocked
            assert (await client.status()).pid == mounted.process.pid
    path.rmdir()


async def test_on_trio_a_cancelled_block_holds_nothing(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    async with trio.open_nursery() as nursery:

        async def stay(task_status: trio.TaskStatus[None]) -> None:
            async with trio_client.hold(path):
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(stay)
        assert exclfs.inuse(path)
        nursery.cancel_scope.cancel()
    path.rmdir()


async def test_on_trio_many_at_once(mounted: Mounted) -> None:
    paths = [mounted.setup(f"directory{number}") for number in range(50)]

    async def work(path: Path) -> None:
        async with trio_client.hold(path):
            assert exclfs.inuse(path)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(work, path)
    for path in paths:
        path.rmdir()


# --- any language ----------------------------------------------------------------------------------------------------


def test_a_varlink_client_that_is_not_ours(mounted: Mounted) -> None:
    varlink: Any = pytest.importorskip("varlink")
    path = mounted.setup("directory")
    address = "unix:" + os.getxattr(path, "user.exclfs.socket").decode()
    relative = str(path.relative_to(mounted.root))
    with varlink.Client(address) as client:
        assert "org.exclfs" in client.get_interfaces()
        with client.open("org.varlink.service") as service:
            assert service.GetInfo()["product"] == "exclfs"
            assert "method Hold" in service.GetInterfaceDescription("org.exclfs")["description"]
        with client.open("org.exclfs") as ours:
            assert ours.Status()["status"]["mountpoint"] == str(mounted.root)
            (told,) = ours.Hold(
                objects=[{"path": relative}], flags=["NO_REMOVE"], holder="them", reason="", until_unmount=False
            )["holds"]
            assert told["path"] == str(path)
            mounted.expect("refused")
            refused(path)
            assert ours.Why(object={"path": relative})["blocked"]
            with pytest.raises(varlink.VarlinkError, match="NoSuchHold"):
                ours.Release(id="h999999", break_it=False)
            ours.Release(id=told["id"], break_it=False)
    mounted.expect("unlock_bad")
    path.rmdir()
