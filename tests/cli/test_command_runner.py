from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

RUN = "import sys; from exclfs.cli.command_runner import run; sys.exit(run(sys.argv[1:]))"


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
    # 32 and 33 are glibc's own (nptl(7)); its posix_spawn() leaves them ignored.
    own = 3 << 31
    assert int(through[3], 16) | own == int(directly[3], 16) | own
