"""The stress run: real processes race on a real mount, and nothing that is held is ever removed.

    make stress ARGS='--rounds 100000 --kinds unlink,rename'

In every round one process places a hold through the control socket and another removes the same object through the
mount, at nearly the same moment. The server is built with the window between its test and its system call widened, so
that they meet; who begins, and by how much, follows what happened before, so that neither side always wins. Several
pairs of processes do so at the same time, each in a directory of its own, for the kernel lets one removal at a time
into a directory.

What is checked in each round: if the removal takes the last link of what is held, just one of the two succeeds. If it
only moves it, the hold is of the object wherever it is then, but from the moment in which the holder hears that it
holds, it stays there until it is released.

With --without-lock the server is built without the lock, and the run succeeds if it finds violations of every kind.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen
from rich.console import Console
from rich.table import Table

import exclfs
from exclfs.holds.flags import DEFAULT, Flags

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from harness import build_variant, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.queues import SimpleQueue

    from harness import Mounted

WINDOW_US: Final = 1500
"""Longer than an answer takes to reach the holder, who has to see what happens after it."""
PAIRS: Final = 8
"""Of processes."""
STEP: Final = 0.00005
"""Seconds by which who has won begins later the next time."""
SHARE: Final = 20
"""Each side wins at least one round of this many, or it was no race."""
BATCH: Final = 50
"""Objects that are made, and holds that are released, at once."""
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def rename(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    here = -100  # AT_FDCWD
    if _libc.renameat2(here, os.fsencode(old), here, os.fsencode(new), flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), old)


@frozen
class Kind:
    """A kind of removal. Each function is given the path of a round's object; beside it others may lie."""

    name: str
    prepare: Callable[[str], None]
    """Makes what the round needs, behind the mount."""
    remove: Callable[[str], None]
    """The removal, through the mount."""
    is_the_end: bool = False
    """It takes the last link of what is held."""
    flags: Flags = DEFAULT
    below: str = ""
    """What must stay, if that is not the held object itself, from there."""
    uses_stripes: bool = True
    """What the lock that --without-lock leaves out orders."""


