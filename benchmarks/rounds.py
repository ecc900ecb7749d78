"""Rounds: every row on every filesystem, in turn, so that a slow minute of the machine hits all alike.

A round measures a row everywhere, one right after the other and in a changing order; then the next row. Each time
happens in a directory of its own, made behind the mounts, so nothing is cached that an operation should meet for the
first time. Between two rows the kernel forgets names and inodes, and it is waited for until the servers have digested
that.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen
from clients import ClientFailed
from document import SECONDS, Series
from peers import cpu_seconds, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rows import Row

T = TypeVar("T")


@frozen
class Place:
    """Where the tree is seen: a mount, or the tree itself.

    Args:
        root: the mountpoint, or the tree.
        pid: the server, or None.
    """

    root: str
    pid: int | None = None


def standing(places: dict[str, Place]) -> dict[str, Callable[[], AbstractContextManager[Place]]]:
    """Places that are there all the time."""
    return {name: (lambda place=place: nullcontext(place)) for name, place in places.items()}


@frozen
class Course:
    """What all rows of a run have in common.

    Args:
        group: which table they belong to.
        backing: the name of the filesystem behind.
        source: the tree itself.
        places: what is compared.
        rounds: how many.
        where: a directory of the tree in which everything happens.
    """

    group: str
    backing: str
    source: str
    places: dict[str, Callable[[], AbstractContextManager[Place]]]
    rounds: int
    where: str = ""

    def measure(self, rows: Sequence[Row], clients: int = 1) -> list[Series]:
        """Every row in every place in every round. A place that fails at a row is left out of it from there on."""
        found = [
            Series(
                self.group,
                self.backing,
                row.name,
                clients,
                SECONDS,
                *({name: [] for name in self.places} for _ in "wc"),
            )
            for row in rows
        ]
        for turn in range(self.rounds):
            for row, series in zip(rows, found, strict=True):
                self._round(turn, row, series)
            several = f", {clients} clients" if clients > 1 else ""
            print(f"{self.backing}, {self.group}{several}: round {turn + 1} of {self.rounds}", file=sys.stderr)
        for series in found:
            for name in series.failed:
                series.wall.pop(name, None)
                series.cpu.pop(name, None)
        return found

    def _round(self, turn: int, row: Row, series: Series) -> None:
        servers: set[int | None] = set()
        for name in shuffled(list(self.places), f"{turn} {row.name}"):
            with self.places[name]() as place:
                servers.add(place.pid)
                if name in series.failed:
                    continue
                try:
                    wall, cpu = self._once(row, place, series.clients, f"{turn} {row.name} {series.clients} {name}")
                except (OSError, ClientFailed, subprocess.CalledProcessError) as error:
                    series.failed[name] = str(error)
                else:
                    series.wall[name].append(wall)
                    series.cpu[name].append(cpu)
        forget()
        quiet(list(servers))

    def _once(self, row: Row, place: Place, clients: int, directory: str) -> tuple[float, float]:
        """Seconds per operation, and of the server's CPU."""
        directory = os.path.join(self.where, directory)  # a new name: the old one may be cached
        behind = os.path.join(self.source, directory)
        os.makedirs(os.path.dirname(behind), exist_ok=True)
        before = cpu_seconds(place.pid)
        try:
            wall = row.measure(behind, os.path.join(place.root, directory), clients)
            return wall, (cpu_seconds(place.pid) - before) / (row.count * clients)
        finally:
            shutil.rmtree(behind, ignore_errors=True)


def shuffled(things: list[T], seed: str) -> list[T]:
    """The same in another order, so that nobody always follows the same: what ran before leaves the machine warm."""
    return random.Random(seed).sample(things, len(things))


def forget() -> None:
    """Has the kernel forget what it knows of names and inodes: a peer may keep a descriptor open for each."""
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")
