"""Who serves: one worker while that is enough, others as soon as something keeps it; nobody while nothing is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import needs
from exclfs.host.idle import LATENCY_DEVICE
from harness import SANITIZED
from leases import is_waited_for, leased
from program import document

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.kinds]

OPEN_TO_WRITE = "import os, sys; os.close(os.open(sys.argv[1], os.O_WRONLY)); print('opened')"


@pytest.mark.parametrize("threads", [2, 4])
def test_while_all_workers_but_one_are_kept_the_last_serves(mount: Callable[..., Mounted], threads: int) -> None:
    mounted = mount(threads=threads)
    others = mounted.setup("others")
    (mounted.backing / "others/file").write_text("content")
    for number in range(threads - 1):
        (mounted.backing / f"leased{number}").write_text("")
    waiting = []
    with ExitStack() as stack:
        for path in sorted(mounted.backing.glob("leased*")):
            stack.enter_context(leased(path))
            opener = [sys.executable, "-c", OPEN_TO_WRITE, mounted.path / path.name]
            waiting.append(subprocess.Popen(opener, stdout=subprocess.PIPE))
            while not is_waited_for(path):
                time.sleep(0.001)
            assert (others / "file").read_text() == "content"
            (others / "file").rename(others / "moved")
            (others / "moved").rename(others / "file")
            assert os.listdir(others) == ["file"]
        assert all(process.poll() is None for process in waiting)
    for process in waiting:
        assert process.communicate()[0] == b"opened\n"


@pytest.mark.parametrize(("wanted", "opened"), [(True, 1), (False, 0)])
def test_only_who_may_keep_processors_from_halting_has_what_it_takes(
    mount: Callable[..., Mounted], wanted: bool, opened: int
) -> None:
    if wanted and not os.path.exists(LATENCY_DEVICE):
        needs.unmet(f"needs {LATENCY_DEVICE}")
    mounted = mount(idle_poll=wanted)
    descriptors = Path(f"/proc/{mounted.process.pid}/fd").iterdir()
    assert [os.readlink(descriptor) for descriptor in descriptors].count(LATENCY_DEVICE) == opened
    assert document("status", mounted.root)["idle_poll"] is wanted


def switches(mounted: Mounted) -> int:
    """How often the server's threads have gone to sleep, or were put aside."""
    total = 0
    for status in Path(f"/proc/{mounted.process.pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


@pytest.mark.skipif(SANITIZED, reason="a sanitizer has a thread of its own")
def test_nobody_wakes_up_while_nothing_is_asked(mount: Callable[..., Mounted]) -> None:
    mounted = mount()
    (mounted.path / "file").write_text("")
    before, now = -1, switches(mounted)
    while before != now:  # a worker looks after the others for a while
        time.sleep(0.5)
        before, now = now, switches(mounted)


def test_many_clients_at_once_are_all_served(mount: Callable[..., Mounted]) -> None:
    mounted = mount(threads=4)
    work = """
import os, sys
os.chdir(sys.argv[1])
for number in range(300):
    os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
    fd = os.open(f"f{number}", os.O_WRONLY)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)
    os.rename(f"f{number}", f"g{number}")
    os.unlink(f"g{number}")
"""
    clients = []
    for number in range(8):
        mounted.setup(f"client{number}")
        clients.append(subprocess.Popen([sys.executable, "-c", work, mounted.path / f"client{number}"]))
    assert [client.wait() for client in clients] == [0] * 8
    assert sum(len(files) for _, _, files in os.walk(mounted.backing)) == 0
