"""A holder that dies holds nothing any more: not at some time after, but at the very next removal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, TextIO

import pytest

import exclfs
from program import logged, started, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

ROUNDS = 200

NURSERY = """
import os, signal, sys
import exclfs
exclfs.release(sys.argv[1])  # what is imported and compiled now, no child has to
for path in sys.stdin:
    if os.fork() == 0:
        client = exclfs.connect(path.strip())
        client.hold(path.strip())
        print(os.getpid(), flush=True)
        signal.pause()
"""
"""Has a child hold each path that it is told. It waits for none of them, so that they stay zombies."""


@contextlib.contextmanager
def running(script: str, *arguments: object) -> Iterator[tuple[TextIO, TextIO]]:
    """A Python script, by its stdin and stdout; killed in the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdin, process.stdout
        finally:
            process.kill()


def kill(pid: int) -> None:
    """SIGKILL, and returns when the process is dead; nobody has waited for it yet."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_for_exit(pidfd)
    finally:
        os.close(pidfd)


def test_the_very_next_removal_succeeds(mounted: Mounted) -> None:
    path = mounted.path / "held"
    with running(NURSERY, mounted.path) as (tell, told):
        for _ in range(ROUNDS):
            path.mkdir()
            tell.write(f"{path}\n")
            tell.flush()
            holder = int(told.readline())
            kill(holder)
            path.rmdir()
    with exclfs.connect(mounted.path) as client:
        assert client.status().refusals == 0


def test_the_very_next_claim_succeeds(mounted: Mounted) -> None:
    path = mounted.setup("held")
    with running(NURSERY, mounted.path) as (tell, told), exclfs.connect(mounted.path) as client:
        for _ in range(ROUNDS // 10):
            tell.write(f"{path}\n")
            tell.flush()
            kill(int(told.readline()))
            client.end(client.hold(path))
    path.rmdir()


WITH_HEIR = """
import os, subprocess, sys
import exclfs
client = exclfs.connect(sys.argv[1])
client.hold(sys.argv[1])
copy = os.dup(client.fileno())
if sys.argv[2] == "fork":
    heir = os.fork()
    if heir == 0:
        os.fstat(copy)
        sys.stdin.read()
        os._exit(0)
else:
    heir = subprocess.Popen(["sleep", "600"], pass_fds=[copy]).pid
print(os.getpid(), heir, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_who_inherits_the_socket_does_not_inherit_the_hold(mounted: Mounted, how: str) -> None:
    mounted.expect("refused")
    path = mounted.setup("held")
    with running(WITH_HEIR, path, how) as (_, told):
        holder, heir = map(int, told.readline().split())
        try:
            with pytest.raises(OSError, match="busy"):
                path.rmdir()
            kill(holder)
            path.rmdir()
            assert os.readlink(f"/proc/{heir}/exe")  # it lives, and has the socket
        finally:
            kill(heir)


def test_a_connection_that_is_closed_holds_nothing(mounted: Mounted) -> None:
    path = mounted.path / "held"
    for _ in range(20):
        path.mkdir()
        client = exclfs.connect(path)
        client.hold(path)
        client.close()
        path.rmdir()


def test_a_stopped_holder_still_holds(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("held")
    with started("hold", path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() != ""
        holder.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
            with pytest.raises(OSError, match="busy"):
                path.rmdir()
        finally:
            holder.kill()
        holder.wait()
        path.rmdir()


def test_the_server_lets_go_of_the_dead_without_being_asked(mounted: Mounted) -> None:
    """Its holds are gone from the lists, too, and the log says so."""
    path = mounted.setup("held")
    with running(NURSERY, mounted.path) as (tell, told), exclfs.connect(mounted.path) as client:
        tell.write(f"{path}\n")
        tell.flush()
        holder = int(told.readline())
        (hold,) = client.holds(path)
        assert hold.holder.process.pid == holder
        kill(holder)
        while client.holds(path):
            select.select([], [], [], 0.01)
        logged(mounted, "unlocked", f"holder_id={hold.id}")
    path.rmdir()


def test_what_is_to_stay_until_unmount_survives_who_placed_it(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("held")
    subprocess.run(
        [sys.executable, "-c", "import os, sys; os.setxattr(sys.argv[1], 'system.exclfs.hold', b'x')", str(path)],
        check=True,
    )
    with pytest.raises(OSError, match="busy"):
        path.rmdir()
    os.removexattr(path, "system.exclfs.hold")
    path.rmdir()
