"""Directories with a million entries are listed in full: whoever else is at work there, in pieces of whatever size."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from big import FULL, MOST_OPEN, Entry, descriptors, entries_of, filesystem, forgotten, make_crowd, memory, served, size

import needs
from loops import make_image, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

ENTRIES = size(50_000, 1_000_000)
KINDS = ("tmpfs", "ext4", "xfs", "btrfs") if FULL else ("ext4",)
DT_DIR, DT_REG = 4, 8
CHURN = """
import os, sys
directory, word = sys.argv[1:]
number = 0
while True:
    name = f"{directory}/{word}{number % 700}"
    try: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError: os.unlink(name)
    number += 1
"""
STABLE = {b"%d" % number for number in range(ENTRIES)} | {b".", b".."}


@pytest.fixture(scope="module", params=KINDS)
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    directory = tmp_path_factory.mktemp("crowd")
    with filesystem(directory / "filesystem", request.param, ENTRIES // 8) as place:
        make_crowd(place / "tree", ENTRIES)
        with served(directory, place / "tree") as mounted:
            yield mounted


@contextmanager
def churning(mounted: Mounted) -> Iterator[None]:
    """Others create and delete: two through the mount, one behind it."""
    places = {"left": mounted.path, "right": mounted.path, "behind": mounted.backing}
    words = [[sys.executable, "-c", CHURN, str(place), word] for word, place in places.items()]
    processes = [subprocess.Popen(command) for command in words]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def must_be_whole(entries: Iterable[Entry]) -> None:
    """Each stable entry once, with the right type, and nothing that never was."""
    seen: Counter[bytes] = Counter()
    for entry in entries:
        seen[entry.name] += 1
        assert entry.type == (DT_DIR if entry.name in {b".", b".."} else DT_REG)
    twice = [name for name in STABLE if seen[name] != 1]
    assert not twice, f"{len(twice)} not seen exactly once, as {[(name, seen[name]) for name in twice[:3]]}"
    others = {name.rstrip(b"0123456789") for name in seen.keys() - STABLE}
    assert others <= {b"left", b"right", b"behind"}


def test_each_stable_entry_once_while_others_create_and_delete(crowd: Mounted, figure: Callable[[str], None]) -> None:
    figure("made and mounted")
    before = memory(crowd)
    with churning(crowd):
        for buffer_size in (32 << 10, 1 << 20, 4096) if FULL else (32 << 10, 4096):
            with opened(crowd.path) as fd:
                must_be_whole(entries_of(fd, buffer_size))
            figure(f"listed with a buffer of {buffer_size}")
        listed = subprocess.run(["ls", "-U", "-1", "-s", crowd.path], stdout=subprocess.PIPE, check=False).stdout
        names = [line.split()[-1] for line in listed.splitlines()[1:]]
        assert sum(name in STABLE for name in names) == len(set(names) & STABLE) == ENTRIES
        figure("listed and looked at")
    figure(f"{memory(crowd) - before >> 20} MiB more in the server")
    assert descriptors(crowd) <= MOST_OPEN
    forgotten(crowd)


def test_pieces_positions_and_readers(crowd: Mounted) -> None:
    with opened(crowd.path) as fd:
        whole = list(entries_of(fd))
        must_be_whole(whole)
        assert len({entry.offset for entry in whole}) == len(whole)
        for entry, following in places(whole):
            os.lseek(fd, entry.offset, os.SEEK_SET)
            assert next(entries_of(fd, 200)).name == following.name
        os.lseek(fd, whole[-1].offset, os.SEEK_SET)
        assert list(entries_of(fd)) == []
        (crowd.path / "left1").touch()
        os.lseek(fd, 0, os.SEEK_SET)
        assert Counter(entry.name for entry in entries_of(fd))[b"left1"] == 1
        (crowd.backing / "left1").unlink()
        os.lseek(fd, 0, os.SEEK_SET)
        must_be_whole(entries_of(fd, 256 if not FULL else 2048))
        os.lseek(fd, 0, os.SEEK_SET)
        with ThreadPoolExecutor(2) as pool:
            halves = pool.map(lambda buffer_size: list(entries_of(fd, buffer_size)), (3000, 8000))
        must_be_whole(entry for half in halves for entry in half)


def places(whole: list[Entry]) -> Iterator[tuple[Entry, Entry]]:
    chosen = random.Random(4).sample(range(len(whole) - 1), 300)
    return ((whole[place], whole[place + 1]) for place in chosen)


@pytest.fixture(scope="module")
def colliding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """An ext4 whose hash is of 32 bits: of so many names some have the same."""
    needs.programs("debugfs")
    directory = tmp_path_factory.mktemp("colliding")
    image, filesystem = directory / "image", directory / "filesystem"
    filesystem.mkdir()
    make_image(image, "ext4", "-E", "hash_seed=11111111-1111-1111-1111-111111111111", mebibytes=64)
    run("debugfs", "-w", "-R", "set_super_value def_hash_version legacy", image)
    run("mount", "-o", "loop", image, filesystem)
    try:
        make_crowd(filesystem / "tree", COLLIDING)
        with served(directory, filesystem / "tree") as mounted:
            yield mounted
    finally:
        run("umount", filesystem)


COLLIDING = 40_000


def test_names_that_collide_are_told_apart_by_where_they_are(colliding: Mounted) -> None:
    with opened(colliding.backing) as fd:
        positions = Counter(entry.offset for entry in entries_of(fd))
    shared = sum(number > 1 for number in positions.values())
    assert shared > 2, "names that the filesystem gives one offset"
    names = {b"%d" % number for number in range(COLLIDING)} | {b".", b".."}
    with opened(colliding.path) as fd:
        whole = list(entries_of(fd))
        assert Counter(entry.name for entry in whole) == dict.fromkeys(names, 1)
        assert len({entry.offset for entry in whole}) == len(whole)
        for buffer_size in (40, 80):  # one at a time, and a few
            os.lseek(fd, 0, os.SEEK_SET)
            assert [entry.name for entry in entries_of(fd, buffer_size)] == [entry.name for entry in whole]
        following = dict(zip((entry.offset for entry in whole), whole[1:], strict=False))
        for entry in whole:
            if entry.offset not in positions:  # in the middle of those that collide
                os.lseek(fd, 0, os.SEEK_SET)
                os.lseek(fd, entry.offset, os.SEEK_SET)
                assert next(entries_of(fd, 40)).name == following[entry.offset].name


def test_one_of_those_that_collide_is_removed_while_they_are_listed(colliding: Mounted) -> None:
    with opened(colliding.path) as fd:
        whole = list(entries_of(fd))
        offsets = Counter(entry.offset for entry in whole)
        with opened(colliding.backing) as behind:
            real = {entry.offset for entry in entries_of(behind)}
        assert set(offsets.values()) == {1}
        middle = next(place for place, entry in enumerate(whole) if entry.offset not in real)
        (colliding.path / os.fsdecode(whole[middle].name)).unlink()
        os.lseek(fd, whole[middle - 5].offset, os.SEEK_SET)
        os.lseek(fd, whole[middle].offset, os.SEEK_SET)
        assert [entry.name for entry in entries_of(fd)] == [entry.name for entry in whole[middle + 1 :]]
