"""The fork server: what it forks is a program of its own, and neither outlives who began it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exclfs.testing.forks import ROOM, Fork, ForkServer, server_of
from program import wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import json, os, signal, sys

def main():
    match sys.argv[1]:
        case "look":
            opened = sorted(os.listdir("/proc/self/fd"), key=int)
            print(json.dumps(["look", os.getcwd(), os.environ.get("COLOUR"), opened]))
        case "write":
            os.write(int(sys.argv[-1]), sys.argv[2].encode())
        case "pid":
            os.write(int(sys.argv[-1]), str(os.getpid()).encode())
        case "end":
            return int(sys.argv[2])
        case "exit":
            sys.exit("no")
        case "fail":
            raise ValueError("on fire")
        case "sleep":
            signal.pause()
    return 0
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    (tmp_path / "program_of_a_test.py").write_text(PROGRAM)
    made = ForkServer("program_of_a_test", environment(tmp_path))
    yield made
    made.close()


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tmp_path), **more}


def fork(server: ForkServer, tmp_path: Path, *words: str, **named: Any) -> Fork:
    with open(tmp_path / "stdout", "wb") as stdout, open(tmp_path / "stderr", "wb") as stderr:
        return server.fork(words, **{"environment": environment(tmp_path), "stdout": stdout, "stderr": stderr, **named})


@pytest.mark.parametrize(("words", "status"), [(("end", "0"), 0), (("end", "3"), 3), (("exit",), 1), (("fail",), 1)])
def test_its_exit_code_is_that_of_main(server: ForkServer, tmp_path: Path, words: tuple[str, ...], status: int) -> None:
    assert fork(server, tmp_path, *words).wait() == status
    assert ("ValueError: on fire" in (tmp_path / "stderr").read_text()) == (words == ("fail",))


def test_it_has_its_own_directory_environment_and_descriptors(server: ForkServer, tmp_path: Path) -> None:
    named = {"environment": environment(tmp_path, COLOUR="red"), "cwd": str(tmp_path)}
    assert fork(server, tmp_path, "look", **named).wait() == 0
    # The fourth is of the listing itself.
    assert (tmp_path / "stdout").read_text() == f'["look", "{tmp_path}", "red", ["0", "1", "2", "3"]]\n'


def test_one_descriptor_is_passed_and_named_by_its_last_argument(server: ForkServer, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    assert fork(server, tmp_path, "write", "text", passed=writing).wait() == 0
    os.close(writing)
    with open(reading) as told:
        assert told.read() == "text"


@pytest.mark.parametrize("more", ["", "x" * ROOM])
def test_its_arguments_are_where_ps_looks(server: ForkServer, tmp_path: Path, more: str) -> None:
    sleeping = fork(server, tmp_path, "sleep", more)
    while b"sleep" not in (told := Path(f"/proc/{sleeping.pid}/cmdline").read_bytes()):
        pass
    whole = "\0".join([sys.executable, "-P", "-m", "program_of_a_test", "sleep", more]).encode()
    assert whole.startswith(told.rstrip(b"\0")), "as much of it as there is room for"
    assert b"exclfs.testing.forks" not in told
    sleeping.kill()
    assert sleeping.wait() == -signal.SIGKILL


def test_a_signal_reaches_it_and_nobody_else_afterwards(server: ForkServer, tmp_path: Path) -> None:
    sleeping = fork(server, tmp_path, "sleep")
    assert sleeping.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        sleeping.wait(0.01)
    sleeping.terminate()
    assert sleeping.wait() == sleeping.poll() == -signal.SIGTERM
    sleeping.kill()  # there is nobody any more


def test_each_of_several_threads_gets_what_it_asked_for(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to ask is held up before it reads its answer, for as long as another could take that."""
    receive, first = socket.recv_fds, threading.Event()

    def late(*arguments: Any) -> Any:
        if not first.is_set():
            first.set()
            time.sleep(0.3)
        return receive(*arguments)

    monkeypatch.setattr(socket, "recv_fds", late)

    def is_the_one_that_was_asked_for() -> bool:
        reading, writing = os.pipe()
        with open(reading) as told, open(os.devnull, "wb") as nothing:
            made = server.fork(
                ["pid"], environment=environment(tmp_path), stdout=nothing, stderr=nothing, passed=writing
            )
            os.close(writing)
            return made.wait() == 0 and told.read() == str(made.pid)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(is_the_one_that_was_asked_for)
        first.wait()
        other = pool.submit(is_the_one_that_was_asked_for)
        assert one.result()
        assert other.result()


def test_nothing_is_left_open(server: ForkServer, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    fork(server, tmp_path, "end", "0").wait()
    assert os.listdir("/proc/self/fd") == before


def test_one_that_has_ended_forks_nothing_and_says_so(server: ForkServer, tmp_path: Path) -> None:
    sleeping = fork(server, tmp_path, "sleep")
    pidfd = os.pidfd_open(sleeping.pid)
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(OSError, match=r"fork server has ended|Broken pipe|Connection reset"):
        fork(server, tmp_path, "end", "0")
    assert not server.serves(environment(tmp_path))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    wait_for_exit(pidfd)
    os.close(pidfd)
    assert sleeping.wait() == 255, "nobody knows how it ended"


def test_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "program_of_a_test.py").write_text(PROGRAM)
    first = server_of("program_of_a_test", environment(tmp_path))
    assert server_of("program_of_a_test", environment(tmp_path)) is first
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(OSError, match=r"fork server has ended|Broken pipe|Connection reset"):
        fork(first, tmp_path, "end", "0")
    second = server_of("program_of_a_test", environment(tmp_path))
    assert fork(second, tmp_path, "end", "3").wait() == 3
    second.close()
    assert not second.serves(environment(tmp_path))


def test_it_serves_only_who_would_start_alike(server: ForkServer, tmp_path: Path) -> None:
    assert server.serves(environment(tmp_path, COLOUR="red"))
    assert not server.serves(environment(tmp_path, LC_ALL="C"))
    assert not server.serves({**os.environ, "PYTHONPATH": "/elsewhere"})


def test_it_ends_with_the_process_that_began_it_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "program_of_a_test.py").write_text(PROGRAM)
    script = textwrap.dedent("""
        import os, sys
        from exclfs.testing.forks import ForkServer
        server = ForkServer("program_of_a_test", {**os.environ, "PYTHONPATH": sys.argv[1]})
        server.fork(("end", "0"), environment=os.environ, stdout=2, stderr=2).wait()
        print(server.pid, flush=True)
        input()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pidfd = os.pidfd_open(int(owner.stdout.readline()))
        owner.kill()
        wait_for_exit(pidfd)
        os.close(pidfd)
