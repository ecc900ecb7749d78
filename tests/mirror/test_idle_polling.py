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
        self.told: list[int] = []

    def listen(self, patience: float = 0) -> None:
        """Hears what has been said by now, or within so many seconds."""
        while select.select([self._reading], [], [], patience)[0]:
            self.told.append(struct.unpack("=i", os.read(self._reading, 4))[0])
            patience = 0

    @property
    def last(self) -> int:
        """What counts now."""
        self.listen()
        return self.told[-1] if self.told else ANY_TIME


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


def busy_until_no_time(made: Rig, latency: Latency) -> None:
    """Asks until no processor may take time to wake. On a busy machine a burst may be torn apart."""
    deadline = time.monotonic() + PATIENCE
    before = latency.told.count(NO_TIME)
    while latency.told.count(NO_TIME) == before:
        assert time.monotonic() < deadline, "processors may halt all the time"
        burst(made)
        latency.listen()


def test_while_requests_come_one_after_the_other_no_processor_halts(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        for _ in range(3):
            busy_until_no_time(made, latency)
            while latency.last != ANY_TIME:  # nothing has been asked for a moment
                latency.listen(PATIENCE)
        assert latency.told == [NO_TIME, ANY_TIME] * (len(latency.told) // 2)


def test_requests_that_come_now_and_then_change_nothing(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        for _ in range(BURST):
            made.kernel.getattr()
            time.sleep(0.001)
        latency.listen()
        assert latency.told == []


def test_a_worker_without_another_to_look_after_it_changes_nothing(tmp_path: Path) -> None:
    with latency_device() as (latency, device), rig(tmp_path, threads=1, cpu_latency=device) as made:
        for _ in range(10):
            burst(made)
        latency.listen()
        assert latency.told == []


@pytest.mark.root
def test_while_only_one_worker_is_left_processors_may_halt(tmp_path: Path) -> None:
    """It could be kept as well, and then nobody would say that they may."""
    (tmp_path / "leased").write_text("content")
    with latency_device() as (latency, device), rig(tmp_path, threads=2, cpu_latency=device) as made:
        nodeid = made.kernel.lookup("leased").nodeid
        busy_until_no_time(made, latency)
        with leased(tmp_path / "leased"):
            opened = made.kernel.ask(Op.OPEN, nodeid, FLAGS.pack(os.O_WRONLY, 0))
            while not is_waited_for(tmp_path / "leased"):
                time.sleep(0.001)
            burst(made)
            assert latency.last == ANY_TIME
            told = list(latency.told)
            for _ in range(10):
                burst(made)
            assert latency.last == ANY_TIME
            assert latency.told == told
        handle = made.kernel.reply(opened)[:8]
        busy_until_no_time(made, latency)
        made.kernel.call(Op.RELEASE, nodeid, handle + bytes(16))


def test_where_the_device_takes_nothing_requests_are_answered_all_the_same(tmp_path: Path) -> None:
    device = os.open("/dev/full", os.O_WRONLY)
    try:
        with rig(tmp_path, threads=2, cpu_latency=device) as made:
            for _ in range(10):
                burst(made)
    finally:
        os.close(device)
