"""Quotas of the backing filesystem are the requester's: EDQUOT as beside the mount, and room that comes back."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import loops
from twins import ALICE, Twins, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

LIMIT = 4 * loops.MIB


def of_a_subvolume(filesystem: Path) -> None:
    """btrfs: what one directory may take."""
    loops.needs("btrfs")
    loops.run("btrfs", "quota", "enable", filesystem)
    for name in ("one", "other"):
        loops.run("btrfs", "subvolume", "create", filesystem / name)
        loops.run("btrfs", "qgroup", "limit", LIMIT, filesystem / name)


def of_a_user(filesystem: Path) -> None:
    """ext4: what one user may take; each filesystem has one directory of that size."""
    loops.needs("setquota")
    loops.run("setquota", "-u", ALICE.uid, 0, 2 * LIMIT // 1024, 0, 0, filesystem)
    for name in ("one", "other"):
        (filesystem / name).mkdir()


QUOTAS = {"btrfs": (of_a_subvolume, ()), "ext4": (of_a_user, ("-O", "quota"))}


@pytest.fixture(params=QUOTAS)
def limited(any_mount: Mounted, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """A filesystem in the tree, where one directory is used through the mount and the other beside it."""
    prepare, make = QUOTAS[request.param]
    place = any_mount.backing / f"quotas-of-{request.param}"
    place.mkdir()
    image = tmp_path / "image"
    loops.make_image(image, request.param, *make)
    try:
        done = subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True)
        if done.returncode and request.param == "ext4":
            pytest.skip(f"this kernel has no quotas but those of btrfs: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        with ExitStack() as stack:
            # The server may still have descriptors there, which it closes in its time.
            stack.callback(loops.run, "umount", "--lazy", place)
            prepare(place)
            for name in ("one", "other"):
                (place / name).chmod(0o777)
            yield Twins(any_mount.root / place.name / "one", place / "one", place / "other")
    finally:
        place.rmdir()


def write(name: str, size: int) -> None:
    with open(name, "wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())


def allocate() -> None:
    with open("file", "r+b") as file:
        fallocate(file.fileno(), 0, 0, 2 * LIMIT)


BEYOND: list[Callable[[], Any]] = [lambda: write("more", LIMIT), allocate, lambda: write("file", 2 * LIMIT)]


def test_a_quota_is_the_requesters(limited: Twins) -> None:
    limited.succeed(lambda: write("file", LIMIT // 4), ALICE)
    for work in BEYOND:
        assert limited.both(work, ALICE) == "EDQUOT"
    for name in ("more", "file"):
        limited.succeed(lambda: os.unlink(name), ALICE)  # noqa: B023
    loops.sync(limited.behind)
    limited.succeed(lambda: write("file", LIMIT // 4), ALICE)
