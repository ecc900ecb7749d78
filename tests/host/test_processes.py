from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from attrs import evolve

from exclfs.host.processes import (
    UNKNOWN_UID,
    boot_id,
    container_of,
    describe,
    has_exited,
    is_alive,
    pid_of,
    pidfd_of,
    real_uid,
)
from twins import ALICE, as_user

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = "0123456789ab" + "c" * 52


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        while describe(process.pid).comm != "sleep":  # Popen returns a moment before execve(2) has done so
            time.sleep(0.001)
        yield process
        process.kill()


def test_describes_itself() -> None:
    me = describe(os.getpid())
    assert me.pid == os.getpid()
    assert me.uid == os.geteuid()
    assert me.exe == os.path.realpath(sys.executable)
    with open("/proc/self/comm") as file:
        assert me.comm == file.read().rstrip("\n")


def test_a_thread_is_described_as_its_process() -> None:
    threads: list[int] = []
    seen, end = threading.Event(), threading.Event()

    def run() -> None:
        threads.append(threading.get_native_id())
        seen.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    seen.wait()
    try:
        assert threads[0] != os.getpid()
        assert describe(threads[0]) == describe(os.getpid())
    finally:
        end.set()
        thread.join()


def test_the_uid_of_the_request_is_believed(sleeper: subprocess.Popen[bytes]) -> None:
    described = describe(sleeper.pid, uid=12345678)
    assert (described.pid, described.uid, described.user, described.comm) == (sleeper.pid, 12345678, None, "sleep")


def test_a_process_that_asks_as_another_user_is_told_as_both(sleeper: subprocess.Popen[bytes]) -> None:
    assert describe(sleeper.pid, uid=12345678).own_uid == os.geteuid()
    assert describe(sleeper.pid, uid=os.geteuid()).own_uid is None
    assert describe(sleeper.pid).own_uid is None
    assert describe(0, uid=0).own_uid is None


@pytest.mark.root
def test_a_thread_that_works_as_another_user_asks_as_itself() -> None:
    """As file servers do: setfsuid(2) is of the thread."""
    seen: list[tuple[int | None, int | None]] = []

    def run() -> None:
        described = (describe(threading.get_native_id(), uid=uid).own_uid for uid in (ALICE.uid, 0))
        seen.append((next(described), next(described)))

    as_user(ALICE, run)
    assert seen == [(None, ALICE.uid)]
    assert describe(os.getpid(), uid=0).own_uid is None


def test_the_program_is_known_though_the_first_thread_has_ended() -> None:
    script = """
import ctypes, sys, threading
def run():
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
threading.Thread(target=run).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[__import__("platform").machine()], 0)  # exit(2), of the thread
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        while os.path.lexists(f"/proc/{process.pid}/exe") and _readable(f"/proc/{process.pid}/exe"):
            time.sleep(0.001)
        described = describe(thread)
        process.kill()
    assert (described.pid, described.exe) == (process.pid, os.path.realpath(sys.executable))


def _readable(link: str) -> bool:
    try:
        os.readlink(link)
    except OSError:
        return False
    return True


def test_a_kernel_thread_has_a_name_and_no_program() -> None:
    described = describe(2, uid=0)
    if described.comm != "kthreadd":
        pytest.skip("needs the initial pid namespace, where 2 is kthreadd")
    assert (described.pid, described.exe, described.own_uid) == (2, None, None)
    assert described.start_time is not None


def test_pid_0_has_only_a_uid() -> None:
    described = describe(0, uid=0)
    assert (described.pid, described.uid, described.user) == (None, 0, "root")
    assert (described.comm, described.exe, described.start_time) == (None, None, None)


def test_a_vanished_process_is_no_error() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    described = describe(process.pid)
    assert (described.pid, described.uid) == (process.pid, UNKNOWN_UID)
    assert (described.comm, described.start_time) == (None, None)


@pytest.mark.parametrize("comm", [b"a b", b") S 1 2 (", b"new\nline\n", b"\xff\xfe"])
def test_a_hostile_comm_confuses_nothing(comm: bytes) -> None:
    change = "import sys; open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1])); print(flush=True); input()"
    command = [sys.executable, "-c", change, comm.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        described = describe(process.pid)
        process.kill()
    assert described.comm is not None
    assert os.fsencode(described.comm) == comm
    assert described.start_time is not None
    assert described.start_time > 0


def test_alive_until_killed(sleeper: subprocess.Popen[bytes]) -> None:
    described = describe(sleeper.pid)
    assert is_alive(described)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # a zombie now: nobody has collected it
    assert not is_alive(described)
    sleeper.wait()
    assert not is_alive(described)


def test_a_process_with_the_same_pid_is_another_one(sleeper: subprocess.Popen[bytes]) -> None:
    described = describe(sleeper.pid)
    assert described.start_time is not None
    assert not is_alive(evolve(described, start_time=described.start_time - 1))


def test_what_cannot_be_proved_dead_is_alive(sleeper: subprocess.Popen[bytes]) -> None:
    assert is_alive(describe(0, uid=0))
    assert is_alive(evolve(describe(sleeper.pid), start_time=None))


def test_a_process_whose_main_thread_has_ended_lives_on() -> None:
    program = """if True:
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        print(flush=True)
        ctypes.CDLL(None).pthread_exit(None)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while "State:\tZ" not in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.01)
        assert is_alive(describe(process.pid))
        process.kill()


