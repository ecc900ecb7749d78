"""exclfs.hold(), with its connection of its own: what holds ends with its block."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio

import exclfs
from exclfs.client import trio_client
from exclfs.client.calls import default_holder

if TYPE_CHECKING:
    from pathlib import Path

    from hold_server import HoldServer


def test_hold_ends_with_its_block(found: HoldServer, file: Path) -> None:
    with exclfs.hold(file, holder="me", reason="a test") as hold:
        assert exclfs.holds(file) == (hold,)
        assert exclfs.inuse(file)
        with pytest.raises(exclfs.Held), exclfs.hold(file):
            pass
    # At once: whoever leaves the block may remove the file.
    assert len(found.registry) == 0
    assert not exclfs.inuse(file)


def test_hold_takes_several(found: HoldServer, file: Path, directory: Path) -> None:
    with exclfs.hold([file, directory], claim=False) as holds:
        assert [hold.path for hold in holds] == [str(file), str(directory)]
    assert len(found.registry) == 0
    with exclfs.hold(iter([file])) as holds:
        assert len(holds) == 1
    with pytest.raises(exclfs.BadHold), exclfs.hold([]):
        pass


def test_hold_waits(found: HoldServer, file: Path) -> None:
    def let_go() -> None:
        found.waits.acquire()
        assert exclfs.release(file, break_it=True, reason="enough") == (first,)

    with exclfs.hold(file, holder="first") as first:
        other = threading.Thread(target=let_go)
        other.start()
        with exclfs.hold(file, holder="second", timeout=None):
            assert exclfs.holds(file, holder="first") == ()
        other.join()
        with exclfs.hold(file), pytest.raises(exclfs.Held), exclfs.hold(file, timeout=0.01):
            pass


def test_hold_ends_when_the_block_fails(found: HoldServer, file: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclfs.hold(file):
        raise ZeroDivisionError
    assert len(found.registry) == 0


def test_hold_is_left_in_peace_when_it_has_ended_before(found: HoldServer, file: Path) -> None:
    with exclfs.hold(file) as hold:
        assert exclfs.release(file) == (hold,)


async def test_the_functions_of_trio(found: HoldServer, file: Path, directory: Path) -> None:
    async with trio_client.hold([file, directory]) as holds:
        assert await trio_client.holds(file) == holds[:1]
        assert await trio_client.inuse(directory)
        assert await trio_client.release(file, break_it=True, reason="enough") == holds[:1]
        assert not await trio_client.inuse(file)


async def test_hold_on_trio_ends_with_its_block_also_when_cancelled(found: HoldServer, file: Path) -> None:
    async with trio_client.hold(file, holder="me"):
        assert len(found.registry) == 1
    assert len(found.registry) == 0
    with trio.CancelScope() as scope:
        async with trio_client.hold(file, holder="me"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert len(found.registry) == 0


def test_the_default_holder_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, name in [
        ("/usr/bin/culler", "culler"),
        ("./worker.py", "worker.py"),
        ("/x/package/__main__.py", "package"),
        (os.fsdecode(b"/x/\xff\n"), "?"),
        ("/x/" + "é" * 200, "é" * 127),
    ]:
        monkeypatch.setattr(sys, "argv", [program])
        assert default_holder().endswith(name)
    for nameless in ("", "-c"):
        monkeypatch.setattr(sys, "argv", [nameless])
        with open("/proc/self/comm") as comm:
            assert default_holder() == comm.read().strip()
