"""Processors are kept from halting while requests come one after the other. A pipe is the latency device here."""

from __future__ import annotations

import os
import select
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from kernel import PATIENCE, Op, rig

from leases import is_waited_for, leased

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kernel import Rig

NO_TIME, ANY_TIME = 0, 2_000_000_000
"""Microseconds that waking a processor may take; the second is the kernel's default."""
BURST: Final = 64
FLAGS: Final = struct.Struct("=II")


class Latency:
    """What a mirror says on its latency device."""

    def __init__(self, reading: int) -> None:
        self._reading = reading

    def told(self) -> int:
        """The next value that it says, which is waited for."""
        ready, _, _ = select.select([self._reading], [], [], PATIENCE)
        assert ready, "nothing was said"
        return self._value()

    def all_told(self) -> list[int]:
        """What it has said by now."""
        values = []
        while select.select([self._reading], [], [], 0)[0]:
            values.append(self._value())
        return values

    def _value(self) -> int:
        value: int = struct.unpack("=i", os.read(self._reading, 4))[0]
        return value


@contextmanager
def latency_device() -> Iterator[tuple[Latency, int]]:
    reading, writing = os.pipe()
    try:
        yield Latency(reading), writing
    finally:
        os.close(reading)
        os.close(writing)


def burst(made: Rig) -> None:
    """Requests that come one right after the other."""
    asked = [made.kernel.ask(Op.STATFS) for _ in range(BURST)]
    for unique in asked:
        made.kernel.reply(unique)


def busy_until(made: Rig, latency: Latency, value: int) -> None:
    """Asks until the mirror says this. A burst alone may be torn apart on a machine that does something else."""
    deadline = time.monotonic() + PATIENCE
    while value not in latency.all_told():
        assert time.monotonic() < deadline, f"it never said {value}"
        burst(made)


def test_while_requests_come_one_after_the_other_no_processor_halts(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        busy_until(made, latency, NO_TIME)
        assert latency.told() == ANY_TIME  # nothing was asked for a moment
        busy_until(made, latency, NO_TIME)


def test_requests_that_come_now_and_then_change_nothing(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        for _ in range(BURST):
            made.kernel.getattr()
            time.sleep(0.001)
        assert latency.all_told() == []


def test_a_worker_without_another_to_look_after_it_changes_nothing(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=1, cpu_latency=device) as made:
        for _ in range(10):
            burst(made)
        assert latency.all_told() == []


@pytest.mark.root
def test_while_only_one_worker_is_left_processors_may_halt(tmp_path: Path) -> None:
    """It could be kept as well, and then nobody would say that they may."""
    (tmp_path / "leased").write_text("content")
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        nodeid = made.kernel.lookup("leased").nodeid
        busy_until(made, latency, NO_TIME)
        with leased(tmp_path / "leased"):
            opened = made.kernel.ask(Op.OPEN, nodeid, FLAGS.pack(os.O_WRONLY, 0))
            while not is_waited_for(tmp_path / "leased"):
                time.sleep(0.001)
            burst(made)
            assert latency.all_told()[-1] == ANY_TIME
            for _ in range(10):
                burst(made)
            assert latency.all_told() == []
        handle = made.kernel.reply(opened)[:8]
        busy_until(made, latency, NO_TIME)
        made.kernel.call(Op.RELEASE, nodeid, handle + bytes(16))


def test_where_the_device_takes_nothing_requests_are_answered_all_the_same(tmp_path: Path) -> None:
    device = os.open("/dev/full", os.O_WRONLY)
    try:
        with rig(tmp_path, threads=2, cpu_latency=device) as made:
            for _ in range(10):
                burst(made)
    finally:
        os.close(device)
