"""`exclfs hold` and `exclfs release` on a real mount: how long a hold lasts, what CMD gets, whose exit code it is."""

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
from program import EXCLFS, complaint, document, ids, logged, started
from program import exclfs as command

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]


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
    assert (told["path"], told["ends"]) == (str(path), ["connection"])


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


# --- release ---------------------------------------------------------------------------------------------------------


def test_until_unmount_and_release_by_path_and_by_id(mounted: Mounted) -> None:
    path = mounted.setup("directory")
    for by_path in (True, False):
        (told,) = json.loads(command("hold", path, "--until-unmount", "--json").stdout)["holds"]
        assert told["ends"] == ["unmount"]
        done = document("release", path if by_path else told["id"])
        assert ids(done["released"]) == [told["id"]]
        assert holders(path) == []


def test_releasing_what_is_not_there(mounted: Mounted) -> None:
    mounted.expect("unlock_bad")
    path = mounted.setup("directory")
    assert "there is no hold h999999" in complaint(command("release", "h999999", status=1))
    assert "no hold of yours" in complaint(command("release", path, status=1))
    assert "no such file" in complaint(command("release", path / "nothing", status=2))


def test_somebody_elses_is_only_broken(mounted: Mounted) -> None:
    mounted.expect("unlock_bad", "broken")
    path = mounted.setup("directory")
    with exclfs.connect(path) as client:
        (hold,) = client.hold(path, holder="them")
        for what in (path, hold.id):
            said = complaint(command("release", what, status=5))
            assert "them's" in said
            assert "--break" in said
        assert holders(path) == ["them"]
        assert f"released {hold.id} on {path}" in command("release", path, "--break").stdout
        assert holders(path) == []
        path.rmdir()
    assert "requester_uid=0" in logged(mounted, "broken", f"holder_id={hold.id}", f"holder_pid={os.getpid()}")
