"""The pytest plugin, in somebody else's project: what a test has, and that nothing of it is left, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest

from harness import mounts_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Pytest = Callable[..., subprocess.Popen[str]]

pytestmark = [pytest.mark.mount, pytest.mark.program, pytest.mark.timeout(300)]

PATIENCE: Final = 240

STANDING: Final = """
import os, pathlib, subprocess, sys
import pytest

def test_somebody_stands_at_every_gate(exclfs_mount):
    for name in ("d", "e"):
        (exclfs_mount.backing / name).mkdir()
        (exclfs_mount.backing / name / "file").write_text("")
    program = exclfs_mount.program(["rm", exclfs_mount.path / "d/file"])
    with exclfs_mount.gate("unlink", "d/*", by=program) as first, exclfs_mount.gate("unlink", "e/*") as second:
        program.start()
        other = subprocess.Popen(["rm", exclfs_mount.path / "e/file"])
        first.wait()
        second.wait()
        assert not {"trio", "pyfuse3", "exclfs.mirror", "exclfs.mount"} & set(sys.modules)  # that is the server's
        pids = [exclfs_mount.server_pid, program.pid, other.pid]
        pathlib.Path("standing.new").write_text(" ".join(map(str, pids)))
        os.rename("standing.new", "standing")
        first.wait(timeout=1000)
"""
"""A test that never ends, and while it goes on has told in a file who is there."""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Pytest]:
    """Runs pytest in a directory of its own, on this text."""
    running: list[subprocess.Popen[str]] = []

    def run(text: str, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        (tmp_path / "test_it.py").write_text(text)
        command = [*before, sys.executable, "-m", "pytest", "-q", "-rs", "-W", "error", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", str(tmp_path), "--basetemp", str(tmp_path / "base"), *options]
        running.append(
            subprocess.Popen(
                [*command, "test_it.py"],
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return running[-1]

    yield run
    for process in running:
        process.kill()
        process.communicate()
    below = os.fsencode(tmp_path)
    assert not [mountpoint for mountpoint in mounts_now() if mountpoint.startswith(below)], "a mount was left behind"


def said(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


def who_stands(tmp_path: Path, process: subprocess.Popen[str]) -> list[int]:
    """The server and the programs, once they are there."""
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "standing").exists():
        assert process.poll() is None, said(process)
        assert time.monotonic() < deadline, "nobody came"
        time.sleep(0.01)
    return [int(pid) for pid in (tmp_path / "standing").read_text().split()]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid in pids if is_there(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    with suppress(OSError), open(f"/proc/{pid}/stat") as status:
        return status.read().rpartition(")")[2].split()[0] not in "ZX"
    return False


# --- what it costs who does not use it --------------------------------------------------------------------------------


def test_who_does_not_use_it_does_not_load_it(project: Pytest) -> None:
    text = """
import sys

def test_what_is_loaded():
    assert "exclfs.testing.plugin" in sys.modules
    heavy = {"trio", "pyfuse3", "cattrs", "exclfs.mirror", "exclfs.client", "exclfs.wire", "exclfs.testing.mounting"}
    assert not heavy & set(sys.modules)
"""
    done = project(text, "-p", "no:trio", "-p", "no:hypothesispytest")
    assert "1 passed" in said(done)


# --- what a test has --------------------------------------------------------------------------------------------------

MANY: Final = """
import errno, os, pathlib, subprocess
import pytest, trio
import exclfs
from exclfs.testing import CannotBeGated

def test_several_at_once(exclfs_mounts, exclfs_mount):
    second = exclfs_mounts(mode="warn")
    assert len({exclfs_mount.path, second.path, exclfs_mount.backing, second.backing}) == 4
    for mount in (exclfs_mount, second):
        (mount.path / "a").write_text("")
    with exclfs_mount.hold("a", reason="why not"), second.hold(second.path / "a"):
        with pytest.raises(OSError, match="busy"):
            os.unlink(exclfs_mount.path / "a")
        assert [hold.reason for hold in exclfs_mount.holds("a")] == ["why not"]
        os.unlink(second.path / "a")
    assert [refusal.operation for refusal in exclfs_mount.refusals] == ["unlink"]
    assert exclfs_mount.holds() == ()

def test_after_by_a_program_and_reads_without_passthrough(exclfs_mounts):
    mount = exclfs_mounts(passthrough=False)
    (mount.backing / "a").write_text("content")
    program = mount.program(["cat", mount.path / "a"], stdout=subprocess.PIPE)
    with pytest.raises(CannotBeGated, match="start it first"):
        mount.gate("unlink", by=program, when="after")
    with mount.gate("read", "a") as gate:
        program.start()
        assert gate.wait().comm == "cat"
        gate.open()
        assert program.communicate()[0] == b"content"
    program = mount.run(["sh", "-c", "read _; rm $0", mount.path / "a"], stdin=subprocess.PIPE)
    with mount.gate("unlink", by=program, when="after") as gate:
        program.stdin.write(b"go\\n")
        program.stdin.flush()
        gate.wait()
        assert not (mount.backing / "a").exists()
        gate.open()
        assert program.wait() == 0