def test_a_boot_has_one_id() -> None:
    assert UUID(boot_id()).version == 4
    done = subprocess.run(
        [sys.executable, "-c", "from exclfs.host.processes import boot_id; print(boot_id())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == boot_id() + "\n"


@pytest.mark.root
def test_whose_it_really_is() -> None:
    script = "import os, sys; os.setresuid(65534, 0, 0); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert (describe(process.pid).uid, real_uid(process.pid)) == (0, 65534)
        process.kill()
    assert real_uid(process.pid) is None


def test_a_pidfd_says_of_whom_it_is(sleeper: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(sleeper.pid)
    try:
        assert (pid_of(pidfd), has_exited(pidfd)) == (sleeper.pid, False)
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert (pid_of(pidfd), has_exited(pidfd)) == (sleeper.pid, True)
        sleeper.wait()
        assert (pid_of(pidfd), has_exited(pidfd)) == (-1, True)
    finally:
        os.close(pidfd)


def test_what_is_no_pidfd_says_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(OSError, match="not a pidfd"):
        pid_of(file.fileno())
    with pytest.raises(FileNotFoundError):
        pid_of(12345)


def test_a_pidfd_of_the_very_process(sleeper: subprocess.Popen[bytes]) -> None:
    start_time = describe(sleeper.pid).start_time
    assert start_time is not None
    pidfd = pidfd_of(sleeper.pid, start_time)
    assert pidfd is not None
    assert pid_of(pidfd) == sleeper.pid
    os.close(pidfd)
    assert pidfd_of(sleeper.pid, start_time + 1) is None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert pidfd_of(sleeper.pid, start_time) is None
    sleeper.wait()
    assert pidfd_of(sleeper.pid, start_time) is None


def test_the_number_of_a_thread_is_not_that_of_a_process() -> None:
    seen, end = threading.Event(), threading.Event()

    def run() -> None:
        seen.set()
        end.wait()

    thread = threading.Thread(target=run)
    thread.start()
    seen.wait()
    start_time = describe(os.getpid()).start_time
    try:
        assert thread.native_id is not None
        assert start_time is not None
        assert pidfd_of(thread.native_id, start_time) is None
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        ("/", None),
        ("/init.scope", None),
        ("/user.slice/user-1000.slice/session-3.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/backup.service", "backup.service"),
        ("/system.slice/cron.service", "cron.service"),
        (f"/docker/{ID}", "docker:0123456789ab"),
        (f"/system.slice/docker-{ID}.scope", "docker:0123456789ab"),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman:0123456789ab"),
        (f"/libpod_parent/libpod-{ID}", "podman:0123456789ab"),
        (f"/kubepods/besteffort/pod8d1c/{ID}", "kubernetes:0123456789ab"),
        (f"/kubepods.slice/kubepods-pod8d1c.slice/cri-containerd-{ID}.scope", "kubernetes:0123456789ab"),
        (f"/system.slice/cri-containerd-{ID}.scope", "containerd:0123456789ab"),
        (f"/default/{ID}", "container:0123456789ab"),
        (f"/docker/{'f' * 64}/docker/{ID}", "docker:0123456789ab"),
        (f"/../../docker/{ID}/system.slice/nginx.service", "docker:0123456789ab"),
        ("/machine.slice/systemd-nspawn@web.service/payload", "machine:web"),
        ("/lxc.payload.web/init.scope", "lxc:web"),
        (f"/docker/{ID}0", None),
    ],
)
def test_containers_and_units(cgroup: str, container: str | None) -> None:
    assert container_of(cgroup) == container