def _file(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


def _two_files(path: str) -> None:
    _file(path)
    _file(f"{path}.other")


def _file_below(path: str) -> None:
    os.makedirs(f"{path}/sub")
    _file(f"{path}/sub/name")


def _directory_below(path: str) -> None:
    os.makedirs(f"{path}/sub/name")
    os.mkdir(f"{path}.other")


BELOW: Final = Flags.NO_REMOVE_BELOW
KINDS: Final = (
    Kind("unlink", _file, os.unlink, is_the_end=True),
    Kind("rmdir", os.mkdir, os.rmdir, is_the_end=True),
    Kind("replace", _two_files, lambda path: os.rename(f"{path}.other", path), is_the_end=True),
    Kind("rename", _file, lambda path: os.rename(path, f"{path}.moved")),
    Kind("exchange", _two_files, lambda path: rename(path, f"{path}.other", EXCHANGE)),
    Kind("whiteout", _file, lambda path: rename(path, f"{path}.moved", WHITEOUT)),
    Kind(
        "unlink-below",
        _file_below,
        lambda path: os.unlink(f"{path}/sub/name"),
        flags=BELOW,
        below="/sub/name",
        uses_stripes=False,
    ),
    Kind(
        "move-out-of",
        _directory_below,
        lambda path: os.rename(f"{path}/sub", f"{path}.other/sub"),
        flags=BELOW,
        below="/sub",
        uses_stripes=False,
    ),
)


# --- one pair ---------------------------------------------------------------------------------------------------------


@frozen
class Pair:
    """A holder and a remover, and where they meet."""

    kind: Kind
    seen: str
    """Their directory, through the mount."""
    behind: str
    """The same, behind it."""
    rounds: int

    def name(self, number: int) -> str:
        """The object of a round."""
        return f"/{number}"

    def inode(self, number: int) -> int:
        """What the name leads to that must stay, asked behind the mount; 0 for nothing."""
        try:
            return os.lstat(f"{self.behind}{self.name(number)}{self.kind.below}").st_ino
        except OSError:
            return 0

    # The holder is sent a number when a round begins: that of its object. It answers with what it saw when it heard
    # that it holds: the inode that must stay, or 0 if it does not hold. It lets go when it is sent the next number.

    def hold(self, remover: socket.socket) -> None:
        """The holder's process."""
        with exclfs.connect(self.seen) as client:
            holding: list[exclfs.Hold] = []
            while message := remover.recv(100):
                number, wanted = map(int, message.split())
                if len(holding) >= BATCH:
                    client.end(holding[:-1])
                    del holding[:-1]
                held = self._try(client, self.seen + self.name(number))
                if held and self.kind.is_the_end and held[0].inode.ino != wanted:
                    client.end(held)  # the name was looked up after the removal: this is what has replaced it
                    held = ()
                holding += held
                remover.send(b"%d" % (self.inode(number) or 1 if held else 0))

    def _try(self, client: exclfs.Client, path: str) -> tuple[exclfs.Hold, ...]:
        try:
            return client.hold(path, holder="stress", flags=self.kind.flags)
        except (exclfs.Gone, exclfs.BadObject, FileNotFoundError):
            return ()

    def contest(self, holder: socket.socket) -> Counter[str]:
        """The remover's process: runs the rounds, and counts who has won each."""
        results: Counter[str] = Counter()
        chance = random.Random(self.seen)  # noqa: S311 - the same delays each time
        lead = 0.0
        for number in range(self.rounds):
            if number % BATCH == 0:
                for later in range(number, min(number + BATCH, self.rounds)):
                    self.kind.prepare(self.behind + self.name(later))
            path = self.seen + self.name(number)
            with contextlib.suppress(OSError):
                os.lstat(path)  # so that the holder need not look the name up while the directory is locked
            inode = self.inode(number)
            wanted = os.lstat(self.behind + self.name(number)).st_ino
            head_start = lead + chance.uniform(-1, 1) * WINDOW_US * 1e-6
            time.sleep(max(-head_start, 0))
            holder.send(b"%d %d" % (number, wanted))
            time.sleep(max(head_start, 0))
            refused = self._remove(path)
            saw = int(holder.recv(100))
            winner = self._winner(inode, refused=refused, saw=saw, sees=self.inode(number))
            results[winner] += 1
            lead += STEP if winner == "remover" else -STEP
        return results

    def _remove(self, path: str) -> bool:
        try:
            self.kind.remove(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return True
        return False

    def _winner(self, inode: int, *, refused: bool, saw: int, sees: int) -> str:
        """Who has won a round.

        Args:
            inode: what must stay.
            refused: whether the removal was.
            saw: what the holder saw in its place when it heard that it holds; 0 if it does not.
            sees: what is there now.
        """
        if saw == inode and refused and sees == inode:
            return "holder"
        if not refused and sees != inode and (saw == 0 or (saw != inode and not self.kind.is_the_end)):
            return "remover"
        return "violation"


# --- all of them ------------------------------------------------------------------------------------------------------


def run_pair(pair: Pair, results: SimpleQueue[Counter[str]]) -> None:
    """Both processes of a pair, until its rounds are over."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    holder = os.fork()
    if holder == 0:
        ours.close()
        pair.hold(theirs)
        os._exit(0)
    theirs.close()
    results.put(pair.contest(ours))
    ours.close()
    _, status = os.waitpid(holder, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def race(mounted: Mounted, kind: Kind, rounds: int) -> tuple[Counter[str], float]:
    """Runs the rounds of a kind; how often who has won, and the seconds that it took."""
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[Counter[str]] = context.SimpleQueue()
    pairs = []
    for number in range(PAIRS):
        share = rounds * (number + 1) // PAIRS - rounds * number // PAIRS
        name = f"{kind.name}{number}"
        (mounted.backing / name).mkdir()
        pairs.append(Pair(kind, f"{mounted.path}/{name}", f"{mounted.backing}/{name}", share))
    processes = [context.Process(target=run_pair, args=(pair, results)) for pair in pairs]
    began = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a pair that raced for {kind.name} failed")
    return sum((results.get() for _ in processes), Counter()), time.monotonic() - began


def races(kinds: list[Kind], rounds: int, *defines: str) -> Iterator[tuple[Kind, Counter[str], float]]:
    """Races of every kind, each on a mount of its own."""
    with tempfile.TemporaryDirectory(prefix="exclfs-stress-") as workspace:
        build = build_variant(Path(workspace), f"EXCLFS_TEST_WINDOW_US={WINDOW_US}", *defines)
        for kind in kinds:
            directory = Path(workspace) / kind.name
            directory.mkdir()
            with start(
                directory, environment={"PYTHONPATH": str(build)}, threads=2 * PAIRS, entry_timeout=60.0
            ) as mount:
                mount.expect("refused")
                yield kind, *race(mount, kind, rounds)


def main() -> int:
    """Runs the races, prints how they went; 1 if anything was violated, or was no race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100_000, help="of each kind")
    parser.add_argument("--kinds", default=",".join(kind.name for kind in KINDS), help="separated by commas")
    parser.add_argument("--without-lock", action="store_true", help="show that violations are found without the lock")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(5, "scripts/stress.py: it mounts with many threads and allow_other, which needs root\n")
    names = arguments.kinds.split(",")
    if unknown := set(names) - {kind.name for kind in KINDS}:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    kinds = [kind for kind in KINDS if kind.name in names and (kind.uses_stripes or not arguments.without_lock)]
    defines = ["EXCLFS_TEST_WITHOUT_STRIPES"] if arguments.without_lock else []

    table = Table(title=f"window {WINDOW_US} µs, {PAIRS} pairs of processes" + ", without the lock" * bool(defines))
    for column in ("removal", "rounds", "holder won", "remover won", "violations", "rounds/s"):
        table.add_column(column, justify="left" if column == "removal" else "right")
    failed = False
    for kind, results, seconds in races(kinds, arguments.rounds, *defines):
        won = [results["holder"], results["remover"]]
        figures = [arguments.rounds, *won, results["violation"], round(arguments.rounds / seconds)]
        table.add_row(kind.name, *(f"{figure:,}" for figure in figures))
        print(f"{kind.name}: {dict(results)} in {seconds:.0f} s", file=sys.stderr)
        if arguments.without_lock:
            failed |= not results["violation"]
        else:
            failed |= bool(results["violation"]) or min(won) < arguments.rounds // SHARE
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
