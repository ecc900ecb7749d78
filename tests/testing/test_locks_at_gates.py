"""What the kernel keeps locked while somebody stands at a gate in the mount: the table of docs/reference/testing.md.

    EXCLFS_WRITE_TABLES=1 pytest tests/testing/test_locks_at_gates.py

writes it; without that a row of the page that differs fails. Each cell is tried: somebody stands, somebody else does
the thing, and is either done or sleeps in a lock of the kernel (wchan, proc_pid_wchan(5)), and is done when the gate
opens.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from exclfs.gating import Selection
from exclfs.testing.server_gates import ServerGate
from exclfs.testing.tasks import look_at, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from exclfs.testing.control import Control
    from harness import Mounted

pytestmark = [pytest.mark.mount, pytest.mark.root]

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "testing.md"
PATIENCE: Final = 30


STANDS: Final[dict[str, tuple[str, Callable[[Path], object]]]] = {
    "`unlink` of `d/v`": ("unlink", lambda top: os.unlink(top / "d/v")),
    "`rmdir` of `d/e`": ("rmdir", lambda top: os.rmdir(top / "d/e")),
    "`rename` of `d/v` to `d/n`": ("rename", lambda top: os.rename(top / "d/v", top / "d/n")),
    "`rename` of `d/e` to `f/e`": ("rename", lambda top: os.rename(top / "d/e", top / "f/e")),
    "`create` of `d/n`": ("create", lambda top: os.open(top / "d/n", os.O_CREAT | os.O_WRONLY)),
    "`mkdir` of `d/n`": ("mkdir", lambda top: os.mkdir(top / "d/n")),
    "`lookup` of `d/n`": ("lookup", lambda top: os.path.exists(top / "d/n")),
    "`open` of `d/v`": ("open", lambda top: os.open(top / "d/v", os.O_RDONLY)),
    "`setattr` of `d/v` (chmod)": ("setattr", lambda top: os.chmod(top / "d/v", 0o600)),
    "`setxattr` of `d/v`": ("setxattr", lambda top: os.setxattr(top / "d/v", "user.x", b"y")),
    "`write` to `d/v`": ("write", lambda top: os.pwrite(os.open(top / "d/v", os.O_WRONLY), b"x", 0)),
    "`read` of `d/v`": ("read", lambda top: os.pread(os.open(top / "d/v", os.O_RDONLY), 1, 0)),
    "`readdir` of `d`": ("readdir", lambda top: os.listdir(top / "d")),
}
"""Who stands, by what the page calls it: the operation, and how to come to it."""

DONE: Final[dict[str, Callable[[Path], object]]] = {
    "stat `d/s`, known": lambda top: os.stat(top / "d/s"),
    "stat `d/u`, never seen": lambda top: os.path.exists(top / "d/u"),
    "list `d`": lambda top: os.listdir(top / "d"),
    "create in `d`": lambda top: os.open(top / "d/c", os.O_CREAT | os.O_WRONLY),
    "unlink `d/s`": lambda top: os.unlink(top / "d/s"),
    "stat `d/v`": lambda top: os.stat(top / "d/v"),
    "open and read `d/v`": lambda top: os.pread(os.open(top / "d/v", os.O_RDONLY), 1, 0),
    "write to `d/v`": lambda top: os.pwrite(os.open(top / "d/v", os.O_WRONLY), b"y", 0),
    "chmod `d/v`": lambda top: os.chmod(top / "d/v", 0o640),
    "create in `f`": lambda top: os.open(top / "f/c", os.O_CREAT | os.O_WRONLY),
    "rename `g/x` to `h/x`": lambda top: os.rename(top / "g/x", top / "h/x"),
}
"""What somebody else does meanwhile."""


def tree(top: Path) -> None:
    for name in ("d/e", "f", "g", "h/"):
        (top / name).mkdir(parents=True)
    for name in ("d/v", "d/s", "g/x"):
        (top / name).write_text("content")


def begin(do: Callable[[Path], object], top: Path) -> int:
    """Does it in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            do(top)
        except OSError:
            pass  # it may be gone by then; that it was not kept waiting is what counts
        finally:
            os._exit(0)
    return child


def is_done_or_sleeps(child: int) -> bool:
    """True: it has ended. False: it sleeps in a lock."""
    before = None
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        task = look_at(child, child)
        where = place(task) if task is not None and task.state in "SD" else ""
        asleep = bool(where) and "wait_answer" not in where
        if asleep and task == before:
            return False
        before = task if asleep else None
        time.sleep(0.001)
    raise AssertionError(f"it is neither done nor does it sleep in a lock: {task}")


_numbers = itertools.count()


def cell(mounted: Mounted, control: Control, stands: str, done: str, when: str) -> str:
    name = str(next(_numbers))
    top = mounted.path / name
    tree(mounted.backing / name)
    for name in ("d/s", "d/v", "g/x"):
        os.stat(top / name)
    operation, come = STANDS[stands]
    # Directories on the way are looked up, too: only that of the name is meant. And the first that comes, not whoever
    # does the same meanwhile.
    pattern = top.relative_to(mounted.root) / ("d/n" if operation == "lookup" else "d/**")
    meant = Selection(operations=operation, pattern=str(pattern), when=when, nth=1)
    children: list[int] = []
    try:
        with ServerGate(control, meant) as gate:
            children.append(begin(come, top))
            gate.wait(PATIENCE)
            children.append(begin(DONE[done], top))
            ended = is_done_or_sleeps(children[1])
            if ended:
                del children[1]
            gate.open()
            while children:
                os.waitpid(children[0], 0)
                del children[0]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return "–" if ended else "waits"


def row(mounted: Mounted, control: Control, stands: str, when: str = "before") -> tuple[str, ...]:
    return tuple(cell(mounted, control, stands, done, when) for done in DONE)


def head() -> str:
    names = ["stands at a gate", *DONE]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"


def line(stands: str, cells: tuple[str, ...]) -> str:
    return f"| {stands} | {' | '.join(cells)} |\n"


MARKED: Final = re.compile(r"<!-- printed: locks -->\n(?P<table>.*?)<!-- end -->", re.DOTALL)


def page_table() -> str:
    found = MARKED.search(PAGE.read_text())
    assert found is not None, f"{PAGE} has no table of locks"
    return found["table"]


def test_the_page_has_these_rows_and_no_other(gated: Mounted, control: Control) -> None:
    if os.environ.get("EXCLFS_WRITE_TABLES"):
        printed = head() + "".join(line(stands, row(gated, control, stands)) for stands in STANDS)
        PAGE.write_text(MARKED.sub(lambda _: f"<!-- printed: locks -->\n{printed}<!-- end -->", PAGE.read_text()))
    assert re.findall(r"^\| (`.*?) \|", page_table(), re.MULTILINE) == list(STANDS)


@pytest.mark.parametrize("stands", STANDS)
def test_a_row_is_as_the_page_says(gated: Mounted, control: Control, stands: str) -> None:
    table = page_table()
    assert table.startswith(head())
    assert line(stands, row(gated, control, stands)) in table


def test_after_it_the_same_is_locked(gated: Mounted, control: Control) -> None:
    stands = "`rename` of `d/e` to `f/e`"
    assert line(stands, row(gated, control, stands, when="after")) in page_table()
