"""The Python client on a real mount: what `with exclfs.hold(path)` promises, from threads and forks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import exclfs
from exclfs.client import trio_client
from exclfs.holds.flags import Flags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


@contextlib.contextmanager
def running(script: str, *arguments: object, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python script in a process of its own, killed in the end."""
    with subprocess.Popen(
        [*prefix, sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(done: Callable[[], bool]) -> None:
    """For what happens a moment after: that somebody queues, or no longer does."""
    while not done():
        time.sleep(0.01)


def waiting(path: Path) -> int:
    """How many calls queue for a claim, in the mount."""
    with exclfs.connect(path) as client:
        return client.status().waiting


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


def test_a_forked_child_connects_by_itself(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    script = """
import os, sys
import exclfs
path = sys.argv[1]
with exclfs.hold(path, claim=False, holder="parent"):
    if (child := os.fork()) == 0:
        with exclfs.hold(path, claim=False, holder="child"):
            print(sorted(hold.holder.name for hold in exclfs.holds(path)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print([hold.holder.name for hold in exclfs.holds(path)])
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "['child', 'parent']\n['parent']\n"


def test_where_there_is_no_mount_or_no_server(mounted: Mounted, tmp_path: Path) -> None:
    for call in (exclfs.holds, exclfs.release, exclfs.connect, exclfs.inuse, exclfs.events):
        with pytest.raises(exclfs.NotAMount):
            call(tmp_path)
        with pytest.raises(FileNotFoundError):
            call(mounted.path / "nothing")
    with pytest.raises(FileNotFoundError):
        exclfs.why(mounted.path / "nothing")
    assert not exclfs.why(tmp_path, attempt="rmdir").causes


# --- what ends a hold -------------------------------------------------------------------------------------------------


def test_it_ends_with_a_process(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with running("input()") as job:
        with exclfs.connect(path) as client:
            (hold,) = client.hold(path, pid=job.pid, holder="job")
        assert hold.ends == (exclfs.Exit(job.pid),)
        refused(path)
        job.kill()
        job.wait()
        path.rmdir()


IN_A_NAMESPACE = """
import subprocess, sys
import exclfs
job = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
assert job.pid < 10
exclfs.connect(sys.argv[1]).hold(sys.argv[1], pid=job.pid, holder="job")
print(job.pid, flush=True)
input()
job.kill()
job.wait()
print("killed", flush=True)
input()
"""


def test_a_process_is_the_same_in_every_pid_namespace(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with running(
        IN_A_NAMESPACE, path, prefix=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    ) as namespace:
        inside = int(line_of(namespace))
        ((end,),) = (hold.ends for hold in exclfs.holds(path))
        assert isinstance(end, exclfs.Exit)
        assert end.pid != inside
        assert Path(f"/proc/{end.pid}/comm").read_text() == "cat\n"
        refused(path)
        assert namespace.stdin is not None
        namespace.stdin.write("go\n")
        namespace.stdin.flush()
        assert line_of(namespace) == "killed"
        path.rmdir()


def test_it_ends_when_its_time_is_over(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with exclfs.connect(path) as client, client.events(path) as stream:
        (hold,) = client.hold(path, ttl=3600)
        (renewed,) = client.renew(hold, 7200)
        assert renewed.id == hold.id
        assert renewed.ends[0].at > hold.ends[0].at
        refused(path)
        client.renew(hold.id, 0.01)
        assert isinstance(
            next(event for event in stream if not isinstance(event, exclfs.Locked | exclfs.Refused)), exclfs.Expired
        )
    path.rmdir()


def test_it_outlives_its_client(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        (hold,) = client.hold(path, until_unmount=True)
    refused(path)
    assert exclfs.release(path) == (hold,)
    path.rmdir()


def test_without_a_state_file_nothing_is_kept(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        with pytest.raises(exclfs.HoldError, match="state"):
            client.hold(path, persistent=True)
        assert not client.inuse(path)


def test_what_lies_below_is_in_use(mounted: Mounted) -> None:
    mounted.expect("refused")
    outer, inner = mounted.setup("outer"), mounted.setup("outer/inner")
    with exclfs.hold(outer, flags=Flags.NO_REMOVE_BELOW) as hold:
        assert exclfs.inuse(inner)
        assert exclfs.holds(inner) == (hold,)
        refused(inner)
    assert not exclfs.inuse(inner)


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_who_waits_is_served_in_the_order_of_coming(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    served: list[str] = []

    def wait(name: str) -> None:
        with exclfs.hold(path, holder=name, timeout=None):
            served.append(name)

    threads = [threading.Thread(target=wait, args=(name,)) for name in "abcd"]
    with exclfs.connect(path) as client:
        (first,) = client.hold(path, holder="first")
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda number=number: waiting(path) == number)
        with pytest.raises(exclfs.Held) as caught, exclfs.hold(path, timeout=0.01):
            pass
        assert caught.value.hold == first
        client.release(first)
        for thread in threads:
            thread.join()
    assert served == ["a", "b", "c", "d"]
    path.rmdir()


def test_who_waits_gets_what_the_dead_have_held(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    script = """
import sys, exclfs
client = exclfs.connect(sys.argv[1])
client.hold(sys.argv[1], holder="first")
print("held", flush=True)
input()
"""
    with running(script, path) as holder, exclfs.connect(path) as client:
        assert line_of(holder) == "held"
        killer = threading.Thread(target=lambda: (wait_until(lambda: waiting(path) == 1), holder.kill()))
        killer.start()
        with exclfs.hold(path, timeout=None) as hold:
            assert client.holds(path) == (hold,)
        killer.join()


def test_an_interrupt_gives_the_place_up(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    script = """
import sys, exclfs
try:
    with exclfs.hold(sys.argv[1], timeout=None): pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
input()
"""
    with exclfs.hold(path), running(script, path) as process:
        wait_until(lambda: waiting(path) == 1)
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "interrupted"
        wait_until(lambda: waiting(path) == 0)
    with exclfs.hold(path, timeout=None):
        pass


async def test_on_trio_a_cancellation_gives_the_place_up(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    async with await trio_client.connect(path) as client, await trio_client.connect(path) as other:
        (first,) = await client.hold(path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: other.hold(path, timeout=None))
            await trio.to_thread.run_sync(lambda: wait_until(lambda: waiting(path) == 1))
            nursery.cancel_scope.cancel()
        assert other.closed
        await client.release(first)
        with trio.fail_after(30):
            async with trio_client.hold(path, timeout=None):
                pass


# --- ten thousand ----------------------------------------------------------------------------------------------------


def test_ten_thousand_in_one_call_each(mounted: Mounted) -> None:
    mounted.expect("refused")
    mounted.setup("many")
    names = [f"many/{number}" for number in range(10_000)]
    for name in names:
        (mounted.backing / name).touch()
    paths = [mounted.path / name for name in names]
    with exclfs.connect(mounted.path) as client:
        placed = client.hold(paths, ttl=3600)
        assert [hold.path for hold in placed] == [str(path) for path in paths]
        for path in paths[::2500]:
            with pytest.raises(OSError, match="busy"):
                path.unlink()
        renewed = client.renew(placed, 7200)
        assert [hold.id for hold in renewed] == [hold.id for hold in placed]
        assert [hold.id for hold in client.release(renewed)] == [hold.id for hold in placed]
        client.hold(paths[5000])
        with pytest.raises(exclfs.Held) as caught:
            client.hold(paths)
        assert caught.value.hold.path == str(paths[5000])
        assert len(client.holds()) == 1
    for path in paths[::2500]:
        path.unlink()


def test_many_through_a_bind_mount_of_a_directory(mounted: Mounted, tmp_path: Path) -> None:
    mounted.expect("refused")
    inner = mounted.setup("outer/inner")
    for number in range(300):
        (mounted.backing / "outer/inner" / str(number)).mkdir()
    subprocess.run(["mount", "--bind", str(inner), str(tmp_path)], check=True)
    try:
        paths = [tmp_path / str(number) for number in range(300)]
        with exclfs.hold(paths) as holds:
            assert [hold.inode.ino for hold in holds] == [path.stat().st_ino for path in paths]
            assert holds[0].path == str(inner / "0")
            for number in (0, 299):
                refused(inner / str(number))
            assert exclfs.holds(inner / "0") == holds[:1] == exclfs.holds(paths[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- events and modes ------------------------------------------------------------------------------------------------


def test_events_of_a_path_and_of_the_mount(mounted: Mounted) -> None:
    mounted.expect("refused")
    path, other = mounted.setup("directory"), mounted.setup("other")
    with exclfs.events(path) as of_path, exclfs.events(mounted.root) as of_mount:
        with exclfs.hold(other), exclfs.hold(path) as hold:
            refused(path)
        told = [next(of_path) for _ in range(3)]
        assert [event.name for event in told] == ["locked", "refused", "unlocked"]
        assert told[0].hold == hold
        assert (told[1].operation, told[1].path, told[1].enforced) == (exclfs.Operation.RMDIR, str(path), True)
        assert told[1].holds == (hold,)
        assert told[1].requester.pid == os.getpid()
        assert [next(of_mount).name for _ in range(5)] == ["locked", "locked", "refused", "unlocked", "unlocked"]


def test_the_holder_is_told_who_broke_the_hold_and_why(mounted: Mounted) -> None:
    mounted.expect("broken")
    path = mounted.setup("directory")
    breaks = "import sys, exclfs; exclfs.release(sys.argv[1], break_it=True, reason='it leaked')"
    with exclfs.connect(path) as client:
        (hold,) = client.hold(path)
        with client.events(own=True) as stream, running(breaks, path) as breaker:
            event = next(stream)
            assert isinstance(event, exclfs.Broken)
            assert (event.hold, event.reason, event.requester.pid) == (hold, "it leaked", breaker.pid)
        assert client.closed
    path.rmdir()


async def test_on_trio_events(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    async with trio_client.events(path) as stream:
        async with trio_client.hold(path) as hold:
            pass
        assert [(await anext(stream)).hold for _ in range(2)] == [hold, hold]


def test_the_end_of_the_mount_ends_the_stream(mount: Callable[..., Mounted]) -> None:
    made = mount()
    with exclfs.events(made.root) as stream:
        made.unmount()
        with pytest.raises(exclfs.Disconnected):
            list(stream)


def test_in_mode_warn_it_is_told_and_happens(mount: Callable[..., Mounted]) -> None:
    made = mount()
    made.expect("refused", "mode_changed")
    path = made.setup("directory")
    with exclfs.connect(path) as client, client.events() as stream:
        assert client.mode() is exclfs.Mode.ENFORCE
        (hold,) = client.hold(path, until_unmount=True)
        assert client.mode("warn") is exclfs.Mode.WARN
        path.rmdir()
        told = {event.name: event for event in (next(stream) for _ in range(3))}
        assert told["mode_changed"].after is exclfs.Mode.WARN
        assert told["refused"].holds == (hold,)
        assert not told["refused"].enforced
        assert client.status().would_have_refused == 1


# --- the page --------------------------------------------------------------------------------------------------------


def test_what_the_page_shows_runs(mount: Callable[..., Mounted]) -> None:
    made = mount()
    page = (Path(__file__).parents[2] / "docs/reference/python.md").read_text()
    shown = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    for name in ("4f", "50"):
        made.setup(name)
    # One block removes it, and the next ones go on with it.
    code = shown.replace("/mnt/cache", str(made.root)).replace("    shutil.rmtree(", "    shutil.os.listdir(")
    assert str(made.root) in code
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
