"""`exclfs events` and `exclfs mode` on a real mount."""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import exclfs
from program import complaint, document, must_be_a_hold, must_be_a_process, started
from program import exclfs as command

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


def must_be_an_event(line: str, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(line)
    assert (told.pop("version"), told["event"]) == (1, name)
    assert told["at"].endswith("Z")
    if "requester" in told:
        must_be_a_process(told["requester"])
    for hold in [*told.get("holds", []), *(told[key] for key in ("hold", "conflict") if key in told)]:
        must_be_a_hold(hold)
    return told


# --- what has happened (test_event_history.py has more) --------------------------------------------------------------


def test_without_following_it_shows_what_has_happened(mounted: Mounted) -> None:
    mounted.expect("refused")
    one, two = mounted.setup("one"), mounted.setup("two")
    with exclfs.hold(one, holder="us"), exclfs.hold(two, holder="us"):
        refused(one)
        refused(two)
    *_, first, second, _, _ = command("events", mounted.root).stdout.splitlines()
    assert f" refused      rmdir of {one} by " in first
    assert f" refused      rmdir of {two} by " in second
    assert ", held by us (pid " in second
    assert second in command("events", two).stdout.splitlines()
    _, told, _ = command("events", one, "--json").stdout.splitlines()
    assert must_be_an_event(told, "refused")["path"] == str(one)


# --- what happens ----------------------------------------------------------------------------------------------------


@contextmanager
def following(about: Path, beacon: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`exclfs events -f`, from when it tells what happens: a hold of `beacon`, placed until it is told."""
    with started("events", about, "-f", *options, text=False, bufsize=0) as process:
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], 0.05)[0]:
            with exclfs.hold(beacon):
                pass
        with exclfs.hold(beacon, holder="the last beacon"):
            pass
        while b"the last beacon" not in (line := process.stdout.readline()) or b"unlocked" not in line:
            assert line
        yield process
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 0


def test_following_shows_everything_as_it_happens(mounted: Mounted) -> None:
    mounted.expect("lock_failed", "refused", "unlock_bad", "broken", "mode_changed")
    path = mounted.setup("directory")
    with following(mounted.root, mounted.setup("beacon")) as process, exclfs.connect(path) as client:

        def said() -> str:
            assert process.stdout is not None
            return process.stdout.readline().decode()

        (hold,) = client.hold(path, holder="us", reason="it is ours")
        line = said()
        assert f" locked       {hold.id} on {path}, held by us (pid {os.getpid()}" in line
        assert line.endswith(": EXCL_INUSE,NO_REMOVE: it is ours\n")
        refused(path)
        assert f" refused      rmdir of {path} by " in said()
        command("hold", path, status=3)
        assert f" lock_failed  {path} was wanted by " in said()
        command("release", path, status=5)
        assert f" unlock_bad   {hold.id} by " in said()
        command("release", path, "--break", "--reason", "away with it")
        line = said()
        assert f" broken       {hold.id} on {path}, held by us" in line
        assert line.endswith("user root): away with it\n")


def test_following_one_path_in_json(mounted: Mounted) -> None:
    path, other = mounted.setup("directory"), mounted.setup("other")
    with following(path, path, "--json") as process:
        assert process.stdout is not None
        with exclfs.hold(other), exclfs.hold(path) as hold:
            told = must_be_an_event(process.stdout.readline().decode(), "locked")
        assert (told["hold"]["id"], told["hold"]["path"]) == (hold.id, str(path))
        must_be_an_event(process.stdout.readline().decode(), "unlocked")


def test_following_ends_with_the_mount(mounted: Mounted, tmp_path: Path) -> None:
    from harness import start

    with start(tmp_path) as other, started("events", other.root, "-f") as process:
        with exclfs.connect(other.root) as client:
            while client.status().connections < 2:  # ours, and that of the command
                pass
        other.unmount()
        assert process.stderr is not None
        assert str(other.root) in process.stderr.readline()
        assert process.wait(30) == 4


# --- mode ------------------------------------------------------------------------------------------------------------


def test_mode_is_asked_and_switched(mounted: Mounted) -> None:
    mounted.expect("refused", "mode_changed", "lock_failed")
    path = mounted.setup("directory")
    assert command("mode", mounted.path).stdout == "enforce: what is held is not removed\n"
    with exclfs.hold(path, holder="us"):
        told = document("mode", mounted.path, "warn")
        assert told == {"mountpoint": str(mounted.root), "mode": "warn"}
        path.rmdir()
        assert any(line.endswith(", and happened") for line in command("events", mounted.root).stdout.splitlines())
        status = command("status", mounted.root).stdout
        assert "warn" in status
        assert "let happen          1 in mode warn\n" in status
        assert status.splitlines()[-1].split()[1:3] == ["rmdir,", "happened"]
    assert command("mode", mounted.path, "enforce").stdout.startswith("enforce: ")


def test_only_a_mode_that_there_is(mounted: Mounted) -> None:
    assert '"warn"' in complaint(command("mode", mounted.root, "loud", status=2))
