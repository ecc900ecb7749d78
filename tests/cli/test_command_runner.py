from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exclfs.cli.command_runner import waiting
from program import wait_for_exit

RUN = """
import sys
from exclfs.cli.command_runner import waiting
with waiting(sys.argv[1:]) as process:
    status = process.run()
sys.exit(status)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 1", 1), ("exit 125", 125), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)],
)
def test_the_status_is_the_commands_own(script: str, status: int) -> None:
    assert run("sh", "-c", script).returncode == status


def test_input_output_and_arguments_are_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "sh", "-c", 'cat; echo "$1" >&2', "x", "a b"],
        input="in",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("in", "a b\n")


def test_a_command_that_is_not_there() -> None:
    done = run("no-such-command-anywhere")
    assert done.returncode == 127
    assert done.stderr == "exclfs: no-such-command-anywhere: no such file or directory\n"


def test_a_command_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    done = run(str(tmp_path / "data"))
    assert done.returncode == 126
    assert done.stderr == f"exclfs: {tmp_path}/data: permission denied\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT])
def test_a_signal_is_passed_down(number: signal.Signals) -> None:
    script = f"trap 'exit 7' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.wait() == 7


def test_a_signal_that_the_command_does_not_expect_ends_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "sh", "-c", "echo ready; exec sleep 100"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM


def test_the_command_has_its_signals_as_if_it_were_started_by_a_shell() -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    through = run("sh", "-c", script).stdout.split()
    directly = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert through[:3] == directly[:3]
    # 32 and 33 are glibc's own (nptl(7)); the posix_spawn() of who started the one or the other leaves them ignored.
    own = 3 << 31
    assert int(through[3], 16) | own == int(directly[3], 16) | own


def test_it_waits_until_it_is_let_go_with_the_pid_that_the_command_will_have() -> None:
    with waiting(["/bin/sh", "-c", "exit 3"]) as process:
        assert waits(process.pid)
        assert Path(f"/proc/{process.pid}/comm").read_text() == "sh\n"
        assert process.run() == 3
    assert not there(process.pid)


def test_one_that_is_not_let_go_never_begins(tmp_path: Path) -> None:
    with waiting(["touch", str(tmp_path / "begun")]) as process:
        assert there(process.pid)
    assert not there(process.pid)
    assert not (tmp_path / "begun").exists()


def test_one_that_is_killed_while_it_waits_has_that_for_its_status(tmp_path: Path) -> None:
    with waiting(["touch", str(tmp_path / "begun")]) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.run() == 128 + signal.SIGKILL
    assert not (tmp_path / "begun").exists()


def test_ctrl_c_ends_one_that_waits() -> None:
    with waiting(["true"]) as process:
        os.kill(process.pid, signal.SIGINT)
        assert process.run() == 128 + signal.SIGINT


def test_it_ends_unbegun_with_who_made_it_however_that_dies(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from exclfs.cli.command_runner import waiting
with waiting(["touch", sys.argv[1]]) as process:
    print(process.pid, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "begun"], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        pidfd = os.pidfd_open(int(maker.stdout.readline()))
        maker.kill()
    wait_for_exit(pidfd)
    os.close(pidfd)
    assert not (tmp_path / "begun").exists()


def test_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    for command in (["true"], ["no-such-command-anywhere"]):
        with waiting(command) as process:
            process.run()
    assert os.listdir("/proc/self/fd") == before


def waits(pid: int) -> bool:
    """Whether this process is a copy of ours, and no other program."""
    return os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe")


def there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
