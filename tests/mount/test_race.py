"""The race that exclfs exists to decide: a removal against a trylock of the same inode.

The window between the mirror's test and its system call is widened on purpose, holds come over the control socket
(the VFS serialises setxattr and unlink of one inode, so a hold placed by xattr could never race), and each side must
win its share of the rounds, or it was no race. The same rounds against a mirror that was built without the lock must
fail: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import random
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

import exclfs
from harness import start, variant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

ROUNDS = 200
WINDOW_US = 300
SHARE = 20
"""Each side wins at least one round of this many."""

REMOVER = """
import os, sys, time
remove = {"unlink": os.unlink, "rmdir": os.rmdir,
          "replace": lambda path: os.rename(path + ".other", path)}[sys.argv[1]]
for line in sys.stdin:
    path, delay = line.split()
    end = time.perf_counter() + float(delay)
    while time.perf_counter() < end:
        pass
    try:
        remove(path)
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def prepare(kind: str, path: Path) -> None:
    if kind == "rmdir":
        path.mkdir()
        return
    path.write_text("x")
    if kind == "replace":
        path.with_name(path.name + ".other").write_text("y")


def is_there(path: Path, inode: int) -> bool:
    """Whether the name still leads to the inode, asked behind the mount."""
    try:
        return path.stat().st_ino == inode
    except FileNotFoundError:
        return False


def contest(mounted: Mounted, kind: str, rounds: int) -> Counter[str]:
    """Runs the rounds; counts who won each, and violations: held and removed, or neither.

    Each removal here takes the last link of its inode, so both cannot rightly succeed, in whatever order.
    """
    results: Counter[str] = Counter()
    chance = random.Random(kind)  # the same delays each time
    with (
        exclfs.connect(mounted.path) as client,
        subprocess.Popen(
            [sys.executable, "-c", REMOVER, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as remover,
    ):
        assert remover.stdin is not None
        assert remover.stdout is not None
        lead = 0.0
        for number in range(rounds):
            name = f"{kind}{number}"
            path, behind = mounted.path / name, mounted.backing / name
            prepare(kind, path)
            inode = behind.stat().st_ino
            # Who begins, and by how much: adapted to this machine, so that the two meet, and scattered around that.
            head_start = lead + chance.uniform(-1.5, 1.5) * WINDOW_US * 1e-6
            remover.stdin.write(f"{path} {max(head_start, 0):.6f}\n")
            remover.stdin.flush()
            time.sleep(max(-head_start, 0))
            held: tuple[exclfs.Hold, ...] = ()
            with contextlib.suppress(exclfs.Gone, FileNotFoundError):
                held = client.hold(path, holder="race")
            answer = int(remover.stdout.readline())
            if held and held[0].inode.ino != inode:
                client.end(held)  # the name was looked up after the removal: it is the replacement that is held
                held = ()
            if held and answer == errno.EBUSY and is_there(behind, inode):
                results["holder"] += 1
            elif not held and answer == 0 and not is_there(behind, inode):
                results["remover"] += 1
            else:
                results["violation"] += 1
            lead += 0.00003 if answer == 0 else -0.00003
            client.end(held)
        remover.stdin.close()
    return results


@pytest.fixture(scope="module")
def widened() -> Callable[..., Mounted]:
    """Mounts a build whose window is widened, with the lock or without it."""

    def mount(directory: Path, *defines: str) -> Mounted:
        build = variant(f"EXCLFS_TEST_WINDOW_US={WINDOW_US}", *defines)
        return start(directory, environment={"PYTHONPATH": str(build)})

    return mount


@pytest.mark.parametrize("kind", ["unlink", "rmdir", "replace"])
def test_of_a_removal_and_a_trylock_exactly_one_wins(
    widened: Callable[..., Mounted], tmp_path: Path, kind: str
) -> None:
    with widened(tmp_path) as mounted:
        mounted.expect("refused")
        results = contest(mounted, kind, ROUNDS)
    assert results["violation"] == 0, results
    assert min(results["holder"], results["remover"]) >= ROUNDS // SHARE, f"it was no race: {results}"


@pytest.mark.kinds
def test_without_the_lock_both_win(widened: Callable[..., Mounted], tmp_path: Path) -> None:
    """The same rounds, against a mirror whose removals do not take the stripe."""
    with widened(tmp_path, "EXCLFS_TEST_WITHOUT_STRIPES") as mounted:
        mounted.expect("refused")
        results = contest(mounted, "unlink", ROUNDS)
    assert results["violation"] > 0, f"the test does not see what it is there to see: {results}"
