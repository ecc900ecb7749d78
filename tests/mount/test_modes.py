"""enforce, warn and off: from the start of a mount, and switched while it serves and removals are in flight."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from test_race import REMOVER, WINDOW_US, is_there
from test_refusals import EXCHANGE, rename2

import exclfs
from exclfs.client import discovery, sync_client
from harness import start, variant
from program import exclfs as run_exclfs
from program import logged
from twins import ALICE, as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

MODES = ("enforce", "warn", "off")
HELD = exclfs.Flags.NO_REMOVE
IN_FLIGHT = 150
"""Rounds of a switch while a removal is at work."""


@pytest.fixture
def warning(mount: Callable[..., Mounted]) -> Iterator[Mounted]:
    mounted = mount(mode="warn")
    mounted.expect("refused", "mode_changed")
    return mounted


@pytest.fixture
def client(mounted: Mounted) -> Iterator[exclfs.Client]:
    """On the mount of the module, which enforces before and after each test."""
    mounted.expect("refused", "mode_changed")
    with exclfs.connect(mounted.path) as client:
        yield client
        client.mode("enforce")


def new(path: Path) -> Path:
    path.write_text("content")
    return path


def is_refused(removal: Callable[[], object]) -> bool:
    try:
        removal()
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise
    return False


# --- from the start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_mount_begins_as_it_is_told(mount: Callable[..., Mounted], mode: str) -> None:
    mounted = mount(mode=mode)
    mounted.expect("refused")
    path = new(mounted.path / "held")
    with exclfs.connect(path) as client:
        client.hold(path)
        assert client.mode() is exclfs.Mode(mode)
        assert is_refused(path.unlink) == (mode == "enforce")
        status = client.status()
        assert status.mode is exclfs.Mode(mode)
        assert status.refusals == (mode == "enforce")
        assert status.would_have_refused == (mode == "warn")


# --- what warn records ------------------------------------------------------------------------------------------------


def test_what_would_have_been_refused_is_recorded_and_happens(warning: Mounted) -> None:
    path = new(warning.path / "held")
    with exclfs.connect(path) as client, exclfs.events(warning.path) as events:
        (hold,) = client.hold(path, holder="us", reason="for the test")
        path.unlink()
        assert not (warning.backing / "held").exists()
        assert isinstance(next(events), exclfs.Locked)
        event = next(events)
        assert isinstance(event, exclfs.Refused)
        assert not event.enforced
        assert (event.operation, event.path, event.requester.pid) == (exclfs.Operation.UNLINK, str(path), os.getpid())
        assert [one.id for one in event.holds] == [hold.id]
        status = client.status()
        assert (status.refusals, status.would_have_refused) == (0, 1)
        assert [one.enforced for one in status.last_refusals] == [False]
        line = logged(warning, "refused", str(path))
        assert "enforced=no" in line
        assert "holder=us" in line
        client.end([hold])


REMOVALS: dict[str, Callable[[Path], object]] = {
    "rename": lambda path: path.rename(path.with_name("moved")),
    "replace": lambda path: new(path.with_name("new")).rename(path),
    "exchange": lambda path: rename2(new(path.with_name("new")), path, EXCHANGE),
    "whiteout": lambda path: rename2(path, path.with_name("moved"), 4),
}


@pytest.mark.parametrize("operation", REMOVALS)
def test_every_operation_is_recorded_once(client: exclfs.Client, mounted: Mounted, operation: str) -> None:
    client.mode("warn")
    path = new(mounted.path / "held")
    client.hold(path, flags=HELD)
    before = client.status().would_have_refused
    REMOVALS[operation](path)
    assert client.status().would_have_refused == before + 1


def test_an_object_that_is_still_there_tells_of_it(client: exclfs.Client, mounted: Mounted) -> None:
    client.mode("warn")
    path = mounted.setup("held")
    client.hold(path, flags=HELD)
    path.rename(mounted.path / "moved")
    told = json.loads(os.getxattr(mounted.path / "moved", "user.exclfs.refusals"))["refusals"]
    assert [(one["operation"], one["enforced"]) for one in told] == [("rename", False)]
    assert exclfs.why(mounted.path / "moved").causes, "who holds it is told in every mode"


def test_off_records_nothing(client: exclfs.Client, mounted: Mounted) -> None:
    client.mode("off")
    path = new(mounted.path / "held")
    (hold,) = client.hold(path)
    before = client.status()
    with exclfs.events(mounted.root) as events:
        path.unlink()
        client.end([hold])
        assert isinstance(next(events), exclfs.Unlocked), "the first that there is to tell"
    after = client.status()
    assert (after.refusals, after.would_have_refused) == (before.refusals, before.would_have_refused)
    assert not [line for line in mounted.log_lines("refused") if str(path) in line]


def test_what_others_open_all_the_time_is_recorded_once_for_each_removal(mount: Callable[..., Mounted]) -> None:
    """Each open that came after the question would have it asked, and recorded, again."""
    mounted = mount(mode="warn", hold_open="all")
    mounted.expect("refused")
    path, rounds = new(mounted.path / "target"), 100
    code = "import sys\nwhile True:\n    open(sys.argv[1]).close()"
    with exclfs.connect(path) as client:
        readers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(3)]
        try:
            while not exclfs.holds(path):
                pass
            for _ in range(rounds):
                new(mounted.path / "temporary").rename(path)
            assert 0 < client.status().would_have_refused <= rounds
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()


# --- claims -----------------------------------------------------------------------------------------------------------


def test_in_warn_a_claim_that_conflicts_is_told_and_is_none(warning: Mounted) -> None:
    path = new(warning.path / "file")
    with exclfs.connect(path) as first, exclfs.connect(path) as second, exclfs.events(path) as events:
        (claim,) = first.hold(path, holder="first")
        (other,) = second.hold(path, holder="second")
        (empty,) = second.hold(path, holder="third", flags=exclfs.Flags.EXCL_INUSE)
        assert claim.flags == exclfs.Flags.EXCL_INUSE | exclfs.Flags.NO_REMOVE
        assert other.flags == exclfs.Flags.NO_REMOVE
        assert not empty.flags
        assert [hold.id for hold in exclfs.holds(path)] == [claim.id, other.id, empty.id]
        told = [next(events) for _ in range(5)]
        assert [event.name for event in told] == ["locked", "lock_failed", "locked", "lock_failed", "locked"]
        assert isinstance(told[1], exclfs.LockFailed)
        assert told[1].conflict.id == claim.id
        assert "holder=first" in logged(warning, "lock_failed", str(path))

        first.mode("enforce")
        with pytest.raises(exclfs.Held) as caught, exclfs.hold(path):
            pass
        assert caught.value.hold.id == claim.id, "the one that is a claim"
        first.end([claim])
        with exclfs.hold(path, holder="fourth"):
            assert is_refused(path.unlink)
        second.end([other, empty])
        path.unlink()


def test_in_off_it_is_not_even_told(client: exclfs.Client, mounted: Mounted) -> None:
    client.mode("off")
    path = new(mounted.path / "file")
    client.hold(path, holder="first")
    with exclfs.events(path) as events:
        (second,) = client.hold(path, holder="second")
        assert second.flags == exclfs.Flags.NO_REMOVE
        assert isinstance(next(events), exclfs.Locked)


def test_who_waits_for_a_claim_has_it_when_none_is_enforced_any_more(client: exclfs.Client, mounted: Mounted) -> None:
    path = new(mounted.path / "file")
    client.hold(path, holder="first")
    placed: list[exclfs.Flags] = []

    def wait() -> None:
        with exclfs.hold(path, holder="second", timeout=None) as hold:
            placed.append(hold.flags)

    thread = threading.Thread(target=wait)
    thread.start()
    while not client.status().waiting:
        pass
    client.mode("warn")
    thread.join(30)
    assert placed == [exclfs.Flags.NO_REMOVE]


# --- the switch -------------------------------------------------------------------------------------------------------


def test_a_hold_stays_and_counts_as_the_mode_is_now(client: exclfs.Client, mounted: Mounted) -> None:
    path = mounted.setup("held")
    (hold,) = client.hold(path, flags=HELD)
    names = ["held", "moved"]
    for mode in ("enforce", "warn", "enforce", "off", "warn", "off", "enforce"):
        assert client.mode(mode) is exclfs.Mode(mode)
        source, target = (mounted.path / name for name in names)
        refused = is_refused(lambda: source.rename(target))  # noqa: B023
        assert refused == (mode == "enforce")
        if not refused:
            names.reverse()
    assert [one.id for one in client.holds(mounted.path / names[0])] == [hold.id]


def test_what_was_placed_while_nothing_was_enforced_is_enforced_afterwards(
    client: exclfs.Client, mounted: Mounted
) -> None:
    for mode in ("warn", "off"):
        client.mode(mode)
        path = new(mounted.path / mode)
        client.hold(path)
        client.mode("enforce")
        assert is_refused(path.unlink)


def test_a_switch_is_told_with_who_did_it(client: exclfs.Client, mounted: Mounted) -> None:
    with exclfs.events(mounted.root) as events:
        client.mode("enforce")  # which it is
        client.mode("warn")
        event = next(events)
    assert isinstance(event, exclfs.ModeChanged)
    assert (event.before, event.after) == (exclfs.Mode.ENFORCE, exclfs.Mode.WARN)
    assert (event.requester.pid, event.requester.uid) == (os.getpid(), 0)
    assert f"requester_pid={os.getpid()}" in logged(mounted, "mode_changed", "before=enforce", "after=warn")


def test_by_the_command(client: exclfs.Client, mounted: Mounted) -> None:
    assert "enforce" in run_exclfs("mode", mounted.root).stdout
    run_exclfs("mode", mounted.root, "warn")
    assert client.mode() is exclfs.Mode.WARN
    run_exclfs("mode", mounted.root, "sometimes", status=2)
    assert client.mode() is exclfs.Mode.WARN


def test_only_by_root_and_the_owner_of_the_mount(client: exclfs.Client, mounted: Mounted) -> None:
    server = discovery.find(str(mounted.root))

    def switch() -> None:
        with sync_client.reach(server) as theirs:
            assert theirs.mode() is exclfs.Mode.ENFORCE, "all may ask"
            theirs.mode("off")

    with pytest.raises(exclfs.NotPermitted, match="owner of the mount"):
        as_user(ALICE, switch)
    assert client.mode() is exclfs.Mode.ENFORCE


@pytest.mark.parametrize("before", ["warn", "off"])
def test_after_the_switch_nothing_that_is_held_goes(tmp_path: Path, before: str) -> None:
    """What was let happen before has happened when the switch returns, or is asked about again and refused."""
    build = variant(f"EXCLFS_TEST_WINDOW_US={WINDOW_US}")
    chance, lead = random.Random(before), 0.0
    gone_before = stayed = 0
    with (
        start(tmp_path, environment={"PYTHONPATH": str(build)}, mode=before) as mounted,
        exclfs.connect(mounted.path) as client,
        subprocess.Popen(
            [sys.executable, "-c", REMOVER, "unlink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as remover,
    ):
        mounted.expect("refused", "mode_changed")
        assert remover.stdin is not None
        assert remover.stdout is not None
        for number in range(IN_FLIGHT):
            path, behind = new(mounted.path / str(number)), mounted.backing / str(number)
            inode = behind.stat().st_ino
            held = client.hold(path, flags=HELD)
            head_start = lead + chance.uniform(-2, 2) * WINDOW_US * 1e-6
            remover.stdin.write(f"{path} {max(head_start, 0):.6f}\n")
            remover.stdin.flush()
            time.sleep(max(-head_start, 0))
            client.mode("enforce")
            there = is_there(behind, inode)
            answer = int(remover.stdout.readline())
            assert is_there(behind, inode) == there, "it went after the switch"
            assert answer == (errno.EBUSY if there else 0)
            gone_before, stayed = gone_before + (not there), stayed + there
            lead += -0.00005 if there else 0.00005
            client.mode(before)
            with contextlib.suppress(exclfs.NoSuchHold):
                client.end(held)
        remover.stdin.close()
    assert min(gone_before, stayed) > IN_FLIGHT // 20, f"it was no race: {gone_before} and {stayed}"
