"""What was acknowledged as durable is there when the server is killed, or the disk fails, right after that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

import acknowledged
import loops
from harness import Mounted, mounts_now, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.kinds]

ENOUGH = int(os.environ.get("EXCLFS_DURABLE_ROUNDS", "10"))
"""Of each way, so much is acknowledged before it ends."""


@pytest.fixture
def quick() -> Iterator[Path]:
    """A directory on a tmpfs, if there is one: on a disk ten processes that sync wait for it and for nothing else."""
    with TemporaryDirectory(prefix="exclfs-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


def at_work(directory: Path, end: Callable[[], None], *, to_the_last: bool) -> dict[str, int]:
    """Has all ways at work there, ends it in the midst of that, and gives what had been acknowledged.

    That is before the end, or if `to_the_last` also while it came.
    """
    done = dict.fromkeys(acknowledged.WAYS, -1)
    with subprocess.Popen(
        [sys.executable, acknowledged.__file__],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                way, number = line.split()
                done[way] = int(number)
                if min(done.values()) >= ENOUGH:
                    break
            end()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        for line in process.stdout:
            way, number = line.split()
            if to_the_last:
                done[way] = int(number)
    assert min(done.values()) >= ENOUGH, done
    return done


@contextmanager
def killed_at_last(mounted: Mounted) -> Iterator[Mounted]:
    """A mount whose server will be killed."""
    try:
        yield mounted
    finally:
        mounted.process.kill()
        mounted.process.wait()
        if os.fsencode(mounted.root) in mounts_now():
            subprocess.run(["umount", "-l", str(mounted.root)], check=True)


@pytest.mark.parametrize("options", [{}, {"passthrough": False, "ask_always": True}], ids=str)
def test_a_server_that_is_killed_loses_nothing(quick: Path, options: dict[str, bool]) -> None:
    with killed_at_last(start(quick, **options)) as mounted:
        done = at_work(mounted.path, mounted.process.kill, to_the_last=True)
    assert acknowledged.lost(mounted.backing, done) == []


@pytest.mark.parametrize(("kind", "passthrough"), [("ext4", True), ("xfs", False)])
def test_a_disk_that_fails_has_what_was_acknowledged(quick: Path, kind: str, passthrough: bool) -> None:
    """The filesystem is shut down without writing anything more, not even its log, and mounted again.

    Once in some hundred runs ext4 acknowledged a write with O_DSYNC while it was being shut down, which was lost.
    """
    image, filesystem = quick / "image", quick / "filesystem"
    loops.make_image(image, kind)
    with loops.loop_mount(image, filesystem), start(quick, source=filesystem, passthrough=passthrough) as mounted:
        done = at_work(mounted.path, partial(loops.shut_down, filesystem, loops.FLUSH_NOTHING), to_the_last=False)
    # A copy: another test's mount namespace may keep the one that failed mounted, and it would be mounted once more.
    loops.run("cp", "--sparse=always", image, copy := quick / "copy")
    with loops.loop_mount(copy, filesystem):
        assert acknowledged.lost(filesystem, done) == []
