"""`exclfs hold` on a real mount: what it places, what CMD gets, whose exit code it is, and what it says meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import exclfs
from exclfs.holds.lifetime import Exit
from program import EXCLFS, complaint, ids, kinds, started, wait_for_exit
from program import exclfs as command

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def holders(path: Path) -> list[str]:
    return [hold.holder.name for hold in exclfs.holds(path)]


# --- with a command --------------------------------------------------------------------------------------------------


def test_it_holds_while_the_command_runs(mounted: Mounted) -> None:
    mounted.expect("refused")
    path = mounted.setup("directory")
    inside = (
        "rmdir $0 2>/dev/null && echo removed; getfattr --absolute-names --only-values -n user.exclfs.flags $0; exit 23"
    )
    done = command("hold", path, "--reason", "because", "--", "sh", "-c", inside, path, status=23)
    assert (done.stdout, done.stderr) == ("EXCL_INUSE,NO_REMOVE", "")
    assert holders(path) == []
    path.rmdir()


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ([], "EXCL_INUSE,NO_REMOVE"),
        (["--flag", "excl_subtree", "--flag", "PIN_PATH"], "EXCL_SUBTREE,PIN_PATH"),
        (["--flag", "no_remove_below"], "NO_REMOVE_BELOW"),
        (["--no-claim"], "NO_REMOVE"),
        (["--flag", "kernel_file"], "KERNEL_FILE"),
        (["--flag", "EXCL_INUSE", "--flag", "NO_REMOVE"], "EXCL_INUSE,NO_REMOVE"),
    ],
)
def test_what_it_places(mounted: Mounted, options: list[str], flags: str) -> None:
    path = mounted.setup("directory")
    words = ["hold", path, *options, "--holder", "us", "--reason", "-x [red]y", "--json", "--", "true"]
    (told,) = json.loads(command(*words).stdout)["holds"]
    assert ids([told])
    assert (",".join(told["flags"]), told["holder"]["name"], told["reason"]) == (flags, "us", "-x [red]y")
    assert (told["path"], kinds(told)) == (str(path), ["process"])


def test_the_holder_is_named_after_the_command(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    inside = "import exclfs, sys; print(exclfs.holds(sys.argv[1])[0].holder.name)"
    done = command("hold", path, "--", sys.executable, "-c", inside, path)
    assert done.stdout == os.path.basename(sys.executable) + "\n"


def test_several_paths_all_or_none(mounted: Mounted) -> None:
    paths = [mounted.setup(f"directory{number}") for number in range(3)]
    (mounted.path / "link").symlink_to("directory0")
    told = json.loads(command("hold", *paths, mounted.path / "link", "--json", "--", "true").stdout)
    assert [hold["path"] for hold in told["holds"]] == [*map(str, paths), str(mounted.path / "link")]
    with exclfs.hold(paths[2], holder="them"):
        done = command("hold", *paths, "--", "echo", "ran", status=125)
        assert str(paths[2]) in complaint(done)
        assert holders(paths[0]) == []


@pytest.mark.parametrize(
    ("options", "run", "status"),
    [([], True, 125), ([], False, 3), (["-E", "75"], True, 75), (["-E", "75"], False, 75), (["-E", "0"], True, 0)],
)
def test_a_claim_that_is_taken(mounted: Mounted, options: list[str], run: bool, status: int) -> None:
    path = mounted.setup("directory")
    with exclfs.hold(path, holder="them", reason="it is theirs") as hold:
        done = command("hold", path, *options, *(["--", "echo", "ran"] if run else []), status=status)
        said = complaint(done)
        assert f"{path} is held by them (pid {os.getpid()}" in said
        assert "it is theirs" in said
        assert f"exclfs release {hold.id}" in said


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["hold", "{}", "--", "/nonexistent/program"], 127, "/nonexistent/program: no such file or directory"),
        (["hold", "{}", "--", "exclfs-no-such-program"], 127, "exclfs-no-such-program: no such file or directory"),
        (["hold", "{}", "--", "/etc/passwd"], 126, "/etc/passwd: permission denied"),
        (["hold", "{}", "--"], 125, "the command after -- is missing"),
        (["hold", "{}/nothing", "--", "true"], 125, "{}/nothing: no such file or directory"),
        (["hold", "/etc/passwd", "--", "true"], 125, "/etc/passwd is not in an exclfs mount"),
        (["hold", "{}", "--flag", "nonsense", "--", "true"], 125, "unknown flag 'nonsense'"),
    ],
)
def test_its_own_failures(mounted: Mounted, words: list[str], status: int, said: str) -> None:
    done = command(*(word.format(mounted.path) for word in words), status=status)
    assert said.format(mounted.path) in complaint(done)
    assert holders(mounted.path) == []


def test_signals_go_to_the_command_and_the_hold_lasts_as_long(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    inside = """
import signal, sys
import exclfs
signal.signal(signal.SIGTERM, lambda *_: (print(len(exclfs.holds(sys.argv[1])), flush=True), sys.exit(9)))
print("ready", flush=True)
while True: signal.pause()
"""
    with started("hold", path, "--", sys.executable, "-c", inside, path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        holder.terminate()
        said, complaints = holder.communicate(timeout=30)
    assert (holder.returncode, said, complaints) == (9, "1\n", "")
    assert holders(path) == []


def test_a_command_that_dies_of_a_signal(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    command("hold", path, "--", "sh", "-c", "kill -KILL $$", status=128 + signal.SIGKILL)


def test_ctrl_c_on_a_terminal_reaches_the_command_once(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    inside = """
import os, signal, sys
count = 0
def interrupted(*_):
    global count
    count += 1
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # a second one would come before
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGALRM, lambda *_: os._exit(40 + count))
os.write(1, b"ready\\n")
while True: signal.pause()
"""
    words = [*EXCLFS, "hold", str(path), "--", sys.executable, "-c", inside]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words], stdin=theirs, stdout=theirs, stderr=theirs
    ) as terminal:
        os.close(theirs)
        said = b""
        while b"ready" not in said:
            said += os.read(ours, 1000)
        os.write(ours, b"\x03")
        assert terminal.wait(30) == 41
        with contextlib.suppress(OSError):  # EIO: the terminal has no other end any more
            while True:
                said += os.read(ours, 1000)
    os.close(ours)
    assert b"Traceback" not in said
    assert holders(path) == []


# --- whose life it is ------------------------------------------------------------------------------------------------


def test_it_ends_with_the_command_and_not_with_exclfs(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    inside = "echo $$; read line"
    with started("hold", path, "--", "sh", "-c", inside, stdin=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        (hold,) = exclfs.holds(path)
        assert hold.ends == (Exit(pid),)
        pidfd = os.pidfd_open(pid)
        holder.kill()
        holder.wait()
        assert exclfs.holds(path) == (hold,)
        with pytest.raises(OSError, match="busy"):
            path.rmdir()
        mounted.expect("refused")
    wait_for_exit(pidfd)
    os.close(pidfd)
    path.rmdir()


def test_a_command_may_have_other_ends_besides(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    words = ["hold", path, "--ttl", "1h", "--until-unmount", "--json", "--", "true"]
    (told,) = json.loads(command(*words).stdout)["holds"]
    assert sorted(kinds(told)) == ["process", "time", "unmount"]


# --- what it says when somebody ends a hold ---------------------------------------------------------------------------


def test_who_runs_a_command_is_told_at_once_that_the_hold_was_broken(mounted: Mounted) -> None:
    mounted.expect("broken")
    path = mounted.setup("directory")
    with started("hold", path, "--", "sh", "-c", "echo ready; read line; exit 9", stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        assert holder.stdout.readline() == "ready\n"
        (hold,) = exclfs.holds(path)
        exclfs.release(path, break_it=True, reason="we need the place")
        said = holder.stderr.readline()
        assert said.startswith(f"exclfs: hold {hold.id} on {path} was ")
        assert holder.communicate("go on\n", timeout=30) == ("", "")
    assert holder.returncode == 9


def test_who_runs_a_command_is_told_at_once_that_the_time_is_over(mounted: Mounted) -> None:
    mounted.expect("expired")
    path = mounted.setup("directory")
    with started("hold", path, "--ttl", "0.2", "--", "sh", "-c", "read line", stdin=subprocess.PIPE) as holder:
        assert holder.stderr is not None
        assert f" on {path} has expired" in holder.stderr.readline()
        path.rmdir()
        assert holder.communicate("go on\n", timeout=30) == ("", "")
    assert holder.returncode == 0


def test_who_stays_is_told_of_each_and_leaves_after_the_last(mounted: Mounted) -> None:
    mounted.expect("broken")
    paths = [mounted.setup(f"directory{number}") for number in range(2)]
    with started("hold", *paths) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        names = [holder.stdout.readline().strip() for _ in paths]
        for path, name in zip(paths, names, strict=True):
            command("release", path, "--break", "--reason", "we need the place")
            said = holder.stderr.readline()
            assert said.startswith(f"exclfs: hold {name} on {path} was broken by ")
            assert said.endswith("user root): we need the place\n")
        assert holder.wait(30) == 1


def test_the_mount_may_end_under_a_command(mounted: Mounted, tmp_path: Path) -> None:
    from harness import start

    with start(tmp_path) as other:
        path = other.setup("directory")
        with started("hold", path, "--", "sh", "-c", "echo ready; read line; exit 9", stdin=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            assert holder.stderr is not None
            assert holder.stdout.readline() == "ready\n"
            other.unmount()
            assert str(other.root) in holder.stderr.readline()
            assert holder.communicate("go on\n", timeout=30) == ("", "")
        assert holder.returncode == 9


# --- without a command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_without_a_command_it_stays_until_it_is_told(mounted: Mounted, number: signal.Signals) -> None:
    path = mounted.setup("directory")
    with started("hold", path, "--holder", "us") as holder:
        assert holder.stdout is not None
        told = holder.stdout.readline().strip()
        assert [hold.id for hold in exclfs.holds(path)] == [told]
        holder.send_signal(number)
        assert holder.communicate(timeout=30) == ("", "")
    assert holder.returncode == 0
    path.rmdir()


def test_it_says_so_when_the_mount_ends_under_it(mounted: Mounted, tmp_path: Path) -> None:
    from harness import start

    with start(tmp_path) as other, started("hold", other.path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() != ""
        other.unmount()
        _, said = holder.communicate(timeout=30)
        assert holder.returncode == 4
        assert said.count("\n") == 1
        assert str(other.path) in said
