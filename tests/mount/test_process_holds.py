"""Holds that end with a process (--pid), whoever placed them: at the very next removal, and without being asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, BinaryIO

import pytest

import exclfs
from exclfs.holds.lifetime import Connection, Exit, Time
from program import logged, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

ROUNDS = 1000

NURSERY = """
import os, signal, sys
for line in sys.stdin:
    if line == "start\\n":
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
    else:
        print(os.waitpid(int(line), 0)[0], flush=True)
"""
"""Starts a process for each "start", and waits for each that it is told. A fork of a small process is fast."""


class Nursery:
    """Where processes come from, that are somebody else's children."""

    def __init__(self, tell: BinaryIO, told: BinaryIO) -> None:
        self._tell = tell
        self._told = told

    def start(self) -> int:
        return self._ask("start")

    def kill_and_wait(self, pid: int) -> None:
        """SIGKILL; when this returns it is dead and its parent has waited for it."""
        os.kill(pid, signal.SIGKILL)
        assert self._ask(str(pid)) == pid

    def _ask(self, words: str) -> int:
        self._tell.write(f"{words}\n".encode())
        self._tell.flush()
        return int(self._told.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Nursery(process.stdin, process.stdout)
        process.stdin.close()


def kill_and_leave(pid: int) -> None:
    """SIGKILL; when this returns it is dead, and nobody has waited for it."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_for_exit(pidfd)
    finally:
        os.close(pidfd)


def test_the_very_next_removal_succeeds(mounted: Mounted, nursery: Nursery) -> None:
    path = mounted.path / "held"
    with exclfs.connect(mounted.path) as client:
        for _ in range(ROUNDS):
            path.mkdir()
            holder = nursery.start()
            client.hold(path, pid=holder)
            nursery.kill_and_wait(holder)
            path.rmdir()
        assert client.status().refusals == 0


def test_nobody_needs_to_have_waited(mounted: Mounted, nursery: Nursery) -> None:
    path = mounted.path / "held"
    with exclfs.connect(mounted.path) as client:
        for _ in range(ROUNDS // 10):
            path.mkdir()
            holder = nursery.start()
            client.hold(path, pid=holder)
            kill_and_leave(holder)
            path.rmdir()
        assert client.status().refusals == 0


def test_the_very_next_claim_succeeds(mounted: Mounted, nursery: Nursery) -> None:
    path = mounted.setup("held")
    with exclfs.connect(mounted.path) as client:
        for _ in range(ROUNDS // 10):
            holder = nursery.start()
            client.hold(path, pid=holder)
            with pytest.raises(exclfs.Held) as caught:
                client.hold(path)
            assert caught.value.hold.ends == (Exit(holder),)
            nursery.kill_and_wait(holder)
        client.hold(path)


def test_it_outlives_whoever_placed_it(mounted: Mounted, nursery: Nursery) -> None:
    mounted.expect("refused")
    path = mounted.setup("held")
    holder = nursery.start()
    with exclfs.connect(mounted.path) as client:
        (hold,) = client.hold(path, pid=holder)
        assert hold.holder.process.pid == holder
    for _ in range(3):
        with pytest.raises(OSError, match="busy"):
            path.rmdir()
    nursery.kill_and_wait(holder)
    path.rmdir()


def test_the_server_lets_go_of_the_dead_without_being_asked(mounted: Mounted, nursery: Nursery) -> None:
    path = mounted.setup("held")
    holder = nursery.start()
    with exclfs.connect(mounted.path) as client, exclfs.connect(mounted.path) as other:
        (hold,) = client.hold(path, pid=holder)
        with other.events(path) as events:
            nursery.kill_and_wait(holder)
            event = next(events)
        assert event.name == "reaped"
        assert client.holds(path) == ()
        logged(mounted, "reaped", f"holder_id={hold.id}")


@pytest.mark.parametrize("killed", [False, True])
def test_the_first_end_wins(mounted: Mounted, nursery: Nursery, killed: bool) -> None:
    """Of a process, a time and a connection."""
    path = mounted.setup("held")
    holder = nursery.start()
    client = exclfs.connect(mounted.path)
    (hold,) = client.hold(path, pid=holder, ttl=1000, connection=True)
    assert {type(end) for end in hold.ends} == {Exit, Time, Connection}
    if killed:
        nursery.kill_and_wait(holder)
        path.rmdir()
        client.close()
    else:
        client.close()
        path.rmdir()
        nursery.kill_and_wait(holder)


def test_a_process_costs_one_descriptor(mounted: Mounted, nursery: Nursery) -> None:
    """However many holds end with it; and none when the last of them has ended."""
    paths = [mounted.setup(f"held{number}") for number in range(100)]

    def pidfds() -> int:
        found = f"/proc/{mounted.process.pid}/fd"
        return sum(os.readlink(f"{found}/{number}") == "anon_inode:[pidfd]" for number in os.listdir(found))

    def become(number: int) -> None:
        while pidfds() != number:  # those that were passed along are closed some time after the answer
            time.sleep(0.01)

    holder = nursery.start()
    with exclfs.connect(mounted.path) as client:
        client.status()  # so that the connection is answered, which has a pidfd of its own
        before = pidfds()
        for path in paths:
            client.hold(path, pid=holder)
        become(before + 1)
        client.release(client.holds()[:-1])
        become(before + 1)
        client.release(client.holds())
        become(before)
    nursery.kill_and_wait(holder)


def test_a_hold_is_not_bound_to_the_dead(mounted: Mounted, nursery: Nursery) -> None:
    path = mounted.setup("held")
    holder = nursery.start()
    kill_and_leave(holder)
    with exclfs.connect(mounted.path) as client:
        with pytest.raises(exclfs.BadHold, match=f"process {holder} has exited"):
            client.hold(path, pid=holder)
        nursery.kill_and_wait(holder)
        with pytest.raises(ProcessLookupError):
            client.hold(path, pid=holder)
        assert client.holds(path) == ()


def test_who_dies_while_a_call_waits_gets_nothing(mounted: Mounted, nursery: Nursery) -> None:
    """The hold is to end with a process that has exited when it is the call's turn: nothing is held, and it is told."""
    path = mounted.setup("held")
    holder = nursery.start()
    wait = """if True:
        import sys, exclfs
        with exclfs.connect(sys.argv[1]) as client:
            try:
                client.hold(sys.argv[1], pid=int(sys.argv[2]), timeout=None)
            except exclfs.HoldError as error:
                print(type(error).__name__, flush=True)
    """
    with exclfs.connect(path) as client:
        (first,) = client.hold(path)
        with subprocess.Popen([sys.executable, "-c", wait, str(path), str(holder)], stdout=subprocess.PIPE) as waiting:
            assert waiting.stdout is not None
            while client.status().waiting == 0:
                pass
            nursery.kill_and_wait(holder)
            client.release(first)
            assert waiting.stdout.readline() == b"NoSuchHold\n"
        assert client.holds(path) == ()
    path.rmdir()