def test_faults(exclfs_mount):
    with exclfs_mount.fault("mkdir", errno=errno.ENOSPC, nth=2) as fault:
        os.mkdir(exclfs_mount.path / "a")
        with pytest.raises(OSError, match="space"):
            os.mkdir(exclfs_mount.path / "b")
        assert fault.struck == 1

async def test_on_trio(exclfs_mount):
    (exclfs_mount.backing / "a").write_text("")
    with exclfs_mount.gate("unlink") as gate:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, os.unlink, exclfs_mount.path / "a")
            assert (await trio.to_thread.run_sync(gate.wait)).path == "a"
            gate.open()

def test_somebody_is_left_in_the_mount(exclfs_mount):
    (exclfs_mount.backing / "d").mkdir()
    where = exclfs_mount.path / "d"
    left = subprocess.Popen(["sh", "-c", "exec 3>file; echo; exec sleep 1000"], cwd=where, stdout=subprocess.PIPE)
    left.stdout.readline()
    left.stdout.close()
    with open(os.environ["LEFT"], "a") as pids:
        pids.write(f"{left.pid}\\n")
    left.returncode = 0

def test_a_gate_without_a_block(exclfs_mount):
    (exclfs_mount.backing / "a").write_text("")
    rm = subprocess.Popen(["rm", exclfs_mount.path / "a"])
    gate = exclfs_mount.gate("rmdir")
    rm.wait()

def test_the_server_is_killed(exclfs_mount):
    os.kill(exclfs_mount.server_pid, 9)

def test_that_fails_at_a_gate(exclfs_mount):
    (exclfs_mount.backing / "a").write_text("")
    with exclfs_mount.gate("unlink", "a") as gate:
        subprocess.Popen(["rm", exclfs_mount.path / "a"]).returncode = 0
        gate.wait()

def test_that_nobody_comes(exclfs_mount):
    with exclfs_mount.gate("unlink"):
        os.mkdir(exclfs_mount.path / "d")
"""


def test_many_tests_side_by_side(project: Pytest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT", str(tmp_path / "left"))
    output = said(project(MANY, "-n", "2", "-o", "trio_mode=true", "--exclfs-require"))
    try:
        assert "2 failed, 7 passed, 1 error" in output, output
        assert "LeftAtGate: the gate before unlink of 'a' was left while rm (pid " in output
        assert "nobody came to the gate before unlink of '**'; what did happen:" in output
        assert "mkdir of 'd': done" in output
        assert "the server ended with -9" in output
    finally:
        for pid in (tmp_path / "left").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_killed(project: Pytest, tmp_path: Path) -> None:
    running = project(STANDING, "-p", "no:trio")
    pids = who_stands(tmp_path, running)
    running.kill()
    running.wait()
    wait_until_gone(pids)


def test_interrupted(project: Pytest, tmp_path: Path) -> None:
    running = project(STANDING, "-p", "no:trio")
    pids = who_stands(tmp_path, running)
    running.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in said(running)
    wait_until_gone(pids)


def test_out_of_time(project: Pytest, tmp_path: Path) -> None:
    """The signal with which pytest-timeout ends a test is sent by hand, so that nobody waits for a time."""
    running = project(STANDING, "-p", "no:trio", "--timeout=900", "--timeout-method=signal")
    pids = who_stands(tmp_path, running)
    running.send_signal(signal.SIGALRM)
    assert "Timeout (>900.0s) from pytest-timeout" in said(running)
    wait_until_gone(pids)


# --- where nothing can be mounted -------------------------------------------------------------------------------------

WITHOUT: Final = """
set -e
mkdir dev
mount -t tmpfs none dev
mkdir dev/shm
cp -a /dev/null /dev/zero /dev/urandom /dev/tty dev
mount --move dev /dev
exec "$@"
"""


@pytest.mark.root
def test_without_dev_fuse_it_is_skipped_and_can_be_required(project: Pytest, tmp_path: Path) -> None:
    text = "def test_it(exclfs_mount): pass\n"
    before = ("unshare", "-m", "--propagation", "private", "sh", "-c", WITHOUT, "sh")
    output = said(project(text, before=before))
    assert "1 skipped" in output, output
    assert "there is no /dev/fuse" in output
    (tmp_path / "dev").rmdir()
    output = said(project(text, "--exclfs-require", before=before))
    assert "1 error" in output
    assert "there is no /dev/fuse" in output
