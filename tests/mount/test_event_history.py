"""`exclfs events` and its past, on real mounts: all that has happened, nothing twice, and what was missed is said."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import trio

import exclfs
from exclfs.client import trio_client
from exclfs.holds.events import EVENTS
from exclfs.keeper.past import BYTES, KEPT
from harness import start
from program import complaint, started
from program import exclfs as command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.program]

SWEEPING = """
import sys
from exclfs import mount
from exclfs.services import reaper

reaper.SWEEP_EVERY = 0.05
sys.exit(mount.main())
"""


def refused(path: Path) -> None:
    with pytest.raises(OSError, match="busy"):
        path.rmdir()


def told(*arguments: object) -> list[dict[str, Any]]:
    """What `exclfs events --json` says."""
    return [json.loads(line) for line in command("events", *arguments, "--json").stdout.splitlines()]


def until_told(name: str, path: Path) -> None:
    """Waits for an event of this path."""
    while name not in [event["event"] for event in told(path)]:
        pass


# --- what has happened -----------------------------------------------------------------------------------------------


def test_every_event_since_the_start(tmp_path: Path) -> None:
    script = tmp_path / "sweeping.py"
    script.write_text(SWEEPING)
    with start(tmp_path, program=[str(script)]) as mounted:
        mounted.expect("refused", "unlock_bad", "broken", "orphaned", "mode_changed", "lock_failed")
        path, doomed = mounted.setup("path"), mounted.setup("doomed")
        with exclfs.connect(path) as client, exclfs.connect(path) as other:
            (hold,) = client.hold(path, holder="us")
            with pytest.raises(exclfs.Held):
                other.hold(path, holder="them")
            refused(path)
            client.release(hold)
            with pytest.raises(exclfs.NoSuchHold):
                client.release(hold)
            with subprocess.Popen(["sleep", "60"]) as job:
                client.hold(path, pid=job.pid)
                job.kill()
            until_told("reaped", path)
            client.hold(path, ttl=0.01)
            until_told("expired", path)
            client.hold(path)
            command("release", path, "--break", "--reason", "in the way")  # others may run a mount with the same ids
            client.hold(doomed)
            (mounted.backing / "doomed").rmdir()
            while "orphaned" not in (names := [event["event"] for event in told(mounted.root)]):
                pass
            client.mode("warn")
            names = [event["event"] for event in told(mounted.root)]
        lines = command("events", mounted.root).stdout.splitlines()
    assert set(names) == {event.name for event in EVENTS}
    assert names == [
        *("locked", "lock_failed", "refused", "unlocked", "unlock_bad"),
        *("locked", "reaped", "locked", "expired", "locked", "broken", "locked", "orphaned", "mode_changed"),
    ]
    assert [line.split()[1] for line in lines] == names


def test_of_one_path_what_concerns_it(mounted: Mounted) -> None:
    mounted.expect("refused")
    one, two = mounted.setup("one"), mounted.setup("two")
    with exclfs.hold(one), exclfs.hold(two):
        refused(one)
    assert [event["event"] for event in told(one)] == ["locked", "refused", "unlocked"]
    assert [event["event"] for event in told(two)] == ["locked", "unlocked"]


def test_since_cuts(mounted: Mounted) -> None:
    path = mounted.setup("path")
    for holder in "first", "second":
        with exclfs.hold(path, holder=holder):
            pass
    events = told(path)
    second = events[2]["at"]
    assert told(path, "--since", second) == events[2:]
    assert told(path, "--since", "1h") == told(path, "--since", "2020-01-01") == events
    assert told(path, "--since", datetime.now(UTC).isoformat()) == []
    with exclfs.events(path, since=datetime.fromisoformat(second), follow=False) as stream:
        assert [event.name for event in stream] == ["locked", "unlocked"]


@pytest.mark.parametrize("since", ["yesterday", "", "9999-01-01", "25:00"])
def test_since_when_is_not_understood(mounted: Mounted, since: str) -> None:
    assert complaint(command("events", mounted.root, "--since", since, status=2)).startswith("--since: ")


def test_both_clients_tell_the_same_past(mounted: Mounted) -> None:
    path = mounted.setup("path")
    with exclfs.hold(path):
        pass

    async def on_trio() -> list[exclfs.Event]:
        async with trio_client.events(path, follow=False) as stream:
            return [event async for event in stream]

    with exclfs.events(path, follow=False) as stream:
        assert trio.run(on_trio) == list(stream)


# --- and what happens ------------------------------------------------------------------------------------------------


@contextmanager
def following(*arguments: object, **named: Any) -> Iterator[subprocess.Popen[str]]:
    """`exclfs events -f`, until Ctrl-C."""
    with started("events", *arguments, "-f", "--json", **named) as process:
        yield process
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_following_with_a_past_loses_nothing_at_the_seam(mounted: Mounted) -> None:
    """Holds come and go all the time while five of them begin to listen: each is told of all, in order."""
    path = mounted.setup("path")
    placed: list[str] = []

    def hammer(client: exclfs.Client, rounds: int) -> None:
        for _ in range(rounds):
            placed.append(client.hold(path)[0].id)
            client.release(placed[-1])

    with exclfs.connect(path) as client:
        hammer(client, 50)
        for _ in range(5):
            with following(path, "--since", "1h") as process:
                while not process.poll() and len(placed) % 200 != 199:
                    hammer(client, 1)
                hammer(client, 1)
                expected = [(name, each) for each in placed for name in ("locked", "unlocked")]
                assert process.stdout is not None
                events = [json.loads(process.stdout.readline()) for _ in expected]
                assert [(event["event"], event["hold"]["id"]) for event in events] == expected


def memory(pid: int) -> int:
    """The bytes of memory that a process has."""
    with open(f"/proc/{pid}/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def test_a_slow_reader_is_told_what_it_missed_and_goes_on(tmp_path: Path) -> None:
    """Sixteen thousand large events while nobody reads: what was not kept is said, and all else is told."""
    with start(tmp_path) as mounted:
        mounted.expect("log_dropped")  # the log need not keep up
        paths = [mounted.setup(f"d{number}") for number in range(2000)]
        with following(mounted.root, "--since", "1h", bufsize=1) as process, exclfs.connect(mounted.root) as client:
            client.hold(paths[0], holder="the first")
            assert process.stdout is not None
            assert "the first" in process.stdout.readline()
            client.release(path=paths[0])
            for _ in range(4):
                client.release(client.hold(paths, reason="x" * 1000))
            last = client.hold(paths[0], holder="the last")
            names = []
            while "the last" not in (line := process.stdout.readline()):
                names.append(json.loads(line)["event"])
            missing = 1 + 4 * 2 * 2000 - len(names)
            assert missing
            assert process.stderr is not None
            assert process.stderr.readline().startswith(f"exclfs: {missing} events are lost here")
            client.release(last)
            assert json.loads(process.stdout.readline())["event"] == "unlocked", "it goes on"
        past = command("events", mounted.root)
        assert re.match(r"exclfs: \d+ events are no longer known", past.stderr)
        assert len(past.stdout.splitlines()) <= KEPT


def test_the_memory_of_the_server_does_not_grow_with_what_happens(tmp_path: Path) -> None:
    """Once all that may be kept is, nothing comes on top, though somebody who asked for it all never reads."""
    with start(tmp_path) as mounted:
        mounted.expect("unlock_bad", "log_dropped")  # the log need not keep up
        with exclfs.events(mounted.root), exclfs.connect(mounted.root) as client:

            def happen(events: int) -> None:
                for number in range(events):
                    with pytest.raises(exclfs.NoSuchHold):
                        client.release(f"{number:x>2000}")

            happen(8_000)
            before = memory(mounted.process.pid)
            happen(8_000)
            after = memory(mounted.process.pid)
    assert after - before < BYTES / 2 < 8_000 * 2 * 2000
